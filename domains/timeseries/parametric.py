"""Predictive distributions with a density in closed form, and their proper scores.

The scores are negatively oriented and proper (Gneiting and Raftery 2007, Strictly proper scoring rules, prediction, and
estimation).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from domains.timeseries import student_t

_LOG_2PI = math.log(2 * math.pi)
_BLOCK = 1 << 14  # mixtures whose quantiles are solved for at a time


class Distribution(ABC):
    """One predictive distribution for each position of a tensor of any shape, written (...,).

    Everything but :meth:`quantile` and :meth:`sample` carries gradients.
    """

    @abstractmethod
    def log_prob(self, y: Tensor) -> Tensor:
        """Log density at ``y`` (...,), (...,)."""

    @abstractmethod
    def crps(self, y: Tensor) -> Tensor:
        """Continuous ranked probability score at ``y`` (...,), in units of y, (...,): the integral of
        (F(z) - 1{y <= z})^2 over z (Gneiting and Raftery 2007, eq. 20)."""

    @abstractmethod
    def cdf(self, y: Tensor) -> Tensor:
        """Probability of at most ``y`` (...,), (...,)."""

    @abstractmethod
    def quantile(self, levels: Tensor) -> Tensor:
        """The quantiles at ``levels`` (q,), within (0, 1): (..., q), without gradient."""

    @abstractmethod
    def sample(self, generator: Generator | None = None) -> Tensor:
        """One independent draw for each position, (...,), without gradient."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """(...,)."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """(...,)."""


@dataclass(frozen=True)
class Normal(Distribution):
    """Of ``centre`` (...,) and ``scale`` (...,), its standard deviation."""

    centre: Tensor
    scale: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        return normal_log_density((y - self.centre) / self.scale) - torch.log(self.scale)

    def crps(self, y: Tensor) -> Tensor:
        # Gneiting and Raftery 2007, section 4.2
        return _expected_distance(y - self.centre, self.scale) - self.scale / math.sqrt(math.pi)

    def qlike(self, y: Tensor) -> Tensor:
        """log v + (y - centre)^2 / v with v the variance (Patton 2011, Volatility forecast comparison using imperfect
        volatility proxies): lowest on average at the true variance, whatever the shape of y's distribution."""
        return 2 * torch.log(self.scale) + ((y - self.centre) / self.scale) ** 2

    def cdf(self, y: Tensor) -> Tensor:
        return torch.special.ndtr((y - self.centre) / self.scale)

    @torch.no_grad()
    def quantile(self, levels: Tensor) -> Tensor:
        return self.centre[..., None] + self.scale[..., None] * torch.special.ndtri(levels).to(self.scale)

    @torch.no_grad()
    def sample(self, generator: Generator | None = None) -> Tensor:
        return self.centre + self.scale * _standard_normal(self.scale, generator)

    @property
    def mean(self) -> Tensor:
        return self.centre

    @property
    def variance(self) -> Tensor:
        return self.scale**2


@dataclass(frozen=True)
class StudentT(Distribution):
    """Of ``location`` (...,), ``scale`` (...,) and degrees of freedom ``df`` (...,) above 2."""

    location: Tensor
    scale: Tensor
    df: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        return student_t.log_density((y - self.location) / self.scale, self.df) - torch.log(self.scale)

    def crps(self, y: Tensor) -> Tensor:
        # Jordan, Krueger and Lerch 2019, Evaluating probabilistic forecasts with scoringRules
        z = (y - self.location) / self.scale
        df = self.df
        size = torch.where(z < 0, -z, z)
        # 2 f(z) (df + z^2) / (df - 1), whose factors could overflow and underflow one by one
        near = torch.sqrt(df) * torch.exp(student_t.log_constant(df) - 0.5 * (df - 1) * torch.log1p(z * z / df))
        # B(1/2, df - 1/2) / B(1/2, df/2)^2, by ratios of Gammas half a step apart
        beta = torch.exp(2 * student_t.log_gamma_ratio(0.5 * df) - student_t.log_gamma_ratio(df - 0.5))
        spread = torch.sqrt(df) * beta / math.sqrt(math.pi)
        return self.scale * (size * (1 - 2 * student_t.upper_tail(size, df)) + 2 * (near - spread) / (df - 1))

    def cdf(self, y: Tensor) -> Tensor:
        z = (y - self.location) / self.scale
        tail = student_t.upper_tail(torch.where(z < 0, -z, z), self.df)
        return torch.where(z < 0, tail, 1 - tail)

    @torch.no_grad()
    def quantile(self, levels: Tensor) -> Tensor:
        levels = levels.to(self.df.device, torch.float64)
        # levels come in pairs about 1/2, which are solved for once; 1 - 0.9 differs from 0.1 by rounding
        tails, which = torch.unique(torch.minimum(levels, 1 - levels).round(decimals=15), return_inverse=True)
        sizes = student_t.upper_quantile(tails.tolist(), self.df)[..., which]
        return self.location[..., None] + self.scale[..., None] * torch.where(levels < 0.5, -sizes, sizes)

    @torch.no_grad()
    def sample(self, generator: Generator | None = None) -> Tensor:
        # Bailey 1994, Polar generation of random variates with the t-distribution
        radius, angle = 1 - uniform(self.df, generator), uniform(self.df, generator)
        z = torch.sqrt(self.df * torch.expm1(-2 / self.df * torch.log(radius))) * torch.cos(2 * math.pi * angle)
        return self.location + self.scale * z

    @property
    def mean(self) -> Tensor:
        return self.location

    @property
    def variance(self) -> Tensor:
        return self.scale**2 * (self.df / (self.df - 2))


