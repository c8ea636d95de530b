"""Conformal recalibration: quantile forecasts are read at other levels, such that they held in a trailing window.

The level at which an outcome lies within its forecast is uniform when forecasts are right. When they are not, the
empirical quantile at p of the levels of the last n outcomes is where the next forecast has to be read to be right with
probability p. With ranks out of n + 1 that is exact for exchangeable outcomes (Vovk, Shen, Manokhin and Xie 2019,
Nonparametric predictive distributions based on conformal prediction; Chernozhukov, Wuethrich and Zhu 2021,
Distributional conformal prediction), and the window lets it follow slow drift.

Levels are kept as normal scores, z = the standard normal's quantile at the level. Between the levels of a forecast its
quantiles are linear in z, exactly so for a normal forecast; beyond the outermost level the outermost piece goes on, a
normal tail. Where ranks of n outcomes say nothing, beyond 1 / (n + 1), the normal scores keep their distance too.

A forecast of horizon h made at row r is known at row r + h. What is not known yet is not used.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import overload

import numpy as np

MINIMUM = 100  # outcomes before anything is adjusted
ENOUGH = 1000  # outcomes before a table made in training is left for what they say: ten of them lie beyond a tail of 1%
_FARTHEST = 100.0  # scores are held within +-100, also of a forecast without width
_MOST = 20_000  # outcomes that a pooled window holds at most
_NEVER = np.iinfo(np.int64).max
_BLOCK = 1 << 20  # numbers sorted at a time


def normal_scores(levels: np.ndarray) -> np.ndarray:
    """Quantiles of the standard normal at ``levels`` (...,), within (0, 1)."""
    inverse = NormalDist().inv_cdf
    return np.array([inverse(float(level)) for level in np.ravel(levels)]).reshape(np.shape(levels))


def scores_of(x: np.ndarray, quantiles: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Normal scores of outcomes within their forecasts: the z at which a forecast's quantile is the outcome.

    Args:
        x: float64 (...,), NaN where missing.
        quantiles: float64 (..., q), not decreasing along q.
        levels: float64 (q,), increasing, at least 2.

    Returns:
        float64 (...,), within -100 to 100; NaN where x is.
    """
    nodes = normal_scores(levels)
    index = np.clip((quantiles <= x[..., None]).sum(-1) - 1, 0, len(levels) - 2)
    low, high = _pair(quantiles, index)
    width = np.maximum(high - low, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):
        z = nodes[index] + (x - low) / width * (nodes[index + 1] - nodes[index])
    return np.clip(z, -_FARTHEST, _FARTHEST)


