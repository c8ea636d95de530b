"""Baselines that foretell the size of moves from exponentially weighted means (EWMA) of past squares; mean zero."""

from dataclasses import dataclass, replace

import numpy as np

from domains.timeseries.baselines.base import (
    MIN_RESIDUALS,
    Baseline,
    Training,
    normal_forecasts,
    observed,
    over_steps,
    scaled,
)
from domains.timeseries.clock import Clock, hour_of_week
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.history import History, cumulated

DECAY = 0.94  # RiskMetrics Technical Document (J.P. Morgan 1996), daily
_DECAYS = (0.5, 0.8, 0.9, 0.94, 0.97, 0.99, 0.999)
_PATHS = 10_000
_LARGEST = 20.0  # standard deviations; a residual beyond is cut, lest after quiet years it blow up all paths
_SMALLEST = 1e-3  # of the mean: smaller forecasts weigh no more in the regression
_NUMBERS = 2_000_000  # most that the table of residuals is made of
_GRID = np.linspace(0.0, 1.0, 1001)


class Ewma(Baseline):
    """RiskMetrics: v_{t+1} = 0.94 v_t + 0.06 x_t^2, the same for all steps ahead; quantiles are normal."""

    name = "ewma"

    def _fit_series(self, training: Training) -> None:
        return None

    def _forecast_series(
        self,
        parameters: None,
        training: Training,
        history: History,
        cutoffs: np.ndarray,
        horizon: int,
        levels: np.ndarray,
    ) -> Forecasts:
        variance = _current(training, history, cutoffs)
        shape = (len(cutoffs), horizon)
        total = over_steps(history, np.broadcast_to(variance[:, None], shape))
        return normal_forecasts(np.zeros(shape), total, levels)


class FilteredHistorical(Baseline):
    """Filtered historical simulation (Barone-Adesi, Giannopoulos and Vosper 1999) on the variance of :class:`Ewma`.

    Paths are made of residuals of the training part, each divided by the standard deviation that was forecast for it,
    drawn anew at every step, while the variance follows its recursion along the path. As a path scales with the
    standard deviation that it starts from, 10,000 of them with a fixed seed serve all cut-offs. Each step spreads its
    draws evenly over the sample, so that one step ahead the quantiles are those of the residuals. With fewer than 100
    residuals, normal ones stand in.
    """

    name = "fhs"

    def _fit_series(self, training: Training) -> np.ndarray:
        from scipy.stats import norm

        middle = (np.arange(_PATHS) + 0.5) / _PATHS
        if len(training.x) < MIN_RESIDUALS:
            return norm.ppf(middle)
        variance = np.maximum(ewma(training.x**2, DECAY, training.start)[:-1], training.floor)
        residuals = np.clip(training.x / np.sqrt(variance), -_LARGEST, _LARGEST)
        return np.quantile(residuals, middle) if residuals.any() else norm.ppf(middle)

    def _forecast_series(
        self,
        parameters: np.ndarray,
        training: Training,
        history: History,
        cutoffs: np.ndarray,
        horizon: int,
        levels: np.ndarray,
    ) -> Forecasts:
        rng = np.random.default_rng(0)
        square = np.mean(parameters**2)
        variance, total = np.ones(_PATHS), np.zeros(_PATHS)
        quantiles, moments = np.empty((horizon, len(levels))), np.empty((horizon, 2))
        for step in range(horizon):
            drawn = rng.permutation(parameters)
            move = np.sqrt(variance) * drawn
            total = move if history.kind == "return" else total + move
            variance = variance * (DECAY + (1 - DECAY) * drawn**2 / square)  # on average it stays as it is
            quantiles[step] = np.quantile(total, levels)
            moments[step] = total.mean(), total.var()
        current = _current(training, history, cutoffs)[:, None]
        deviation = np.sqrt(current)
        return Forecasts(levels, deviation[..., None] * quantiles, deviation * moments[:, 0], current * moments[:, 1])


@dataclass(frozen=True)
class _ClockFit:
    """Of one series: clock, start of the recursions, regression of each horizon, quantiles of its residuals."""

    clock: Clock
    start: float  # relative to the mean square of the training part
    coefficients: np.ndarray  # (h, 8)
    residuals: np.ndarray | None  # (1001, h), quantiles at _GRID; None: normal


