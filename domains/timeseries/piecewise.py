"""A predictive distribution that is known by its quantiles, and its proper score."""

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Generator, Tensor

from domains.timeseries.parametric import Distribution, normal_log_density, uniform


@dataclass(frozen=True)
class Quantiles(Distribution):
    """Of ``values`` (..., q), strictly increasing, at ``levels``, increasing numbers within (0, 1).

    Between levels the distribution function is linear. Beyond the outermost levels run the tails of that normal
    distribution which passes through the outermost two.
    """

    levels: tuple[float, ...]
    values: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        index, low, high = self._piece(y)
        levels = self._per_level(self.levels)
        inside = torch.log((levels[index + 1] - levels[index]) / _gap(low, high))
        score, slope = self._tail(y, index, low, high)
        return torch.where(self._outside(y), normal_log_density(score) - torch.log(slope), inside)

    def crps(self, y: Tensor) -> Tensor:
        """By the trapezoid rule: the CRPS is twice the integral of the pinball loss over all levels, and that loss goes
        to 0 at levels 0 and 1 (Gneiting and Ranjan 2011, Comparing density forecasts using threshold- and
        quantile-weighted scoring rules). At the levels of config.LEVELS within 4% of the true value for
        targets within three standard deviations of a normal distribution."""
        edges = self._per_level((0.0, *self.levels, 1.0))
        return (self._pinball(y) * (edges[2:] - edges[:-2])).sum(-1)

    def pinball(self, y: Tensor) -> Tensor:
        """Twice the mean over the levels of the pinball loss at ``y`` (...,), (...,): like the CRPS, but where levels
        lie dense, as in the tails, they weigh more (Koenker and Bassett 1978, Regression quantiles)."""
        return 2 * self._pinball(y).mean(-1)

    def cdf(self, y: Tensor) -> Tensor:
        index, low, high = self._piece(y)
        levels = self._per_level(self.levels)
        inside = levels[index] + (levels[index + 1] - levels[index]) * (y - low) / _gap(low, high)
        score, _ = self._tail(y, index, low, high)
        return torch.where(self._outside(y), torch.special.ndtr(score), inside)

    @torch.no_grad()
    def quantile(self, levels: Tensor) -> Tensor:
        return self._invert(levels.to(self.values).expand(*self.values.shape[:-1], len(levels)))

    @torch.no_grad()
    def sample(self, generator: Generator | None = None) -> Tensor:
        smallest = torch.finfo(self.values.dtype).tiny
        return self._invert(uniform(self.values[..., :1], generator).clamp(min=smallest))[..., 0]

    @property
    def mean(self) -> Tensor:
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        mean, square = self._moments()
        return square - mean**2

    def _per_level(self, numbers: tuple[float, ...]) -> Tensor:
        return torch.tensor(numbers, dtype=self.values.dtype, device=self.values.device)

    def _pinball(self, y: Tensor) -> Tensor:
        miss = y[..., None] - self.values
        levels = self._per_level(self.levels)
        return torch.maximum(levels * miss, (levels - 1) * miss)

    def _scores(self) -> Tensor:
        return self._per_level(tuple(NormalDist().inv_cdf(level) for level in self.levels))

    def _piece(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which two neighbours ``y`` (...,) lies between, or beyond: index of the lower one, and both."""
        y, _ = torch.broadcast_tensors(y, self.values[..., 0])
        index = torch.searchsorted(self.values.detach().contiguous(), y.detach()[..., None].contiguous(), right=True)
        index = (index - 1).clamp(0, len(self.levels) - 2)
        return index[..., 0], self.values.gather(-1, index)[..., 0], self.values.gather(-1, index + 1)[..., 0]

    def _tail(self, y: Tensor, index: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Normal score of ``y`` on the line through two neighbours, and the scale of that normal distribution."""
        scores = self._scores()
        slope = _gap(low, high) / (scores[index + 1] - scores[index])
        return scores[index] + (y - low) / slope, slope

    def _outside(self, y: Tensor) -> Tensor:
        return (y < self.values[..., 0]) | (y > self.values[..., -1])

    def _invert(self, p: Tensor) -> Tensor:
        """Quantiles at ``p`` (..., n), each position its own."""
        levels, scores = self._per_level(self.levels), self._scores()
        index = (torch.searchsorted(levels, p.contiguous(), right=True) - 1).clamp(0, len(self.levels) - 2)
        low, high = self.values.gather(-1, index), self.values.gather(-1, index + 1)
        inside = (p - levels[index]) / (levels[index + 1] - levels[index])
        beyond = (torch.special.ndtri(p) - scores[index]) / (scores[index + 1] - scores[index])
        return low + (high - low) * torch.where((p < levels[0]) | (p > levels[-1]), beyond, inside)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """E[X] and E[X^2], summed over uniform pieces and two ends of normal distributions."""
        levels, scores, values = self._per_level(self.levels), self._scores(), self.values
        low, high, share = values[..., :-1], values[..., 1:], levels[1:] - levels[:-1]
        mean = (share * (low + high)).sum(-1) / 2
        square = (share * (low**2 + low * high + high**2)).sum(-1) / 3
        slopes = (high - low) / (scores[1:] - scores[:-1])
        for end, sign in ((0, -1.0), (-1, 1.0)):
            slope, score = slopes[..., end], scores[end]
            centre = values[..., end] - slope * score
            probability = levels[0] if end == 0 else 1 - levels[-1]
            density = sign * torch.exp(normal_log_density(score))  # the mean of a standard normal over its end
            mean = mean + centre * probability + slope * density
            square = square + centre**2 * probability + 2 * centre * slope * density
            square = square + slope**2 * (probability + score * density)
        return mean, square


def _gap(low: Tensor, high: Tensor) -> Tensor:
    """high - low, kept positive where rounding makes neighbours equal (a step of 1e-4 beside values of 1e4)."""
    return torch.maximum(high - low, torch.finfo(low.dtype).eps * (1 + low.detach().abs()))
