"""Long tables of series in CSV or Parquet: which files, which columns, and their rows as numbers, batch by batch."""

import difflib
import glob
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from domains.errors import UserError
from domains.timeseries.config import SourceConfig
from domains.timeseries.stamps import REMEDY, StampReader, Stamps

Frame = Any  # a polars DataFrame; polars itself is imported late

_CELLS = 3 << 19  # of a batch: half a million rows of three columns
_CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt")
_PARQUET = (".parquet", ".pq")
WORDS = {  # what people write for what is no number, in lower case
    **dict.fromkeys(("", "na", "n/a", "nan", "null", "none", ".", "-"), float("nan")),
    "true": 1.0,
    "false": 0.0,
}


@dataclass(frozen=True)
class Table:
    """One file of rows.

    Attributes:
        path: the file.
        columns: the columns to read.
        named: whether it has a column of series names; without one it is one series, named after the file.
    """

    path: Path
    columns: tuple[str, ...]
    named: bool

    @property
    def stem(self) -> str:
        """The name of the file without what says its format."""
        name = self.path.name
        ending = next((ending for ending in _CSV + _PARQUET if name.lower().endswith(ending)), "")
        return name[: len(name) - len(ending)] or name


@dataclass(frozen=True)
class Batch:
    """Rows of one file, in its order.

    Attributes:
        frame: polars DataFrame, the rows as they are written.
        names: polars Series of str (n,), the series of each row; null where there is no name.
        stamps: of each row.
        numbers: float64 (n,) for each column of targets and covariates; NaN where missing or no number.
        foreign: bool (n,) for each of them, where something is written that is no number.
    """

    frame: Frame
    names: Any
    stamps: Stamps
    numbers: dict[str, np.ndarray]
    foreign: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.stamps.time)


def value_columns(source: SourceConfig) -> list[str]:
    """The columns that hold numbers, targets first."""
    return [*source.target, *source.past, *source.future, *source.static]


def find_files(path: str, stores: Path) -> list[Path]:
    """The files that a path, a folder (with those below it) or a glob means, in the order of their names.

    What lies in the folder of stores is no source, unless it is named outright.

    Raises:
        UserError: there is none, or it is neither CSV nor Parquet.
    """
    known = ", ".join(_CSV + _PARQUET)
    place = Path(path)
    if place.is_file():
        if not place.name.lower().endswith(_CSV + _PARQUET):
            raise UserError(f"{path}: is neither CSV nor Parquet by its name; it must end in one of {known}")
        return [place]
    if place.is_dir():
        inside = [found.relative_to(place) for found in place.rglob("*")]
        found = [place / name for name in inside if not any(part.startswith((".", "_")) for part in name.parts)]
    elif glob.has_magic(path):
        found = [Path(name) for name in glob.glob(path, recursive=True)]
    else:
        raise UserError(f"{path}: no such file or folder; check data.path")
    made = stores.resolve()
    files = sorted(
        file
        for file in found
        if file.name.lower().endswith(_CSV + _PARQUET) and file.is_file() and made not in file.resolve().parents
    )
    if not files:
        raise UserError(f"{path}: holds or matches no file that ends in one of {known}; check data.path")
    return files


