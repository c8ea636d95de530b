"""The heterogeneous autoregression of volatility: Corsi 2009, A simple approximate long-memory model of realized
volatility; here of the logarithm, whose errors are close to normal."""

from typing import NamedTuple

import numpy as np

from domains.timeseries.baselines.base import MIN_RESIDUALS, Baseline, Training, modelled, observed, scaled
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.history import History, cumulated

_SPANS = (1, 5, 22)  # observations: a day, a week, a month
_GRID = np.linspace(0, 1, 1001)


class _Fit(NamedTuple):
    """Of each step ahead: coefficients (h, 4), variance of the residuals (h,), and their standardised quantiles at
    _GRID, (h, 1001); None where they are too few."""

    coefficients: np.ndarray
    variance: np.ndarray
    residuals: np.ndarray | None


class Har(Baseline):
    """What comes in h steps follows from the means of the last day, week and month, by least squares, each step ahead
    on its own; its distribution is that of the residuals of the training part."""

    name = "har"

    def _fit_series(self, training: Training) -> _Fit:
        history, horizon = training.history, training.horizon
        values = modelled(history)
        rows = np.flatnonzero(~np.isnan(values))[_SPANS[-1] - 1 :]
        terms, outcome = _terms(values, rows), cumulated(history.x, history.kind, rows, horizon)
        steps = np.arange(1.0, horizon + 1)
        coefficients, variance = np.zeros((horizon, len(_SPANS) + 1)), training.scale * steps
        residuals: list[np.ndarray] = []
        for h in range(horizon):
            known = ~np.isnan(outcome[:, h])
            if known.sum() < MIN_RESIDUALS:
                return _Fit(0.0 * coefficients, training.scale * steps, None)  # a random walk
            coefficients[h], *_ = np.linalg.lstsq(terms[known], outcome[known, h], rcond=None)
            errors = outcome[known, h] - terms[known] @ coefficients[h]
            variance[h] = max(errors.var(), training.floor)
            residuals.append(np.quantile((errors - errors.mean()) / np.sqrt(variance[h]), _GRID))
        return _Fit(coefficients, variance, np.stack(residuals))

    def _forecast_series(
        self,
        parameters: _Fit,
        training: Training,
        history: History,
        cutoffs: np.ndarray,
        horizon: int,
        levels: np.ndarray,
    ) -> Forecasts:
        from scipy.stats import norm

        mean = _terms(modelled(history), cutoffs) @ parameters.coefficients[:horizon].T
        variance = np.broadcast_to(parameters.variance[:horizon], mean.shape)
        standard = norm.ppf(levels)
        if parameters.residuals is not None:
            standard = np.stack([np.interp(levels, _GRID, own) for own in parameters.residuals[:horizon]])
        return scaled(mean, variance, levels, standard)


def _terms(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """1 and the means of the last observations known at each row, (c, 4); of fewer where there are no more, 0 of none.

    Sums run over windows of their own, so that no mean depends on how long the history is."""
    seen, known = observed(values, rows)
    padded = np.append(np.full(_SPANS[-1], np.nan), seen)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _SPANS[-1])[known]  # the last ones, last
    counts = [np.minimum(known, span) for span in _SPANS]
    sums = [np.nansum(windows[:, -span:], axis=1) for span in _SPANS]
    means = [total / np.maximum(count, 1) for total, count in zip(sums, counts, strict=True)]
    return np.stack([np.ones(len(rows)), *means], axis=1)
