"""Mu-law levels: 256 tokens for the amplitude of a sample, finer where it is small.

ITU-T G.711's curve with mu = 255, in the continuous form that generative models of raw audio use (WaveNet, SaShiMi):
y = sign(x) log(1 + mu |x|) / log(1 + mu), and the token is the nearest of 256 equal steps of y.
"""

import numpy as np

LEVELS = 256
MU = LEVELS - 1
SILENCE = 128  # the token of amplitude 0, and what comes before the first sample of a clip


def encode(samples: np.ndarray) -> np.ndarray:
    """Tokens of samples: float (...) -> uint8 (...); what lies beyond -1 to 1 gets the outermost token."""
    x = np.clip(np.asarray(samples, dtype=np.float32), -1, 1)
    y = np.sign(x) * np.log1p(MU * np.abs(x)) / np.float32(np.log1p(MU))
    return np.floor((y + 1) / 2 * MU + 0.5).astype(np.uint8)


def decode(tokens: np.ndarray) -> np.ndarray:
    """Samples in the middle of tokens: integer (...) -> float32 (...) from -1 to 1."""
    return _AMPLITUDES[np.asarray(tokens)]


def expand(y: np.ndarray) -> np.ndarray:
    """The inverse of the curve: float (...) from -1 to 1 -> float64 (...)."""
    y = np.asarray(y, dtype=np.float64)
    return np.sign(y) * np.expm1(np.abs(y) * np.log1p(MU)) / MU


def compress(x: np.ndarray) -> np.ndarray:
    """The curve: float (...) from -1 to 1 -> float64 (...)."""
    x = np.asarray(x, dtype=np.float64)
    return np.sign(x) * np.log1p(MU * np.abs(x)) / np.log1p(MU)


CENTRES = np.arange(LEVELS) / MU * 2 - 1  # float64 (256,), on the curve
EDGES = np.concatenate([[-np.inf], (np.arange(1, LEVELS) - 0.5) / MU * 2 - 1, [np.inf]])  # float64 (257,), on the curve
_AMPLITUDES = expand(CENTRES).astype(np.float32)
