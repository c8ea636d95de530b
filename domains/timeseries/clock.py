"""The clock of a market: how much moves at which hour of the week, learned from the training part alone.

Half-hourly exchange rates move thirty times as much in the afternoon of a weekday as on a Sunday night. A model that
has to find that out by itself, from the size of past moves, is beaten by a table of 168 numbers; so it is given one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from domains.errors import UserError

HOURS_A_WEEK = 168
_SECOND = 1_000_000  # microseconds
_DAY = 86_400
_SHRINK = 20.0  # observations that the table's mean counts for in each cell


def local_seconds(time: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Seconds since 1970 on the local clock, int64, of stamps in microseconds UTC and offsets in seconds."""
    return time // _SECOND + offset


def hour_of_week(time: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Hours since Monday 0:00 on the local clock, int64, 0 to 167."""
    monday = local_seconds(time, offset) + 3 * _DAY  # 1 January 1970 was a Thursday
    return monday // 3600 % HOURS_A_WEEK


def harmonics(time: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Where in the day, the week and the year a stamp lies: sine and cosine of each, float32 (n, 6)."""
    seconds = local_seconds(time, offset)
    periods = (_DAY, 7 * _DAY, 365.2425 * _DAY)
    angles = [2 * np.pi * ((seconds + 3 * _DAY) % period) / period for period in periods]
    return np.stack([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=-1).astype(np.float32)


@dataclass(frozen=True)
class Clock:
    """Mean squared increment by hour of the week, relative to their mean over all observations.

    Attributes:
        profile: float64 (168,), positive; its mean, weighted by how often each hour is observed, is about 1.
    """

    profile: np.ndarray

    @classmethod
    def flat(cls) -> "Clock":
        """A clock on which all hours are alike."""
        return cls(np.ones(HOURS_A_WEEK))

    @classmethod
    def fit(cls, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> "Clock":
        """From the training parts of all series.

        Args:
            parts: for each series, hours of the week int64 (n,) and increments float64 (n,); NaN is left out. Each is
                divided by its own mean square first, so that large series do not decide for the small.
        """
        sums, counts = np.zeros(HOURS_A_WEEK), np.zeros(HOURS_A_WEEK)
        for hours, x in parts:
            known = ~np.isnan(x)
            squares = x[known] ** 2
            mean = squares.mean() if known.any() else 0.0
            if mean > 0:
                sums += np.bincount(hours[known], np.minimum(squares / mean, 100.0), HOURS_A_WEEK)
                counts += np.bincount(hours[known], minlength=HOURS_A_WEEK)
        if not counts.any():
            return cls.flat()
        overall = sums.sum() / counts.sum()
        profile = (sums / overall + _SHRINK) / (counts + _SHRINK)
        return cls(np.maximum(profile, 1e-3))

    def of(self, time: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """The profile at stamps, float64 (n,)."""
        return self.profile[hour_of_week(time, offset)]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"hour_of_week": [float(value) for value in self.profile]}

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "Clock":
        """What :meth:`to_dict` gave; a UserError when it is something else."""
        profile = np.asarray(values.get("hour_of_week", []), dtype=np.float64)
        if profile.shape != (HOURS_A_WEEK,) or not (np.isfinite(profile) & (profile > 0)).all():
            raise UserError(f"{where}: holds no clock of {HOURS_A_WEEK} positive numbers; restore the file")
        return cls(profile)
