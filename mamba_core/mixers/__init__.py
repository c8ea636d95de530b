"""Sequence mixers, one file each, all with the face of :class:`mamba_core.mixers.base.Mixer`."""

from mamba_core.mixers.base import Capabilities, Mixer, MixerConfig
from mamba_core.mixers.mamba1 import Mamba1, Mamba1Config
from mamba_core.mixers.mamba2 import Mamba2, Mamba2Config

__all__ = ["Capabilities", "Mamba1", "Mamba1Config", "Mamba2", "Mamba2Config", "Mixer", "MixerConfig"]
