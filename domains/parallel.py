"""A training run in several processes: which part of a batch is whose, and where the processes agree.

torchrun starts the processes (``trainer.devices`` of them, one a GPU) and tells each its number. Every
``trainer.context_parallel`` of them split sequences by length, the groups so made split batches by rows. A batch is the
same batch, whatever the number of processes, and so is the loss: what they sum up, over the sum of all weights.

Lightning knows of no other processes. They meet here: in the weight of a loss, in the gradients before they are
clipped, and in the decision to stop. All follow the same steps; the first alone writes files and speaks.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from domains.config import TrainerConfig
from domains.errors import UserError
from domains.launch import rank, started
from mamba_core.context_parallel import check_splits, own_tokens, shard_sequence, sum_gradients, unshard_sequence


@dataclass(frozen=True)
class Share:
    """The part of every batch that one process works on. The first group has the first rows, and so on."""

    group: int = 0
    groups: int = 1  # that split the rows
    place: int = 0
    places: int = 1  # that split each sequence
    segment: int | None = None  # tokens that a process works on at a time

    @property
    def processes(self) -> int:
        """Of the whole run."""
        return self.groups * self.places

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.group == self.place == 0

    def check(self, rows: int, length: int) -> None:
        """Make sure that all processes get equal parts of batches of ``rows`` windows of ``length``.

        Raises:
            UserError: they do not.
        """
        if length % self.places:
            raise UserError(f"trainer.context_parallel={self.places}: does not divide windows of {length} tokens")
        if rows % self.groups:
            raise UserError(
                f"trainer.devices={self.processes}: {self.groups} groups of {self.places} cannot share the {rows} "
                f"windows of {length} tokens in a batch evenly; give other data.tokens_per_step or "
                "trainer.context_parallel"
            )

    def rows(self, count: int) -> slice:
        """Those of a batch of ``count`` rows; as even as may be."""
        return slice(self.group * count // self.groups, (self.group + 1) * count // self.groups)

    def tokens(self, length: int) -> list[slice]:
        """Those of a sequence, in order."""
        return own_tokens(length, self.place, self.places, self.segment)

    def check_model(self, model: nn.Module) -> None:
        """Make sure that a model can work on a part of a sequence, if need be; a UserError names the mixer."""
        if self.places > 1:
            try:
                check_splits(model)
            except ValueError as error:
                raise UserError(f"trainer.context_parallel={self.places}: {error}") from None


WHOLE = Share()


def share_of(config: TrainerConfig) -> Share:
    """This process's part.

    Raises:
        UserError: the settings do not go with each other, or with the number of processes that torchrun started.
    """
    devices, places = config.devices, config.context_parallel
    if devices % places:
        raise UserError(f"trainer.context_parallel={places}: must divide trainer.devices={devices}")
    if started() == 1 and devices > 1:
        raise UserError(
            f"trainer.devices={devices}: wants torchrun --nproc-per-node={devices} -m pipelines.<domain> ..."
        )
    if started() != devices:
        raise UserError(f"trainer.devices={devices}: torchrun started {started()} processes; give both one number")
    return Share(rank() // places, devices // places, rank() % places, places, config.segment_length)


def take_gpu() -> None:
    """Make the GPU of this process's number on its machine the current one.

    Raises:
        UserError: the machine has fewer.
    """
    own, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if own >= count:
        raise UserError(f"torchrun started more processes here than there are GPUs; give --nproc-per-node={count}")
    torch.cuda.set_device(own)


@dataclass(frozen=True)
class Processes:
    """Those of a run. A single one exchanges nothing, and its numbers are left as they are, to the bit."""

    count: int = 1
    places: int = 1  # that split each sequence
    first: bool = True  # whether this one writes files and speaks

    def sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Sums of scalars over all processes, on all of them."""
        if self.count == 1:
            return values
        sums = torch.stack(values)
        dist.all_reduce(sums)
        return tuple(sums)

    def largest(self, value: int) -> int:
        """The largest of a number over all processes: how one of them tells all."""
        if self.count == 1:
            return value
        told = torch.tensor(int(value))  # on the CPU: no GPU is waited for
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told)

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace the gradients by their sums over all processes."""
        if self.count > 1:
            assert dist.group.WORLD is not None
            sum_gradients(model.parameters(), dist.group.WORLD)


ALONE = Processes()
_sessions = count()  # of this process; all processes go through the same ones


@contextmanager
def joined(share: Share, model: nn.Module, device: torch.device) -> Iterator[Processes]:
    """Meet the other processes, and let the mixers of ``model`` work on this one's part of each sequence."""
    if share.processes == 1:
        yield ALONE
        return
    store, number, size = next(rendezvous("env://"))
    own = dist.PrefixStore(f"session {next(_sessions)}", store)  # what the last one of a sweep left there is stale
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=own, rank=number, world_size=size)
    try:
        if share.places > 1:
            group, _ = dist.new_subgroups(share.places)
            shard_sequence(model, group)
        yield Processes(share.processes, share.places, share.first)
    finally:
        unshard_sequence(model)
        dist.destroy_process_group()
