"""Forecasts of a table in memory, without a state kept: for model servers and notebooks."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from domains.errors import UserError
from domains.timeseries.checks import fits, fits_float32
from domains.timeseries.config import LEVELS
from domains.timeseries.forecast_shard import ahead_of, is_ripe, observed_rows, tabulate
from domains.timeseries.history import is_logarithmic
from domains.timeseries.io import WORDS
from domains.timeseries.model import Shape
from domains.timeseries.stream import Carried, Stretch, stream
from domains.timeseries.trained import LoadedModel
from domains.timeseries.transforms import Rows

_WORDS = WORDS | {"<na>": float("nan")}  # as pandas writes it
_CHUNK = 2048
_ROWS = 262_144  # read at once
_NAMES = ("series", "cutoff", "step", "stamp", "last", "centre", "scale", *(f"q{level:g}" for level in LEVELS))


def forecast_columns(
    loaded: LoadedModel,
    names: np.ndarray,
    time: np.ndarray,
    y: np.ndarray,
    covariates: dict[str, np.ndarray] | None = None,
    offset: np.ndarray | None = None,
    target: str = "y",
) -> dict[str, np.ndarray]:
    """Read each series from its first row to its last, and forecast behind that.

    Gives what the batch job gives with calibrate=validation: there is no state here that could know of later outcomes.

    Args:
        loaded: the model, of :func:`domains.timeseries.forecast_shard.load_for_job` for the digits of the batch job.
        names: (n,), the series of each row.
        time: int64 (n,), microseconds since 1970 UTC; sorted within each series or not.
        y: (n,), observations, NaN or None where missing. With covariates known in advance, rows at the end of a series
            without observation are its schedule.
        covariates: column to numbers (n,), those of the model's training.
        offset: int (n,), seconds that the clock of each row is ahead of UTC; counts where the training names no zone,
            and is 0 when None.
        target: what the column of ``y`` is called in messages.

    Returns:
        Columns of one row for each series and step ahead, series in the order in which they come: series, cutoff and
        stamp (int64, microseconds), step, last, centre, scale and ``q<level>``
        (:class:`domains.timeseries.output.ForecastTable`). Series that have shown too few observations have NaN from
        centre on.

    Raises:
        UserError: a covariate is missing, two rows of a series have the same stamp, or a value cannot be used: text, an
            infinite one, a price that is not positive, a static covariate that changes. The line names column, row and
            series.
    """
    y = _observed(target, y, names, loaded.scaler.kind)
    given = _covariates(loaded.scaler.shape, covariates or {}, names)
    zone = loaded.config.data.zone
    clock = _offsets(time, zone) if zone else np.zeros(len(time)) if offset is None else offset
    own = (time, clock.astype(np.int32), y)
    groups = [(name, _stretch(loaded, name, rows, *own, given)) for name, rows in _by_series(names, time)]
    parts = [_forecast(loaded, batch) for batch in _batches([group for group in groups if group[1].new])]
    joined = {column: [part[column] for part in parts] for column in _NAMES}
    columns = {column: np.concatenate(values) if values else np.zeros(0) for column, values in joined.items()}
    place: dict[Any, int] = {name: i for i, (name, _) in enumerate(groups)}
    order = np.argsort([place[name] for name in columns["series"].tolist()], kind="stable")
    return {column: values[order] for column, values in columns.items()}


def _observed(column: str, values: np.ndarray, names: np.ndarray, kind: str) -> np.ndarray:
    """Observations, float64; refused as the batch job keeps rows aside (:mod:`domains.timeseries.checks`)."""
    y = _numbers(column, values, names)
    _refuse(column, ~(np.isnan(y) | fits(y, kind)), y, names, "cannot be used; leave it empty or take the row out")
    if is_logarithmic(kind):
        _refuse(column, y <= 0, y, names, f"is not a positive {kind}; take the row out")
    return y


def _covariates(shape: Shape, given: Mapping[str, np.ndarray], names: np.ndarray) -> dict[str, np.ndarray]:
    """Those of the model, float32 (n,)."""
    found = {}
    for column in (*shape.past, *shape.future, *shape.static):
        if column not in given:
            raise UserError(f"the table has no column {column!r}, a covariate of the model")
        values = _numbers(column, given[column], names)
        wrong = ~(np.isnan(values) | fits_float32(values))
        _refuse(column, wrong, values, names, "cannot be used; leave it empty or take the row out")
        found[column] = values.astype(np.float32)
    return found


def _numbers(column: str, values: np.ndarray, names: np.ndarray) -> np.ndarray:
    """A column as float64, NaN where nothing is written."""
    values = np.asarray(values)
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    found = np.full(len(values), np.nan)
    for row, value in enumerate(values.tolist() if values.dtype.kind == "U" else values):
        try:
            word = _WORDS.get(str(value).strip().lower())
            found[row] = float(value) if word is None else word
        except (TypeError, ValueError):
            raise _wrong(column, row, value, names, "is no number; leave it empty or take the row out") from None
    return found


def _refuse(column: str, where: np.ndarray, values: np.ndarray, names: np.ndarray, why: str) -> None:
    if where.any():
        row = int(np.argmax(where))
        raise _wrong(column, row, float(values[row]), names, why)


def _wrong(column: str, row: int, value: object, names: np.ndarray, why: str) -> UserError:
    return UserError(f"column {column}, row {row + 1} (series {names[row]!r}): {value!r} {why}")


def _by_series(names: np.ndarray, time: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each series, in the order in which they come, with its rows by their stamps."""
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(name, len(numbers)) for name in names.tolist()], dtype=np.int64)
    order = np.lexsort((time, codes))
    borders = np.flatnonzero(np.diff(codes[order])) + 1
    for name, rows in zip(numbers, np.split(order, borders) if len(order) else [], strict=True):
        if (np.diff(time[rows]) == 0).any():
            raise UserError(f"series {name!r}: two rows have the same stamp; keep one of them")
        yield name, rows


