"""Contigs in windows: the whole contig's scores where the halo is wide, whatever stretches are asked for."""

import numpy as np
import pytest
import torch

from domains.errors import UserError
from domains.genomics.config import PredictConfig, WindowsConfig
from domains.genomics.masked import masked_log_probs
from domains.genomics.masked_windows import (
    Source,
    check_masked,
    halo_error,
    masked_scores,
    packed_scores,
    score_any_sequence,
    score_masked_sequence,
)
from domains.genomics.model import load_model
from domains.genomics.stream import score_sequence
from domains.genomics.tokens import A, N, reverse_complement


@pytest.fixture(scope="module")
def model(masked_models):
    return load_model(masked_models[False]).masked


@pytest.fixture(scope="module")
def tokens(tiny):
    return tiny.tokens("c4", 300, 1300)  # 200 bases, 300 N, 500 bases


def config(length=150, halo=64, every=5, **rest):
    return PredictConfig(mask_every=every, windows=WindowsConfig(length, halo), **rest)


def scores(model, tokens, settings, start=0, stop=None):
    stop = len(tokens) if stop is None else stop
    return np.concatenate(list(masked_scores(model, source(tokens), start, stop, settings)))


def source(tokens, circular=False):
    return Source(lambda a, b: tokens.take(range(a, b), mode="wrap"), len(tokens), circular)


def told_error(model, tokens, settings):
    return halo_error(model, source(tokens), 0, len(tokens), settings)


def test_one_window_over_all_gives_the_pseudo_likelihood(model, tokens):
    found = scores(model, tokens, config(length=5000))
    known = tokens != N
    assert (np.isnan(found) == ~known).all()
    at = np.flatnonzero(known)
    expected = masked_log_probs(model, tokens, at, spacing=5)[np.arange(len(at)), tokens[at].astype(int) - A]
    np.testing.assert_allclose(found[at], expected, atol=1e-5)
    np.testing.assert_array_equal(score_masked_sequence(model, tokens, config(length=5000)), found)
    assert score_masked_sequence(model, tokens[:0]).shape == (0,)


def test_models_of_either_kind_score_sequences(model, tiny_model, tokens):
    causal = load_model(tiny_model).causal
    np.testing.assert_array_equal(score_any_sequence(causal, tokens), score_sequence(causal, tokens))
    np.testing.assert_array_equal(score_any_sequence(model, tokens), score_masked_sequence(model, tokens))


@pytest.mark.parametrize("stretch", [(0, 1000), (149, 151), (150, 300), (420, 999)])
def test_scores_do_not_depend_on_the_stretch(model, tokens, stretch):
    whole = scores(model, tokens, config())
    np.testing.assert_array_equal(scores(model, tokens, config(), *stretch), whole[slice(*stretch)])


def test_the_error_told_is_that_of_a_wider_halo(model, tokens):
    """Against the whole contig in one window, computed the plain way; it shrinks as the halo grows."""
    whole = scores(model, tokens, config(length=5000))
    errors = []
    for halo in (2, 16, 128):
        told = told_error(model, tokens, config(150, halo))
        cut, wide = scores(model, tokens, config(150, halo)), scores(model, tokens, config(150, 2 * halo))
        first = slice(0, 150)  # of 7 windows one is measured
        assert told["max"] == pytest.approx(np.nanmax(np.abs(cut - wide)[first]), abs=1e-6)
        assert told["mean"] == pytest.approx(np.nanmean(np.abs(cut - wide)[first]), abs=1e-6)
        assert (told["halo"], told["windows"], told["bases"]) == (halo, 1, 150)
        assert told["against"] == f"a halo of {2 * halo}"
        errors.append(np.nanmax(np.abs(cut - whole)))
        assert told["max"] <= errors[-1] * 1.5
    assert errors[0] > 4 * errors[2]


def test_many_windows_are_measured_at_a_few(model, tokens):
    told = told_error(model, tokens, config(10, 4))
    assert (told["windows"], told["bases"]) == (4, 40 - 10)  # 100 windows: 7, but at most 4; one stands in N
    assert told["mean"] <= told["max"]


def test_where_nothing_is_cut_nothing_is_lost(model, tokens):
    told = told_error(model, tokens, config(600, 600))
    assert (told["against"], told["max"], told["windows"]) == ("the whole contig", 0.0, 0)
    told = told_error(model, tokens, config(500, 250))
    assert (told["against"], told["windows"]) == ("the whole contig", 1)  # twice 250 reaches both ends
    assert told["max"] > 0


def test_a_circular_contig_is_read_round_its_ends(model, tokens):
    """However it is cut open, with windows that divide it: the same bases are read and hidden together."""
    ring, settings = tokens[500:], config(length=100, halo=60)
    found = np.concatenate(list(masked_scores(model, source(ring, circular=True), 0, 500, settings)))
    turned = np.concatenate(list(masked_scores(model, source(np.roll(ring, 100), circular=True), 0, 500, settings)))
    np.testing.assert_allclose(np.roll(found, 100), turned, atol=1e-5)
    linear = scores(model, ring, settings)
    np.testing.assert_array_equal(linear[100:400], found[100:400])
    assert np.abs(linear - found)[:20].max() > 1e-3


@pytest.mark.parametrize("length", [1, 7, 100, 150])
def test_no_base_of_a_small_ring_is_read_twice(model, tokens, length):
    """Or a base that is hidden would be shown."""
    ring = source(tokens[500 : 500 + length], circular=True)
    for window in ((0, min(100, length)), (100, length)):
        if window[0] < window[1]:
            first, last = ring.around(window, 1000)
            assert last - first == length
            assert first <= window[0]
            assert window[1] <= last


def test_short_sequences_are_read_on_end_as_if_alone(model, tokens):
    sequences = [tokens[:40], tokens[:0], tokens[190:230], tokens[600:601], tokens[700:820]]
    settings = config(length=200, both_strands=True)
    found = packed_scores(model, sequences, settings)
    assert [len(part) for part in found] == [40, 0, 40, 1, 120]
    for part, sequence in zip(found, sequences, strict=True):
        np.testing.assert_allclose(part, score_masked_sequence(model, sequence, settings), atol=1e-5)
    assert [len(part) for part in packed_scores(model, [tokens[:0]], settings)] == [0]


@pytest.mark.parametrize("symmetric", [False, True])
def test_scores_of_the_reverse_complement_agree(masked_models, tokens, symmetric):
    """Averaged or by construction: bases that one reading hides, one reading of the other strand hides as well."""
    model = load_model(masked_models[symmetric]).masked.double()
    settings = config(length=2000, both_strands=not symmetric)
    found, turned = scores(model, tokens, settings), scores(model, reverse_complement(tokens), settings)
    np.testing.assert_allclose(turned[::-1], found, atol=1e-6)
    one = scores(model, tokens, config(length=2000))
    assert (np.nanmax(np.abs(one - found)) < 1e-6) == symmetric


def test_readings_fit_a_call(model, tokens, monkeypatch):
    rows = []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, tokens, **rest: rows.append(len(tokens)) or forward(self, tokens, **rest)
    )
    monkeypatch.setattr("domains.genomics.masked_windows.CALL", 700)
    assert torch.is_grad_enabled()
    scores(model, tokens, config(length=150, halo=64, every=5), 150, 300)
    assert rows == [2, 2, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config(length=0), "windows.length=0"),
        (config(halo=-1), "windows.halo=-1"),
        (config(every=1), "mask_every=1: must be at least 2"),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check_masked(settings)
