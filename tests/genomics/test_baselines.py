import itertools
from collections import Counter

import numpy as np
import pytest

import domains.genomics.baselines as baselines
import domains.interpolation as interpolation
from domains.errors import UserError
from domains.genomics.baselines import MarkovModels, count_words
from domains.genomics.config import DataConfig
from domains.genomics.splits import Region, make_splits
from domains.genomics.tokens import decode, encode, reverse_complement
from tests.genomics.genomes import make_store, random_bases

PAIRS = str.maketrans("ACGTN", "TGCAN")
GENOME = {
    "a": random_bases(400, 1, "AACCGTacN"),
    "b": "NN" + random_bases(300, 2, "ACGGT"),
    "c": "N",
    "d": "AC",
}
REGIONS = [Region("a", 10, 390), Region("b", 0, 302), Region("c", 0, 1), Region("d", 0, 2)]
VALIDATION = [Region("a", 0, 400)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("markov"), GENOME)


def naive_counts(length):
    """Every word of ACGT of that length in the regions, read from both strands."""
    counts = Counter()
    for contig, start, stop in REGIONS:
        forward = GENOME[contig][start:stop].upper()
        for strand in (forward, forward[::-1].translate(PAIRS)):
            for at in range(len(strand) - length + 1):
                word = strand[at : at + length]
                counts[word] += "N" not in word
    return counts


def words(length):
    return ["".join(letters) for letters in itertools.product("ACGT", repeat=length)]


def naive_probability(strengths, context, base):
    """The formula of the module, as it is written."""
    below = 0.25 if not context else naive_probability(strengths[:-1], context[1:], base)
    counts = naive_counts(len(context) + 1)
    total = sum(counts[context + other] for other in "ACGT")
    return (counts[context + base] + strengths[-1] * below) / (total + strengths[-1])


@pytest.mark.parametrize("block", [1, 3, 50, 1 << 20])
@pytest.mark.parametrize("max_order", [0, 1, 4])
def test_words_are_counted_on_both_strands(store, monkeypatch, block, max_order):
    monkeypatch.setattr(baselines, "_BLOCK", block)
    counts = count_words(store, REGIONS, max_order)
    assert len(counts) == max_order + 1
    for order, table in enumerate(counts):
        expected = naive_counts(order + 1)
        assert table.tolist() == [expected[word] for word in words(order + 1)]


def test_words_do_not_cross_the_edge_of_a_region(tmp_path):
    store = make_store(tmp_path, {"a": "AAAACCCC"})
    counts = count_words(store, [Region("a", 0, 4), Region("a", 4, 8)], 1)[1]
    found = {word for word, count in zip(words(2), counts, strict=True) if count}
    assert found == {"AA", "TT", "CC", "GG"}


def test_probabilities_follow_the_formula(store):
    models = MarkovModels.fit(store, REGIONS, 3, VALIDATION)
    sequence = "ACGTTNACNNGGTACGTACGNA"
    for order in range(4):
        found = models.log2_probs(encode(sequence), order)
        assert found.dtype == np.float32
        for at, base in enumerate(sequence):
            if base == "N":
                assert np.isnan(found[at])
                continue
            context = sequence[max(0, at - order) : at].rpartition("N")[2]
            expected = naive_probability(models.strengths[: len(context) + 1], context, base)
            assert found[at] == pytest.approx(np.log2(expected), abs=1e-6)


def test_each_model_is_a_distribution(store):
    models = MarkovModels.fit(store, REGIONS, 4, VALIDATION)
    for context in ("", "A", "ACG", "TTTT", "GATC"):
        for order in range(5):
            odds = [models.log2_probs(encode(context + base), order)[-1] for base in "ACGT"]
            assert np.exp2(np.float64(odds)).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("cut", [1, 2, 7, 100])
def test_pieces_with_context_equal_the_whole(store, monkeypatch, cut):
    models = MarkovModels.fit(store, REGIONS, 4, VALIDATION)
    tokens = store.tokens("a")
    whole = models.log2_probs(tokens, 4)
    pieces = [models.log2_probs(tokens[i : i + cut], 4, context=tokens[:i]) for i in range(0, len(tokens), cut)]
    assert np.array_equal(np.concatenate(pieces), whole, equal_nan=True)
    monkeypatch.setattr(baselines, "_BLOCK", cut)
    assert np.array_equal(models.log2_probs(tokens, 4), whole, equal_nan=True)
    assert np.array_equal(models.log2_probs(tokens, 4, context=np.array([11])), whole, equal_nan=True)


def test_strength_and_order_do_best_on_validation(store, monkeypatch):
    models = MarkovModels.fit(store, REGIONS, 4, VALIDATION)
    assert models.max_order == 4
    assert models.chosen_order == int(np.argmin(models.validation_bits))
    for order in range(5):
        assert models.bits_per_base(store, VALIDATION, order) == pytest.approx(models.validation_bits[order], abs=1e-5)
    for other in interpolation.STRENGTHS:
        monkeypatch.setattr(interpolation, "STRENGTHS", (other,))
        forced = MarkovModels.fit(store, REGIONS, 0, VALIDATION)
        assert forced.strengths == [other]
        assert forced.validation_bits[0] >= models.validation_bits[0]


