"""Naming a clip that is heard whole."""

import numpy as np
import torch

from domains.audio.loudness import level_gain, measure
from domains.audio.models.classifier import WaveClassifier
from domains.audio.models.spectrogram import SpectrogramClassifier
from domains.hardware import full_precision


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
    logits, _ = model(sound[None])
    return logits[0].double().softmax(-1).cpu().numpy()