class EwmaClock(Baseline):
    """Seven EWMAs in a non-negative regression, times a clock of the week: ten lines of numpy that are hard to beat.

    With s_t the mean square of the training part times the clock of row t (:class:`domains.timeseries.clock.Clock`,
    from the training part of the series alone) and u_t = x_t^2 / s_t, the variance h steps ahead is

        v_{t,h} = s_{t+h} (a_h + sum_k b_{h,k} EWMA_k(u)_t),    a_h, b_{h,k} >= 0,

    with decays 0.5, 0.8, 0.9, 0.94, 0.97, 0.99 and 0.999, and for each h its own regression: least squares, then once
    more with each error divided by the variance that the first forecast. This regression on volatilities of several
    lengths is of the kind of Corsi (2009), A simple approximate long-memory model of realized volatility. Quantiles are
    those of the training part's own outcomes divided by their forecast standard deviation, horizon by horizon; normal
    where the training part holds fewer than 100 outcomes that do not overlap.
    """

    name = "ewma_clock"

    def _fit_series(self, training: Training) -> _ClockFit:
        history = training.history
        hours = hour_of_week(history.time, history.offset)
        clock = Clock.fit([(hours, history.x)])
        expected = training.scale * clock.profile[hours]
        squares, _ = observed(history.x**2 / expected, np.empty(0, dtype=np.int64))
        start = training.start / training.scale
        terms = _terms(squares, start)[1:]
        coefficients = [_regress(terms[:-step], squares[step:]) for step in range(1, training.horizon + 1)]
        fit = _ClockFit(clock, start, np.stack(coefficients), None)
        return replace(fit, residuals=_residual_table(fit, training))

    def _forecast_series(
        self,
        parameters: _ClockFit,
        training: Training,
        history: History,
        cutoffs: np.ndarray,
        horizon: int,
        levels: np.ndarray,
    ) -> Forecasts:
        total = _clock_variance(parameters, training, history, cutoffs, horizon)
        mean = np.zeros_like(total)
        if parameters.residuals is None:
            return normal_forecasts(mean, total, levels)
        standard = [np.interp(levels, _GRID, column) for column in parameters.residuals.T[:horizon]]
        return scaled(mean, total, levels, np.stack(standard))


def ewma(values: np.ndarray, decay: float, start: float) -> np.ndarray:
    """m_t = decay m_{t-1} + (1 - decay) values_t after 0, 1, ... n values: float64 (n + 1,), the first is ``start``."""
    from scipy.signal import lfilter

    if not len(values):
        return np.array([start])
    return np.append(start, lfilter([1 - decay], [1.0, -decay], values, zi=[decay * start])[0])


def _current(training: Training, history: History, cutoffs: np.ndarray) -> np.ndarray:
    """The RiskMetrics variance of the next increment at each cut-off."""
    x, known = observed(history.x, cutoffs)
    return np.maximum(ewma(x**2, DECAY, training.start)[known], training.floor)


def _terms(squares: np.ndarray, start: float) -> np.ndarray:
    """The constant and the EWMAs after 0, 1, ... n squares: (n + 1, 8)."""
    means = [ewma(squares, decay, start) for decay in _DECAYS]
    return np.stack([np.ones(len(squares) + 1), *means], axis=1)


def _regress(terms: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Non-negative coefficients (8,) that foretell ``later`` from ``terms``, errors measured by the size foretold."""
    if len(later) < MIN_RESIDUALS or not later.any():
        return np.array([0.0] + [float(decay == DECAY) for decay in _DECAYS])
    rows = np.column_stack([terms, later])
    foretold = terms @ _non_negative(rows)
    return _non_negative(rows / np.maximum(foretold, _SMALLEST * later.mean())[:, None])


def _non_negative(rows: np.ndarray) -> np.ndarray:
    """Non-negative least squares of the last column on the others; a QR first, as there are many more rows."""
    from scipy.optimize import nnls

    triangle = np.asarray(np.linalg.qr(rows, mode="r"))
    return nnls(triangle[:, :-1], triangle[:, -1])[0]


def _clock_variance(
    fit: _ClockFit, training: Training, history: History, cutoffs: np.ndarray, horizon: int
) -> np.ndarray:
    """Variance of what is forecast, (c, h)."""
    expected = training.scale * fit.clock.of(history.time, history.offset)
    squares, known = observed(history.x**2 / expected, cutoffs)
    relative = _terms(squares, fit.start)[known] @ fit.coefficients[:horizon].T
    ahead = np.append(expected, training.scale)  # behind the last stamp the clock is not known
    rows = np.minimum(cutoffs[:, None] + np.arange(1, horizon + 1), len(expected))
    return over_steps(history, np.maximum(ahead[rows] * relative, training.floor))


def _residual_table(fit: _ClockFit, training: Training) -> np.ndarray | None:
    """Quantiles at _GRID, (1001, h), of the training part's outcomes over their forecast deviation."""
    history, horizon = training.history, training.horizon
    if len(training.x) // horizon < MIN_RESIDUALS:
        return None
    stride = max(1, len(history) * horizon // _NUMBERS)
    cutoffs = np.arange(0, len(history) - horizon, stride)
    outcome = cumulated(history.x, history.kind, cutoffs, horizon)
    residuals = outcome / np.sqrt(_clock_variance(fit, training, history, cutoffs, horizon))
    columns = [column[~np.isnan(column)] for column in residuals.T]
    if min(len(column) for column in columns) < MIN_RESIDUALS:
        return None
    return np.stack([np.quantile(column, _GRID) for column in columns], axis=1)
