"""Batches that are known by their number: what lets a run that was stopped go on with the very next one."""

from collections.abc import Iterator
from typing import Any, Protocol, cast

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from domains.parallel import WHOLE, Share

Batch = dict[str, Tensor]


class Batches(Protocol):
    """Batches by number, each whole and ready: a map-style dataset. Item i depends on i and on settings alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


class BatchesDataModule(lightning.LightningDataModule):
    """Training and validation batches for a Lightning trainer.

    Training reads on from the trainer's step, so a run resumed from a checkpoint sees the batches that an
    uninterrupted one would have seen, whatever the number of worker processes.

    Args:
        train_batches: all batches of the run, ``max_steps * accumulate`` of them.
        validation_batches: those of one validation.
        accumulate: batches per optimizer step.
        workers: data loader processes; 0 loads in this one.
        share: the part of every batch that these hold, if other processes have others.
    """

    def __init__(
        self,
        train_batches: Batches,
        validation_batches: Batches,
        accumulate: int,
        workers: int,
        share: Share = WHOLE,
    ) -> None:
        super().__init__()
        self.share = share
        self.train_batches = train_batches
        self.validation_batches = validation_batches
        self._accumulate = accumulate
        self._workers = workers

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.train_batches, _Onward(self, len(self.train_batches), self._accumulate))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.validation_batches, None)

    def _loader(self, batches: Batches, sampler: Sampler[int] | None) -> DataLoader[Batch]:
        return _Resumable(
            cast(Dataset[Batch], batches),
            batch_size=None,
            sampler=sampler,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


class _Resumable(DataLoader[Batch]):
    """Tells Lightning that resuming amid an epoch is safe; the place to go on from is the trainer's step alone."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _Onward(Sampler[int]):
    """Batch numbers from the trainer's step to the end of the run.

    Its length is that of the whole run: Lightning counts the batches of a resumed run from the beginning.
    """

    def __init__(self, module: lightning.LightningDataModule, total: int, accumulate: int) -> None:
        self._module = module
        self._total = total
        self._accumulate = accumulate

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[int]:
        trainer = self._module.trainer
        first = trainer.global_step * self._accumulate if trainer is not None else 0
        return iter(range(first, self._total))
