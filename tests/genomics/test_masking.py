"""What is hidden, and behind what: fractions, letters, and the same again for the same number."""

import numpy as np
import pytest
import torch

from domains.errors import UserError
from domains.genomics.data import IGNORE, TrainBatches, ValidationBatches
from domains.genomics.masking import Masking
from domains.genomics.splits import Region
from domains.genomics.tokens import BASES, MASK, A, N, T
from domains.parallel import Share
from tests.genomics.tiny import masked_config

ROWS, LENGTH = 50, 4000


@pytest.fixture(scope="module")
def windows():
    tokens = np.random.default_rng(0).integers(A, T + 1, (ROWS, LENGTH)).astype(np.uint8)
    tokens[:, 100:400] = N
    return tokens


def made(windows, masking=None, number=3, rows=None):
    rows = rows or slice(0, len(windows))
    weights = np.ones(windows.shape, np.float32)
    masking = masking or Masking(0.15, 0, 7)
    return masking.make_batch(windows[rows], weights[rows], number, rows, len(windows))


def test_fractions_and_letters_are_those_of_the_recipe(windows):
    batch = made(windows)
    tokens, inputs = torch.from_numpy(windows.astype(np.int64)), batch["inputs"]
    asked, known = batch["targets"] != IGNORE, tokens != N
    count = int(asked.sum())
    assert not (asked & ~known).any()
    assert torch.equal(batch["targets"][asked], tokens[asked])
    assert torch.equal(inputs[~asked], tokens[~asked])
    assert count / int(known.sum()) == pytest.approx(0.15, abs=0.004)
    hidden, kept = inputs[asked] == MASK, inputs[asked] == tokens[asked]
    assert float(hidden.float().mean()) == pytest.approx(0.8, abs=0.01)
    assert float(kept.float().mean()) == pytest.approx(0.1 + 0.1 / 4, abs=0.01)  # a random base may be the old one
    others = inputs[asked][~hidden & ~kept]
    assert set(others.tolist()) == set(range(BASES.start, BASES.stop))
    shares = torch.bincount(others - A) / len(others)
    assert torch.allclose(shares, torch.full((4,), 0.25), atol=0.03)


def test_nothing_that_is_asked_for_is_shown_where_all_is_hidden(windows):
    batch = made(windows, Masking(0.15, 0, 7, hide_all=True))
    assert torch.equal(batch["targets"], made(windows)["targets"])
    assert torch.equal(batch["inputs"] == MASK, batch["targets"] != IGNORE)


def test_seed_and_number_decide_and_nothing_else_does(windows):
    batch = made(windows)
    for name, tensor in made(windows).items():
        assert torch.equal(tensor, batch[name])
    for other in (made(windows, number=4), made(windows, Masking(0.15, 0, 8)), made(windows, Masking(0.15, 1))):
        both = (other["targets"] != IGNORE) & (batch["targets"] != IGNORE)
        assert float(both.float().mean()) == pytest.approx(0.15**2, abs=0.003)  # as chance has it
    part = made(windows, rows=slice(20, 31))
    assert all(torch.equal(tensor, batch[name][20:31]) for name, tensor in part.items())


def test_batches_of_training_keep_their_weights_and_split_into_shares(tiny):
    config = masked_config(tiny, symmetric=False)
    config.data.soft_mask_weight = 0.25
    regions, masking = [Region("c4", 1600, 2500)], Masking(0.15, 0, 0)  # partly in lower case
    whole = TrainBatches(tiny, regions, config.data, 10, 1, 0, form=masking)
    batch, plain = whole[2], TrainBatches(tiny, regions, config.data, 10, 1, 0)[2]
    assert torch.equal(batch["weights"], plain["weights"])
    assert set(batch["weights"].unique().tolist()) == {0.25, 1.0}
    asked = batch["targets"] != IGNORE
    assert torch.equal(batch["targets"][asked], plain["targets"][asked])
    for group in range(2):
        share = Share(group, 2)
        part = TrainBatches(tiny, regions, config.data, 10, 1, 0, share, masking)[2]
        assert all(torch.equal(tensor, batch[name][share.rows(8)]) for name, tensor in part.items())


def test_validation_is_the_same_whatever_the_runs_seed(tiny):
    config = masked_config(tiny, symmetric=False)
    one, other = (
        ValidationBatches(tiny, [Region("c1", 0, 2400)], config.data, form=Masking(0.15, 1, hide_all=True))[0]
        for _ in range(2)
    )
    assert torch.equal(one["inputs"], other["inputs"])
    assert (one["inputs"] == MASK).any()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_of_nothing_or_all_is_refused(fraction):
    with pytest.raises(UserError, match=r"task\.mask_fraction"):
        Masking(fraction, 0)
