"""How loud sounds are, and what brings them to a level."""

import math

import numpy as np


def measure(samples: np.ndarray) -> tuple[float, float]:
    """Root mean square in dBFS, -inf of silence, and largest magnitude of samples: float (l,)."""
    whole = np.asarray(samples, dtype=np.float64)
    power = float(np.mean(np.square(whole))) if len(whole) else 0.0
    return 10 * math.log10(power) if power > 0 else -math.inf, float(np.abs(whole).max(initial=0.0))


def level_gain(rms_db: float, peak: float, level_db: float | None) -> float:
    """What a sound is multiplied by for a root mean square of ``level_db`` dBFS; 1 for None, and of silence.

    Less where the peak would pass 1. Dividing by it gives back the loudness of the recording.
    """
    if level_db is None or peak <= 0:
        return 1.0
    return float(min(10 ** ((level_db - rms_db) / 20), 1 / peak))
