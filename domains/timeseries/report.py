"""From forecasts to numbers: each method's scores over the same outcomes, and whether differences could be chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from domains.timeseries import metrics, risk, significance
from domains.timeseries.clock import local_seconds
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.history import History, cumulated

TAILS = (0.05, 0.01)  # of value at risk


@dataclass(frozen=True)
class Outcomes:
    """What was to be foretold: c cut-offs of all series, one series behind the other.

    Attributes:
        names: of the series.
        series: int64 (c,), index into ``names``.
        time: int64 (c,), stamp of each cut-off, microseconds.
        later: int64 (c, h), stamp of each outcome.
        day: int64 (c, h), local day of each outcome.
        x: float64 (c, h), outcomes in units of increments; NaN where missing.
        size: float64 (c, h), mean size of such outcomes in the training part of the series (of MASE); NaN where that
            has none, or none but zeros.
        last: float64 (c,), the last increment known at each cut-off; NaN where there was none.
    """

    names: tuple[str, ...]
    series: np.ndarray
    time: np.ndarray
    later: np.ndarray
    day: np.ndarray
    x: np.ndarray
    size: np.ndarray
    last: np.ndarray

    @classmethod
    def of(
        cls, histories: Sequence[History], cutoffs: Sequence[np.ndarray], ends: np.ndarray, horizon: int
    ) -> "Outcomes":
        """Outcomes behind the cut-offs (rows) of each series; rows before ``ends`` are its training part."""
        names = ("series", "time", "later", "day", "x", "size", "last")
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for i, (history, rows, end) in enumerate(zip(histories, cutoffs, ends, strict=True)):
            ahead = rows[:, None] + np.arange(1, horizon + 1)
            parts["series"].append(np.full(len(rows), i))
            parts["time"].append(history.time[rows])
            parts["later"].append(history.time[ahead])
            parts["day"].append(local_seconds(history.time[ahead], history.offset[ahead]) // 86_400)
            parts["x"].append(cumulated(history.x, history.kind, rows, horizon))
            parts["size"].append(np.full(ahead.shape, _naive_error(history, int(end))))
            parts["last"].append(_last_known(history.x)[rows])
        joined = {name: np.concatenate(values) for name, values in parts.items()}
        return cls(tuple(history.name for history in histories), **joined)


@dataclass(frozen=True)
class Scores:
    """The numbers of one method.

    Attributes:
        overall: name to number, over all steps ahead.
        by_step: name to a number for each step ahead.
        by_series: CRPS of each series.
    """

    overall: dict[str, float]
    by_step: dict[str, list[float]] = field(default_factory=dict)
    by_series: dict[str, float] = field(default_factory=dict)
    covered: float = 1.0  # share of the outcomes that the method gave a forecast for


def score(
    outcomes: Outcomes, found: Mapping[str, Forecasts], factor: float, reference: str, power: float | None = None
) -> dict[str, Scores]:
    """Score every method.

    Args:
        outcomes: what came true.
        found: method to forecasts at the cut-offs of ``outcomes``; NaN where a method has none.
        factor: outcomes and forecasts are multiplied by it: to per cent, to basis points.
        reference: the method that others are compared with (Diebold and Mariano, losses summed by day).
        power: of observations that is a variance, where they measure variability (:data:`history.POWERS`).
    """
    losses = {name: _Losses.of(outcomes, forecasts, factor, power) for name, forecasts in found.items()}
    return {name: _score(outcomes, own, losses[reference], name == reference) for name, own in losses.items()}


@dataclass(frozen=True)
class _Losses:
    """One method: outcomes, their usual size and forecasts in the unit of the table, and losses, (c, h)."""

    x: np.ndarray
    size: np.ndarray
    forecasts: Forecasts
    crps: np.ndarray
    ticks: dict[float, np.ndarray]
    target: np.ndarray | None  # QLIKE of the observations themselves

    @classmethod
    def of(cls, outcomes: Outcomes, given: Forecasts, factor: float, power: float | None) -> "_Losses":
        own = Forecasts(given.levels, factor * given.quantiles, factor * given.mean, factor**2 * given.variance)
        x = np.where(np.isnan(own.mean), np.nan, factor * outcomes.x)
        ticks = {tail: metrics.pinball(x, _quantile(own, tail)[..., None], np.array([tail]))[..., 0] for tail in TAILS}
        crps = metrics.crps_from_quantiles(x, own.quantiles, own.levels)
        target = None if power is None else metrics.qlike_of_target(outcomes.x, given.quantiles, given.levels, power)
        return cls(x, factor * outcomes.size, own, crps, ticks, target)


def _score(outcomes: Outcomes, own: _Losses, reference: _Losses, is_reference: bool) -> Scores:
    x, forecasts = own.x, own.forecasts
    middle = _quantile(forecasts, 0.5)
    steps = x.shape[1]
    overall = {
        "crps": _mean(own.crps),
        "wql": metrics.weighted_quantile_loss(x, forecasts.quantiles, forecasts.levels),
        "mase": _mean(np.abs(x - middle) / own.size),
        "qlike": metrics.qlike(x - forecasts.mean, forecasts.variance),
        "qlike_1": metrics.qlike((x - forecasts.mean)[:, 0], forecasts.variance[:, 0]),
    }
    if own.target is not None:
        overall["qlike_target"] = _mean(own.target)
    kept = metrics.central_coverage(x, forecasts.quantiles, forecasts.levels)
    overall |= {f"coverage_{100 * nominal:.0f}": share for nominal, share in kept.items()}
    overall |= _value_at_risk(outcomes, own)
    overall |= _directions(outcomes, own)
    if not is_reference:
        overall |= _compare("crps", own.crps, reference.crps, outcomes.day)
        if own.target is not None and reference.target is not None:
            overall |= _compare("qlike_target", own.target, reference.target, outcomes.day)
        for tail in TAILS:
            overall |= _compare(f"tick_{100 * tail:.0f}", own.ticks[tail], reference.ticks[tail], outcomes.day)
    low, high = (_quantile(forecasts, level) for level in (0.1, 0.9))
    by_step = {
        "crps": [_mean(own.crps[:, h]) for h in range(steps)],
        "qlike": [metrics.qlike((x - forecasts.mean)[:, h], forecasts.variance[:, h]) for h in range(steps)],
        "coverage_80": [metrics.coverage(x[:, h], low[:, h], high[:, h]) for h in range(steps)],
    }
    by_series = {name: _mean(own.crps[outcomes.series == i]) for i, name in enumerate(outcomes.names)}
    known = ~np.isnan(outcomes.x)
    return Scores(overall, by_step, by_series, float((~np.isnan(x) & known).sum() / max(known.sum(), 1)))


def _value_at_risk(outcomes: Outcomes, own: _Losses) -> dict[str, float]:
    """Hits and tests of the lower quantiles one step ahead, and tick loss at all steps.

    Of several series the hits are pooled. Series that move together are hit together: the tests then reject too soon.
    """
    found: dict[str, float] = {}
    for tail in TAILS:
        name = f"var_{100 * tail:.0f}"
        hits = own.x < _quantile(own.forecasts, tail)
        known = ~np.isnan(own.x)
        one_ahead = hits[:, 0][known[:, 0]]
        test = risk.kupiec(one_ahead, tail)
        found |= {
            f"{name}_hits": float(one_ahead.mean()) if one_ahead.size else float("nan"),
            f"{name}_kupiec_p": test.p_value,
            f"{name}_tick": _mean(own.ticks[tail]),
        }
        found[f"{name}_christoffersen_p"] = _independence(outcomes, hits[:, 0], known[:, 0], tail)
    return found


def _independence(outcomes: Outcomes, hits: np.ndarray, known: np.ndarray, tail: float) -> float:
    """p-value of conditional coverage one step ahead: of one series its own, of several the sum of the statistics, each
    chi-squared with 2 degrees of freedom (series that move together make it too small)."""
    statistics = []
    for i in range(len(outcomes.names)):
        test = risk.christoffersen_coverage(hits[(outcomes.series == i) & known], tail)
        if not np.isnan(test.statistic):
            statistics.append(test.statistic)
    if not statistics:
        return float("nan")
    return _chi_squared_tail(sum(statistics), len(statistics))


def _chi_squared_tail(statistic: float, pairs: int) -> float:
    """P(chi-squared with 2 ``pairs`` degrees of freedom > statistic): a Poisson distribution function."""
    half = 0.5 * statistic
    logs = np.cumsum(np.log(np.maximum(half, 1e-300)) - np.log(np.arange(1, pairs))) if pairs > 1 else np.zeros(0)
    return float(np.exp(-half) + np.exp(logs - half).sum())


def _directions(outcomes: Outcomes, own: _Losses) -> dict[str, float]:
    """Signs one step ahead, beside those of the bounce, by which each move is turned back by the next (prices that jump
    between bid and ask: Roll 1984); and rank correlation across series where there are three or more."""
    middle = _quantile(own.forecasts, 0.5)[:, 0]
    # A median that rounding alone moves from 0 names no direction.
    middle = np.where(np.abs(middle) < 1e-6 * np.sqrt(own.forecasts.variance[:, 0]), 0.0, middle)
    found: dict[str, float] = {}
    for name, x, said in (("direction", own.x, middle), ("bounce", outcomes.x, -outcomes.last)):
        signs = significance.direction_accuracy(x[:, 0], said)
        ends = (signs.low, signs.high) if signs.cases else (float("nan"), float("nan"))
        found |= {name: signs.share, f"{name}_low": ends[0], f"{name}_high": ends[1]}
    if len(outcomes.names) >= 3:
        ranks = significance.rank_correlation(own.forecasts.mean[:, 0], own.x[:, 0], outcomes.later[:, 0])
        found |= {"rank_ic": ranks.mean, "rank_ic_t": ranks.t_statistic}
    return found


def _compare(name: str, own: np.ndarray, reference: np.ndarray, days: np.ndarray) -> dict[str, float]:
    """Diebold and Mariano: a positive difference says that this method is worse than the reference."""
    known = ~np.isnan(own) & ~np.isnan(reference)
    if not known.any():
        return {}
    test = significance.diebold_mariano(own[known], reference[known], _days_ahead(days), days[known])
    return {f"{name}_worse_by": test.difference, f"{name}_p": test.p_value}


def _days_ahead(days: np.ndarray) -> int:
    """How many days with outcomes the outcomes of one cut-off span at most: losses of so many days hang together."""
    _, number = np.unique(days, return_inverse=True)
    number = number.reshape(days.shape)
    return 1 + int((number[:, -1] - number[:, 0]).max())


def _quantile(forecasts: Forecasts, level: float) -> np.ndarray:
    """(c, h), of a level that the forecasts carry."""
    place = int(np.argmin(np.abs(forecasts.levels - level)))
    assert abs(forecasts.levels[place] - level) < 1e-9, level
    return forecasts.quantiles[..., place]


def _naive_error(history: History, end: int) -> float:
    """Mean absolute error of the naive forecast one step ahead in the training part (Hyndman and Koehler 2006); NaN
    where there is none, or none but zeros. Of prices and levels an increment is that error."""
    x = history.x[:end]
    errors = np.diff(x) if history.kind == "return" else x
    size = _mean(np.abs(errors))
    return size if size > 0 else float("nan")


def _last_known(x: np.ndarray) -> np.ndarray:
    """Of each row the last increment so far; NaN before the first."""
    place = np.maximum.accumulate(np.where(np.isnan(x), 0, np.arange(len(x))))
    return x[place]


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def pit(x: np.ndarray, forecasts: Forecasts) -> np.ndarray:
    """Where outcomes fell within their forecasts, (c, h), by the forecasts' quantiles; NaN where missing."""
    flat = forecasts.quantiles.reshape(-1, len(forecasts.levels))
    levels = np.concatenate([[0.0], forecasts.levels, [1.0]])
    out = np.full(x.size, np.nan)
    values = x.ravel()
    below = (flat <= values[:, None]).sum(axis=1)
    known = ~np.isnan(values) & ~np.isnan(flat).any(axis=1)
    rows = np.flatnonzero(known)
    left, right = np.maximum(below[rows] - 1, 0), np.minimum(below[rows], len(forecasts.levels) - 1)
    span = flat[rows, right] - flat[rows, left]
    share = np.where(span > 0, (values[rows] - flat[rows, left]) / np.where(span > 0, span, 1.0), 0.5)
    out[rows] = levels[below[rows]] + np.clip(share, 0, 1) * (levels[below[rows] + 1] - levels[below[rows]])
    return out.reshape(x.shape)


def plain(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """As plain values, for JSON, which has no other numbers than finite ones; the rest becomes None."""
    return {
        name: {
            "overall": _clean(one.overall),
            "by_step": {key: [_none(value) for value in values] for key, values in one.by_step.items()},
            "by_series": _clean(one.by_series),
            "covered": one.covered,
        }
        for name, one in scores.items()
    }


def _clean(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: _none(value) for key, value in values.items()}


def _none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
