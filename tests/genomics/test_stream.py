import numpy as np
import pytest
import torch

from domains.genomics.module import base_log_probs
from domains.genomics.stream import Scorer, score_sequence, stream_log_probs
from domains.genomics.tokens import BOS, N, encode, reverse_complement
from mamba_core import BackboneConfig, CausalLM, Mamba1Config, Mamba2Config, State, stream
from tests.genomics.genomes import random_bases


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = BackboneConfig(
        d_model=16,
        n_layers=2,
        pattern=["mamba2", "mamba1"],
        mamba1=Mamba1Config(d_state=4),
        mamba2=Mamba2Config(d_state=8, headdim=8),
    )
    return CausalLM(16, backbone).eval()


def sequence(length=700):
    tokens = encode(random_bases(length, 3))
    tokens[100:160] = N
    return tokens


def joined(pieces, length):
    scores = np.full(length, np.inf, np.float32)
    for start, log_probs in pieces:
        scores[start : start + len(log_probs)] = log_probs
    return scores


def test_a_stream_gives_what_one_forward_pass_gives(model):
    tokens = sequence()
    inputs = torch.from_numpy(np.concatenate([[BOS], tokens[:-1]]).astype(np.int64))[None]
    with torch.no_grad():
        log_probs = base_log_probs(model(inputs)[0])[0].numpy()
    known = np.flatnonzero(tokens != N)
    scores = score_sequence(model, tokens, chunk=64)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[known], log_probs[known, tokens[known] - 7], atol=1e-5)
    assert np.isnan(scores[tokens == N]).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 64, 699, 700, 10_000])
def test_the_chunk_changes_nothing(model, chunk, reverse):
    tokens = sequence()[: 60 if chunk == 1 else None]
    pieces = list(stream_log_probs(model, lambda a, b: tokens[a:b], len(tokens), chunk=chunk, reverse=reverse))
    starts = [piece.start for piece in pieces]
    assert starts == sorted(starts, reverse=reverse)
    assert max(len(piece.log_probs) for piece in pieces) <= chunk
    whole = stream_log_probs(model, lambda a, b: tokens[a:b], len(tokens), chunk=len(tokens), reverse=reverse)
    np.testing.assert_allclose(joined(pieces, len(tokens)), joined(whole, len(tokens)), atol=1e-5)


def test_the_other_strand_is_the_reverse_complement_read_forward(model):
    tokens = sequence()
    backward = joined(stream_log_probs(model, lambda a, b: tokens[a:b], 700, chunk=90, reverse=True), 700)
    np.testing.assert_allclose(backward[::-1], score_sequence(model, reverse_complement(tokens)), atol=1e-5)
    both = score_sequence(model, tokens, both_strands=True, chunk=90)
    np.testing.assert_allclose(both, (backward + score_sequence(model, tokens)) / 2, atol=1e-5)


def test_one_chunk_is_read_ahead_and_no_more(model):
    tokens = sequence()
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        return tokens[start:stop]

    pieces = stream_log_probs(model, read, 700, chunk=200)
    for known in (2, 3, 4, 4):
        next(pieces)
        assert len(asked) <= known
    assert list(pieces) == []
    assert asked == [(0, 200), (200, 400), (400, 600), (600, 700)]


def test_what_reading_raises_is_raised(model):
    def read(start, stop):
        if start:
            raise OSError("the disk is gone")
        return sequence()[start:stop]

    pieces = stream_log_probs(model, read, 700, chunk=200)
    assert next(pieces).start == 0
    with pytest.raises(OSError, match="the disk is gone"):
        next(pieces)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chunk", [1, 64, 90, 700])
def test_with_a_context_each_window_is_scored_as_if_it_were_alone(model, chunk, reverse):
    tokens = sequence()[: 150 if chunk == 1 else None]
    strand = reverse_complement(tokens) if reverse else tokens
    alone = np.concatenate([score_sequence(model, strand[i : i + 90]) for i in range(0, len(tokens), 90)])
    pieces = stream_log_probs(model, lambda a, b: tokens[a:b], len(tokens), chunk=chunk, reverse=reverse, context=90)
    np.testing.assert_allclose(joined(pieces, len(tokens)), alone[::-1] if reverse else alone, atol=1e-6)
    assert np.nanmax(np.abs(alone - score_sequence(model, strand))) > 3e-5  # a window does forget


@pytest.mark.parametrize("context", [None, 90])
def test_a_state_that_was_saved_goes_on_with_the_same_bits(model, context, tmp_path):
    pieces = [torch.from_numpy(piece)[None] for piece in np.split(sequence(), [130, 250, 400])]
    whole = list(stream(Scorer(model, context), pieces))
    whole[1][1].save(tmp_path / "state.safetensors")
    rest = list(stream(Scorer(model, context), pieces[2:], State.load(tmp_path / "state.safetensors")))
    for (scores, state), (again, resumed) in zip(whole[2:], rest, strict=True):
        assert torch.equal(scores.nan_to_num(), again.nan_to_num())
        assert all(torch.equal(state[name], resumed[name]) for name in state)


def test_an_empty_sequence_has_no_scores(model):
    assert len(score_sequence(model, np.empty(0, np.uint8))) == 0


def test_on_a_real_chromosome_the_chunk_changes_nothing(ustilago, model):
    contig = ustilago.contig("chr23")

    def read(start, stop):
        return ustilago.tokens(contig.name, start, stop)

    assert contig.length > 300_000
    whole = joined(stream_log_probs(model, read, contig.length, chunk=contig.length), contig.length)
    for chunk in (1000, 16_384, 65_537):
        scores = joined(stream_log_probs(model, read, contig.length, chunk=chunk), contig.length)
        np.testing.assert_allclose(scores, whole, atol=1e-5)
    assert np.nanmean(whole) == pytest.approx(-np.log(4), abs=0.05)  # untrained
