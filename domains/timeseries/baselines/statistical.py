"""AutoARIMA and AutoETS of the package statsforecast, walked forward with their parameters fixed.

Both are linear models with a single source of error (Hyndman, Koehler, Ord and Snyder 2008, Forecasting with
exponential smoothing, ch. 3 and 11), so one small recursion carries them from row to row, without a second call of the
package:

    y_t = mu_t + w s_{t-1} + e_t,    s_t = F s_{t-1} + g e_t.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from domains.timeseries.baselines.base import Baseline, Training, modelled, normal_forecasts, observed
from domains.timeseries.baselines.simple import season
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.history import History

_LONGEST = 1000  # observations at the end of the training part that are fitted
_SHORTEST = 30
_VANISHED = 1e-12  # of the variance of an error


@dataclass(frozen=True)
class Innovations:
    """A linear model with one source of error, at the end of the training part.

    Attributes:
        observe: w, float64 (d,).
        transition: F, float64 (d, d).
        gain: g, float64 (d,).
        state: s after the last training observation, float64 (d,).
        unknown: covariance of s in units of ``variance``, float64 (d, d).
        variance: of e.
        constant, slope: mu is constant + slope * k at the k-th observation after the training part.
    """

    observe: np.ndarray
    transition: np.ndarray
    gain: np.ndarray
    state: np.ndarray
    unknown: np.ndarray
    variance: float
    constant: float = 0.0
    slope: float = 0.0

    def walk(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States after 0, 1, ... n further observations, and what is not known about them (the Kalman filter).

        Returns:
            float64 (n + 1, d), and float64 (m, d, d), covariances in units of ``variance``, m <= n + 1: once they
            vanish they stay as they are.
        """
        states = np.empty((len(y) + 1, len(self.state)))
        states[0] = self.state
        unknown, gain = [self.unknown], self.gain
        centred = y - self.constant - self.slope * np.arange(1, len(y) + 1)
        for k, value in enumerate(centred):
            if unknown[-1].any():
                gain, rest = self._update(unknown[-1])
                unknown.append(rest)
            else:
                gain = self.gain
            states[k + 1] = self.transition @ states[k] + gain * (value - self.observe @ states[k])
        return states, np.stack(unknown)

    def _update(self, unknown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gain of the next observation, and the covariance behind it."""
        moved = self.transition @ unknown
        spread = 1 + self.observe @ unknown @ self.observe
        gain = (moved @ self.observe + self.gain) / spread
        rest = moved @ self.transition.T + np.outer(self.gain, self.gain) - spread * np.outer(gain, gain)
        return gain, rest if np.abs(rest).max() > _VANISHED else np.zeros_like(rest)

    def ahead(self, horizon: int, unknown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What turns a state into the means of the next steps, and their variances.

        Args:
            unknown: float64 (m, d, d), from :meth:`walk`.

        Returns:
            float64 (h, d), and float64 (m, h).
        """
        rows = [self.observe]
        for _ in range(1, horizon):
            rows.append(rows[-1] @ self.transition)
        reading = np.stack(rows)
        weights = (reading @ self.gain)[:-1]
        of_state = np.einsum("mhe,he->mh", reading @ unknown, reading)
        return reading, self.variance * (1 + np.append(0.0, np.cumsum(weights**2)) + of_state)


class _Statistical(Baseline):
    """The shared part of :class:`AutoArima` and :class:`AutoEts`.

    What is modelled is the logarithm of prices, levels as they are, and returns as they are, over the observations that
    are not missing. The model is chosen and fitted on the last at most 1,000 of the training part; with fewer than 30,
    without any move, or where the package finds no model, a random walk (of returns: white noise) stands in. Only
    levels have a season (see :func:`domains.timeseries.baselines.simple.season`), and only up to ``longest_season``:
    markets leave none in the level of a price, and the search takes minutes. Means and variances are those of the
    package (but for long horizons of a season, where it approximates), the quantiles are normal.
    """

    max_series = 50
    longest_season: int

    @abstractmethod
    def _fit_values(self, values: np.ndarray, period: int) -> Innovations:
        """The model of values (n,) of about unit increments."""

    def _fit_series(self, training: Training) -> Innovations:
        values, _ = observed(modelled(training.history), np.empty(0, dtype=np.int64))
        fitted = values[-_LONGEST:]
        if len(fitted) >= _SHORTEST and np.ptp(fitted) > 0:
            scale, first = float(np.sqrt(training.scale)), float(fitted[0])
            try:
                return _rescaled(self._fit_values((fitted - first) / scale, self._period(training)), scale, first)
            except Exception:  # the package raises plain exceptions of many kinds where it finds no model
                pass
        one = np.ones(1)
        gain, state = (np.zeros(1), 0.0) if training.history.kind == "return" else (one, float((values[-1:]).sum()))
        return Innovations(one, np.ones((1, 1)), gain, np.array([state]), np.zeros((1, 1)), training.scale)

    def _period(self, training: Training) -> int:
        history = training.history
        period = season(history.time, history.offset) if history.kind == "level" else 1
        return period if period <= self.longest_season else 1

    def _forecast_series(
        self,
        parameters: Innovations,
        training: Training,
        history: History,
        cutoffs: np.ndarray,
        horizon: int,
        levels: np.ndarray,
    ) -> Forecasts:
        values, known = observed(modelled(history), cutoffs)
        seen = int(np.count_nonzero(~np.isnan(modelled(training.history))))
        since = known - seen
        states, unknown = parameters.walk(values[seen : int(known.max(initial=seen))])
        reading, variances = parameters.ahead(horizon, unknown)
        steps = since[:, None] + np.arange(1, horizon + 1)
        mean = parameters.constant + parameters.slope * steps + states[since] @ reading.T
        if history.kind != "return":
            mean -= np.append(0.0, values)[known][:, None]
        variance = np.maximum(variances[np.minimum(since, len(unknown) - 1)], training.floor)
        return normal_forecasts(mean, variance, levels)


class AutoArima(_Statistical):
    """ARIMA, orders chosen by AICc (Hyndman and Khandakar 2008); see :class:`_Statistical`.

    Seasons longer than 7 rows are left out.
    """

    name = "auto_arima"
    longest_season = 7

    def _fit_values(self, values: np.ndarray, period: int) -> Innovations:
        import warnings

        from statsforecast.models import AutoARIMA

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each candidate whose optimiser stopped early
            fitted: dict[str, Any] = AutoARIMA(season_length=period).fit(values).model_
        parts, coefficients = fitted["model"], fitted["coef"]
        # Harvey's form, a_t = T a_{t-1} + R e_t and y_t = Z a_t, has V = R R' with R_0 = 1 and no noise of its own.
        slope = float(coefficients.get("drift", 0.0))
        constant = float(coefficients.get("intercept", 0.0)) + slope * len(values)
        return Innovations(
            parts["Z"] @ parts["T"],
            parts["T"],
            parts["V"][:, 0],
            parts["a"],
            parts["P"],
            float(fitted["sigma2"]),
            constant,
            slope,
        )


class AutoEts(_Statistical):
    """Exponential smoothing with additive errors, trend and season chosen by AICc; see :class:`_Statistical`.

    Multiplicative errors are left out: they mean nothing for logarithms and for levels that cross zero. Seasons longer
    than 24 rows, which the package does not know, are left out.
    """

    name = "auto_ets"
    longest_season = 24

    def _fit_values(self, values: np.ndarray, period: int) -> Innovations:
        from statsforecast.models import AutoETS

        fitted: dict[str, Any] = AutoETS(season_length=period, model="AZZ").fit(values).model_
        _, trend, seasonal, damped = fitted["components"]
        alpha, beta, gamma, phi = fitted["par"][:4]
        if seasonal == "M":
            raise ValueError("a multiplicative season is not linear")
        size = 1 + (trend == "A") + period * (seasonal == "A")
        observe, transition, gain = np.zeros(size), np.zeros((size, size)), np.zeros(size)
        observe[0] = transition[0, 0] = 1.0
        gain[0] = alpha
        if trend == "A":
            kept = float(phi) if damped == "D" else 1.0
            observe[1] = transition[0, 1] = transition[1, 1] = kept
            gain[1] = beta
        if seasonal == "A":  # the newest season first; the oldest comes next
            first = size - period
            observe[-1] = transition[first, -1] = 1.0
            transition[np.arange(first + 1, size), np.arange(first, size - 1)] = 1.0
            gain[first] = gamma
        state = np.asarray(fitted["states"])[-1][:size].astype(np.float64)
        return Innovations(observe, transition, gain, state, np.zeros((size, size)), float(fitted["sigma2"]))


def _rescaled(model: Innovations, scale: float, first: float) -> Innovations:
    """The model of first + scale * y, given that of y."""
    return replace(
        model,
        state=model.state * scale,
        variance=model.variance * scale**2,
        constant=model.constant * scale + first,
        slope=model.slope * scale,
    )
