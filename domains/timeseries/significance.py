"""Whether a score is more than luck: rank information coefficients, shares of right signs, differences of losses.

The distributions that p-values and intervals need come from the incomplete beta function below; scipy is not needed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Direction(NamedTuple):
    """How often the sign was right: share, its 95% interval, and the number of cases."""

    share: float
    low: float
    high: float
    cases: int


class RankCorrelation(NamedTuple):
    """Spearman's correlations across a panel: their mean over times, its t-statistic, and the number of times."""

    mean: float
    t_statistic: float
    times: int


class Comparison(NamedTuple):
    """Of the losses of two forecasters: mean of first less second, statistic, two-sided p-value, number of pairs.

    A negative difference says that the first is better.
    """

    difference: float
    statistic: float
    p_value: float
    cases: int


def direction_accuracy(y: np.ndarray, forecast: np.ndarray, confidence: float = 0.95) -> Direction:
    """Share of forecasts with the sign of the outcome, with the exact binomial interval of Clopper and Pearson (1934).

    The interval takes cases to be independent; where horizons overlap or series move together it is too narrow.

    Args:
        y: float64 (...,), outcomes. forecast: float64 (...,). Cases where either is 0 or NaN are left out.
        confidence: of the interval.
    """
    case = (y != 0) & (forecast != 0) & ~np.isnan(y) & ~np.isnan(forecast)
    count, right = int(case.sum()), int((np.sign(y) == np.sign(forecast))[case].sum())
    share = right / count if count else float("nan")
    return Direction(share, *clopper_pearson(right, count, confidence), count)


def clopper_pearson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a probability after ``successes`` out of ``count``; (0, 1) when the count is 0."""
    tail = 0.5 * (1 - confidence)
    low = _solve(lambda p: incomplete_beta(successes, count - successes + 1, p), tail) if successes else 0.0
    if successes == count:
        return low, 1.0
    return low, _solve(lambda p: incomplete_beta(successes + 1, count - successes, p), 1 - tail)


def rank_correlation(forecast: np.ndarray, outcome: np.ndarray, time: np.ndarray) -> RankCorrelation:
    """Rank information coefficient: of each time Spearman's correlation of forecasts and outcomes across series.

    Ties have the average of their ranks. Times with fewer than 3 series, or on which all forecasts or all outcomes are
    equal, are left out. The t-statistic, mean / (standard deviation / sqrt(times)), takes times to be independent.

    Args:
        forecast, outcome: float64 (n,); rows where either is NaN are left out. time: (n,), which rows belong together.
    """
    known = ~np.isnan(forecast) & ~np.isnan(outcome)
    _, group = np.unique(time[known], return_inverse=True)
    ranks = [_ranks_within(values[known], group) for values in (forecast, outcome)]
    count = np.bincount(group)
    left, right = (rank - (np.bincount(group, rank) / count)[group] for rank in ranks)
    spread = np.sqrt(np.bincount(group, left**2) * np.bincount(group, right**2))
    used = (count >= 3) & (spread > 0)
    correlations = np.bincount(group, left * right)[used] / spread[used]
    times = len(correlations)
    mean = float(correlations.mean()) if times else float("nan")
    deviation = float(correlations.std(ddof=1)) if times > 1 else float("nan")
    return RankCorrelation(mean, mean / (deviation / math.sqrt(times)) if deviation > 0 else float("nan"), times)


def diebold_mariano(
    first: np.ndarray, second: np.ndarray, horizon: int = 1, clusters: np.ndarray | None = None
) -> Comparison:
    """Whether two forecasters differ in their mean loss (Diebold and Mariano 1995, Comparing predictive accuracy).

    The variance of the mean difference counts autocovariances up to lag horizon - 1 in full; where that comes out
    negative, with the weights of Newey and West (1987). The statistic has the small-sample correction of Harvey,
    Leybourne and Newbold (1997) and is compared with Student's t of one degree of freedom fewer than there are terms.

    Args:
        first, second: float64 (n,), losses of the two in the order of time; where either is NaN both are left out.
        horizon: steps ahead of the forecasts, in terms of the sum: rows, or clusters.
        clusters: (n,), labels (days, say) that sort in the order of time. Deviations from the mean difference are
            summed within each before all else, so losses of one cluster may depend on each other in any way.

    Returns:
        NaN for statistic and p-value when there are too few terms (at most horizon, or fewer than 2) or when all
        differences are equal.
    """
    difference = first - second
    known = ~np.isnan(difference)
    difference = difference[known]
    count = len(difference)
    mean = float(difference.mean()) if count else float("nan")
    terms = difference - mean
    if clusters is not None and count:
        _, group = np.unique(clusters[known], return_inverse=True)
        terms = np.bincount(group, terms)
    variance = _long_run_sum(terms, horizon - 1) / count**2 if len(terms) > max(horizon, 1) else float("nan")
    rounding = (1e-14 * abs(mean)) ** 2
    if not variance > rounding:
        return Comparison(mean, float("nan"), float("nan"), count)
    size = len(terms)
    correction = math.sqrt((size + 1 - 2 * horizon + horizon * (horizon - 1) / size) / size)
    statistic = correction * mean / math.sqrt(variance)
    return Comparison(mean, statistic, student_p_value(statistic, size - 1), count)


def student_p_value(statistic: float, df: float) -> float:
    """Two-sided p-value of Student's t (DLMF 8.17; Abramowitz and Stegun 26.7.1)."""
    return incomplete_beta(0.5 * df, 0.5, df / (df + statistic**2))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by the continued fraction DLMF 8.17.22 read as Lentz does."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction for the other side converges fast
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    numerator, denominator, fraction = 1.0, 0.0, 1.0
    for step in range(100_000):
        m = step // 2
        if step == 0:
            term = 1.0
        elif step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1 / (1 + term * denominator)
        numerator = 1 + term / numerator
        fraction *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            break
    return math.exp(log_front) / a * (fraction - 1)


def _ranks_within(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Ranks that order ``values`` (n,) within their groups, ties averaged; each group starts at a number of its own."""
    order = np.lexsort((values, group))
    sorted_values, sorted_group = values[order], group[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (sorted_values[1:] != sorted_values[:-1]) | (sorted_group[1:] != sorted_group[:-1])
    tie = np.cumsum(new) - 1
    ranks = np.empty(len(order))
    ranks[order] = (np.bincount(tie, np.arange(len(order))) / np.bincount(tie))[tie] if len(order) else 0.0
    return ranks


def _long_run_sum(terms: np.ndarray, lags: int) -> float:
    """Sum of squares and, twice, of products up to so many terms apart, which is positive unless all terms are 0."""
    products = [float(terms[lag:] @ terms[: len(terms) - lag]) for lag in range(lags + 1)]
    total = products[0] + 2 * sum(products[1:])
    if total > 0:
        return total
    weighted = sum((1 - lag / (lags + 1)) * product for lag, product in enumerate(products) if lag)
    return products[0] + 2 * weighted


def _solve(increasing: Callable[[float], float], wanted: float) -> float:
    """Where a function of (0, 1) has that value, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if increasing(middle) < wanted:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
