"""Heads: what makes predictive distributions of a network's raw numbers, and the losses that train them.

A distribution is of a target in units of a scale, so that about 1 is a usual size. Raw numbers of 0 give a standard
distribution (centre 0, variance about 1), so training starts at a sensible place. Losses and gradients stay finite in
float32 for raw numbers up to 1e4 in size.

Targets must be finite: a NaN poisons gradients even where its loss is given no weight, so callers set what is missing
to 0 before they weight it with 0.
"""

import itertools
import math
from abc import ABC, abstractmethod
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

from domains.errors import UserError
from domains.timeseries.config import LEVELS, HeadConfig
from domains.timeseries.parametric import Distribution, Mixture, Normal, StudentT
from domains.timeseries.piecewise import Quantiles

__all__ = ["Distribution", "Head", "Mixture", "Normal", "Quantiles", "StudentT", "make_head"]

_REACH = 8.0  # logarithms of scales bend towards this bound: 3000 times, or 1 / 3000 of, the usual size
_FARTHEST_PRIOR = 10.0  # a log scale guessed from outside is held within this distance of 0
_LEAST_DF = 2.1  # the variance stays below 21 squared scales
_FIRST_DF = 5.0
_SPREAD = 0.7  # log scales of a mixture's components start evenly spread over this distance to either side
_LEAST_STEP = 1e-3  # between neighbouring quantiles, as a share of the standard normal's


def make_head(config: HeadConfig) -> "Head":
    """The head of ``config.kind``.

    Raises:
        UserError: a kind, loss or number of components that there is not.
    """
    kinds: dict[str, type[Head]] = {
        "student_t": StudentTHead,
        "mixture": MixtureHead,
        "quantiles": QuantileHead,
        "normal": NormalHead,
    }
    if config.kind not in kinds:
        raise UserError(f"head.kind={config.kind}: must be one of {', '.join(kinds)}")
    return kinds[config.kind](config)


class Head(ABC):
    """Makes distributions of raw numbers (..., size).

    Attributes:
        size: raw numbers for each forecast.
    """

    size: int
    losses: tuple[str, ...] = ("nll", "crps")

    def __init__(self, config: HeadConfig) -> None:
        if config.loss not in self.losses:
            known = ", ".join(self.losses)
            raise UserError(f"head.loss={config.loss}: with head.kind={config.kind} it must be one of {known}")
        self._loss = config.loss
        self._has_mean = config.mean

    def __call__(self, raw: Tensor, log_scale: Tensor | None = None) -> Distribution:
        """The distributions, (...,), in float32 or, for raw numbers in it, float64.

        Args:
            raw: float (..., size).
            log_scale: float (...,), logarithm of a scale guessed from outside: the distribution that the raw numbers
                give alone is stretched by exp(log_scale), centre and width alike. None: 0.
        """
        if raw.dtype != torch.float64:
            raw = raw.float()
        if log_scale is None:
            return self._distribution(raw, raw.new_ones(1))
        unit = torch.exp(log_scale.to(raw.dtype).clamp(-_FARTHEST_PRIOR, _FARTHEST_PRIOR))
        return self._distribution(raw, unit[..., None])

    def loss(self, raw: Tensor, y: Tensor, log_scale: Tensor | None = None) -> Tensor:
        """The loss of each forecast, (...,): nll, the negative log density; crps; or what a subclass says.

        Args:
            raw: float (..., size).
            y: float (...,), finite.
            log_scale: as in calling the head.
        """
        distribution = self(raw, log_scale)
        y = y.to(raw.dtype if raw.dtype == torch.float64 else torch.float32)
        return distribution.crps(y) if self._loss == "crps" else -distribution.log_prob(y)

    @abstractmethod
    def _distribution(self, raw: Tensor, unit: Tensor) -> Distribution:
        """Of raw numbers (..., size), stretched by unit (..., 1)."""


class NormalHead(Head):
    """Raw numbers: centre (unless ``mean`` is off: 0), log scale. Loss nll, crps or qlike."""

    losses = ("nll", "crps", "qlike")

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.size = 1 + self._has_mean

    def loss(self, raw: Tensor, y: Tensor, log_scale: Tensor | None = None) -> Tensor:
        """As :meth:`Head.loss`; qlike: log v + (y - centre)^2 / v, v the variance."""
        if self._loss != "qlike":
            return super().loss(raw, y, log_scale)
        distribution = self(raw, log_scale)
        assert isinstance(distribution, Normal)
        return distribution.qlike(y.to(distribution.scale))

    def _distribution(self, raw: Tensor, unit: Tensor) -> Normal:
        scale = unit[..., 0] * torch.exp(_bend(raw[..., -1]))
        return Normal(_centre(raw, unit, self._has_mean).expand_as(scale), scale)


