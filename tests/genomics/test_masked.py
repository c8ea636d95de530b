"""Probabilities of hidden bases: what is hidden is not read, whatever is hidden together, on either strand."""

import numpy as np
import pytest
import torch

from domains.genomics.hidden import hidden_states
from domains.genomics.masked import hidden_log_probs, masked_log_probs, true_log_probs
from domains.genomics.model import load_model
from domains.genomics.tokens import BOS, MASK, PAD, N, reverse_complement


@pytest.fixture(scope="module", params=[False, True], ids=["one strand", "symmetric"])
def model(request, masked_models):
    return load_model(masked_models[request.param]).masked


@pytest.fixture(scope="module")
def tokens(tiny):
    return tiny.tokens("c4", 400, 600)  # 100 bases, 100 N


def test_each_position_is_hidden_alone(model, tokens):
    positions = np.array([7, 3, 90, 7, 150])
    found = masked_log_probs(model, tokens, positions)
    assert (found.dtype, found.shape) == (np.float32, (5, 4))
    for row, position in zip(found, positions, strict=True):
        shown = torch.from_numpy(tokens.astype(np.int64))[None]
        shown[0, position] = MASK
        with torch.no_grad():
            expected = torch.log_softmax(model(shown)[0, position, 7:11], -1)
        np.testing.assert_allclose(row, expected, atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, atol=1e-5)


def test_what_is_hidden_is_not_read(model, tokens):
    other = tokens.copy()
    other[[7, 60]] = reverse_complement(tokens[[60, 7]])[::-1]
    hidden = torch.zeros(1, len(tokens), dtype=torch.bool)
    hidden[0, [7, 60]] = True
    one, two = (hidden_log_probs(model, torch.from_numpy(t)[None], hidden) for t in (tokens, other))
    assert (tokens != other).any()
    assert torch.equal(one, two)


def test_positions_apart_may_share_a_reading(model, tokens, monkeypatch):
    read = []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, tokens, **rest: read.append(len(tokens)) or forward(self, tokens, **rest)
    )
    positions = np.random.default_rng(0).permutation(100)
    together = masked_log_probs(model, tokens, positions, spacing=10)
    assert sum(read) == 10
    shown = torch.from_numpy(tokens.astype(np.int64))[None]
    shown[0, 3:100:10] = MASK
    with torch.no_grad():
        expected = torch.log_softmax(model(shown)[0, 23, 7:11], -1)
    np.testing.assert_allclose(together[positions == 23][0], expected, atol=1e-5)
    assert masked_log_probs(model, tokens, np.array([], dtype=int)).shape == (0, 4)
    with pytest.raises(ValueError, match="within the 200 tokens"):
        masked_log_probs(model, tokens, np.array([200]))


def test_both_strands_agree_with_the_reverse_complement(model, tokens):
    """Post-hoc or by construction: what is said of a base is said of its partner."""
    positions = np.arange(0, 100, 9)
    found = masked_log_probs(model, tokens, positions, both_strands=True)
    turned = masked_log_probs(model, reverse_complement(tokens), len(tokens) - 1 - positions, both_strands=True)
    np.testing.assert_allclose(turned[:, ::-1], found, atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, atol=1e-5)
    one = masked_log_probs(model, tokens, positions)
    if model.symmetric:
        np.testing.assert_array_equal(one, found)
    else:
        other = masked_log_probs(model, reverse_complement(tokens), len(tokens) - 1 - positions)[:, ::-1]
        np.testing.assert_allclose(np.exp(found), (np.exp(one) + np.exp(other)) / 2, atol=1e-6)
        assert np.abs(one - found).max() > 0.01


def test_rows_of_several_lengths_are_padded(model, tokens):
    rows = torch.full((2, 80), PAD, dtype=torch.int64)
    rows[0] = torch.from_numpy(tokens[:80].astype(np.int64))
    rows[1, :50] = torch.from_numpy(tokens[20:70].astype(np.int64))
    hidden = torch.zeros(2, 80, dtype=torch.bool)
    hidden[:, 30] = True
    seq_idx = torch.zeros(2, 80, dtype=torch.int64)
    seq_idx[1, 50:] = -1
    found = hidden_log_probs(model, rows, hidden, True, seq_idx=seq_idx)
    alone = hidden_log_probs(model, rows[1:, :50], hidden[1:, :50], True)
    assert (found[1, :50] - alone[0]).abs().max() < 1e-5


def test_true_log_probs_are_those_of_the_bases_that_stand_there():
    log_probs = torch.log_softmax(torch.randn(1, 5, 4), -1)
    found = true_log_probs(log_probs, torch.tensor([[7, 10, N, MASK, 8]], dtype=torch.uint8))
    assert torch.equal(found[0, [0, 1, 4]], log_probs[0, [0, 1, 4], [0, 3, 1]])
    assert found[0, 2:4].isnan().all()


def test_hidden_states_are_of_each_base(model, tiny_model, tokens):
    words = torch.from_numpy(tokens.astype(np.int64))[None]
    states = hidden_states(model, words)
    assert states.shape == (1, 200, 16)
    assert states.requires_grad
    turned = hidden_states(model, torch.from_numpy(reverse_complement(tokens).astype(np.int64))[None])
    same = bool((turned.flip(1) - states).abs().max() < 1e-4)
    assert same == model.symmetric
    causal = load_model(tiny_model).causal
    states = hidden_states(causal, words)
    changed = words.clone()
    changed[0, 100] = 9 if words[0, 100] != 9 else 7
    differs = (hidden_states(causal, changed) - states).abs().amax(-1)[0] > 0
    assert differs.tolist() == [False] * 100 + [True] * 100
    with_bos, _ = causal.backbone(causal.embedding(torch.cat([torch.tensor([[BOS]]), words[:, :5]], dim=1)))
    assert (states[:, :5] - with_bos[:, 1:]).abs().max() < 1e-5