def _stretch(
    loaded: LoadedModel,
    name: str,
    rows: np.ndarray,
    time: np.ndarray,
    offset: np.ndarray,
    y: np.ndarray,
    given: dict[str, np.ndarray],
) -> Stretch:
    """All rows of a series, with a forecast wanted behind the last that has come."""
    shape, scaler = loaded.scaler.shape, loaded.scaler
    past, future, static = (
        np.array([given[column][rows] for column in columns], dtype=np.float32).reshape(len(columns), len(rows)).T
        for columns in (shape.past, shape.future, shape.static)
    )
    lowest = np.fmin.reduce(static)
    changes = np.flatnonzero(lowest < np.fmax.reduce(static))
    if len(changes):
        raise UserError(f"column {shape.static[changes[0]]} (series {name!r}): changes, but is a static covariate")
    own = time[rows]
    found = Rows(own, offset[rows], y[rows], past, future, lowest)
    count = observed_rows(found.y, scaler)
    return Stretch(ahead_of(found, count, scaler, own[:count]), count, np.arange(max(0, count - 1), count))


def _offsets(time: np.ndarray, zone: str) -> np.ndarray:
    """Seconds that the clock of a zone is ahead of UTC, int32."""
    import pandas as pd

    there = pd.DatetimeIndex(time.astype("datetime64[us]"), tz="UTC").tz_convert(zone)
    local = there.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    return ((local - time) // 1_000_000).astype(np.int32)


def _batches(groups: list[tuple[str, Stretch]]) -> Iterator[list[tuple[str, Stretch]]]:
    """Series of like length together."""
    batch: list[tuple[str, Stretch]] = []
    for group in sorted(groups, key=lambda group: group[1].new):
        if batch and (len(batch) + 1) * group[1].new > _ROWS:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _forecast(loaded: LoadedModel, batch: list[tuple[str, Stretch]]) -> dict[str, np.ndarray]:
    names, stretches = [name for name, _ in batch], [stretch for _, stretch in batch]
    start = Carried.start(loaded.model, loaded.scaler, len(batch))
    said, after = stream(loaded.model, loaded.scaler, stretches, start, _CHUNK)
    last = np.array([running.y for running in after.running])
    columns = tabulate(names, stretches, said, last, loaded, calibrate=True).columns()
    young = np.repeat([not is_ripe(running) for running in after.running], loaded.scaler.shape.horizon)
    for column in _NAMES[_NAMES.index("centre") :]:
        columns[column] = np.where(young, np.nan, columns[column])
    return columns
