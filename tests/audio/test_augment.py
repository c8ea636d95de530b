"""Changes to waveforms: what each does, and that a draw is its seed's."""

import math

import pytest
import torch

from domains.audio.augment import (
    add_noise,
    augment,
    change_gain,
    change_speed,
    check_augment,
    limit_band,
    shift_by,
)
from domains.audio.config import AugmentConfig
from domains.errors import UserError
from tests.audio.sounds import RATE, tone

ALL = AugmentConfig(gain_db=6, noise=1.0, snr_db=10, speed=0.1, shift_seconds=0.05, band_limit=1.0)


def sine(hertz: float, seconds: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(tone(seconds, RATE, hertz))


def decibels(x: torch.Tensor, of: torch.Tensor) -> float:
    return 10 * math.log10(float(x.square().mean() / of.square().mean()))


def test_gain() -> None:
    assert decibels(change_gain(sine(440), -6), sine(440)) == pytest.approx(-6)


def test_noise_is_as_soft_as_asked() -> None:
    x = torch.stack([sine(440), 0.1 * sine(440)])
    noisy = add_noise(x, 20.0, torch.Generator().manual_seed(0))
    for row in range(2):
        assert decibels(noisy[row] - x[row], x[row]) == pytest.approx(-20, abs=0.2)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    x = change_speed(sine(1000), factor)
    assert len(x) == pytest.approx(RATE / factor, abs=1)
    peak = int(torch.fft.rfft(x).abs().argmax()) * RATE / len(x)
    assert peak == pytest.approx(1000 * factor, abs=2)


def test_shift() -> None:
    x = torch.arange(1.0, 6.0)
    assert shift_by(x, 2).tolist() == [0, 0, 1, 2, 3]
    assert shift_by(x, -2).tolist() == [3, 4, 5, 0, 0]
    assert shift_by(x, 0).tolist() == x.tolist()
    assert shift_by(x, 9).tolist() == shift_by(x, -9).tolist() == [0] * 5


def test_bands() -> None:
    low, middle, high = sine(100), sine(1000), sine(6000)
    kept = limit_band(low + middle + high, RATE, low=300, high=3000)
    torch.testing.assert_close(kept, middle, atol=1e-3, rtol=0)
    torch.testing.assert_close(limit_band(middle, RATE, low=None, high=None), middle)
    assert decibels(limit_band(sine(212), RATE, low=300, high=None), sine(212)) == pytest.approx(-6, abs=0.2)


def test_a_draw_is_that_of_seed_epoch_and_clip() -> None:
    x = sine(440, 0.3)
    drawn = augment(x, RATE, ALL, 1, 2, 3)
    assert torch.equal(drawn, augment(x, RATE, ALL, 1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (-1, 2, 3)):
        found = augment(x, RATE, ALL, *other)
        assert found.shape != drawn.shape or not torch.equal(found, drawn)
    assert torch.isfinite(drawn).all()


def test_nothing_is_drawn_where_all_is_off() -> None:
    x = sine(440, 0.3)
    assert augment(x, RATE, AugmentConfig(), 1, 2, 3) is x


@pytest.mark.parametrize("name", ["noise", "speed", "band_limit", "gain_db", "shift_seconds"])
def test_values_without_sense_are_one_line(name: str) -> None:
    check_augment(ALL)
    with pytest.raises(UserError, match=rf"data\.augment\.{name}=-1"):
        check_augment(AugmentConfig(**{name: -1.0}))
