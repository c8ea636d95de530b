"""The clock of a market: how much moves at which hour of the week, learned from the training part alone.

Half-hourly exchange rates move thirty times as much in the afternoon of a weekday as on a Sunday night. A model that
has to find that out by itself, from the size of past moves, is beaten by a table of 168 numbers; so it is given one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from domains.errors import UserError

HOURS_A_WEEK = 168
_SECOND = 1_000_000  # microseconds
_DAY = 86_400
_LARGEST = 100.0  # squares over their mean count for no more than this

DECAYS = (0.5, 0.8, 0.9, 0.94, 0.97, 0.99, 0.999)  # of the running mean squares of increments
DOWN_DECAYS = (0.5, 0.8, 0.9, 0.97)  # of those of falls alone: prices move more after them
MEMORY = np.array([1.0 if decay == 0.99 else 0.0 for decay in DECAYS] + [0.0] * len(DOWN_DECAYS))  # unless fitted


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
    """How much is about to move: by the hour of the week, and by what moved before.

    Attributes:
        profile: float64 (168,), positive: mean squared increment by hour of the week, relative to that of all hours.
        memory: float64 (len(DECAYS) + len(DOWN_DECAYS),), not negative: the expected square of the next increment, in
            an hour of profile 1, is the sum of the running mean squares times these weights
            (:mod:`domains.timeseries.transforms`).
    """

    profile: np.ndarray
    memory: np.ndarray = field(default_factory=lambda: MEMORY)

    @classmethod
    def flat(cls) -> "Clock":
        """A clock on which all hours are alike."""
        return cls(np.ones(HOURS_A_WEEK))

    @classmethod
    def fit(cls, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> "Clock":
        """The profile, from the training parts of all series.

        Each series is divided by its own mean square first, so that large ones do not decide for the small. How far an
        hour's mean is believed depends on how much hours differ and on how often it was seen (empirical Bayes, by the
        method of moments: Efron and Morris 1973): of daily data, whose weekdays hardly differ, little remains.

        Args:
            parts: for each series, hours of the week int64 (n,) and increments float64 (n,); NaN is left out.
        """
        count, total, squared = np.zeros(HOURS_A_WEEK), np.zeros(HOURS_A_WEEK), np.zeros(HOURS_A_WEEK)
        for hours, x in parts:
            known = ~np.isnan(x)
            squares = x[known] ** 2
            mean = squares.mean() if known.any() else 0.0
            if mean > 0:
                relative = np.minimum(squares / mean, _LARGEST)
                count += np.bincount(hours[known], minlength=HOURS_A_WEEK)
                total += np.bincount(hours[known], relative, HOURS_A_WEEK)
                squared += np.bincount(hours[known], relative**2, HOURS_A_WEEK)
        return cls(np.maximum(_shrunk(count, total, squared), 1e-3))

    def of(self, time: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """The profile at stamps, float64 (n,)."""
        return self.profile[hour_of_week(time, offset)]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"hour_of_week": self.profile.tolist(), "memory": self.memory.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "Clock":
        """What :meth:`to_dict` gave; a UserError when it is something else."""
        profile, memory = (np.asarray(values.get(name, []), np.float64) for name in ("hour_of_week", "memory"))
        right = profile.shape == (HOURS_A_WEEK,) and (np.isfinite(profile) & (profile > 0)).all()
        right = right and memory.shape == MEMORY.shape and (np.isfinite(memory) & (memory >= 0)).all() and memory.any()
        if not right:
            raise UserError(f"{where}: holds no clock of {HOURS_A_WEEK} hours; restore the file or train again")
        return cls(profile, memory)


def _shrunk(count: np.ndarray, total: np.ndarray, squared: np.ndarray) -> np.ndarray:
    """Means of the cells, drawn towards that of all, relative to it; 1 where nothing was seen."""
    seen = count > 0
    n, cells = count[seen], int(seen.sum())
    if cells < 2 or n.sum() <= cells:
        return np.ones(len(count))
    means, overall = total[seen] / n, total.sum() / n.sum()
    within = max((squared[seen] - n * means**2).sum() / (n.sum() - cells), 1e-12)
    between = (n * (means - overall) ** 2).sum() - (cells - 1) * within
    between = max(between / (n.sum() - (n**2).sum() / n.sum()), 0.0)
    believed = between / (between + within / n)
    profile = np.ones(len(count))
    profile[seen] += believed * (means / overall - 1.0)
    return profile
