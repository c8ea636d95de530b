"""Scores by hand, and intervals that hold the truth as often as they say."""

import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from domains.audio.metrics import BitsPerSample, Naming, compare_bits, compare_naming, paired_bootstrap

LABELS = ["a", "b", "c"]


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, called = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    scores = Naming(LABELS, truth, called)
    assert scores.accuracy == pytest.approx(np.mean(truth == called))
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, called))
    theirs = np.stack(precision_recall_fscore_support(truth, called)[:3], axis=1)
    np.testing.assert_allclose([row[2:] for row in scores.to_rows()], theirs)
    assert scores.confusion.sum() == 200
    assert scores.confusion[1, 2] == np.sum((truth == 1) & (called == 2))


def test_classes_without_clips_do_not_count() -> None:
    scores = Naming(LABELS, np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert scores.balanced_accuracy == 0.75
    missing = scores.to_rows()[2]
    assert missing.clips == 0
    assert math.isnan(missing.precision)
    assert math.isnan(missing.recall)


def test_bits_of_clips_in_pieces() -> None:
    bits = BitsPerSample()
    assert math.isnan(bits.mean)
    bits.add(3, np.array([1.0, 2.0]))
    bits.add(5, np.array([4.0]))
    bits.add(3, np.array([3.0]))
    assert bits.mean == 2.5
    assert bits.samples == {3: 3, 5: 1}
    assert bits.of([5, 3]).tolist() == [4.0, 6.0]


def made_bits(rng: np.random.Generator, clips: int, less: float) -> tuple[BitsPerSample, BitsPerSample]:
    first, second = BitsPerSample(), BitsPerSample()
    for clip in range(clips):
        second.add(clip, rng.normal(4, 1, 50) + rng.normal(0, 1))
        first.bits[clip] = second.bits[clip] + 50 * (rng.normal(0, 0.2) - less)
        first.samples[clip] = 50
    return first, second


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = compare_bits(*made_bits(rng, 40, 0.1), resamples=300, seed=seed)
        hits += found.low <= -0.1 <= found.high
    assert 0.88 < hits / 200 < 0.99


def test_what_is_shown_and_what_is_not() -> None:
    rng = np.random.default_rng(0)
    found = compare_bits(*made_bits(rng, 40, 0.3))
    assert found.shown
    assert found.high < 0
    assert found.units == 40
    nothing = compare_bits(*made_bits(rng, 40, 0.0))
    assert not nothing.shown
    assert str(nothing).endswith("not shown")
    first, second = made_bits(rng, 3, 0.1)
    second.add(9, np.ones(2))
    with pytest.raises(ValueError, match="different samples"):
        compare_bits(first, second)


def test_groups_are_drawn_whole() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 120)
    groups = np.repeat([f"g{i}" for i in range(6)], 20)
    good = np.where(np.repeat(rng.random(6) < 0.5, 20), truth, (truth + 1) % 3)  # all of a group, or nothing
    bad = (truth + 1) % 3
    clips = compare_naming(LABELS, truth, good, bad)
    whole = compare_naming(LABELS, truth, good, bad, list(groups))
    assert clips.value == whole.value
    assert whole.units == 6
    assert whole.high - whole.low > 2 * (clips.high - clips.low)
    plain = compare_naming(LABELS, truth, truth, bad, balanced=False)
    assert plain.value == 1.0


def test_the_same_seed_gives_the_same_interval() -> None:
    weights_seen = []

    def difference(weights: np.ndarray) -> float:
        weights_seen.append(weights)
        return float(weights @ np.arange(5.0))

    first = paired_bootstrap(difference, 5, resamples=50, seed=1)
    assert first == paired_bootstrap(difference, 5, resamples=50, seed=1)
    assert first.value == 10
    assert all(weights.sum() == 5 for weights in weights_seen)
