"""Backtests of value at risk: does it happen as often as it should that a loss exceeds it, and not in clusters?

A hit is an outcome beyond the forecast quantile, below the one at level 0.05, say; `hits` is a bool array in the order
of time. The tests are of likelihood ratios, with p-values from chi-squared distributions.
"""

import math
from typing import NamedTuple

import numpy as np


class LikelihoodRatio(NamedTuple):
    """A test's statistic, and how likely one at least as large is when nothing is wrong. NaN: cannot be told."""

    statistic: float
    p_value: float


def kupiec(hits: np.ndarray, level: float) -> LikelihoodRatio:
    """Proportion of failures (Kupiec 1995, Techniques for verifying the accuracy of risk measurement models).

    Args:
        hits: bool (n,).
        level: probability of a hit by the forecasts, within (0, 1).

    Returns:
        -2 log(L(level) / L(share of hits)), chi-squared with 1 degree of freedom; (NaN, NaN) when n = 0.
    """
    count, hit = len(hits), int(np.count_nonzero(hits))
    if not count:
        return LikelihoodRatio(float("nan"), float("nan"))
    measured = _log_likelihood(count - hit, hit, hit / count)
    return _one_degree(2 * (measured - _log_likelihood(count - hit, hit, level)))


def christoffersen_independence(hits: np.ndarray) -> LikelihoodRatio:
    """Whether a hit is as likely after a hit as after none (Christoffersen 1998, Evaluating interval forecasts).

    Against a Markov chain of first order. Its likelihoods are of the n - 1 transitions.

    Returns:
        likelihood ratio, chi-squared with 1 degree of freedom. (0, 1) when there is no hit, or nothing but hits, before
        the last row: there is nothing to compare. (NaN, NaN) when n < 2.
    """
    if len(hits) < 2:
        return LikelihoodRatio(float("nan"), float("nan"))
    before, after = np.asarray(hits[:-1], dtype=bool), np.asarray(hits[1:], dtype=bool)
    chain = 0.0
    for state in (False, True):
        count, hit = int((before == state).sum()), int(after[before == state].sum())
        chain += _log_likelihood(count - hit, hit, hit / count) if count else 0.0
    hit, count = int(after.sum()), len(after)
    return _one_degree(2 * (chain - _log_likelihood(count - hit, hit, hit / count)))


def christoffersen_coverage(hits: np.ndarray, level: float) -> LikelihoodRatio:
    """Conditional coverage (Christoffersen 1998): the right share of hits, and independent ones.

    Returns:
        sum of the statistics of :func:`kupiec`, over all n, and :func:`christoffersen_independence`, chi-squared with
        2 degrees of freedom; (NaN, NaN) when n < 2.
    """
    statistic = kupiec(hits, level).statistic + christoffersen_independence(hits).statistic
    return LikelihoodRatio(statistic, math.exp(-0.5 * statistic))


def _log_likelihood(misses: int, hits: int, probability: float) -> float:
    """Of independent draws; 0 log 0 = 0."""
    log = 0.0
    if misses:
        log += misses * math.log1p(-probability)
    if hits:
        log += hits * math.log(probability)
    return log


def _one_degree(statistic: float) -> LikelihoodRatio:
    statistic = max(statistic, 0.0)  # rounding
    return LikelihoodRatio(statistic, math.erfc(math.sqrt(0.5 * statistic)))
