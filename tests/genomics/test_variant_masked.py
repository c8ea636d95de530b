"""Ratios by masked probability against asking the model by hand."""

import numpy as np
import pytest
import torch

from domains.genomics.masked import masked_log_probs
from domains.genomics.model import load_model
from domains.genomics.tokens import MASK, N, encode, reverse_complement
from domains.genomics.variants.alleles import normalise
from domains.genomics.variants.haplotypes import Place
from domains.genomics.variants.masked import masked_ratios
from tests.genomics.genomes import random_bases
from tests.genomics.test_variant_likelihood import changed, indels, place, snvs
from tests.genomics.tiny import markov_bases


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "symmetric"])
def model(request, masked_models):
    return load_model(masked_models[request.param]).masked


def log_probs(model, tokens):
    """Log-probabilities (l, 4) of all bases of a sequence in which some are hidden."""
    with torch.no_grad():
        logits = model(torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None])[0, :, 7:11]
    return torch.log_softmax(logits, -1).numpy().astype(np.float64)


def test_an_snv_is_the_difference_of_two_probabilities_at_one_hidden_base(model):
    tokens = encode(markov_bases(300, 5))
    alleles = list(snvs(tokens, 25))
    found = masked_ratios(model, alleles, 1000, 100)
    at = np.array([allele.edit.start for allele in alleles])
    ref, alt = tokens[at] - 7, np.array([allele.edit.inserted[0] for allele in alleles]) - 7
    row = np.arange(len(at))
    forward = masked_log_probs(model, tokens, at)
    np.testing.assert_allclose(found[:, 0], forward[row, alt] - forward[row, ref], atol=1e-5)
    reverse = masked_log_probs(model, reverse_complement(tokens), 299 - at)
    np.testing.assert_allclose(found[:, 1], reverse[row, 3 - alt] - reverse[row, 3 - ref], atol=1e-5)
    assert np.abs(found).max() > 0.5


def test_of_an_mnv_the_bases_that_differ_are_hidden_together(model):
    tokens = encode(random_bases(60, 1))
    tokens[20:23] = encode("ACG")
    found = masked_ratios(model, [place(tokens, 20, 3, "TCA")], 1000, 100)
    shown = tokens.copy()
    shown[[20, 22]] = MASK
    told = log_probs(model, shown)
    assert found[0, 0] == pytest.approx(told[20, 3] + told[22, 0] - told[20, 0] - told[22, 2], abs=1e-5)


@pytest.mark.parametrize(("length", "alt"), [(3, ""), (0, "TTTT"), (2, "CTCTC")])
def test_of_an_indel_as_many_bases_are_hidden_in_both_sequences(model, length, alt):
    tokens = encode(random_bases(50, 2) + "GGAGG" + random_bases(45, 3))
    allele = place(tokens, 52, length, alt)
    found = masked_ratios(model, [allele], 1000, 100)
    other = changed(tokens, allele.edit)
    count = max(allele.edit.deleted, len(allele.edit.inserted))
    for strand, turn in enumerate((lambda sequence: sequence, reverse_complement)):
        pair = [turn(tokens)[: min(len(tokens), len(other))], turn(other)[: min(len(tokens), len(other))]]
        first = int(np.argmax(pair[0] != pair[1]))
        told = []
        for sequence in pair:
            shown = sequence.copy()
            shown[first : first + count] = MASK
            hidden = np.arange(first, first + count)
            told.append(log_probs(model, shown)[hidden, sequence[hidden] - 7].sum())
        assert found[0, strand] == pytest.approx(told[1] - told[0], abs=1e-5)


def test_both_strands_averaged_the_reverse_complement_has_the_same_score(model):
    tokens = encode(markov_bases(150, 3) + "ACACACAC" + markov_bases(150, 4))
    alleles = [*snvs(tokens, 10), *indels(tokens, 10), place(tokens, 152, 2, ""), place(tokens, 152, 0, "AC")]
    mirrored = reverse_complement(tokens)

    def read(start, stop):
        return mirrored[start:stop]

    turned = []
    for _, _, length, edit in alleles:
        start = length - edit.start - edit.deleted
        parts = mirrored[start : start + edit.deleted], reverse_complement(np.frombuffer(edit.inserted, np.uint8))
        turned.append(Place("m", read, length, normalise(read, length, start, *(part.tobytes() for part in parts))))
    one, other = (masked_ratios(model, places, 40, 30) for places in (alleles, turned))
    np.testing.assert_allclose(one, other[:, ::-1], atol=1e-5)
    if not model.symmetric:
        assert np.abs(one[:, 0] - one[:, 1]).max() > 0.05


def test_the_size_of_a_call_and_what_is_asked_beside_change_nothing(model):
    tokens = encode(random_bases(300, 5))
    tokens[90:95] = N
    alleles = [*snvs(tokens, 6), *indels(tokens, 6), place(tokens, 1, 1, "TT"), place(tokens, 296, 2, "")]
    whole = masked_ratios(model, alleles, 50, 30)
    assert np.isfinite(whole).all()
    for chunk in (1, 400):
        np.testing.assert_allclose(masked_ratios(model, alleles, 50, 30, chunk=chunk), whole, atol=1e-5)


def test_nothing_is_told_where_no_base_can_be_hidden(model):
    tokens = encode(random_bases(30, 9) + "GC")
    (found,) = masked_ratios(model, [place(tokens, 31, 1, "")], 10, 10)
    assert np.isnan(found).tolist() == [True, False]
    assert masked_ratios(model, [], 10, 10).shape == (0, 2)
