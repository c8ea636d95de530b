"""Mamba for very long sequences: a plain PyTorch library of selective state-space models."""

from mamba_core.backbone import Backbone, BackboneConfig
from mamba_core.causal_lm import CausalLM
from mamba_core.decoding import GraphedStep
from mamba_core.masked_lm import MaskedLM
from mamba_core.mixers import AttentionConfig, Capabilities, Mamba1Config, Mamba2Config, Mixer, MLPConfig, S4DConfig
from mamba_core.state import State
from mamba_core.stream_pool import StreamPool
from mamba_core.streaming import prefetch, stream

__all__ = [
    "AttentionConfig",
    "Backbone",
    "BackboneConfig",
    "Capabilities",
    "CausalLM",
    "GraphedStep",
    "MLPConfig",
    "Mamba1Config",
    "Mamba2Config",
    "MaskedLM",
    "Mixer",
    "S4DConfig",
    "State",
    "StreamPool",
    "prefetch",
    "stream",
]
