"""The data module inside a real Lightning trainer."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from domains.genomics.config import DataConfig
from domains.genomics.data import GenomeDataModule, TrainBatches
from domains.genomics.splits import Region, Splits
from tests.genomics.genomes import make_store, random_bases

SPLITS = Splits(
    train=[Region("a", 0, 1000), Region("b", 0, 1000)],
    validation=[Region("a", 0, 1000)],
    test=[Region("c", 0, 64)],
    note="",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    genome = {"a": random_bases(1000, 1), "b": "N" * 300 + random_bases(700, 2), "c": random_bases(64, 3)}
    return make_store(tmp_path_factory.mktemp("data"), genome)


def config(**told):
    return DataConfig(**{"window": 64, "tokens_per_step": 256} | told)


def equal(one, other):
    return all(torch.equal(one[key], other[key]) for key in ("inputs", "targets", "weights"))


def test_worker_processes_give_the_same_batches(store):
    def batches(workers):
        module = GenomeDataModule(store, SPLITS, config(workers=workers), 6, 1, seed=1)
        return list(module.train_dataloader()), list(module.val_dataloader())

    for here, there in zip(batches(0), batches(1), strict=True):
        assert len(here) == len(there) > 2
        assert all(equal(one, other) for one, other in zip(here, there, strict=True))


class Recorder(lightning.LightningModule):
    """Remembers the batches that it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(batch["inputs"])
        return (self.weight * batch["inputs"].float().mean()).sum()

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(store, folder, steps, checkpoint=None):
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = lightning.Trainer(
        max_steps=steps,
        accumulate_grad_batches=2,
        accelerator="cpu",
        val_check_interval=6,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        callbacks=[saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    recorder = Recorder()
    module = GenomeDataModule(store, SPLITS, config(window_warmup=[16]), max_steps=12, accumulate=2, seed=5)
    trainer.fit(recorder, module, ckpt_path=checkpoint, weights_only=True)
    return recorder.seen, trainer.global_step


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:.*treespec")
@pytest.mark.filterwarnings("error:You're resuming from a checkpoint")
def test_a_resumed_training_sees_the_exact_next_batch(store, tmp_path):
    whole, steps = fit(store, tmp_path / "whole", 12)
    assert (steps, len(whole)) == (12, 24)
    expected = TrainBatches(store, SPLITS.train, config(window_warmup=[16]), 12, 2, seed=5)
    assert all(torch.equal(seen, expected[index]["inputs"]) for index, seen in enumerate(whole))
    fit(store, tmp_path / "cut", 6)
    rest, steps = fit(store, tmp_path / "rest", 12, checkpoint=tmp_path / "cut" / "step=4.ckpt")
    assert (steps, len(rest)) == (12, 16)
    assert all(torch.equal(one, other) for one, other in zip(rest, whole[8:], strict=True))
