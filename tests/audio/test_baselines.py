"""Baselines: figures on real clips, and made sound whose bits are known."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from domains.audio.baselines import ContextModels, LinearPredictor, Majority, MfccLogistic
from domains.audio.baselines.mfcc import class_numbers, mfcc_features
from domains.audio.baselines.share import even_share
from domains.audio.config import DataConfig
from domains.audio.metrics import BitsPerSample, Naming
from domains.audio.splits import make_splits
from domains.audio.store import AudioStore
from domains.audio.tokens import decode
from domains.errors import UserError
from tests.audio.sounds import RATE, make_store, noise, store_of, tone, write


def test_majority(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"cat": 2, "dog": 3})
    assert Majority.fit(store, range(5)).predict(store, [0, 4]).tolist() == [1, 1]
    assert Majority.fit(store, [0, 1, 2]).label == 0


def test_mfccs_hear_colour_and_not_order(tmp_path: Path, arrow: AudioStore) -> None:
    for i in range(12):
        write(tmp_path / "clips" / "tone" / f"{i}.wav", tone(0.2 + 0.01 * i, hertz=200 + 50 * i))
        write(tmp_path / "clips" / "noise" / f"{i}.wav", noise(0.2 + 0.01 * i, seed=i))
    store = store_of(tmp_path)
    train, test = list(range(0, 24, 2)), list(range(1, 24, 2))
    told = MfccLogistic.fit(store, train).predict(store, test)
    assert Naming(store.labels, class_numbers(store, test), told).accuracy == 1.0
    splits = make_splits(arrow, DataConfig(), labelled=True)
    features = mfcc_features(arrow, range(len(arrow)))
    assert features.shape == (94, 41)
    train, test = splits.clips(arrow, "train"), splits.clips(arrow, "test")
    told = MfccLogistic.fit(arrow, train, features).predict(arrow, test, features)
    assert Naming(arrow.labels, class_numbers(arrow, test), told).balanced_accuracy == pytest.approx(0.5, abs=0.06)


def test_the_penalty_is_chosen_where_clips_can_be_left_out(tmp_path: Path, arrow: AudioStore) -> None:
    store = make_store(tmp_path, {"cat": 1, "dog": 3})
    assert MfccLogistic.fit(store, range(4)).strength == 1.0  # without its one clip "cat" is nowhere
    train = make_splits(arrow, DataConfig(), labelled=True).clips(arrow, "train")
    assert MfccLogistic.fit(arrow, train).strength < 1.0  # MFCCs know no order, and should not be believed


def test_a_clip_shorter_than_a_window_has_features(tmp_path: Path) -> None:
    write(tmp_path / "clips" / "a.wav", noise(0.01))
    features = mfcc_features(store_of(tmp_path, min_seconds=0.001), [0])
    assert np.isfinite(features).all()
    assert features[0, -1] == 0.01


def autoregressive(seconds: float, seed: int, scale: float = 0.02) -> np.ndarray:
    """x_t = 1.6 x_(t-1) - 0.9 x_(t-2) + logistic noise."""
    from scipy.signal import lfilter

    noise = np.random.default_rng(seed).logistic(0, scale, round(seconds * RATE))
    return lfilter([1], [1, -1.6, 0.9], noise)


@pytest.fixture(scope="module")
def resonance(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    folder = tmp_path_factory.mktemp("resonance")
    for i in range(4):
        write(folder / "clips" / f"{i}.wav", autoregressive(1.0, i), subtype="FLOAT")
    return store_of(folder)


@pytest.fixture(scope="module")
def fixed(resonance: AudioStore) -> LinearPredictor:
    return LinearPredictor.fit(resonance, [0, 1], [2], follow=False)


@pytest.fixture(scope="module")
def follows(resonance: AudioStore) -> LinearPredictor:
    return LinearPredictor.fit(resonance, [0, 1], [2], follow=True)


@pytest.fixture(scope="module")
def context(resonance: AudioStore) -> ContextModels:
    return ContextModels.fit(resonance, [0, 1], [2])


def test_a_linear_predictor_finds_the_law_of_the_sound(fixed: LinearPredictor) -> None:
    found = fixed
    np.testing.assert_allclose(found.coefficients[:2], [1.6, -0.9], atol=0.05)
    assert found.scale.floor == pytest.approx(0.02, rel=0.15)
    order = len(found.coefficients)
    assert found.name == f"linear {order}, fixed scale"
    assert order > 1
    assert found.validation_bits[1] > found.validation_bits[2] + 0.5


def test_probabilities_of_all_levels_sum_to_one(
    resonance: AudioStore, fixed: LinearPredictor, follows: LinearPredictor, context: ContextModels
) -> None:
    ends = [np.append(resonance.tokens(3)[:40], np.uint8(level)) for level in range(256)]
    for bits in (fixed.bits, follows.bits, *(partial(context.bits, order=order) for order in range(4))):
        assert sum(2.0 ** -bits(end)[-1] for end in ends) == pytest.approx(1, abs=1e-6)


def test_bits_are_those_of_what_came_before_alone(
    resonance: AudioStore, follows: LinearPredictor, context: ContextModels
) -> None:
    levels = resonance.tokens(3)
    changed = levels.copy()
    changed[5000:] = 255 - changed[5000:]
    for bits in (follows.bits, context.bits):
        np.testing.assert_allclose(bits(levels)[:5000], bits(changed)[:5000])
        np.testing.assert_allclose(bits(levels)[:700], bits(levels[:700]))
        assert len(bits(levels[:0])) == 0


def test_long_clips_give_the_same_bits_in_blocks(
    resonance: AudioStore, follows: LinearPredictor, context: ContextModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = resonance.tokens(3)
    whole = follows.bits(levels), context.bits(levels)
    monkeypatch.setattr("domains.audio.baselines.linear._BLOCK", 777)
    monkeypatch.setattr("domains.audio.baselines.context._BLOCK", 777)
    np.testing.assert_allclose(follows.bits(levels), whole[0], atol=1e-9)
    np.testing.assert_allclose(context.bits(levels), whole[1], atol=1e-12)


def test_a_scale_that_follows_beats_a_fixed_one_where_sound_is_loud_and_soft(tmp_path: Path) -> None:
    envelope = np.where(np.arange(RATE) // 4000 % 2, 1.0, 0.03)
    for i in range(3):
        write(tmp_path / "clips" / f"{i}.wav", envelope * autoregressive(1.0, i), subtype="FLOAT")
    store = store_of(tmp_path)
    fixed, follows = (LinearPredictor.fit(store, [0], [1], follow=follow) for follow in (False, True))
    assert follows.bits(store.tokens(2)).mean() < fixed.bits(store.tokens(2)).mean() - 0.3


def test_context_models_count(tmp_path: Path) -> None:
    pattern = np.array([100, 120, 140, 120] * 2000, dtype=np.uint8)  # after 120 comes 100 or 140: two levels are needed
    for i in range(3):
        write(tmp_path / "clips" / f"{i}.wav", decode(np.roll(pattern, i)), subtype="FLOAT")
    store = store_of(tmp_path)
    models = ContextModels.fit(store, [0], [1])
    bits = [models.bits(store.tokens(2), order)[10:].mean() for order in range(4)]
    assert bits[0] == pytest.approx(1.5, abs=0.01)
    assert bits[1] == pytest.approx(0.5, abs=0.02)
    assert bits[2] < 0.02
    assert models.chosen_order >= 2
    assert models.name == f"context {models.chosen_order}"
    with pytest.raises(UserError, match="max_order=4"):
        ContextModels.fit(store, [0], [1], max_order=4)
    with pytest.raises(ValueError, match="order 4 was not fitted"):
        models.bits(store.tokens(2), 4)


def test_a_share_of_much_is_spread_over_all(resonance: AudioStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domains.audio.baselines.share._PIECE", 1000)
    monkeypatch.setattr("domains.audio.baselines.share._LEAD", 64)
    every = list(even_share(resonance, [0, 1], 10**9, None))
    assert sum(len(levels) - lead for levels, lead in every) == 2 * RATE
    assert np.array_equal(np.concatenate([levels[lead:] for levels, lead in every[:16]]), resonance.tokens(0))
    some = list(even_share(resonance, [0, 1], 4000, None))
    assert [len(levels) - lead for levels, lead in some] == [1000] * 4
    assert np.array_equal(some[2].levels, resonance.tokens(1, 0, 1000))
    assert (some[1].lead, some[2].lead) == (64, 0)


def test_on_speech_a_scale_that_follows_is_the_one_to_beat(prompts: AudioStore) -> None:
    splits = make_splits(prompts, DataConfig(), labelled=False)
    train, validation, test = (splits.clips(prompts, part) for part in ("train", "validation", "test"))
    means = []
    for model in (
        LinearPredictor.fit(prompts, train, validation, follow=True),
        ContextModels.fit(prompts, train, validation),
        LinearPredictor.fit(prompts, train, validation, follow=False),
    ):
        bits = BitsPerSample()
        for clip in test:
            bits.add(clip, model.bits(prompts.tokens(clip)))
        means.append(bits.mean)
    assert means == pytest.approx([4.22, 5.00, 5.95], abs=0.03)
