"""Ratios by windows against scoring both whole sequences."""

import numpy as np
import pytest
import torch

from domains.errors import UserError
from domains.genomics.model import load_model
from domains.genomics.stream import score_sequence
from domains.genomics.tokens import N, encode, reverse_complement
from domains.genomics.variants.alleles import normalise
from domains.genomics.variants.haplotypes import Place, make_windows
from domains.genomics.variants.likelihood import causal_log_probs
from mamba_core import BackboneConfig, CausalLM, Mamba1Config, Mamba2Config
from tests.genomics.genomes import random_bases
from tests.genomics.tiny import markov_bases

WHOLE = 10_000  # context and window that hold all of a sequence


def make_model(*pattern):
    torch.manual_seed(0)
    backbone = BackboneConfig(
        d_model=16,
        n_layers=2,
        pattern=list(pattern),
        mamba1=Mamba1Config(d_state=4),
        mamba2=Mamba2Config(d_state=8, headdim=8),
    )
    backbone.attention.headdim = 8
    return CausalLM(16, backbone).eval()


@pytest.fixture(scope="module")
def trained(tiny_model):
    return load_model(tiny_model).model


def place(tokens, start, ref_length, alt, contig="c"):
    def read(first, last):
        return tokens[first:last]

    ref = tokens[start : start + ref_length].tobytes()
    return Place(contig, read, len(tokens), normalise(read, len(tokens), start, ref, encode(alt).tobytes()))


def changed(tokens, edit):
    inserted = np.frombuffer(edit.inserted, np.uint8)
    return np.concatenate([tokens[: edit.start], inserted, tokens[edit.start + edit.deleted :]])


def ratios(model, places, context=WHOLE, window=WHOLE, chunk=65536):
    windows = make_windows(places, context, window)
    return windows.ratios(causal_log_probs(model, windows, chunk=chunk))


def snvs(tokens, count, seed=0):
    random = np.random.default_rng(seed)
    for start in random.choice(np.flatnonzero(tokens != N), count, replace=False).tolist():
        yield place(tokens, start, 1, "ACGT".replace("ACGT"[tokens[start] - 7], "")[int(random.integers(3))])


def indels(tokens, count, seed=0):
    random = np.random.default_rng(seed)
    while count:
        start, length = int(random.integers(1, len(tokens) - 10)), int(random.integers(0, 6))
        alt = random_bases(int(random.integers(0, 9)), int(random.integers(1 << 30)))
        if length == len(alt) or (tokens[start : start + length] == N).any():
            continue
        yield place(tokens, start, length, alt)
        count -= 1


def test_an_snv_is_scored_as_by_the_plain_forward_of_both_whole_sequences(trained):
    tokens = encode(markov_bases(700, 9))
    places = list(snvs(tokens, 30))
    found = ratios(trained, places)
    for place, strands in zip(places, found, strict=True):
        other = changed(tokens, place.edit)
        wanted = [
            np.subtract(*(score_sequence(trained, turn(sequence)).astype(np.float64) for sequence in (other, tokens)))
            for turn in (lambda sequence: sequence, reverse_complement)
        ]
        np.testing.assert_allclose(strands, [difference.sum() for difference in wanted], atol=1e-5)
    assert np.abs(found).max() > 1  # the model has learnt something to be disappointed by


@pytest.mark.parametrize("pattern", [("mamba2", "mamba1"), ("mamba2", "attention"), ("s4d",)], ids="-".join)
def test_an_indel_is_scored_over_as_many_bases_of_both_as_by_whole_sequences(pattern):
    model = make_model(*pattern)
    tokens = encode(random_bases(150, 1) + "CAG" * 12 + random_bases(150, 2))
    places = [*indels(tokens, 12), place(tokens, 160, 3, ""), place(tokens, 160, 0, "CAGCAG")]
    for allele, strands in zip(places, ratios(model, places), strict=True):
        for strand, turn in enumerate((lambda sequence: sequence, reverse_complement)):
            one, other = turn(tokens), turn(changed(tokens, allele.edit))
            equal = min(len(one), len(other))
            wanted = [score_sequence(model, sequence)[:equal].astype(np.float64).sum() for sequence in (other, one)]
            assert strands[strand] == pytest.approx(wanted[0] - wanted[1], abs=1e-5)


