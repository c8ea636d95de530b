"""Two-sided k-mer models: counted by hand, blind to what is hidden, and alike on both strands."""

from functools import cache

import numpy as np
import pytest

from domains.errors import UserError
from domains.genomics.baselines import MarkovModels
from domains.genomics.splits import Region
from domains.genomics.tokens import A, N, encode, reverse_complement
from domains.genomics.two_sided import TwoSidedModels
from domains.interpolation import STRENGTHS
from tests.genomics.genomes import make_store, random_bases

TRAIN, VALIDATION = [Region("c0", 0, 2000), Region("c2", 0, 2800), Region("c5", 0, 4000)], [Region("c1", 0, 2400)]


def hide(number, length):
    return np.random.default_rng(number).random(length) < 0.15


@pytest.fixture(scope="module")
def models(tiny):
    return TwoSidedModels.fit(tiny, TRAIN, 3, VALIDATION, hide)


def test_probabilities_are_those_of_counts_leaning_on_shorter_contexts(tmp_path):
    """Flank 1 by hand: words of three letters on both strands; the strengths are found by trying all."""
    sequence = "ACGTTGCAACGGTACCATGA" * 5
    store = make_store(tmp_path, {"a": sequence, "b": "ACGTACCA" * 4})
    models = TwoSidedModels.fit(store, [Region("a", 0, 100)], 1, [Region("b", 0, 32)], hide)
    strands = [sequence, sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))]

    @cache
    def count(word):
        return sum(strand[i : i + len(word)] == word for strand in strands for i in range(len(strand)))

    def interpolated(strengths):
        zero = {x: (count(x) + strengths[0] / 4) / (200 + strengths[0]) for x in "ACGT"}
        left = {x: (count("C" + x) + strengths[1] * zero[x]) for x in "ACGT"}
        right = {x: (count(x + "A") + strengths[1] * zero[x]) for x in "ACGT"}
        left = {x: value / (sum(count("C" + y) for y in "ACGT") + strengths[1]) for x, value in left.items()}
        right = {x: value / (sum(count(y + "A") for y in "ACGT") + strengths[1]) for x, value in right.items()}
        total = sum(count(f"C{y}A") for y in "ACGT") + strengths[2]
        return [(count(f"C{x}A") + strengths[2] * (left[x] + right[x]) / 2) / total for x in "ACGT"]

    tokens = encode("GCTAG")
    hidden = np.array([False, False, True, False, False])
    found = np.exp2(models.log2_probs(tokens, hidden, 1)[0])
    assert found.sum() == pytest.approx(1, abs=1e-5)
    grid = np.array(np.meshgrid(*[STRENGTHS] * 3)).reshape(3, -1).T
    assert min(np.abs(np.array(interpolated(row)) - found).max() for row in grid) < 1e-6


def test_what_is_hidden_or_unknown_shortens_the_context(models, tiny):
    tokens = tiny.tokens("c5", 0, 41).copy()
    alone = np.zeros(41, dtype=bool)
    alone[20] = True
    whole = models.log2_probs(tokens, alone, 3)
    for distance, expected in ((4, True), (3, False), (1, False)):
        more = alone.copy()
        more[20 + distance] = True
        assert np.array_equal(models.log2_probs(tokens, more, 3)[0], whole[0]) == expected
        spoilt = tokens.copy()
        spoilt[20 + distance] = N
        assert np.array_equal(models.log2_probs(spoilt, alone, 3)[0], whole[0]) == expected
        other = tokens.copy()
        other[20 + distance] = A if tokens[20 + distance] != A else A + 1
        read = models.log2_probs(other, more, 3)[0]
        assert np.array_equal(read, models.log2_probs(tokens, more, 3)[0])
    own = tokens.copy()
    own[20] = A if tokens[20] != A else A + 1
    assert np.array_equal(models.log2_probs(own, alone, 3), whole)
    cut = models.log2_probs(tokens[20:], alone[20:], 3)  # at the beginning nothing stands before
    assert np.array_equal(cut, models.log2_probs(np.where(np.arange(41) < 20, N, tokens).astype(np.uint8), alone, 3))


def test_both_strands_tell_the_same(models, tiny):
    tokens = tiny.tokens("c4")
    hidden = hide(0, len(tokens)) & (tokens != N)
    found = models.log2_probs(tokens, hidden)
    turned = models.log2_probs(reverse_complement(tokens), hidden[::-1])
    np.testing.assert_allclose(turned[::-1, ::-1], found, atol=1e-5)
    np.testing.assert_allclose(np.exp2(found).sum(1), 1, atol=1e-5)


def test_both_sides_tell_more_than_one(models, tiny):
    """Of a chain of order 2 that a sequence and its reverse complement share in the counts."""
    tokens = tiny.tokens("c4")[1200:]
    hidden = hide(1, len(tokens))
    true = tokens[hidden].astype(int) - A
    bits = [-models.log2_probs(tokens, hidden, k)[np.arange(len(true)), true].mean() for k in range(4)]
    assert bits[0] > bits[1] > bits[2]
    markov = MarkovModels.fit(tiny, TRAIN, 3, VALIDATION)
    assert bits[2] < -markov.log2_probs(tokens)[hidden].mean()
    assert models.chosen_flank == int(np.argmin(models.validation_bits)) >= 2


def test_what_makes_no_sense_is_refused(tiny, tmp_path, models):
    with pytest.raises(UserError, match=r"max_order=14: two-sided models have from 0 to 6 bases a side"):
        TwoSidedModels.fit(tiny, TRAIN, 7, VALIDATION, hide)
    unknown = make_store(tmp_path, {"a": "N" * 50, "b": random_bases(50)})
    for train, validation in (("a", "b"), ("b", "a")):
        with pytest.raises(UserError, match="no known base to fit two-sided models on"):
            TwoSidedModels.fit(unknown, [Region(train, 0, 50)], 1, [Region(validation, 0, 50)], hide)
    with pytest.raises(ValueError, match="flank 4 was not fitted"):
        models.log2_probs(tiny.tokens("c4"), np.zeros(3600, bool), 4)
