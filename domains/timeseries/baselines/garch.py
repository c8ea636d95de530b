"""GARCH(1,1) and GJR-GARCH(1,1) with Student's t, mean zero: the textbook volatility models."""

from dataclasses import dataclass
from typing import ClassVar

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
from domains.timeseries.baselines.volatility import DECAY
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.history import History


@dataclass(frozen=True)
class GarchParameters:
    """Of v_{t+1} = omega + alpha x_t^2 + gamma x_t^2 [x_t < 0] + beta v_t, in units of the increments."""

    omega: float
    alpha: float
    gamma: float
    beta: float
    degrees: float  # of freedom; infinite: normal

    @property
    def persistence(self) -> float:
        """By how much an expected variance moves with the one before it; half of all moves go down."""
        return self.alpha + self.gamma / 2 + self.beta


class Garch(Baseline):
    """GARCH(1,1)-t (Bollerslev 1987), fitted on the training part by the package arch, then filtered forward.

    Increments are divided by their standard deviation before fitting. With fewer than 100 increments, or where the
    likelihood has no maximum that can be used, the parameters are those of RiskMetrics with a normal distribution. The
    variance several steps ahead is exact; its quantiles are those of the t with the sum's variance.
    """

    name: ClassVar[str] = "garch"
    asymmetric: ClassVar[bool] = False

    def _fit_series(self, training: Training) -> GarchParameters:
        fallback = GarchParameters(0.0, 1 - DECAY, 0.0, DECAY, float("inf"))
        if len(training.x) < MIN_RESIDUALS or not training.x.any():
            return fallback
        from arch import arch_model

        scale = float(np.sqrt(training.scale))
        model = arch_model(
            training.x / scale, mean="Zero", vol="GARCH", p=1, o=int(self.asymmetric), q=1, dist="t", rescale=False
        )
        found = model.fit(disp="off", show_warning=False).params
        gamma = float(found.get("gamma[1]", 0.0))
        omega, alpha, beta = (float(found[name]) for name in ("omega", "alpha[1]", "beta[1]"))
        fitted = GarchParameters(omega * scale**2, alpha, gamma, beta, float(found["nu"]))
        usable = np.isfinite(found.to_numpy()).all() and fitted.degrees > 2 and fitted.omega >= 0
        return fitted if usable else fallback

    def _forecast_series(
        self,
        parameters: GarchParameters,
        training: Training,
        history: History,
        cutoffs: np.ndarray,
        horizon: int,
        levels: np.ndarray,
    ) -> Forecasts:
        x, known = observed(history.x, cutoffs)
        steps = [garch_variance(x, parameters, training.start)[known]]
        for _ in range(1, horizon):
            steps.append(parameters.omega + parameters.persistence * steps[-1])
        total = over_steps(history, np.maximum(np.stack(steps, axis=1), training.floor))
        mean = np.zeros_like(total)
        if not np.isfinite(parameters.degrees):
            return normal_forecasts(mean, total, levels)
        from scipy.stats import t

        degrees = parameters.degrees
        return scaled(mean, total, levels, t.ppf(levels, degrees) * np.sqrt((degrees - 2) / degrees))


class GjrGarch(Garch):
    """GJR-GARCH(1,1)-t (Glosten, Jagannathan and Runkle 1993): moves down may count more; else as :class:`Garch`."""

    name = "gjr_garch"
    asymmetric = True


def garch_variance(x: np.ndarray, parameters: GarchParameters, start: float) -> np.ndarray:
    """The variance of the next increment after 0, 1, ... n of them.

    Args:
        x: float64 (n,), nothing missing.
        start: the variance of the first.

    Returns:
        float64 (n + 1,).
    """
    from scipy.signal import lfilter

    if not len(x):
        return np.array([start])
    drive = parameters.omega + (parameters.alpha + parameters.gamma * (x < 0)) * x**2
    return np.append(start, lfilter([1.0], [1.0, -parameters.beta], drive, zi=[parameters.beta * start])[0])
