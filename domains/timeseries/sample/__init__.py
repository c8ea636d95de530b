"""Daily prices that everyone can have: the S&P 500, NASDAQ and crude oil; SOURCE.md says where they come from."""

from pathlib import Path

from domains.errors import UserError
from domains.files import atomic_file

NAME = "bundled.parquet"


def sample_series(stores: Path | str) -> Path:
    """The bundled table: unique_id (SP500, NASDAQ, WTI), ds (dates), y (closing prices; null where none was quoted).

    5,031 days of each index (1999 to 2018, adjusted for dividends) and 8,611 days of oil (1986 to 2019). They come with
    the package ``arch`` and are written to ``stores`` once, as Parquet, to be prepared like anybody's table.

    Raises:
        UserError: ``arch`` is not installed, or ``stores`` cannot be written.
    """
    path = Path(stores) / NAME
    if path.is_file():
        return path
    try:
        from arch.data import nasdaq, sp500, wti
    except ImportError:
        raise UserError(
            "the bundled series come with the package arch, which is not installed; install arch or give data.path"
        ) from None
    import polars as pl

    found = {"SP500": (sp500, "Adj Close"), "NASDAQ": (nasdaq, "Adj Close"), "WTI": (wti, "DCOILWTICO")}
    frames = []
    for name, (module, column) in found.items():
        prices = module.load()[column]
        days = pl.Series("ds", prices.index.to_numpy()).cast(pl.Date)
        values = pl.Series("y", prices.to_numpy(), nan_to_null=True)
        frames.append(pl.DataFrame([pl.Series("unique_id", [name] * len(days)), days, values]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            pl.concat(frames).write_parquet(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); give another folder as data.stores") from None
    return path
