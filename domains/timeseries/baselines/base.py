"""What all baselines share: fitting on the training part alone, forecasting at many cut-offs at once."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from domains.timeseries.forecasts import Forecasts
from domains.timeseries.history import History, is_logarithmic

MIN_RESIDUALS = 100  # below that the tails of a sample say less than a normal distribution does
_START = 50  # observations whose mean square starts a recursion
_FLOOR = 1e-8  # of the mean square in training: no variance is smaller, so that its logarithm exists


@dataclass(frozen=True)
class Training:
    """All that a baseline may know of a series when it is fitted.

    Attributes:
        history: the rows of the training part.
        x: float64 (n,), its increments without those missing.
        scale: mean square of ``x``; where it has none other than 0, the median over the other series, or 1.
        start: mean square of the first 50 of ``x``, or ``scale`` where that is 0: the variance before any observation.
        horizon: steps ahead.
    """

    history: History
    x: np.ndarray
    scale: float
    start: float
    horizon: int

    @property
    def floor(self) -> float:
        """The smallest variance of an increment that is ever forecast."""
        return _FLOOR * self.scale


class Baseline(ABC):
    """A forecaster that is fitted once, series by series, and then carried through what follows.

    Attributes:
        name: in tables and settings.
        max_series: how many series it is fitted on, the first ones; None: all. See :meth:`covers`.
    """

    name: ClassVar[str]
    max_series: int | None = None

    def fit(self, histories: Sequence[History], train_ends: np.ndarray, horizon: int) -> None:
        """Fit each series on its training part.

        Args:
            histories: the series; of number i only the rows before ``train_ends[i]`` are looked at.
            train_ends: int64 (series,), rows.
            horizon: steps ahead, the most that :meth:`forecast` will be asked for.
        """
        parts = [_first_rows(history, int(end)) for history, end in zip(histories, train_ends, strict=True)]
        squares = [mean_square(part.x) for part in parts]
        positive = [value for value in squares if value > 0]
        typical = float(np.median(positive)) if positive else 1.0
        self._training: list[Training] = []
        self._parameters: list[Any] = []
        for part, square in zip(parts[: self.max_series], squares, strict=False):
            x = part.x[~np.isnan(part.x)]
            scale = square if square > 0 else typical
            training = Training(part, x, scale, mean_square(x[:_START]) or scale, horizon)
            self._parameters.append(self._fit_series(training))
            self._training.append(training)

    def covers(self, index: int) -> bool:
        """Whether this baseline was fitted on the series of that number."""
        return index < len(self._training)

    def forecast(
        self, index: int, history: History, cutoffs: np.ndarray, horizon: int, levels: np.ndarray
    ) -> Forecasts:
        """Forecast a series at many cut-offs, each from the observations up to its own row alone.

        Args:
            index: the number of the series when this was fitted.
            history: the series, which may have grown since; stamps behind a cut-off are read, observations are not.
            cutoffs: int64 (c,), rows: the last of the training part, or later.
            horizon: steps ahead, at most that of :meth:`fit`.
            levels: float64 (q,), of the quantiles.

        Raises:
            ValueError: a cut-off within the training part, a horizon longer than fitted, a series not covered.
        """
        if not self.covers(index):
            raise ValueError(f"{self.name} was fitted on {len(self._training)} series; there is no number {index}")
        training = self._training[index]
        first = len(training.history) - 1
        if len(cutoffs) and (cutoffs.min() < first or cutoffs.max() >= len(history)):
            raise ValueError(f"{history.name}: cut-offs must lie in rows {first} to {len(history) - 1}")
        if not 1 <= horizon <= training.horizon:
            raise ValueError(f"{self.name} was fitted for {training.horizon} steps ahead, not for {horizon}")
        levels = np.asarray(levels, dtype=np.float64)
        return self._forecast_series(self._parameters[index], training, history, cutoffs, horizon, levels)

    @abstractmethod
    def _fit_series(self, training: Training) -> Any:
        """The parameters of one series."""

    @abstractmethod
    def _forecast_series(
        self,
        parameters: Any,
        training: Training,
        history: History,
        cutoffs: np.ndarray,
        horizon: int,
        levels: np.ndarray,
    ) -> Forecasts:
        """Forecasts of one series; see :meth:`forecast`."""


def _first_rows(history: History, end: int) -> History:
    names = ("time", "offset", "y", "x")
    return replace(history, **{name: getattr(history, name)[:end] for name in names})


def mean_square(x: np.ndarray) -> float:
    """Mean of the squares of what is not missing; 0 of nothing."""
    known = x[~np.isnan(x)]
    return float(np.mean(known**2)) if len(known) else 0.0


def observed(values: np.ndarray, cutoffs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that are not missing, and how many of them each cut-off knows.

    Recursions run over these values, so a missing row leaves their state as it is.

    Args:
        values: float64 (n,), one for each row.
        cutoffs: int64 (c,), rows.

    Returns:
        float64 (m,), and int64 (c,), 0 to m.
    """
    rows = np.flatnonzero(~np.isnan(values))
    return values[rows], np.searchsorted(rows, cutoffs, side="right")


def modelled(history: History) -> np.ndarray:
    """What models of levels see, float64 (n,): logarithms of prices and the like, levels, and returns as they are."""
    if is_logarithmic(history.kind):
        return np.log(history.y)
    return history.y if history.kind == "level" else history.x


def over_steps(history: History, variance: np.ndarray) -> np.ndarray:
    """Variance of what is forecast, (c, h), from that of the single increments, (c, h), which are uncorrelated."""
    return variance if history.kind == "return" else np.cumsum(variance, axis=1)


def scaled(mean: np.ndarray, variance: np.ndarray, levels: np.ndarray, standard: np.ndarray) -> Forecasts:
    """Forecasts whose quantiles are those of a standard distribution, scaled and moved.

    Args:
        mean, variance: float64 (c, h).
        levels: float64 (q,).
        standard: float64 (q,) or (h, q), quantiles of the standard distribution.
    """
    quantiles = mean[..., None] + np.sqrt(variance)[..., None] * standard
    return Forecasts(levels, quantiles, mean, variance)


def normal_forecasts(mean: np.ndarray, variance: np.ndarray, levels: np.ndarray) -> Forecasts:
    """Normal forecasts with that mean and variance, both float64 (c, h)."""
    from scipy.stats import norm

    return scaled(mean, variance, levels, norm.ppf(levels))
