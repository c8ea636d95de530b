import math

import numpy as np
import pytest
import torch

from domains.config import TrainerConfig
from domains.genomics.data import IGNORE, make_batch
from domains.genomics.module import CausalTask, base_log_probs
from domains.genomics.tokens import BASES, encode
from mamba_core import BackboneConfig, CausalLM, Mamba2Config


@pytest.fixture
def task():
    torch.manual_seed(0)
    backbone = BackboneConfig(d_model=16, n_layers=1, mamba2=Mamba2Config(d_state=8, headdim=8))
    return CausalTask(CausalLM(16, backbone), TrainerConfig())


def batch_of(*sequences, weights=None):
    windows = np.stack([encode(sequence) for sequence in sequences])
    return make_batch(windows, np.ones(windows.shape, np.float32) if weights is None else weights)


def test_log_probabilities_are_over_the_four_bases_alone():
    logits = torch.randn(2, 3, 16, dtype=torch.bfloat16)
    probs = base_log_probs(logits)
    assert probs.dtype == torch.float32
    assert torch.allclose(probs.exp().sum(-1), torch.ones(2, 3))
    elsewhere = logits.clone()
    elsewhere[..., : BASES.start] = 50
    elsewhere[..., BASES.stop :] = 50
    assert torch.equal(base_log_probs(elsewhere), probs)


def test_the_score_is_the_sum_over_known_bases(task):
    batch = batch_of("ACGTN", "NNGTA")
    total, weight = task.score(batch, training=True)
    assert weight == 7
    logits = task.model(batch["inputs"])[0].double().detach()
    expected = 0.0
    for row, column in (batch["targets"] != IGNORE).nonzero().tolist():
        base = int(batch["targets"][row, column])
        expected -= float(torch.log_softmax(logits[row, column, 7:11], 0)[base - 7])
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_weights_count_in_training_and_not_in_validation(task):
    weights = np.array([[1, 0.5, 0, 1]], np.float32)
    even, uneven = batch_of("ACGT"), batch_of("ACGT", weights=weights)
    assert task.score(uneven, training=True).weight == 2.5
    assert not torch.equal(task.score(uneven, training=True).total, task.score(even, training=True).total)
    for one, other in zip(task.score(uneven, training=False), task.score(even, training=False), strict=True):
        assert torch.equal(one, other)


def test_a_batch_without_a_known_base_has_no_loss_and_finite_gradients(task):
    total, weight = task.score(batch_of("NNNN"), training=True)
    assert (total.item(), weight.item()) == (0.0, 0.0)
    (total / weight.clamp(min=1e-6)).backward()
    assert all(torch.isfinite(p.grad).all() for p in task.model.parameters() if p.grad is not None)


def test_metrics_are_in_nats_and_bits(task):
    assert task.describe(math.log(4), "train") == {"train/loss": math.log(4), "train/bits_per_base": 2.0}
    assert task.monitor in task.describe(1.0, "validation")
    assert task.size(batch_of("ACGT", "ACGT", "ACGT")) == (12, 4)