def test_both_strands_averaged_the_reverse_complement_has_the_same_score(trained):
    tokens = encode(markov_bases(250, 3) + "ACACACAC" + markov_bases(250, 4))
    places = [*snvs(tokens, 20), *indels(tokens, 20), place(tokens, 252, 2, ""), place(tokens, 252, 0, "AC")]
    mirrored = reverse_complement(tokens)

    def read(start, stop):
        return mirrored[start:stop]

    turned = []
    for _, _, length, edit in places:
        start = length - edit.start - edit.deleted
        parts = mirrored[start : start + edit.deleted], reverse_complement(np.frombuffer(edit.inserted, np.uint8))
        turned.append(Place("m", read, length, normalise(read, length, start, *(part.tobytes() for part in parts))))
    one, other = (ratios(trained, alleles, context=60, window=40) for alleles in (places, turned))
    np.testing.assert_allclose(one, other[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(one.mean(1), other.mean(1), atol=1e-5)
    assert np.abs(one[:, 0] - one[:, 1]).max() > 0.1  # one strand alone is not symmetric


def test_the_size_of_a_call_and_what_is_scored_beside_change_nothing():
    model = make_model("mamba2", "mamba1")
    tokens = encode(random_bases(400, 5))
    tokens[90:95] = N
    places = [*snvs(tokens, 6), *indels(tokens, 6), place(tokens, 3, 1, "TT"), place(tokens, 396, 2, "")]
    whole = ratios(model, places, context=70, window=30)
    assert np.isfinite(whole).all()
    for chunk in (25, 333, 5000):
        np.testing.assert_allclose(ratios(model, places, context=70, window=30, chunk=chunk), whole, atol=1e-5)
    alone = np.concatenate([ratios(model, [allele], context=70, window=30) for allele in places])
    np.testing.assert_allclose(alone, whole, atol=1e-5)
    shuffled = ratios(model, places[::-1], context=70, window=30)
    np.testing.assert_allclose(shuffled[::-1], whole, atol=1e-5)


def test_context_and_window_end_where_they_should():
    model = make_model("mamba2")
    tokens = encode(random_bases(300, 6))
    (allele,) = [place(tokens, 150, 1, "ACGT".replace("ACGT"[tokens[150] - 7], "")[0])]
    other = changed(tokens, allele.edit)
    (strands,) = ratios(model, [allele], context=50, window=20)
    cut = slice(100, 170)
    wanted = [score_sequence(model, sequence[cut])[50:].astype(np.float64).sum() for sequence in (other, tokens)]
    assert strands[0] == pytest.approx(wanted[0] - wanted[1], abs=1e-5)
    cut = slice(131, 201)
    wanted = [
        score_sequence(model, reverse_complement(sequence[cut]))[50:].astype(np.float64).sum()
        for sequence in (other, tokens)
    ]
    assert strands[1] == pytest.approx(wanted[0] - wanted[1], abs=1e-5)


def test_alleles_of_one_place_share_their_context_and_the_reference():
    tokens = encode(random_bases(300, 7))
    base = "ACGT"[tokens[150] - 7]
    places = [place(tokens, 150, 1, alt) for alt in "ACGT" if alt != base]
    places.append(places[0])
    windows = make_windows(places, 100, 20)
    assert windows.before.shape == (2, 100)  # one a strand
    assert len(windows.branches) == 2 * (1 + 3)
    assert (windows.pairs[0] == windows.pairs[3]).all()


@pytest.mark.parametrize(("start", "length", "alt", "counted"), [(10, 1, "", (89, 10)), (10, 0, "T", (90, 10))])
def test_windows_are_equally_long_at_the_ends_of_a_contig(start, length, alt, counted):
    tokens = encode("ACGT" * 25)
    tokens[10:12] = encode("GA")
    windows = make_windows([place(tokens, start, length, alt)], 50, 1000)
    assert windows.compared[0].tolist() == list(counted)


def test_an_indel_is_compared_up_to_the_first_unknown_base_and_an_snv_beyond():
    tokens = encode(random_bases(100, 8))
    tokens[49:52] = encode("CGA")
    tokens[60:64] = N
    windows = make_windows(
        [place(tokens, 50, 1, ""), place(tokens, 50, 1, "A" + "T" * 3), place(tokens, 50, 1, "T")], 20, 30
    )
    assert windows.compared[:, 0].tolist() == [9, 10, 30]
    assert windows.compared[:, 1].tolist() == [30, 30, 30]
    assert np.isfinite(windows.ratios(causal_log_probs(make_model("mamba2"), windows))).all()


def test_nothing_is_compared_where_no_flank_is_left():
    tokens = encode(random_bases(30, 9) + "GC")
    windows = make_windows([place(tokens, 31, 1, ""), place(tokens, 0, 32, "A")], 10, 10)
    assert windows.compared[0].tolist() == [0, 10]
    assert np.isnan(windows.ratios(causal_log_probs(make_model("mamba2"), windows))[0, 0])
    assert make_windows([], 10, 10).ratios(causal_log_probs(make_model("mamba2"), make_windows([], 10, 10))).shape == (
        0,
        2,
    )


def test_a_model_that_says_nothing_is_told():
    model = make_model("mamba2")
    model.head.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="gives no finite probability"):
        ratios(model, list(snvs(encode(random_bases(50, 3)), 2)), context=10, window=10)
