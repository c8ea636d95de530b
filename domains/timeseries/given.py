"""What a table holds of a series, told apart: rows that were absorbed before, rows that are new, and the schedule."""

from typing import NamedTuple

import numpy as np

from domains.timeseries.absorbed import Absorbed, Problem, row_hashes, static_hash
from domains.timeseries.data import read_rows
from domains.timeseries.scaler import Scaler
from domains.timeseries.store import SeriesStore
from domains.timeseries.transforms import Rows


class Given(NamedTuple):
    """The rows of a series that the table holds."""

    name: str
    place: int | None  # in the shard; None: it is new there
    rows: Rows  # new rows, and behind them those that are schedule alone
    fresh: int  # how many are new
    repeated: int  # how many more there were that had been absorbed
    absorbed: Absorbed  # with the new ones
    problem: Problem | None  # why the series is refused, if it is


def compare(
    store: SeriesStore, series: int, place: int | None, absorbed: Absorbed, scaler: Scaler, compare_rows: int
) -> Given:
    """Tell the rows of a series that its state has absorbed from those that are new.

    Args:
        series: its number in the table. place: that in the shard.
        absorbed: by its state; empty where there is none.
        compare_rows: how many are kept to be compared one by one.
    """
    part = store.series(series)
    rows = read_rows(store, series, 0, part.stop - part.start)
    end = observed_rows(rows.y, scaler)
    if absorbed.count:  # what lies before the last stamp came, observed or not
        end = max(end, int(np.searchsorted(rows.time, absorbed.times[-1], side="right")))
    covariates = np.concatenate([rows.past, rows.future], axis=1)[:end]
    times, static = rows.time[:end], static_hash(rows.static)
    hashes = row_hashes(times, rows.offset[:end], rows.y[:end], covariates)
    repeated, problem = absorbed.check(times, hashes, static)
    fresh = 0 if problem else end - repeated
    if fresh:
        absorbed = absorbed.absorb(times, hashes, static, keep=compare_rows)
    return Given(store.names[series], place, rows.part(slice(repeated, None)), fresh, repeated, absorbed, problem)


def observed_rows(y: np.ndarray, scaler: Scaler) -> int:
    """How many rows have come: with covariates known in advance, those at the end without observation are schedule."""
    if not scaler.shape.future:
        return len(y)
    observed = np.flatnonzero(~np.isnan(y))
    return int(observed[-1]) + 1 if len(observed) else 0
