"""Forecasts of a table in memory, without a state kept: for model servers and notebooks."""

from typing import Any

import numpy as np

from domains.errors import UserError
from domains.timeseries.config import LEVELS
from domains.timeseries.stream import Carried, Stretch, forecasts, stream
from domains.timeseries.trained import LoadedModel
from domains.timeseries.transforms import Rows, next_stamps

CHUNK = 2048
_PLAIN = ("series", "cutoff", "step", "stamp", "last", "scale")


def forecast_columns(
    loaded: LoadedModel,
    names: np.ndarray,
    time: np.ndarray,
    y: np.ndarray,
    covariates: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Read each series from its first row to its last, and forecast behind that.

    Args:
        loaded: the model, on the CPU.
        names: (n,), the series of each row.
        time: int64 (n,), microseconds since 1970 UTC; sorted within each series or not.
        y: float64 (n,), observations, NaN where missing.
        covariates: column to float (n,), those of the model's training.

    Returns:
        Columns of one row for each series and step ahead: series, cutoff and stamp (int64, microseconds), step, last,
        scale (standard deviation of the increment) and ``q<level>`` in units of y. Series that have shown too few
        observations have NaN.

    Raises:
        UserError: a covariate is missing, or two rows of a series have the same stamp.
    """
    found: dict[str, list[Any]] = {
        name: []
        for name in ("series", "cutoff", "step", "stamp", "last", "scale", *(f"q{level:g}" for level in LEVELS))
    }
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        rows = rows[np.argsort(time[rows], kind="stable")]
        if (np.diff(time[rows]) == 0).any():
            raise UserError(f"series {name!r}: two rows have the same stamp; keep one of them")
        for column, values in _one(loaded, name, time[rows], y[rows], _columns(loaded, covariates or {}, rows)).items():
            found[column].append(values)
    return {column: np.concatenate(values) if values else np.zeros(0) for column, values in found.items()}


def _one(
    loaded: LoadedModel, name: Any, time: np.ndarray, y: np.ndarray, columns: tuple[np.ndarray, ...]
) -> dict[str, np.ndarray]:
    scaler, h, n = loaded.scaler, loaded.scaler.shape.horizon, len(time)
    offset = np.zeros(n, np.int32)
    stamps, offsets = next_stamps(time, offset, h, scaler.weekends)
    past, future, static = columns
    rows = Rows(time, offset, y, past, future, static).extended(stamps, offsets)
    start = Carried.start(loaded.model, scaler, 1)
    said, after = stream(loaded.model, scaler, [Stretch(rows, n, np.array([n - 1]))], start, CHUNK)
    found = forecasts(loaded.model, said[0], np.array(LEVELS))
    last = after.running[0].y
    values = loaded.calibration.apply(found.quantiles[0]) if said[0].ripe[0] else np.full((h, len(LEVELS)), np.nan)
    values = {"price": last * np.exp(values), "level": last + values, "return": values}[scaler.kind]
    table = {
        "series": np.full(h, name),
        "cutoff": np.full(h, time[-1]),
        "step": np.arange(1, h + 1),
        "stamp": stamps,
        "last": np.full(h, last),
        "scale": np.sqrt(found.variance[0]),
    }
    return table | {f"q{level:g}": values[:, j] for j, level in enumerate(LEVELS)}


def _columns(loaded: LoadedModel, given: dict[str, np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Past (n, p) and future (n, f) covariates of a series, and its static ones (s,)."""
    shape = loaded.scaler.shape
    for name in (*shape.past, *shape.future, *shape.static):
        if name not in given:
            raise UserError(f"the table has no column {name!r}, a covariate of the model")
    past, future = (
        np.stack([given[name][rows].astype(np.float32) for name in names], axis=1)
        if names
        else np.zeros((len(rows), 0), np.float32)
        for names in (shape.past, shape.future)
    )
    static = np.array([given[name][rows[0]] for name in shape.static], dtype=np.float32)
    return past, future, static