def open_table(path: Path, source: SourceConfig) -> Table | None:
    """Look at the columns of a file; None when it holds no row.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    with _readable(path):
        if path.stat().st_size == 0:
            return None
        if _is_parquet(path):
            columns, empty = _parquet(path).schema_arrow.names, not _parquet(path).metadata.num_rows
        else:
            lazy = _scan_csv(path)
            columns, empty = lazy.collect_schema().names(), not lazy.head(1).collect().height
    if empty:
        return None
    named = source.id in columns
    if not named and source.id != SourceConfig.id:
        raise UserError(f"{path}: has no column {source.id!r} (data.id); {_near(source.id, columns)}")
    for setting in ("time", "target", "past", "future", "static"):
        wanted = getattr(source, setting)
        for column in [wanted] if isinstance(wanted, str) else wanted:
            if column not in columns:
                raise UserError(f"{path}: has no column {column!r} (data.{setting}); {_near(column, columns)}")
    needed = ([source.id] if named else []) + [source.time, *value_columns(source)]
    return Table(path, tuple(needed), named)


def read_names(table: Table, source: SourceConfig) -> Iterator[Any]:
    """The series of each row, as polars Series of str, batch by batch; null where there is no name."""
    column = source.id if table.named else source.time
    for frame in _read_frames(table, (column,)):
        yield _names(table, source, frame)


def read_batches(table: Table, source: SourceConfig, stamps: StampReader) -> Iterator[Batch]:
    """Rows of a file as numbers, in its order.

    Raises:
        UserError: the file is damaged, no row has a stamp that can be read, a column holds text where numbers belong in
            all its rows, or stamps with and without time zone come together.
    """
    row = 0
    found = dict.fromkeys(table.columns, False)  # whether a column held what belongs there
    example: dict[str, str] = {}  # what else it held
    for frame in _read_frames(table, table.columns):
        read = stamps.read(frame[source.time], table.path, row)
        numbers, foreign = {}, {}
        for column in value_columns(source):
            numbers[column], foreign[column] = read_numbers(frame[column])
        wrong = foreign | {source.time: ~(read.known | read.empty)}
        for column, where in wrong.items():
            good = read.known if column == source.time else ~np.isnan(numbers[column])
            found[column] = found[column] or bool(good.any())
            if not found[column] and where.any():
                at = int(np.argmax(where))
                example.setdefault(column, f"row {row + at + 1}: {frame[column][at]!r}")
        yield Batch(frame, _names(table, source, frame), read, numbers, foreign)
        row += frame.height
    for column, shown in example.items():
        if not found[column] and column == source.time:
            raise UserError(f"{table.path}: column {column} holds no stamp that can be read ({shown}); {REMEDY}")
        if not found[column]:
            raise UserError(f"{table.path}: column {column} holds no number ({shown}); name another column")


def read_numbers(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a polars Series, float64 with NaN where there is none, and where something else is written, bool."""
    import polars as pl

    if column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
        return column.cast(pl.Float64).fill_null(float("nan")).to_numpy(), np.zeros(len(column), dtype=bool)
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum):
        return np.full(len(column), np.nan), column.is_not_null().to_numpy()
    text = column.cast(pl.String)
    numbers = text.cast(pl.Float64, strict=False)
    foreign = (numbers.is_null() & text.is_not_null()).to_numpy()
    numbers = numbers.fill_null(float("nan")).to_numpy().copy()
    if foreign.any():  # a second look, at these alone: blanks around numbers, words for nothing, yes and no
        rows = np.flatnonzero(foreign)
        rest = text.gather(rows).str.strip_chars().str.to_lowercase()
        words = rest.replace_strict(list(WORDS), list(WORDS.values()), default=None, return_dtype=pl.Float64)
        second = rest.cast(pl.Float64, strict=False).zip_with(words.is_null(), words)
        numbers[rows] = second.fill_null(float("nan")).to_numpy()
        foreign[rows] = second.is_null().to_numpy()
    return numbers, foreign


def _names(table: Table, source: SourceConfig, frame: Frame) -> Any:
    import polars as pl

    if not table.named:
        return pl.Series([table.stem]).new_from_index(0, frame.height)
    names = frame[source.id].cast(pl.String)
    return names.set(names == "", None)


def _read_frames(table: Table, columns: tuple[str, ...]) -> Iterator[Frame]:
    """Batches of rows; the memory is that of a few of them, whatever the size of the file and of its row groups."""
    import polars as pl

    rows = max(1, _CELLS // max(3, len(columns)))
    with _readable(table.path):
        if _is_parquet(table.path):
            # pyarrow rather than polars, which keeps whole row groups: some tools write a file as a single one.
            for batch in _parquet(table.path).iter_batches(batch_size=rows, columns=list(columns), use_threads=False):
                yield pl.DataFrame(pl.from_arrow(batch))
        else:
            yield from _scan_csv(table.path).select(columns).collect_batches(chunk_size=rows, maintain_order=True)


def _is_parquet(path: Path) -> bool:
    return path.name.lower().endswith(_PARQUET)


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)


def _scan_csv(path: Path) -> Any:
    """All columns as text, so that what a file holds does not depend on a guess from its first rows."""
    import polars as pl

    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as file:
        header = file.readline(1 << 20)
    separator = max(b",;\t", key=header.count)  # a comma when in doubt: max keeps the first
    return pl.scan_csv(path, infer_schema=False, separator=chr(separator))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the libraries say about a damaged file into one line."""
    import polars as pl
    import pyarrow as pa

    try:
        yield
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: holds no header line; write the names of the columns into its first line") from None
    except (pl.exceptions.PolarsError, pa.ArrowException, EOFError, OSError) as error:
        kind = "Parquet" if _is_parquet(path) else "CSV"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"{path}: cannot be read as {kind} ({reason}); write or copy the file again") from None


def _near(name: str, columns: list[str]) -> str:
    same = [column for column in columns if column.lower() == name.lower()]
    if near := same or difflib.get_close_matches(name, columns, n=3):
        return f"did you mean {' or '.join(repr(match) for match in near)}?"
    more = f" and {len(columns) - 10} more" if len(columns) > 10 else ""
    return f"it has {', '.join(columns[:10])}{more}"
