"""Naming a clip that is heard whole."""

import numpy as np
import torch

from domains.audio.loudness import level_gain, measure
from domains.audio.models.classifier import WaveClassifier
from domains.audio.models.spectrogram import SpectrogramClassifier
from domains.hardware import full_precision
from mamba_core import State

_CHUNK = 65536  # samples that a model in one direction hears at a time


@torch.inference_mode()
@full_precision()
def clip_probabilities(
    model: WaveClassifier | SpectrogramClassifier, samples: np.ndarray, level_db: float | None = None
) -> np.ndarray:
    """How likely each label is of a clip.

    Args:
        model: in evaluation mode.
        samples: float (l,), at the model's rate, of at least one sample.
        level_db: the level that the model's training brought clips to; see :func:`domains.audio.loudness.level_gain`.

    Returns:
        float64 (classes,), of sum 1.
    """
    gain = level_gain(*measure(samples), level_db)
    device = next(model.parameters()).device
    sound = torch.from_numpy(np.asarray(samples, dtype=np.float32) * np.float32(gain)).to(device)
    if not model.streams:
        logits, _ = model(sound[None])
    else:
        state: State | None = None
        for piece in sound[None].split(_CHUNK, dim=1):  # the memory of one piece
            logits, state = model(piece, state)
    return logits[0].double().softmax(-1).cpu().numpy()
