"""A stack of mixers: what every domain builds on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import cast

import torch
from torch import Tensor, nn

from mamba_core.blocks import Block, RMSNorm
from mamba_core.mixers import (
    MLP,
    AttentionConfig,
    Bidirectional,
    Capabilities,
    Mamba1Config,
    Mamba2Config,
    Mixer,
    MixerConfig,
    MLPConfig,
    ProjectedMixer,
    S4DConfig,
)
from mamba_core.mixers.base import check_sizes
from mamba_core.state import State


@dataclass
class BackboneConfig:
    """A stack of ``n_layers`` mixers of width ``d_model``; a gated MLP counts as one.

    ``pattern`` names the mixers from the first layer up and is repeated to fill the stack; each name is a field of
    this class that holds that mixer's own configuration.

    ``bidirectional`` makes each of them scan from both ends (:class:`mamba_core.mixers.Bidirectional`), but for MLPs,
    which take each token alone. ``reverse_complement`` is for models of DNA: see :mod:`mamba_core.reverse_complement`.
    """

    d_model: int = 128
    n_layers: int = 4
    pattern: list[str] = field(default_factory=lambda: ["mamba2"])
    norm_eps: float = 1e-5
    bidirectional: bool = False  # both directions in each mixer, projections shared
    reverse_complement: bool = False  # weights shared between a sequence and its reverse complement
    mamba1: Mamba1Config = field(default_factory=Mamba1Config)
    mamba2: Mamba2Config = field(default_factory=Mamba2Config)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    mlp: MLPConfig = field(default_factory=MLPConfig)
    s4d: S4DConfig = field(default_factory=S4DConfig)

    def build(self) -> "Backbone":
        """The stack.

        Raises:
            ValueError: a name in ``pattern`` that is no mixer, or has no form in both directions; sizes that do not
                fit together; or ``reverse_complement``, which asks for tokens that have a complement.
        """
        if self.reverse_complement:
            raise ValueError("backbone.reverse_complement=true: is for masked models of DNA alone")
        return Backbone(self)

    def build_mixer(self, layer: int) -> Mixer:
        """The mixer of one layer."""
        known: dict[str, MixerConfig] = {
            "mamba1": self.mamba1,
            "mamba2": self.mamba2,
            "attention": self.attention,
            "mlp": self.mlp,
            "s4d": self.s4d,
        }
        if not self.pattern:
            raise ValueError(f"backbone.pattern is empty; name at least one of {', '.join(known)}")
        name = self.pattern[layer % len(self.pattern)]
        if name not in known:
            raise ValueError(f"backbone.pattern names {name!r}; known mixers: {', '.join(known)}")
        mixer = known[name].build(self.d_model, self.norm_eps)
        if not self.bidirectional or isinstance(mixer, MLP):
            return mixer
        back = known[name].build(self.d_model, self.norm_eps)
        if not isinstance(mixer, ProjectedMixer) or not isinstance(back, ProjectedMixer):
            raise ValueError(f"backbone.bidirectional=true: {name} scans one way alone; use mamba1 or mamba2")
        return Bidirectional(mixer, back)


class Backbone(nn.Module):
    """Pre-norm residual stack with a final norm: (b, l, d_model) -> (b, l, d_model)."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        check_sizes("backbone", d_model=config.d_model, n_layers=config.n_layers)
        if config.norm_eps < 0:
            raise ValueError(f"backbone.norm_eps={config.norm_eps}: must not be negative")
        self.config = config
        self.layers = nn.ModuleList(
            Block(config.d_model, config.build_mixer(i), config.norm_eps) for i in range(config.n_layers)
        )
        if all(isinstance(block.mixer, MLP) for _, block in self.blocks()):
            raise ValueError(f"backbone.pattern={config.pattern}: none of these layers mixes tokens")
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        with torch.no_grad():  # residual branches start small: their sum has the size of one
            for _, block in self.blocks():
                block.mixer.out_proj.weight /= math.sqrt(config.n_layers)

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Each layer from the first up, with the name that its state goes by."""
        for i, layer in enumerate(self.layers):
            yield f"layers.{i}", cast(Block, layer)

    @property
    def capabilities(self) -> Capabilities:
        """What all layers can do."""
        all_layers = [block.mixer.capabilities for _, block in self.blocks()]
        return Capabilities(
            **{flag.name: all(getattr(layer, flag.name) for layer in all_layers) for flag in fields(Capabilities)}
        )

    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        """Run a whole sequence; see :meth:`mamba_core.mixers.Mixer.forward` for state and seq_idx."""
        after = {}
        for name, block in self.blocks():
            x, after[name] = block(x, None if state is None else state.child(name), seq_idx=seq_idx)
        return self.norm(x), State.nest(after)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token of each row, x (b, d_model), in constant time and memory if :attr:`capabilities` says so."""
        after = {}
        for name, block in self.blocks():
            x, after[name] = block.step(x, state.child(name))
        return self.norm(x), State.nest(after)

    @torch.no_grad()
    def step_(self, x: Tensor, state: State) -> Tensor:
        """As :meth:`mamba_core.mixers.Mixer.step_`."""
        for name, block in self.blocks():
            x = block.step_(x, state.child(name), chained=True)  # each block once, and the norm behind them
        return self.norm(x)

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """The state before any token."""
        return State.nest({name: block.mixer.init_state(batch, device) for name, block in self.blocks()})
