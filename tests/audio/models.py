"""Model folders for tests: small models as they are before any training, with heads that say something."""

from pathlib import Path

import torch
from torch import nn

from domains.audio.config import DataConfig, TaskConfig, TrainConfig
from domains.audio.models.classifier import ClassifierConfig
from domains.audio.models.front import FrontConfig
from domains.audio.models.generator import GeneratorConfig
from domains.audio.models.spectrogram import SpectrogramConfig
from domains.audio.splits import Splits
from domains.audio.trained import Sound, build_model, save_model
from mamba_core import BackboneConfig, Mamba2Config, S4DConfig

RATE = 4000
LABELS = ("bell", "drum", "voice")


def settings(kind: str, *, bidirectional: bool = False, level_db: float | None = None) -> TrainConfig:
    """Of a small model of any kind."""
    task = TaskConfig(
        kind,
        GeneratorConfig(widths=[8, 12], pool=[4, 2], layers=2, s4d=S4DConfig(d_state=8)),
        ClassifierConfig(FrontConfig(strides=[4, 2], kernels=[9, 3], width=6), bidirectional=bidirectional),
        SpectrogramConfig(window=64, hop=16, mels=8, patch_frames=2, patch_mels=4),
    )
    backbone = BackboneConfig(d_model=16, n_layers=1, mamba2=Mamba2Config(d_state=8, headdim=8))
    return TrainConfig(DataConfig(rate=RATE, level_db=level_db, max_seconds=2.0), task, backbone)


def save(folder: Path, kind: str, *, bidirectional: bool = False, level_db: float | None = None, seed: int = 1) -> Path:
    """A model folder."""
    config = settings(kind, bidirectional=bidirectional, level_db=level_db)
    sound = Sound(kind, RATE, () if kind == "generate" else LABELS, level_db)
    torch.manual_seed(seed)
    model = build_model(config, sound)
    if kind == "generate":
        with torch.no_grad():
            model.head.weight *= 50  # type: ignore[operator]
    else:
        nn.init.normal_(model.head.linear.weight)  # type: ignore[union-attr, arg-type]
    splits = Splits(["a"], ["b"], ["c"], "split by name", [])
    data = {"source": "made", "fingerprint": "0" * 64, "splits": splits.to_dict()}
    save_model(folder, model.state_dict(), config, data, {}, sound=sound)
    return folder
