"""A gated multilayer perceptron (SwiGLU: Shazeer 2020, arXiv:2002.05202), a layer that mixes channels alone.

It stands in the pattern of a backbone like a mixer of tokens, with a state of no tensors: [attention, mlp] is a
Transformer, whose two layers have the parameters of two Mamba-2 layers.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_core.mixers.base import Capabilities, Mixer, check_sizes
from mamba_core.state import State

_MULTIPLE = 8  # of hidden channels: what matrix units want


@dataclass
class MLPConfig:
    """Size of a gated MLP."""

    expand: float = 8 / 3  # hidden channels for each of d_model; 3 matrices of 8/3 have as many numbers as 2 of 4

    def build(self, d_model: int, norm_eps: float) -> "MLP":
        """The layer for a model of this width (it has no norm of its own, so norm_eps is not used)."""
        return MLP(d_model, self)


class MLP(Mixer):
    """in_proj -> [gate, x]; out_proj of silu(gate) x. No state."""

    capabilities = Capabilities(causal=True, streams=True, steps=True, packs=True, splits=True)

    def __init__(self, d_model: int, config: MLPConfig):
        super().__init__()
        check_sizes("mlp", expand=config.expand)
        self.config = config
        hidden = _MULTIPLE * math.ceil(config.expand * d_model / _MULTIPLE)
        self.in_proj = nn.Linear(d_model, 2 * hidden, bias=False)
        self.out_proj = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        if seq_idx is not None:
            x = x.masked_fill((seq_idx < 0)[..., None], 0.0)
        gate, x = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(F.silu(gate) * x), State({})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.forward(x)

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        return State({})