def quantiles_at(quantiles: np.ndarray, levels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Forecasts read at other levels.

    Args:
        quantiles: float64 (..., q) at ``levels`` (q,).
        scores: float64 (..., p) or broadcast to that, normal scores to read them at.

    Returns:
        float64 (..., p); in the order of the scores when those increase.
    """
    nodes = normal_scores(levels)
    index = np.clip(np.searchsorted(nodes, scores, side="right") - 1, 0, len(levels) - 2)
    share = (scores - nodes[index]) / (nodes[index + 1] - nodes[index])
    index = np.broadcast_to(index, (*quantiles.shape[:-1], index.shape[-1]))
    low = np.take_along_axis(quantiles, index, -1)
    high = np.take_along_axis(quantiles, index + 1, -1)
    between = low + share * (high - low)
    between = np.where(share < 1, np.minimum(between, high), between)  # rounding must not put it past its neighbour
    return np.where(share == 1, high, between)  # exactly as it was where nothing is adjusted


class Calibrator:
    """Trailing windows of outcomes, one for each step ahead, and the levels that follow from them.

    For forecasts that come one after the other; :func:`recalibrate` does the same for arrays.

    Attributes:
        levels: float64 (q,), that forecasts are made at and shall hold.
        window: outcomes kept for each step ahead.
        minimum: outcomes from which on levels are adjusted.
        state: float64 (horizon, window), normal scores of outcomes, the last one last; NaN where there was none yet.
            All that there is to save.
    """

    def __init__(
        self,
        levels: np.ndarray,
        horizon: int,
        window: int,
        minimum: int = MINIMUM,
        state: np.ndarray | None = None,
    ) -> None:
        self.levels = np.asarray(levels, dtype=np.float64)
        self.window = window
        self.minimum = minimum
        self.state = np.full((horizon, window), np.nan) if state is None else np.array(state, dtype=np.float64)
        if self.state.shape != (horizon, window):
            raise ValueError(f"state {self.state.shape} is not that of horizon {horizon} and window {window}")

    def push(self, step: int, x: np.ndarray, quantiles: np.ndarray) -> None:
        """Take in outcomes that have become known, and what had been forecast of them.

        Args:
            step: steps ahead that they were forecast, from 1.
            x: float64 (n,), oldest first; NaN is passed over.
            quantiles: float64 (n, q), as forecast, before any recalibration.
        """
        scores = scores_of(np.asarray(x), np.asarray(quantiles), self.levels)
        kept = np.concatenate([self.state[step - 1], scores[~np.isnan(scores)]])
        self.state[step - 1] = kept[-self.window :]

    def adjusted_scores(self) -> np.ndarray:
        """Normal scores to read the next forecasts at, (horizon, q)."""
        return _adjusted(self.state, self.levels, self.minimum)

    def apply(self, quantiles: np.ndarray) -> np.ndarray:
        """Recalibrated forecasts of now: float64 (..., horizon, q) to the same."""
        return quantiles_at(quantiles, self.levels, self.adjusted_scores())


def pooled_scores(scores: np.ndarray, levels: np.ndarray, otherwise: np.ndarray, minimum: int) -> np.ndarray:
    """Normal scores to read forecasts at after outcomes of several series, each with its own trailing window.

    Args:
        scores: float64 (horizon, n), of the outcomes of all series; NaN where there is none.
        levels: float64 (q,), that forecasts are made at and shall hold.
        otherwise: float64 (horizon, q), for steps ahead of which fewer than ``minimum`` outcomes are known.

    Returns:
        float64 (horizon, q), increasing along q where ``otherwise`` is.
    """
    known = (~np.isnan(scores)).sum(axis=1)
    return np.where(known[:, None] >= minimum, _adjusted(scores, levels, minimum), otherwise)


@overload
def recalibrate(
    levels: np.ndarray,
    quantiles: np.ndarray,
    realised: np.ndarray,
    rows: np.ndarray,
    window: int,
    *,
    minimum: int = MINIMUM,
) -> np.ndarray: ...


@overload
def recalibrate(
    levels: np.ndarray,
    quantiles: Sequence[np.ndarray],
    realised: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    window: int,
    *,
    minimum: int = MINIMUM,
    time: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]: ...


def recalibrate(
    levels: np.ndarray,
    quantiles: np.ndarray | Sequence[np.ndarray],
    realised: np.ndarray | Sequence[np.ndarray],
    rows: np.ndarray | Sequence[np.ndarray],
    window: int,
    *,
    minimum: int = MINIMUM,
    time: Sequence[np.ndarray] | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Recalibrate each forecast from the outcomes that were known when it was made.

    Lists of arrays are series whose outcomes are pooled, in the order in which they became known; the window then holds
    ``window`` times as many outcomes as there are series, but at most 20,000.

    Args:
        levels: float64 (q,), increasing.
        quantiles: float64 (c, H, q), not decreasing along q, of forecasts at successive cut-offs.
        realised: float64 (c, H), their outcomes; NaN where there is none.
        rows: int64 (c,), increasing, the row of each cut-off: step h is known from row + h on.
        window: outcomes looked back at, for each step ahead.
        minimum: outcomes known from which on forecasts are adjusted; before, they stay as they are.
        time: of pooled series, int64 (n,), the stamp of each row of the series, by which the series are laid side by
            side. None: equal rows are simultaneous.

    Returns:
        float64 (c, H, q), or a list of them: quantiles at the same levels, not decreasing.
    """
    levels = np.asarray(levels, dtype=np.float64)
    if isinstance(quantiles, np.ndarray):
        assert isinstance(realised, np.ndarray)
        assert isinstance(rows, np.ndarray)
        return _recalibrate(levels, [quantiles], [realised], [rows], None, window, minimum)[0]
    capacity = max(min(window * len(quantiles), _MOST), window)
    return _recalibrate(levels, quantiles, list(realised), list(rows), time, capacity, minimum)


def recalibrate_together(
    levels: np.ndarray,
    quantiles: Sequence[np.ndarray],
    realised: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    time: Sequence[np.ndarray],
    otherwise: Sequence[np.ndarray],
    window: int,
    minimum: int,
) -> list[np.ndarray]:
    """Recalibrate series as the batch job does that keeps them in one file: each has a window of its own last outcomes,
    and all windows are pooled (:mod:`domains.timeseries.trailing`, :func:`pooled_scores`).

    Args:
        levels, quantiles, realised, rows, time: as in :func:`recalibrate`.
        otherwise: what forecasts are where fewer than ``minimum`` outcomes are known, like ``quantiles``.
        window: outcomes of each series, for each step ahead.
        minimum: outcomes of all series.

    Returns:
        Quantiles like ``quantiles``.
    """
    new = [forecast.copy() for forecast in otherwise]
    made, which = np.unique(np.concatenate([t[at] for t, at in zip(time, rows, strict=True)]), return_inverse=True)
    parts = np.split(which, np.cumsum([len(at) for at in rows])[:-1])
    for h in range(new[0].shape[1]):
        scores, comes, goes = [], [], []
        for x, forecast, at, clock in zip(realised, quantiles, rows, time, strict=True):
            own = scores_of(x[:, h], forecast[:, h], levels).astype(np.float32)  # as the job keeps them
            known = np.flatnonzero(~np.isnan(own))
            scores.append(own[known].astype(np.float64))
            comes.append(_due(at[known], h + 1, clock))
            goes.append(np.append(comes[-1][window:], np.full(min(window, len(known)), _NEVER)))
        pooled, coming, going = (np.concatenate(each) for each in (scores, comes, goes))
        adjusted = _pooled_at(made, pooled, coming, going, levels, minimum)
        for result, forecast, index in zip(new, quantiles, parts, strict=True):
            enough = ~np.isnan(adjusted[index, 0])
            result[enough, h] = quantiles_at(forecast[enough, h], levels, adjusted[index[enough]])
    return new


def _pooled_at(
    times: np.ndarray, scores: np.ndarray, comes: np.ndarray, goes: np.ndarray, levels: np.ndarray, minimum: int
) -> np.ndarray:
    """Adjusted scores at increasing times, (t, q), each from the scores that have come by then and not gone; NaN where
    there are fewer than ``minimum``. They are kept in order from one time to the next, as few change."""
    adjusted = np.full((len(times), len(levels)), np.nan)
    held = np.zeros(0)
    by_coming, by_going = np.argsort(comes, kind="stable"), np.argsort(goes, kind="stable")
    came = np.append(0, np.searchsorted(comes[by_coming], times, side="right"))
    gone = np.append(0, np.searchsorted(goes[by_going], times, side="right"))
    for i in range(len(times)):
        new, old = (np.sort(scores[order[n[i] : n[i + 1]]]) for order, n in ((by_coming, came), (by_going, gone)))
        held = np.insert(held, np.searchsorted(held, new), new)
        equal = np.arange(len(old)) - np.searchsorted(old, old)  # the first, the second of equal ones
        held = np.delete(held, np.searchsorted(held, old) + equal)
        if len(held) >= minimum:
            adjusted[i] = _adjusted(held[None], levels, minimum)[0]
    return adjusted


def _recalibrate(
    levels: np.ndarray,
    quantiles: Sequence[np.ndarray],
    realised: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    time: Sequence[np.ndarray] | None,
    capacity: int,
    minimum: int,
) -> list[np.ndarray]:
    if not quantiles:
        return []
    new = [np.empty(forecast.shape) for forecast in quantiles]
    stamps = time if time is not None else [None] * len(rows)
    made = [at if clock is None else clock[at] for at, clock in zip(rows, stamps, strict=True)]
    for h in range(quantiles[0].shape[1]):
        scores = [scores_of(x[:, h], q[:, h], levels) for x, q in zip(realised, quantiles, strict=True)]
        due = [_due(at, h + 1, clock) for at, clock in zip(rows, stamps, strict=True)]
        all_scores, all_due = np.concatenate(scores), np.concatenate(due)
        known = np.flatnonzero(~np.isnan(all_scores))
        known = known[np.argsort(all_due[known], kind="stable")]
        counts = [np.searchsorted(all_due[known], at, side="right") for at in made]  # known when each was made
        distinct, which = np.unique(np.concatenate(counts), return_inverse=True)
        adjusted = _trailing(all_scores[known], distinct, capacity, levels, minimum)
        ends = np.cumsum([len(at) for at in made])[:-1]
        for result, forecast, index in zip(new, quantiles, np.split(which, ends), strict=True):
            result[:, h] = quantiles_at(forecast[:, h], levels, adjusted[index])
    return new


def _due(rows: np.ndarray, step: int, clock: np.ndarray | None) -> np.ndarray:
    """When the outcomes of so many steps ahead are known: the row, or its stamp; never, behind the series' end."""
    if clock is None:
        return rows + step
    ahead = rows + step
    return np.where(ahead < len(clock), clock[np.minimum(ahead, len(clock) - 1)], _NEVER)


def _trailing(scores: np.ndarray, ends: np.ndarray, window: int, levels: np.ndarray, minimum: int) -> np.ndarray:
    """Adjusted scores from the last ``window`` of scores[:end], for each end: (ends, q)."""
    padded = np.concatenate([np.full(window, np.nan), scores])
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)  # number e ends before score e
    step = max(1, _BLOCK // window)
    blocks = [_adjusted(windows[ends[at : at + step]], levels, minimum) for at in range(0, len(ends), step)]
    return np.concatenate(blocks) if blocks else np.empty((0, len(levels)))


def _adjusted(windows: np.ndarray, levels: np.ndarray, minimum: int) -> np.ndarray:
    """Normal scores to read forecasts at, after windows (m, w) of scores: (m, q), increasing along q.

    The one of level p is the order statistic of rank p (n + 1), interpolated. Ranks below 1 and above n go on with the
    distance of normal scores: z(p) - z(1 / (n + 1)) from the extreme one.
    """
    nodes = normal_scores(levels)
    count = (~np.isnan(windows)).sum(1)
    adjusted = np.tile(nodes, (len(windows), 1))
    enough = np.flatnonzero(count >= max(minimum, 1))
    if not len(enough):
        return adjusted
    ordered = np.sort(windows[enough], axis=1)  # NaN come last
    n = count[enough, None]
    rank = levels * (n + 1)
    held = np.clip(rank, 1, n)
    below = np.minimum(held.astype(np.int64), np.maximum(n - 1, 1))
    low = np.take_along_axis(ordered, below - 1, 1)
    high = np.take_along_axis(ordered, np.minimum(below, n - 1), 1)
    distinct, which = np.unique(n[:, 0], return_inverse=True)
    first = normal_scores(1 / (distinct + 1))[which][:, None]  # of rank 1; that of rank n is its negative
    beyond = np.where(rank < 1, nodes - first, np.where(rank > n, nodes + first, 0.0))
    adjusted[enough] = low + (held - below) * (high - low) + beyond
    return adjusted


def _pair(quantiles: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The quantiles of that index (...,) and the next."""
    low, high = (np.take_along_axis(quantiles, at[..., None], -1)[..., 0] for at in (index, index + 1))
    return low, high
