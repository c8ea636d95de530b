"""An autoregressive model of mu-law levels at sample rate: pooled stages round a backbone."""

import math
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from domains.audio.models.pooling import Pooled
from domains.audio.tokens import CENTRES, LEVELS
from mamba_core import Backbone, BackboneConfig, CausalLM, MLPConfig, S4DConfig, State
from mamba_core.mixers.base import check_sizes


@dataclass
class GeneratorConfig:
    """The stages outside the backbone, from the one at sample rate inwards.

    Defaults follow SaShiMi's: 64 channels at sample rate, twice as many at each slower stage, blocks of 4 and 4. With
    few layers at sample rate decoding is fast, for only those run at every sample; the backbone runs at every 16th.
    """

    widths: list[int] = field(default_factory=lambda: [64, 128])  # channels of each stage; the backbone has its own
    pool: list[int] = field(default_factory=lambda: [4, 4])  # samples of a block, block of blocks, ...
    layers: int = 4  # of each stage
    pattern: list[str] = field(default_factory=lambda: ["s4d", "mlp"])  # time-invariant: selection hurts on raw samples
    s4d: S4DConfig = field(default_factory=S4DConfig)
    mlp: MLPConfig = field(default_factory=lambda: MLPConfig(expand=2.0))

    def build(self, backbone: BackboneConfig) -> "Generator":
        """The model round a backbone.

        Raises:
            ValueError: sizes that do not fit together.
        """
        return Generator(self, backbone)


@dataclass
class _Stages:
    """All that CausalLM wants to know of a backbone."""

    outside: GeneratorConfig
    inside: BackboneConfig

    @property
    def d_model(self) -> int:
        return self.outside.widths[0]

    def build(self) -> Pooled:
        stage: Backbone | Pooled = self.inside.build()
        width = self.inside.d_model
        for own, pool in reversed(list(zip(self.outside.widths, self.outside.pool, strict=True))):
            layers = BackboneConfig(
                d_model=own,
                n_layers=self.outside.layers,
                pattern=self.outside.pattern,
                norm_eps=self.inside.norm_eps,
                s4d=self.outside.s4d,
                mlp=self.outside.mlp,
            )
            stage, width = Pooled(pool, stage, width, layers.build()), own
        assert isinstance(stage, Pooled)
        return stage


class Generator(CausalLM):
    """A :class:`mamba_core.CausalLM` over 256 levels: logits at t are for sample t + 1, and know samples up to t.

    Before a clip stands :data:`domains.audio.tokens.SILENCE`. Any split into calls, any packing, one sample at a time:
    the same to rounding. Training is fastest in windows of a multiple of ``block`` samples without ``seq_idx``; padding
    at the end of a row needs none there, for nothing looks ahead.

    Attributes:
        block: samples of an innermost block, over which the cost of a step repeats.
    """

    def __init__(self, config: GeneratorConfig, backbone: BackboneConfig) -> None:
        check_sizes("generator", layers=config.layers)
        if not config.pool or len(config.pool) != len(config.widths):
            raise ValueError(
                f"generator.widths={config.widths}, generator.pool={config.pool}: must be as many, and at least one"
            )
        super().__init__(LEVELS, cast(BackboneConfig, _Stages(config, backbone)))
        with torch.no_grad():
            self.embedding.weight.copy_(_waves(config.widths[0]))
        self.block = self.stages.total

    @property
    def stages(self) -> Pooled:
        """What stands between embedding and head."""
        return cast(Pooled, self.backbone)

    @torch.no_grad()
    def step_(self, tokens: Tensor, state: State, position: int | None = None) -> Tensor:
        """As :meth:`mamba_core.CausalLM.step_`; for position see :meth:`domains.audio.models.pooling.Pooled.step_`."""
        return self.head(self.stages.step_(self.embedding(tokens), state, position))


def _waves(width: int) -> Tensor:
    """(LEVELS, width): sines and cosines of the level at many scales, so that like levels are alike from the start."""
    level = torch.from_numpy(CENTRES)[:, None]  # -1 to 1
    rates = math.pi * torch.logspace(
        -1, math.log2(LEVELS / 4), -(-width // 2), base=2, dtype=torch.float64, device="cpu"
    )
    return torch.cat([(level * rates).sin(), (level * rates).cos()], dim=1)[:, :width].float()