def test_orders_beyond_the_data_do_no_harm(tmp_path):
    store = make_store(tmp_path, {"a": random_bases(6000, 1), "b": random_bases(4000, 2)})
    models = MarkovModels.fit(store, [Region("a", 0, 6000)], 8, [Region("b", 0, 4000)])
    assert models.bits_per_base(store, [Region("b", 0, 4000)], 8) == pytest.approx(2, abs=0.005)
    assert models.strengths[8] == max(interpolation.STRENGTHS)


def test_a_repeated_word_is_learnt_at_its_order(tmp_path):
    store = make_store(tmp_path, {"a": "ACGTTGCAAG" * 200})
    models = MarkovModels.fit(store, [Region("a", 0, 1500)], 6, [Region("a", 1500, 2000)])
    assert models.bits_per_base(store, [Region("a", 1500, 2000)]) < 0.2
    assert models.bits_per_base(store, [Region("a", 1500, 2000)], 0) > 1.9


def test_both_strands_are_the_mean_of_each(store):
    models = MarkovModels.fit(store, REGIONS, 2, VALIDATION)
    tokens = store.tokens("b")
    each = [-np.nanmean(np.float64(models.log2_probs(strand, 2))) for strand in (tokens, reverse_complement(tokens))]
    region = [Region("b", 0, 302)]
    assert models.bits_per_base(store, region, 2) == pytest.approx(each[0], abs=1e-9)
    assert models.bits_per_base(store, region, 2, both_strands=True) == pytest.approx(np.mean(each), abs=1e-9)
    assert each[0] != pytest.approx(each[1], abs=1e-4)
    assert np.isnan(models.bits_per_base(store, [Region("c", 0, 1)], 2))


def test_long_validation_is_sampled_evenly(tmp_path, monkeypatch):
    sequence = random_bases(10 << 16)
    store = make_store(tmp_path, {"a": sequence})
    monkeypatch.setattr(baselines, "_VALIDATION_BASES", 5 << 16)
    pieces = list(baselines.sample_blocks(store, [Region("a", 0, 10 << 16)], order=3))
    starts = [i << 16 for i in (0, 2, 4, 6, 8)]
    assert [decode(tokens) for tokens, _ in pieces] == [sequence[start : start + (1 << 16)] for start in starts]
    assert [decode(context) for _, context in pieces] == [sequence[max(0, start - 3) : start] for start in starts]


def test_any_integer_type_will_do_and_special_tokens_break_a_context(store):
    models = MarkovModels.fit(store, REGIONS, 2, VALIDATION)
    tokens = np.array([2, 7, 8, 4, 9, 10], dtype=np.int64)
    found = models.log2_probs(tokens, 2)
    assert np.isnan(found).tolist() == [True, False, False, True, False, False]
    assert np.array_equal(found[4:], models.log2_probs(encode("GT"), 2))


@pytest.mark.parametrize("order", [-1, 13])
def test_orders_out_of_range_are_refused(store, order):
    with pytest.raises(UserError, match=f"max_order={order}: Markov models have orders from 0 to 12"):
        MarkovModels.fit(store, REGIONS, order, VALIDATION)


def test_an_order_that_was_not_fitted_is_refused(store):
    models = MarkovModels.fit(store, REGIONS, 1, VALIDATION)
    with pytest.raises(ValueError, match="order 2 was not fitted"):
        models.log2_probs(encode("ACGT"), 2)


def test_nothing_known_to_learn_from_is_refused(store):
    with pytest.raises(UserError, match="no known base to fit Markov models on"):
        MarkovModels.fit(store, REGIONS, 1, [Region("c", 0, 1)])
    with pytest.raises(UserError, match="no known base to fit Markov models on"):
        MarkovModels.fit(store, [Region("c", 0, 1)], 1, VALIDATION)


def test_figures_of_ustilago_maydis(ustilago):
    """Counts from both strands, scored on the forward strand; plain back-off counting gave k3 1.957, k8 1.929."""
    splits = make_splits(ustilago, DataConfig(test=["chr20", "chr21", "chr22", "chr23"], validation=["chr19"]))
    counts = count_words(ustilago, splits.train + splits.validation, 8)
    assert counts[0].tolist() == counts[0].tolist()[::-1]  # as many A as T, C as G, once both strands count
    models = MarkovModels.fit(ustilago, splits.train, 8, splits.validation)
    assert models.bits_per_base(ustilago, splits.test, 3) == pytest.approx(1.957, abs=0.001)
    assert models.bits_per_base(ustilago, splits.test, 5) == pytest.approx(1.948, abs=0.001)
    assert 1.927 < models.bits_per_base(ustilago, splits.test, 8) < 1.931
    assert models.chosen_order == 8
