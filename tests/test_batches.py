"""Batches by number: the next one after a stop, here or in worker processes."""

from types import SimpleNamespace

import pytest
import torch

from domains.batches import BatchesDataModule
from tests.toy import ToyBatches


@pytest.mark.parametrize("workers", [0, 1])
def test_training_reads_on_from_the_trainers_step(workers):
    batches = ToyBatches(2.0, 12)
    module = BatchesDataModule(batches, ToyBatches(2.0, 3), accumulate=2, workers=workers)
    module.trainer = SimpleNamespace(global_step=4)
    loader = module.train_dataloader()
    assert len(loader) == 12  # Lightning counts from the beginning of the run
    seen = [batch["x"] for batch in loader]
    assert all(torch.equal(x, batches[8 + i]["x"]) for i, x in enumerate(seen))
    assert len(seen) == 4
    assert len(list(module.val_dataloader())) == 3


def test_without_a_trainer_all_batches_come():
    module = BatchesDataModule(ToyBatches(2.0, 5), ToyBatches(2.0, 1), accumulate=2, workers=0)
    assert len(list(module.train_dataloader())) == 5