class StudentTHead(Head):
    """Raw numbers: location (unless ``mean`` is off: 0), log scale, degrees of freedom (2.1 + softplus; 5 at first)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.size = 2 + self._has_mean

    def _distribution(self, raw: Tensor, unit: Tensor) -> StudentT:
        standard = math.sqrt((_FIRST_DF - 2) / _FIRST_DF)  # gives a variance of 1
        scale = standard * unit[..., 0] * torch.exp(_bend(raw[..., -2]))
        df = _LEAST_DF + softplus(raw[..., -1] + _softplus_inverse(_FIRST_DF - _LEAST_DF))
        return StudentT(_centre(raw, unit, self._has_mean).expand_as(scale), scale, df.expand_as(scale))


class MixtureHead(Head):
    """Raw numbers of k normals: weights (softmax), log scales, centres (unless ``mean`` is off: all 0).

    At raw numbers of 0 the components differ in scale: of equal ones each would learn the same for ever.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        if config.components < 1:
            raise UserError(f"head.components={config.components}: a mixture has at least 1")
        self._components = config.components
        self.size = config.components * (2 + self._has_mean)

    def _distribution(self, raw: Tensor, unit: Tensor) -> Mixture:
        k = self._components
        first = torch.linspace(-_SPREAD, _SPREAD, k, dtype=raw.dtype, device=raw.device) if k > 1 else raw.new_zeros(1)
        first = first - 0.5 * torch.log(torch.exp(2 * first).mean())  # a variance of 1
        scales = unit * torch.exp(first + _bend(raw[..., k : 2 * k]))
        centres = unit * raw[..., 2 * k :] if self._has_mean else torch.zeros_like(scales)
        return Mixture(log_softmax(raw[..., :k], -1).expand_as(scales), centres, scales)


class QuantileHead(Head):
    """Raw numbers: median, steps upwards from it, steps downwards, to the levels of ``config.LEVELS``.

    A step is that of the standard normal times softplus, so quantiles increase by construction. With ``mean`` off the
    median is 0 and the steps serve both sides: the distribution is symmetric about 0. The loss is always twice the mean
    pinball loss (:meth:`Quantiles.pinball`).
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        half = len(LEVELS) // 2
        assert LEVELS[half] == 0.5
        assert all(abs(a + b - 1) < 1e-12 for a, b in zip(LEVELS, LEVELS[::-1], strict=True))
        scores = [NormalDist().inv_cdf(level) for level in LEVELS[half:]]
        self._steps = [high - low for low, high in itertools.pairwise(scores)]
        self.size = 1 + 2 * half if self._has_mean else half

    def loss(self, raw: Tensor, y: Tensor, log_scale: Tensor | None = None) -> Tensor:
        """Twice the mean pinball loss over the levels, (...,); arguments as in :meth:`Head.loss`."""
        distribution = self(raw, log_scale)
        assert isinstance(distribution, Quantiles)
        return distribution.pinball(y.to(torch.float64 if raw.dtype == torch.float64 else torch.float32))

    def _distribution(self, raw: Tensor, unit: Tensor) -> Quantiles:
        half = len(self._steps)
        median = unit * raw[..., :1] if self._has_mean else torch.zeros_like(unit * raw[..., :1])
        growth = _LEAST_STEP + softplus(
            raw[..., -2 * half if self._has_mean else 0 :] + _softplus_inverse(1 - _LEAST_STEP)
        )
        standard = torch.tensor(self._steps, dtype=raw.dtype, device=raw.device)
        up = unit * (standard * growth[..., :half]).cumsum(-1)
        down = unit * (standard * growth[..., -half:]).cumsum(-1)
        return Quantiles(LEVELS, torch.cat([median - down.flip(-1), median, median + up], -1))


def _centre(raw: Tensor, unit: Tensor, has_mean: bool) -> Tensor:
    return unit[..., 0] * raw[..., 0] if has_mean else torch.zeros_like(raw[..., 0])


def _bend(raw: Tensor) -> Tensor:
    """Nearly the identity about 0, never beyond the bound."""
    return _REACH * torch.tanh(raw / _REACH)


def _softplus_inverse(value: float) -> float:
    return math.log(math.expm1(value))
