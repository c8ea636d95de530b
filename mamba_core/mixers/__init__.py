"""Sequence mixers, one file each, all with the face of :class:`mamba_core.mixers.base.Mixer`."""

from mamba_core.mixers.attention import Attention, AttentionConfig
from mamba_core.mixers.base import Capabilities, Mixer, MixerConfig, ProjectedMixer
from mamba_core.mixers.bidirectional import Bidirectional
from mamba_core.mixers.mamba1 import Mamba1, Mamba1Config
from mamba_core.mixers.mamba2 import Mamba2, Mamba2Config
from mamba_core.mixers.mlp import MLP, MLPConfig
from mamba_core.mixers.s4d import S4D, S4DConfig

__all__ = [
    "MLP",
    "S4D",
    "Attention",
    "AttentionConfig",
    "Bidirectional",
    "Capabilities",
    "MLPConfig",
    "Mamba1",
    "Mamba1Config",
    "Mamba2",
    "Mamba2Config",
    "Mixer",
    "MixerConfig",
    "ProjectedMixer",
    "S4DConfig",
]
