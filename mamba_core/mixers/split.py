"""What the ranks tell each other when every one of them holds a slice of one sequence, in order.

Every rank works on its slice as if nothing came before it. Then one all-gather tells each rank the final state and the
total decay of all slices. From these it knows the state that enters its own slice and the state behind the last one;
:mod:`mamba_core.mixers.split_ops` says how what enters is brought in. The tail of a convolution goes the same way.

All ranks compute the same chain of states from the same numbers in the same order, so the state behind the sequence is
the same on all of them to the bit, and their graphs are alike: their backwards meet in the same collectives.

Gradients: the loss is the sum of what the ranks compute. Whatever is the same on all ranks, the weights and the state
that comes in, gets on each rank that rank's part of its gradient; the sum over the ranks is the gradient.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.packing import document_runs, first_and_last_index


@dataclass(frozen=True)
class Ranks:
    """The processes that a sequence is split over, in the order of its slices."""

    group: dist.ProcessGroup
    rank: int  # of this process in the group
    size: int

    @staticmethod
    def of(group: dist.ProcessGroup) -> "Ranks":
        """The ranks of a process group that this process is in."""
        return Ranks(group, dist.get_rank(group), dist.get_world_size(group))

    def gather(self, tensor: Tensor) -> Tensor:
        """``tensor`` of every rank, (size, *shape). Gradients go back to the rank that each part came from, where they
        are added up in the order of the ranks."""
        if tensor.numel() == 0:  # a convolution of width 1 has no tail
            return tensor.expand(self.size, *tensor.shape)
        return _Gather.apply(tensor, self)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        gathered = tensor.new_empty(ranks.size * tensor.numel())
        dist.all_gather_into_tensor(gathered, tensor.reshape(-1), group=ranks.group)
        return gathered.view(ranks.size, *tensor.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        parts = torch.empty_like(grads[0], memory_format=torch.contiguous_format)
        dist.all_to_all_single(parts, grads[0].contiguous(), group=ctx.ranks.group)
        return parts.sum(0), None


class Slice:
    """This rank's slice in one call of a mixer, and the documents at its borders.

    Args:
        ranks: the processes that the sequence is split over.
        seq_idx: (b, l) integer document index of the slice, or None; on all ranks the one or the other.
        index: (b,) the document index that the state before the whole sequence ended with.

    Attributes:
        seq_idx: as given.
        padding: (b, l) bool, None without seq_idx.
        later: (b, l) bool, padding, or behind the first document: no state that enters is read there.
        last: (b,) the index that the state behind the whole sequence ends with.
    """

    def __init__(self, ranks: Ranks, seq_idx: Tensor | None, index: Tensor):
        self._ranks = ranks
        self.seq_idx = seq_idx
        self.padding: Tensor | None = None
        self.later: Tensor | None = None
        self._cut: Tensor | None = None  # (b,) rows in which the state that enters does not leave the slice
        self._goes_on: list[Tensor] = []  # (b,) for each rank: the state that enters belongs to its first document
        if seq_idx is None:
            self.last = index.clamp(min=0)
            return
        real, run = document_runs(seq_idx)
        self.padding, self.later, self._cut = ~real, ~real | (run > 0), run[:, -1] > 0
        nothing = torch.full_like(index, -1)
        own = torch.stack(first_and_last_index(seq_idx.to(index.dtype), default=nothing))  # (2, b); -1: all padding
        for first, last in ranks.gather(own):
            self._goes_on.append(torch.where(first < 0, index, first) == index)
            index = torch.where(last < 0, index, last)
        self.last = index

    def pass_on(self, state: Tensor, final: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """The state that enters this rank's slice, and the one behind the whole sequence.

        Args:
            state: (b, ...) before the sequence.
            final: (b, ...) of this slice, from a zero state.
            total: what the decays of this slice leave of a state; of as many dimensions.
        """
        if self._cut is not None:
            total = total.masked_fill(self._cut.view(-1, *[1] * (total.ndim - 1)), 0.0)
        told = self._ranks.gather(torch.cat([final.flatten(1), total.flatten(1)], dim=1))
        finals, totals = told.split([final[0].numel(), total[0].numel()], dim=2)
        entering = []
        for rank in range(self._ranks.size):
            entering.append(self._enter(rank, state))
            state = finals[rank].view_as(final) + totals[rank].view_as(total) * entering[-1]
        return torch.stack(entering)[self._ranks.rank], state

    def ends(self, x: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """The last inputs of a convolution in this slice (b, up to ``count``, c), and where they stand (b, up to
        ``count``): -1 where there are fewer that are no padding, and the input is some other; None without documents.
        """
        count = min(count, x.shape[1])
        if self.padding is None:
            return x[:, x.shape[1] - count :], None
        position = torch.arange(x.shape[1], device=x.device).masked_fill(self.padding, -1)
        position = position.topk(count, dim=1).values.flip(1)
        return x.gather(1, position.clamp(min=0)[..., None].expand(-1, -1, x.shape[2])), position

    def pass_tail(self, tail: Tensor, ends: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tail (b, width - 1, c) that enters this rank's slice, and the one behind the whole sequence.

        Args:
            tail: before the sequence.
            ends: of this slice, by :meth:`ends`, as is ``position``.
        """
        told = self._ranks.gather(ends).to(tail.dtype)
        if position is not None:
            assert self.seq_idx is not None
            index = self.seq_idx.gather(1, position.clamp(min=0)).masked_fill(position < 0, -1)
            indices = self._ranks.gather(index)
        entering = []
        for rank in range(self._ranks.size):
            entering.append(self._enter(rank, tail))
            if position is None or not tail.shape[1]:
                tail = torch.cat([entering[-1], told[rank]], dim=1)[:, ends.shape[1] :]
            else:  # what is left of documents and padding: a convolution knows
                any_weight = tail.new_ones(tail.shape[2], tail.shape[1] + 1)
                _, tail = causal_conv1d(told[rank], any_weight, None, entering[-1], indices[rank], activation=False)
        return torch.stack(entering)[self._ranks.rank], tail

    def _enter(self, rank: int, state: Tensor) -> Tensor:
        """``state``, cleared in the rows whose document does not go on in the slice of ``rank``."""
        if not self._goes_on:
            return state
        return state.masked_fill(~self._goes_on[rank].view(-1, *[1] * (state.ndim - 1)), 0.0)
