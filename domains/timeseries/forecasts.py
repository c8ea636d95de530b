"""What a forecaster says at each cut-off, whichever it is: quantiles, mean and variance by horizon."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Forecasts:
    """Forecasts of one series in units of its increments (see :func:`domains.timeseries.history.cumulated`).

    Attributes:
        levels: float64 (q,), increasing, within (0, 1).
        quantiles: float64 (c, h, q), not decreasing along q.
        mean: float64 (c, h).
        variance: float64 (c, h), positive.
    """

    levels: np.ndarray
    quantiles: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
