"""Changes to a waveform that leave its label as it is, drawn from (seed, epoch, clip): the same draw, the same sound.

All are pure functions of tensors; random numbers come from the generator that is given.
"""

import numpy as np
import torch
from torch import Tensor

from domains.audio.config import AugmentConfig
from domains.config import check_range

_SPEED_STEPS = 100  # speeds are whole per cent, for the sake of the filter


def augment(x: Tensor, rate: int, config: AugmentConfig, seed: int, epoch: int, clip: int) -> Tensor:
    """A clip as it may sound elsewhere.

    Args:
        x: float (..., l).
        rate: samples per second.
        config: what is done, and how much of it.
        seed, epoch, clip: decide what is drawn.

    Returns:
        float (..., l), or longer or shorter where the speed changes.
    """
    rng = np.random.default_rng([seed % 2**64, epoch, clip])
    percent = int(rng.integers(-round(config.speed * _SPEED_STEPS), round(config.speed * _SPEED_STEPS) + 1))
    shift = round(rng.uniform(-1, 1) * config.shift_seconds * rate)
    low_cut = bool(rng.random() < 0.5)
    limited = rng.random() < config.band_limit
    corner = _between(rng, 60, 400) if low_cut else _between(rng, rate / 8, rate / 2.5)
    noisy = rng.random() < config.noise
    snr = rng.uniform(config.snr_db, config.snr_db + 20)
    decibels = rng.uniform(-1, 1) * config.gain_db
    if percent:
        x = change_speed(x, 1 + percent / _SPEED_STEPS)
    if shift:
        x = shift_by(x, shift)
    if limited:
        x = limit_band(x, rate, low=corner if low_cut else None, high=None if low_cut else corner)
    if noisy:
        x = add_noise(x, snr, torch.Generator().manual_seed(int(rng.integers(2**63))))
    return change_gain(x, decibels) if decibels else x


def check_augment(config: AugmentConfig) -> None:
    """Make sure that the values make sense; a UserError names the first that does not."""
    check_range("data.augment.gain_db", config.gain_db, 0, 60)
    check_range("data.augment.noise", config.noise, 0, 1)
    check_range("data.augment.snr_db", config.snr_db, -20, 100)
    check_range("data.augment.speed", config.speed, 0, 0.5)
    check_range("data.augment.shift_seconds", config.shift_seconds, 0, 60)
    check_range("data.augment.band_limit", config.band_limit, 0, 1)
    check_range("data.augment.mix", config.mix, 0, 1)


def mix(first: Tensor, second: Tensor, share: float, decibels: float) -> Tensor:
    """Two sounds at once, (l,) and (m,) -> (the longer,): heard as ``share`` of the first and the rest of the second.

    Between-class learning (Tokozume et al. 2018, arXiv:1711.10282, eq. 2): the softer of the two is brought up, and the
    power of the sum stays about that of its parts.

    Args:
        share: from 0, the second alone, to 1.
        decibels: by which the first is the louder.
    """
    x = first.new_zeros(max(len(first), len(second)))
    amplitude = share / (share + 10 ** (decibels / 20) * (1 - share))
    x[: len(first)] += amplitude * first
    x[: len(second)] += (1 - amplitude) * second
    return x / (amplitude**2 + (1 - amplitude) ** 2) ** 0.5


def change_gain(x: Tensor, decibels: float) -> Tensor:
    """Louder by so many decibels: (..., l) -> (..., l)."""
    return x * 10 ** (decibels / 20)


def add_noise(x: Tensor, snr_db: float, generator: torch.Generator) -> Tensor:
    """White noise, softer than the mean power of each row by ``snr_db``: (..., l) -> (..., l)."""
    power = x.square().mean(dim=-1, keepdim=True)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x + noise.to(x.device) * (power * 10 ** (-snr_db / 10)).sqrt()


def change_speed(x: Tensor, factor: float) -> Tensor:
    """Faster, and higher, by a factor, which is rounded to whole per cent: (..., l) -> (..., about l / factor)."""
    from torchaudio.functional import resample

    return resample(x, round(factor * _SPEED_STEPS), _SPEED_STEPS)


def shift_by(x: Tensor, samples: int) -> Tensor:
    """Later by so many samples, or earlier if negative, with silence where nothing was: (..., l) -> (..., l)."""
    shifted = torch.zeros_like(x)
    if samples >= 0:
        shifted[..., samples:] = x[..., : max(0, x.shape[-1] - samples)]
    else:
        shifted[..., :samples] = x[..., -samples:]
    return shifted


def limit_band(x: Tensor, rate: int, low: float | None, high: float | None) -> Tensor:
    """What lies below ``low`` and above ``high`` Hz fades out over an octave: (..., l) -> (..., l).

    A raised cosine over the logarithm of frequency, without delay.
    """
    frequency = torch.fft.rfftfreq(x.shape[-1], 1 / rate).to(x.device).clamp(min=1e-3)
    gain = torch.ones_like(frequency)
    if low is not None:
        gain = gain * _ramp(torch.log2(frequency / low))
    if high is not None:
        gain = gain * _ramp(torch.log2(high / frequency))
    return torch.fft.irfft(torch.fft.rfft(x) * gain, n=x.shape[-1])


def _ramp(octaves: Tensor) -> Tensor:
    """From 0, an octave below, to 1."""
    return (1 - torch.cos(torch.pi * (octaves + 1).clamp(0, 1))) / 2


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Evenly over the logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
