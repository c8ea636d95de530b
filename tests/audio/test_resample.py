"""Resampling in blocks equals resampling at once, whatever the blocks."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.transforms import Resample

from domains.audio.resample import _FILTER, Resampler, rate_ratio, resampled_length
from tests.audio.sounds import tone

PAIRS = [(44100, 16000), (16000, 44100), (22050, 16000), (8000, 16000), (48000, 16000), (44099, 16000), (16000, 16000)]


def in_blocks(x: np.ndarray, source: int, target: int, sizes: list[int]) -> np.ndarray:
    resampler, out, at = Resampler(source, target), [], 0
    while at < len(x):
        size = sizes[len(out) % len(sizes)]
        out.append(resampler.push(x[at : at + size]))
        at += size
    return np.concatenate([*out, resampler.finish()])


def at_once(x: np.ndarray, source: int, target: int) -> np.ndarray:
    ratio = rate_ratio(source, target)
    return Resample(ratio.denominator, ratio.numerator, **_FILTER)(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("length", [1, 50, 20011])
def test_blocks_equal_the_whole(source: int, target: int, length: int) -> None:
    x = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    found = in_blocks(x, source, target, [1, 997, 3, 4096])
    assert len(found) == resampled_length(length, source, target)
    np.testing.assert_allclose(found, at_once(x, source, target), atol=5e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5), st.integers(0, 4000))
def test_any_blocks_give_the_same(sizes: list[int], length: int) -> None:
    x = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    found = in_blocks(x, 44100, 16000, sizes)
    np.testing.assert_allclose(found, in_blocks(x, 44100, 16000, [length + 1]), atol=5e-6)


def test_a_tone_stays_a_tone_and_what_the_new_rate_cannot_hold_is_gone() -> None:
    low = tone(1.0, 44100, 1000).astype(np.float32)
    found = in_blocks(low, 44100, 16000, [5000])
    np.testing.assert_allclose(found[1000:-1000], tone(1.0, 16000, 1000)[1000:-1000], atol=1e-3)
    high = in_blocks(tone(1.0, 44100, 9500).astype(np.float32), 44100, 16000, [5000])
    assert np.abs(high[1000:-1000]).max() < 1e-4


def test_odd_rates_are_taken_as_a_ratio_whose_filter_is_small() -> None:
    for source, target in ((44099, 16000), (16001, 48000), (16001, 16000), (767_999, 8000), (1009, 767_999)):
        ratio = rate_ratio(source, target)
        assert max(ratio.numerator, ratio.denominator) <= 2000
        assert float(ratio) == pytest.approx(target / source, rel=1 / 4000)
    assert float(rate_ratio(44099, 16000)) == pytest.approx(16000 / 44099, rel=2e-6)
    assert rate_ratio(44100, 16000) == Fraction(160, 441)
