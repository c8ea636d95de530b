"""One series in memory: its stamps, its observations, and the increments that are modelled."""

from dataclasses import dataclass

import numpy as np

KINDS = ("price", "return", "level", "variance", "volatility")
POWERS = {"variance": 1.0, "volatility": 2.0}  # of measured variability: the power of an observation that is a variance


@dataclass(frozen=True)
class History:
    """A series, oldest row first.

    Attributes:
        name: of the series.
        kind: one of KINDS; see :func:`increments`.
        time: int64 (n,), microseconds since 1970 UTC, strictly increasing.
        offset: int32 (n,), seconds that the local clock is ahead of UTC.
        y: float64 (n,), observations; NaN where missing.
        x: float64 (n,), increments; NaN where there is none.
    """

    name: str
    kind: str
    time: np.ndarray
    offset: np.ndarray
    y: np.ndarray
    x: np.ndarray

    @classmethod
    def of(cls, name: str, kind: str, time: np.ndarray, offset: np.ndarray, y: np.ndarray) -> "History":
        """With the increments of ``y``."""
        return cls(name, kind, time, offset, y, increments(y, kind))

    def __len__(self) -> int:
        return len(self.time)


def is_logarithmic(kind: str) -> bool:
    """Whether observations are positive, and increments those of their logarithm."""
    return kind == "price" or kind in POWERS


def increments(y: np.ndarray, kind: str, last: float = float("nan")) -> np.ndarray:
    """What is modelled of observations, one for each row.

    Args:
        y: float64 (n,), NaN where missing; positive for all but levels and returns.
        kind: "price", "variance", "volatility": log(y_i / y_last); "level": y_i - y_last; "return": y_i. y_last is the
            last observation before row i, however long ago.
        last: the observation before the first row; NaN when there is none.

    Returns:
        float64 (n,); NaN where y is missing, and but for returns at the first observation of all.
    """
    if kind == "return":
        return y.astype(np.float64)
    values = np.log(y) if is_logarithmic(kind) else y.astype(np.float64)
    first = np.log(last) if is_logarithmic(kind) else last
    x = np.full(len(y), np.nan)
    seen = np.flatnonzero(~np.isnan(values))
    x[seen] = np.diff(values[seen], prepend=first)
    return x


def cumulated(x: np.ndarray, kind: str, cutoffs: np.ndarray, horizon: int) -> np.ndarray:
    """What comes true behind each cut-off.

    Args:
        x: float64 (n,), increments.
        cutoffs: int64 (c,), the last known row of each forecast.
        horizon: steps ahead.

    Returns:
        float64 (c, horizon): for prices and levels the sum of the increments of rows c + 1 to c + h, for returns that
        of row c + h; NaN where row c + h is missing or behind the end.
    """
    rows = cutoffs[:, None] + np.arange(1, horizon + 1)
    padded = np.append(x, np.full(horizon, np.nan))
    ahead = padded[np.minimum(rows, len(padded) - 1)]
    if kind == "return":
        return ahead
    return np.where(np.isnan(ahead), np.nan, np.cumsum(np.nan_to_num(ahead), axis=1))
