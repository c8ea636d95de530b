"""From observations to what a model sees: causal, and resumable to the bit.

Every number of row i is computed from rows up to i. What it takes to go on behind the last row is a :class:`Running`,
a dozen numbers a series: a history that is read in two parts gives the bits of one that is read at once. That is why
nothing is scaled by a mean over a window or over a file.

The size of moves is measured on the market's clock (:mod:`domains.timeseries.clock`): an increment is divided by the
root of its hour's usual size before it enters the running mean squares. Their weighted sum, with weights learned from
the training part, is the scale that everything is given in; times the profile of the hour to come, it is the spread
that a forecast begins with.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from domains.timeseries.clock import DECAYS, DOWN_DECAYS, Clock, harmonics, hour_of_week, local_seconds
from domains.timeseries.history import increments

BANK = len(DECAYS) + len(DOWN_DECAYS)  # running mean squares
TRENDS = (0.8, 0.97)  # decays of the running means
MOVES = 5 + BANK + len(TRENDS)  # inputs of a row that observations decide
COVARIATE_DECAY = 0.999
_DAY = 86_400_000_000  # microseconds
_LARGEST = 6.0  # logarithms of ratios beyond this say no more
_SMALLEST = 1e-9  # scale of a series that does not move, relative to its level


@dataclass(frozen=True)
class Running:
    """What is carried from one part of a series to the next.

    Attributes:
        y: last observation; NaN before the first.
        time: stamp of the last row, microseconds; None before the first.
        count: increments seen.
        squares: float64 (BANK,), sums behind the running mean squares: of all increments, then of falls alone.
        means: float64 (len(TRENDS),), sums behind the running means.
        covariate_count, covariates: rows seen of each covariate, and (2, p) sums of values and squares.
    """

    y: float = float("nan")
    time: int | None = None
    count: int = 0
    squares: np.ndarray = field(default_factory=lambda: np.zeros(BANK))
    means: np.ndarray = field(default_factory=lambda: np.zeros(len(TRENDS)))
    covariate_count: np.ndarray = field(default_factory=lambda: np.zeros(0))
    covariates: np.ndarray = field(default_factory=lambda: np.zeros((2, 0)))

    @classmethod
    def start(cls, covariates: int) -> "Running":
        """Before the first row of a series with so many past and future covariates."""
        return cls(covariate_count=np.zeros(covariates), covariates=np.zeros((2, covariates)))

    def to_array(self) -> np.ndarray:
        """All of it as float64 (width,); stamps up to 2**53 microseconds are exact."""
        head = np.array([self.y, np.nan if self.time is None else self.time, self.count], dtype=np.float64)
        return np.concatenate([head, self.squares, self.means, self.covariate_count, self.covariates.ravel()])

    @classmethod
    def from_array(cls, values: np.ndarray) -> "Running":
        """What :meth:`to_array` gave."""
        squares, means = 3 + BANK, 3 + BANK + len(TRENDS)
        p = (len(values) - means) // 3
        return cls(
            y=float(values[0]),
            time=None if np.isnan(values[1]) else int(values[1]),
            count=int(values[2]),
            squares=values[3:squares].copy(),
            means=values[squares:means].copy(),
            covariate_count=values[means : means + p].copy(),
            covariates=values[means + p :].reshape(2, p).copy(),
        )

    @staticmethod
    def width(covariates: int) -> int:
        """Length of :meth:`to_array`."""
        return 3 + BANK + len(TRENDS) + 3 * covariates


@dataclass(frozen=True)
class Rows:
    """A stretch of one series, as it came.

    Attributes:
        time: int64 (n,), microseconds. offset: int32 (n,), seconds of the local clock ahead of UTC.
        y: float64 (n,), NaN where missing.
        past: float32 (n, p). future: float32 (n, f). static: float32 (s,).
    """

    time: np.ndarray
    offset: np.ndarray
    y: np.ndarray
    past: np.ndarray
    future: np.ndarray
    static: np.ndarray

    def __len__(self) -> int:
        return len(self.time)

    def part(self, where: slice) -> "Rows":
        """Some of the rows."""
        time, offset, y = self.time[where], self.offset[where], self.y[where]
        return Rows(time, offset, y, self.past[where], self.future[where], self.static)

    def extended(self, time: np.ndarray, offset: np.ndarray) -> "Rows":
        """With rows behind them of which nothing but the stamps is known."""
        pad = ((0, len(time)), (0, 0))
        return Rows(
            np.append(self.time, time),
            np.append(self.offset, offset),
            np.append(self.y, np.full(len(time), np.nan)),
            np.pad(self.past, pad, constant_values=np.nan),
            np.pad(self.future, pad, constant_values=np.nan),
            self.static,
        )


class Seen(NamedTuple):
    """A stretch of one series, as a model sees it."""

    x: np.ndarray  # float64 (n,), increments; NaN where missing
    scale: np.ndarray  # float64 (n,), typical size of an increment in an hour of profile 1, known at each row
    shown: np.ndarray  # int64 (n,), increments seen up to and including each row
    inputs: np.ndarray  # float32 (n, features)
    mean: np.ndarray  # float64 (n, p + f), running means of the covariates
    spread: np.ndarray  # float64 (n, p + f), and their standard deviations


def feature_count(past: int, future: int, static: int) -> int:
    """Numbers that a model gets with each row."""
    return MOVES + 6 + past + future + static


def see(rows: Rows, kind: str, clock: Clock, before: Running) -> tuple[Seen, Running]:
    """What a model sees of the next rows of a series, and what to carry on.

    Args:
        rows: at least one, behind those that ``before`` has seen.
        kind: one of :data:`domains.timeseries.history.KINDS`.
        clock: of the training part.
        before: :meth:`Running.start`, or what the call for the rows before gave.
    """
    x = increments(rows.y, kind, before.y)
    known, moves, count = _moves_of(x, rows.time, rows.offset, clock, before.count)
    squares, last_squares = _mean_squares(moves, known, count, before.squares)
    means, last_means = _running(moves, TRENDS, before.means, known, count)
    level, last_y = _last_known(rows.y, before.y)
    scale = scale_of(squares, level, kind, clock)
    first = rows.time[0] if before.time is None else before.time
    gaps = np.diff(rows.time, prepend=first) / 1e6
    covariates = np.concatenate([rows.past, rows.future], axis=1).astype(np.float64)
    mean, spread, sums, seen = _standard(covariates, before)
    inputs = np.concatenate(
        [
            move_features(x, clock.of(rows.time, rows.offset), gaps, count, squares, means, scale),
            harmonics(rows.time, rows.offset),
            np.nan_to_num(np.clip((covariates - mean) / spread, -_LARGEST, _LARGEST)),
            np.broadcast_to(np.arcsinh(np.nan_to_num(rows.static)), (len(x), len(rows.static))),
        ],
        axis=1,
        dtype=np.float32,
        casting="same_kind",
    )
    after = replace(
        before,
        y=last_y,
        time=int(rows.time[-1]),
        count=int(count[-1]),
        squares=last_squares,
        means=last_means,
        covariate_count=seen,
        covariates=sums,
    )
    return Seen(x, scale, count, inputs, mean, spread), after


def scale_of(squares: np.ndarray, level: np.ndarray, kind: str, clock: Clock) -> np.ndarray:
    """:attr:`Seen.scale` of rows: running mean squares (n, BANK) and last observations (n,) in, float64 (n,) out."""
    floor = _SMALLEST * (np.maximum(np.nan_to_num(np.abs(level)), 1e-30) if kind == "level" else 1.0)
    expected = (squares * clock.memory).sum(axis=1)  # row by row: a product of matrices would round by their size
    return np.maximum(np.sqrt(expected), floor)


def move_features(
    x: np.ndarray,
    profile: np.ndarray,
    gaps: np.ndarray,
    count: np.ndarray,
    squares: np.ndarray,
    means: np.ndarray,
    scale: np.ndarray,
) -> np.ndarray:
    """Those inputs of each row that observations decide; the first ones of :attr:`Seen.inputs`.

    Args:
        x: float64 (n,), increments. profile: float64 (n,), of the clock. gaps: float64 (n,), seconds since the row
            before. count: int64 (n,), increments seen.
        squares, means: float64 (n, BANK) and (n, len(TRENDS)), running means of squares and moves.
        scale: float64 (n,), of :func:`scale_of`.

    Returns:
        float64 (n, MOVES): the move, the logarithm of its size, whether it is missing, how much was seen, the gap; the
        ratios of the running mean squares to the scale, and those of the running means.
    """
    move = np.nan_to_num(x / (scale * np.sqrt(profile)))
    size = np.where(np.isnan(x), 0.0, 0.25 * np.log(move**2 + 1e-4))
    columns = [np.clip(move, -10, 10), size, np.isnan(x), np.minimum(count / 100.0, 1.0), _log_gap(gaps)]
    trends = np.clip(means / scale[:, None], -_LARGEST, _LARGEST)
    return np.concatenate([np.stack(columns, axis=1), _ratios(squares, scale), trends], axis=1)


def mean_squares(x: np.ndarray, time: np.ndarray, offset: np.ndarray, clock: Clock) -> np.ndarray:
    """The running mean squares of a series from its first row on, float64 (n, BANK): what ``clock.memory`` weighs."""
    known, moves, count = _moves_of(x, time, offset, clock, 0)
    return _mean_squares(moves, known, count, np.zeros(BANK))[0]


def steps_ahead(clock: Clock, time: np.ndarray, offset: np.ndarray, kind: str, horizon: int) -> np.ndarray:
    """How far a forecast made at each row may be expected to be off, in units of :attr:`Seen.scale`.

    Args:
        time, offset: of n + horizon rows, the last ``horizon`` of which are only looked ahead to.

    Returns:
        float64 (n, horizon): for prices and levels the root of the profile summed over rows i + 1 to i + h, for returns
        that of row i + h.
    """
    profile = np.lib.stride_tricks.sliding_window_view(clock.of(time, offset)[1:], horizon)
    return np.sqrt(profile if kind == "return" else np.cumsum(profile, axis=1))


def known_ahead(time: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row, what is known before it comes: its hour of the week int64 (n,), and float32 (n, 7) of the calendar
    (harmonics, and the logarithm of the gap before it)."""
    gaps = np.diff(time, prepend=time[:1]) / 1e6
    return hour_of_week(time, offset), np.concatenate([harmonics(time, offset), _log_gap(gaps)[:, None]], axis=1)


