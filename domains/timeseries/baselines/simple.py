"""Baselines that know nothing but the last values, the season or the mean; their quantiles are normal."""

import numpy as np

from domains.timeseries.baselines.base import Baseline, Training, mean_square, normal_forecasts, observed, over_steps
from domains.timeseries.clock import local_seconds
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.history import History

_WINDOW = 250  # observations, a year of trading days
_DAY = 86_400


class Naive(Baseline):
    """Tomorrow is as today.

    Prices and levels: a random walk without drift; the variance of an increment is the mean square of the last 250 and
    grows with the number of steps. Returns: the last value at every step, with the mean square of the last 250 errors
    that this would have made at the same number of steps.
    """

    name = "naive"

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
        x, known = observed(history.x, cutoffs)
        shape = (len(cutoffs), horizon)
        if history.kind != "return":
            variance = np.maximum(trailing_mean_square(x, training.scale)[known], training.floor)
            total = over_steps(history, np.broadcast_to(variance[:, None], shape))
            return normal_forecasts(np.zeros(shape), total, levels)
        last = np.append(0.0, x)[known]
        columns = []
        for step in range(1, horizon + 1):
            errors = x[step:] - x[:-step]
            columns.append(trailing_mean_square(errors, 2 * training.scale)[np.maximum(known - step, 0)])
        variance = np.maximum(np.stack(columns, axis=1), training.floor)
        return normal_forecasts(np.repeat(last[:, None], horizon, axis=1), variance, levels)


class SeasonalNaive(Baseline):
    """The increments of one season ago, summed for prices and levels; see :func:`season` for how long it is.

    Where an increment of one season ago is missing, the one a season earlier stands in, and 0 before there is any. The
    variance of an increment is the mean square of the last 250 errors of one season ahead, times the number of seasons
    that the last known one is repeated.
    """

    name = "seasonal_naive"

    def _fit_series(self, training: Training) -> int:
        return season(training.history.time, training.history.offset)

    def _forecast_series(
        self,
        parameters: int,
        training: Training,
        history: History,
        cutoffs: np.ndarray,
        horizon: int,
        levels: np.ndarray,
    ) -> Forecasts:
        steps = np.arange(horizon)
        repeats = steps // parameters + 1
        before = _carried(history.x, parameters)
        rows = cutoffs[:, None] + 1 + steps - parameters * repeats
        mean = np.where(rows < 0, 0.0, before[np.maximum(rows, 0)])
        lagged = np.append(np.zeros(parameters), before)[: len(before)]
        errors, known = observed(history.x - lagged, cutoffs)
        variance = np.maximum(trailing_mean_square(errors, 2 * training.scale)[known], training.floor)
        total = over_steps(history, variance[:, None] * repeats)
        if history.kind != "return":
            mean = np.cumsum(mean, axis=1)
        return normal_forecasts(mean, total, levels)


class Drift(Baseline):
    """The mean and the variance of the training increments, for ever: what "constant" means for a volatility.

    With n increments the error of the mean adds a share h/n to the variance of a sum over h steps (Hyndman and
    Athanasopoulos 2021, Forecasting: principles and practice, 5.5).
    """

    name = "drift"

    def _fit_series(self, training: Training) -> tuple[float, float]:
        mean = float(training.x.mean()) if len(training.x) else 0.0
        return mean, mean_square(training.x - mean) or training.scale

    def _forecast_series(
        self,
        parameters: tuple[float, float],
        training: Training,
        history: History,
        cutoffs: np.ndarray,
        horizon: int,
        levels: np.ndarray,
    ) -> Forecasts:
        mean, variance = parameters
        steps = np.ones(horizon) if history.kind == "return" else np.arange(1.0, horizon + 1)
        total = np.maximum(variance, training.floor) * steps * (1 + steps / max(1, len(training.x)))
        shape = (len(cutoffs), horizon)
        return normal_forecasts(np.broadcast_to(mean * steps, shape), np.broadcast_to(total, shape), levels)


def season(time: np.ndarray, offset: np.ndarray) -> int:
    """How many rows a season has, judged by the median gap between stamps.

    Daily (20 to 28 hours): 7, or 5 where fewer than one row in twenty falls on a Saturday or Sunday. Closer: the median
    number of rows on a local day. Wider, or fewer than 3 rows: 1, no season.

    Args:
        time: int64 (n,), microseconds since 1970 UTC.
        offset: int32 (n,), seconds that the local clock is ahead.
    """
    if len(time) < 3:
        return 1
    hours = float(np.median(np.diff(time))) / 3.6e9
    day = local_seconds(time, offset) // _DAY
    if hours > 28:
        return 1
    if hours >= 20:
        weekend = (day + 3) % 7 >= 5  # 1 January 1970 was a Thursday
        return 5 if weekend.mean() < 0.05 else 7
    return max(1, int(np.median(np.unique(day, return_counts=True)[1])))


def trailing_mean_square(x: np.ndarray, start: float) -> np.ndarray:
    """Mean square of the last 250 values, after 0, 1, ... n of them; ``start`` after none.

    Args:
        x: float64 (n,), nothing missing.

    Returns:
        float64 (n + 1,).
    """
    from scipy.signal import lfilter

    if not len(x):
        return np.array([start])
    sums = lfilter(np.ones(_WINDOW), 1.0, x**2)  # no difference of running sums: one shock would drown the rest
    return np.append(start, sums / np.minimum(np.arange(1, len(x) + 1), _WINDOW))


def _carried(x: np.ndarray, period: int) -> np.ndarray:
    """``x`` with missing values replaced by the last one known at the same place of a season; 0 before any."""
    padded = np.append(x, np.full(-len(x) % period, np.nan)).reshape(-1, period)
    row = np.where(np.isnan(padded), -1, np.arange(len(padded))[:, None])
    latest = np.maximum.accumulate(row, axis=0)
    carried = np.take_along_axis(padded, np.maximum(latest, 0), axis=0)
    return np.where(latest < 0, 0.0, carried).ravel()[: len(x)]
