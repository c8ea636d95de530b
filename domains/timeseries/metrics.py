"""Scores of forecasts: how far off they were, how wide their intervals, how honest their probabilities.

Everything is numpy float64. A NaN among outcomes is a missing one: it has a NaN score, and averages leave it out.
"""

import numpy as np

from domains.timeseries.calibration import normal_scores, quantiles_at

_CELLS = 200  # of equal probability, that an expectation is the mean over
_BLOCK = 20_000  # forecasts at a time


def pinball(y: np.ndarray, quantiles: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Pinball or tick loss (Koenker and Bassett 1978, Regression quantiles).

    Args:
        y: float64 (...,), outcomes.
        quantiles: float64 (..., q).
        levels: float64 (q,), within (0, 1).

    Returns:
        float64 (..., q), in units of y: (level - 1{y < quantile}) (y - quantile).
    """
    miss = y[..., None] - quantiles
    return np.maximum(levels * miss, (levels - 1) * miss)


def weighted_quantile_loss(y: np.ndarray, quantiles: np.ndarray, levels: np.ndarray) -> float:
    """Mean over the levels of 2 * (sum of pinball losses) / (sum of |y|), sums over all forecasts.

    The definition of GluonTS (Alexandrov et al. 2020, mean_weighted_sum_quantile_loss) and of GIFT-Eval (Aksu et al.
    2024), who calls it CRPS. NaN when all outcomes are 0 or missing. Arguments as in :func:`pinball`.
    """
    known = ~np.isnan(y)
    total = float(np.abs(y[known]).sum())
    if total == 0:
        return float("nan")
    return 2 * float(pinball(y[known], quantiles[known], levels).sum(0).mean()) / total


def crps_from_quantiles(y: np.ndarray, quantiles: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of forecasts that are known by some quantiles.

    The CRPS is twice the integral of the pinball loss over all levels (Gneiting and Ranjan 2011, Comparing density
    forecasts using threshold- and quantile-weighted scoring rules). This takes it by the trapezoid rule, however uneven
    the levels, with a loss of 0 at levels 0 and 1. At the fifteen levels of config.LEVELS it is within 4% of the true
    score of a normal forecast at outcomes of up to three standard deviations, and 1% low on average.

    Args:
        y: float64 (...,).
        quantiles: float64 (..., q).
        levels: float64 (q,), increasing, within (0, 1).

    Returns:
        float64 (...,), in units of y; NaN where y is.
    """
    edges = np.concatenate([[0.0], levels, [1.0]])
    return pinball(y, quantiles, levels) @ (edges[2:] - edges[:-2])


def coverage(y: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """Share of the known outcomes that lie in their interval, ends included; NaN when none is known."""
    inside = np.where(np.isnan(y), np.nan, (lower <= y) & (y <= upper))
    return _mean(inside)


def central_coverage(y: np.ndarray, quantiles: np.ndarray, levels: np.ndarray) -> dict[float, float]:
    """:func:`coverage` of the central intervals between paired levels a < 1/2 and 1 - a, by nominal coverage 1 - 2a.

    Args:
        y: float64 (...,). quantiles: float64 (..., q). levels: float64 (q,), increasing.

    Returns:
        measured coverage by nominal coverage (rounded to 9 digits), widest first.
    """
    found = {}
    for low, level in enumerate(levels):
        high = int(np.argmin(np.abs(levels - (1 - level))))
        if level < 0.5 and abs(levels[high] - (1 - level)) < 1e-9:
            found[round(float(1 - 2 * level), 9)] = coverage(y, quantiles[..., low], quantiles[..., high])
    return found


def qlike(r: np.ndarray, variance: np.ndarray) -> float:
    """Mean of log v + r^2 / v over known outcomes (Patton 2011, Volatility forecast comparison using imperfect
    volatility proxies): lowest on average at the true variance, though r^2 is but a noisy measure of it.

    Args:
        r: float64 (...,), outcomes less their expectation. variance: float64 (...,), positive.
    """
    return _mean(np.log(variance) + r**2 / variance)


def qlike_of_target(x: np.ndarray, quantiles: np.ndarray, levels: np.ndarray, power: float) -> np.ndarray:
    """QLIKE of a variance that is itself observed: V / F - log(V / F) - 1 (Patton 2011), F its expectation.

    V is exp(power x) times the variance at the cut-off, which falls out. The expectation is that over the quantiles,
    beyond the outermost of which a normal tail goes on (:func:`domains.timeseries.calibration.quantiles_at`): a
    Student-t of the logarithm would have none.

    Args:
        x: float64 (...,), changes of the logarithm; NaN where missing.
        quantiles: float64 (..., q), of them, at ``levels`` (q,).
        power: 1 where the series is a variance, 2 where it is a standard deviation.

    Returns:
        float64 (...,); NaN where there is no outcome or no forecast.
    """
    scores = normal_scores((np.arange(_CELLS) + 0.5) / _CELLS)
    losses = np.empty(x.shape)
    for at in range(0, len(x), _BLOCK):
        part = slice(at, at + _BLOCK)
        drawn = power * quantiles_at(quantiles[part], levels, scores)
        highest = drawn.max(axis=-1)
        expected = highest + np.log(np.exp(drawn - highest[..., None]).mean(axis=-1))
        ratio = power * x[part] - expected  # log(V / F)
        losses[part] = np.exp(ratio) - ratio - 1
    return losses


def _mean(values: np.ndarray) -> float:
    """Of what is not NaN; NaN when nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