def next_stamps(time: np.ndarray, offset: np.ndarray, horizon: int, weekends: bool) -> tuple[np.ndarray, np.ndarray]:
    """Stamps of the rows to come, where nobody says: the usual gap goes on, over Saturdays and Sundays if those are
    never seen.

    Args:
        time, offset: the latest rows of a series, at least one.
        horizon: how many stamps.
        weekends: whether the series has rows on Saturdays or Sundays.
    """
    gap = max(1, int(np.median(np.diff(time[-64:])))) if len(time) > 1 else _DAY
    offsets = np.full(horizon, offset[-1], dtype=np.int32)
    if weekends or _weekday(time[-1:], offset[-1:])[0] >= 5:
        return time[-1] + gap * np.arange(1, horizon + 1, dtype=np.int64), offsets
    stamps: list[int] = []
    stamp = int(time[-1])
    while len(stamps) < horizon:
        stamp += gap
        ahead = 7 - int(_weekday(np.array([stamp]), offset[-1:])[0])
        if ahead <= 2:  # over the weekend in whole steps
            stamp += -(-((ahead - 1) * _DAY + _DAY - _into_day(stamp, int(offset[-1]))) // gap) * gap
        if int(_weekday(np.array([stamp]), offset[-1:])[0]) < 5 or gap >= 2 * _DAY:
            stamps.append(stamp)
    return np.array(stamps, dtype=np.int64), offsets


def _weekday(time: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """0 for Monday to 6 for Sunday, on the local clock."""
    return (local_seconds(time, offset) // 86_400 + 3) % 7


def _into_day(stamp: int, offset: int) -> int:
    """Microseconds since local midnight."""
    return (stamp + offset * 1_000_000) % _DAY


def _moves_of(
    x: np.ndarray, time: np.ndarray, offset: np.ndarray, clock: Clock, before: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with an increment, their increments on the clock, and how many there were up to each row."""
    known = np.flatnonzero(~np.isnan(x))
    moves = x[known] / np.sqrt(clock.of(time[known], offset[known]))
    return known, moves, before + np.cumsum(~np.isnan(x))


def _mean_squares(
    moves: np.ndarray, known: np.ndarray, count: np.ndarray, before: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of all increments and of falls, (n, BANK), and the sums to carry on."""
    both, last = _running(moves**2, DECAYS, before[: len(DECAYS)], known, count)
    falls, last_falls = _running(np.minimum(moves, 0.0) ** 2, DOWN_DECAYS, before[len(DECAYS) :], known, count)
    return np.concatenate([both, falls], axis=1), np.concatenate([last, last_falls])


def _running(
    values: np.ndarray, decays: tuple[float, ...], before: np.ndarray, known: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Exponentially weighted means of ``values``, which stand at rows ``known``, for every row, (n, decays); and the
    sums to carry on. Weights of rows before the series began are left out: the means are those of what was seen."""
    from scipy.signal import lfilter

    out = np.empty((len(count), len(decays)))
    last = before.copy()
    at = np.searchsorted(known, np.arange(len(count)), side="right")  # rows known so far in this stretch
    for k, decay in enumerate(decays):
        sums, final = (
            lfilter([1.0 - decay], [1.0, -decay], values, zi=[decay * before[k]]) if len(values) else ([], None)
        )
        padded = np.concatenate([before[k : k + 1], sums])
        out[:, k] = padded[at] / np.maximum(1.0 - decay**count, 1e-300)
        last[k] = before[k] if final is None else padded[-1]
    return out, last


def _last_known(y: np.ndarray, before: float) -> tuple[np.ndarray, float]:
    """At each row the last observation so far."""
    place = np.maximum.accumulate(np.where(np.isnan(y), -1, np.arange(len(y))))
    level = np.where(place >= 0, y[np.maximum(place, 0)], before)
    return level, float(level[-1])


def _ratios(squares: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Half the logarithm of each running mean square over the square of the scale."""
    tiny = (scale[:, None] * np.exp(-_LARGEST)) ** 2
    return np.clip(0.5 * np.log(np.maximum(squares, tiny)) - np.log(scale)[:, None], -_LARGEST, _LARGEST)


def _standard(covariates: np.ndarray, before: Running) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Running means and standard deviations (n, p) of covariates, and the sums and counts to carry on."""
    means, spreads = np.zeros_like(covariates), np.ones_like(covariates)
    sums, seen = before.covariates.copy(), before.covariate_count.copy()
    for j in range(covariates.shape[1]):
        known = np.flatnonzero(~np.isnan(covariates[:, j]))
        count = seen[j] + np.cumsum(~np.isnan(covariates[:, j]))
        values = covariates[known, j]
        (first, sums[0, j]), (second, sums[1, j]) = (
            (out[:, 0], last[0])
            for out, last in (
                _running(values**power, (COVARIATE_DECAY,), before.covariates[power - 1, j : j + 1], known, count)
                for power in (1, 2)
            )
        )
        means[:, j] = first
        variance = np.maximum(second - first**2, 0.0)
        spreads[:, j] = np.where(variance > 1e-12 * np.maximum(second, 1e-300), np.sqrt(variance), 1.0)
        seen[j] = count[-1]
    return means, spreads, sums, seen


def _log_gap(seconds: np.ndarray) -> np.ndarray:
    return (np.log1p(np.maximum(seconds, 0.0)) / 20.0).astype(np.float32)
