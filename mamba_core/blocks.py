"""What stands around a mixer in a backbone."""

import torch
from torch import Tensor, nn

from mamba_core.mixers.base import Mixer
from mamba_core.ops.gated_rms_norm import gated_rms_norm
from mamba_core.state import State


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension with a learned weight (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size), same dtype."""
        return gated_rms_norm(x, None, self.weight, self.eps)


class Block(nn.Module):
    """x + mixer(norm(x)); the residual stream stays in the dtype it comes in (float32 under autocast)."""

    def __init__(self, d_model: int, mixer: Mixer, norm_eps: float):
        super().__init__()
        self.norm = RMSNorm(d_model, norm_eps)
        self.mixer = mixer

    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        """As :meth:`mamba_core.mixers.Mixer.forward`; padding passes through unchanged."""
        y, state = self.mixer(self.norm(x), state, seq_idx=seq_idx)
        return x + y, state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As :meth:`mamba_core.mixers.Mixer.step`."""
        done = self.mixer.step_around(x, self.norm.weight, self.norm.eps, state, in_place=False)
        if done is not None:
            return done
        y, state = self.mixer.step(self.norm(x), state)
        return x + y, state

    @torch.no_grad()
    def step_(self, x: Tensor, state: State, *, chained: bool = False) -> Tensor:
        """As :meth:`mamba_core.mixers.Mixer.step_`; ``chained`` as of :meth:`mamba_core.mixers.Mixer.step_around`."""
        done = self.mixer.step_around(x, self.norm.weight, self.norm.eps, state, in_place=True, chained=chained)
        return x + self.mixer.step_(self.norm(x), state) if done is None else done[0]