@dataclass(frozen=True)
class Mixture(Distribution):
    """Of k normals: ``log_weights`` (..., k), normalised, ``centres`` (..., k) and ``scales`` (..., k)."""

    log_weights: Tensor
    centres: Tensor
    scales: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        inside = normal_log_density((y[..., None] - self.centres) / self.scales) - torch.log(self.scales)
        return torch.logsumexp(self.log_weights + inside, -1)

    def crps(self, y: Tensor) -> Tensor:
        # Grimit, Gneiting, Berrocal and Johnson 2006, The continuous ranked probability score for circular variables
        # and its application to mesoscale forecast ensemble verification
        weights = self.log_weights.exp()
        to_target = _expected_distance(y[..., None] - self.centres, self.scales)
        between = _expected_distance(
            self.centres[..., :, None] - self.centres[..., None, :],
            torch.sqrt(self.scales[..., :, None] ** 2 + self.scales[..., None, :] ** 2),
        )
        pairs = weights[..., :, None] * weights[..., None, :]
        return (weights * to_target).sum(-1) - 0.5 * (pairs * between).sum((-2, -1))

    def cdf(self, y: Tensor) -> Tensor:
        return (self.log_weights.exp() * torch.special.ndtr((y[..., None] - self.centres) / self.scales)).sum(-1)

    @torch.no_grad()
    def quantile(self, levels: Tensor) -> Tensor:
        levels = levels.to(self.scales)
        parts = [part.reshape(-1, part.shape[-1]) for part in (self.log_weights, self.centres, self.scales)]
        blocks = [
            Mixture(*block)._bisect(levels) for block in zip(*(part.split(_BLOCK) for part in parts), strict=True)
        ]
        return torch.cat(blocks).reshape(*self.scales.shape[:-1], len(levels))

    def _bisect(self, levels: Tensor) -> Tensor:
        """Quantiles of n mixtures, (n, q), to 1e-15 (in float32 4e-9) of the way between the outermost components.

        All levels halve the same interval, so that a higher level never ends below a lower one.
        """
        of_each = Normal(self.centres, self.scales).quantile(levels)  # (n, k, q): the mixture's lie among them
        low, high = (end[:, None].expand(-1, len(levels)) for end in (of_each.amin((1, 2)), of_each.amax((1, 2))))
        weights, centres, scales = self.log_weights.exp(), self.centres, self.scales
        for _ in range(50 if levels.dtype == torch.float64 else 28):
            middle = 0.5 * (low + high)
            probability = torch.zeros_like(middle)
            for part in range(weights.shape[1]):
                z = (middle - centres[:, part, None]) / scales[:, part, None]
                probability += weights[:, part, None] * torch.special.ndtr(z)
            below = probability < levels
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    @torch.no_grad()
    def sample(self, generator: Generator | None = None) -> Tensor:
        bounds = self.log_weights.exp().cumsum(-1)[..., :-1]
        which = (uniform(self.mean, generator)[..., None] >= bounds).sum(-1, keepdim=True)
        centre, scale = self.centres.gather(-1, which)[..., 0], self.scales.gather(-1, which)[..., 0]
        return Normal(centre, scale).sample(generator)

    @property
    def mean(self) -> Tensor:
        return (self.log_weights.exp() * self.centres).sum(-1)

    @property
    def variance(self) -> Tensor:
        around = (self.centres - self.mean[..., None]) ** 2 + self.scales**2
        return (self.log_weights.exp() * around).sum(-1)


def normal_log_density(z: Tensor) -> Tensor:
    return -0.5 * (z * z + _LOG_2PI)


def _expected_distance(distance: Tensor, scale: Tensor) -> Tensor:
    """E|X| of a normal X of that mean and standard deviation."""
    z = distance / scale
    return scale * (2 * torch.exp(normal_log_density(z)) + z * torch.erf(z / math.sqrt(2)))


def uniform(like: Tensor, generator: Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _standard_normal(like: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
