"""The operations of a mixer over a sequence whose slices lie on several ranks, one slice a rank, in order.

Every rank works on its slice as if nothing came before it. Then one all-gather tells each rank the final state and the
total decay of all slices. From these it knows the state that enters its own slice and the state behind the last one,
and adds what the entering state contributes: a scan is linear in (x, state), so the sum is exact.

* ssd: ``y_t += C_t exp(sum of dt A up to t) h``, a matrix product and a scaling, no second scan.
* selective_scan: every channel has decays of its own for every element of the state, and no product serves them all: a
  second scan, with x = 0.

Both end where the entering state has decayed to 0 in every head or channel: behind that they would add zeros. To know
that place the host waits for the device once a layer. Exponents are sums of non-positive numbers, so nothing
overflows, and an underflow to 0 is right.

All ranks compute the same chain of states from the same numbers in the same order, so the state behind the sequence is
the same on all of them to the bit, and their graphs are alike: their backwards meet in the same collectives.

Gradients: the loss is the sum of what the ranks compute. Whatever is the same on all ranks, the weights and the state
that comes in, gets on each rank that rank's part of its gradient; the sum over the ranks is the gradient.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.packing import document_runs, first_and_last_index
from mamba_core.ops.selective_scan import selective_scan
from mamba_core.ops.ssd import ssd

BLOCK = 16384  # tokens worked on at a time where something as large as y would be written down


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
    """This rank's slice in one call of a mixer: the operations over it, and the documents at its borders.

    Args:
        ranks: the processes that the sequence is split over.
        seq_idx: (b, l) integer document index of the slice, or None; on all ranks the one or the other.
        index: (b,) the document index that the state before the whole sequence ended with.

    Attributes:
        last: (b,) the index that the state behind the whole sequence ends with.
    """

    def __init__(self, ranks: Ranks, seq_idx: Tensor | None, index: Tensor):
        self._ranks = ranks
        self._seq_idx = seq_idx
        self._goes_on: list[Tensor] = []  # (b,) for each rank: the state that enters belongs to its first document
        self._padding: Tensor | None = None  # (b, l)
        self._later: Tensor | None = None  # (b, l) behind the first document, or padding
        self._cut = None  # (b,) rows in which the entering state does not leave the slice
        if seq_idx is None:
            self.last = index.clamp(min=0)
            return
        real, run = document_runs(seq_idx)
        self._padding, self._later, self._cut = ~real, ~real | (run > 0), run[:, -1] > 0
        nothing = torch.full_like(index, -1)
        own = torch.stack(first_and_last_index(seq_idx.to(index.dtype), default=nothing))  # (2, b); -1: all padding
        for first, last in ranks.gather(own):
            self._goes_on.append(torch.where(first < 0, index, first) == index)
            index = torch.where(last < 0, index, last)
        self.last = index

    def causal_conv1d(self, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """As :func:`mamba_core.ops.causal_conv1d.causal_conv1d`; ``state`` and the tail are of the whole sequence."""
        ends, index = self._ends(x, weight.shape[1] - 1)
        entering = []
        for rank in range(self._ranks.size):
            entering.append(self._enter(rank, state))
            joined = torch.cat([entering[-1], ends[rank].to(state.dtype)], dim=1)
            if index is None or weight.shape[1] == 1:
                state = joined[:, ends.shape[2] :]
            else:
                _, state = causal_conv1d(
                    joined[:, state.shape[1] :], weight, None, entering[-1], index[rank], activation=False
                )
        y, _ = causal_conv1d(x, weight, bias, torch.stack(entering)[self._ranks.rank], self._seq_idx)
        return y, state

    def ssd(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        dt_bias: Tensor,
        state: Tensor,
        dt_limit: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        """As :func:`mamba_core.ops.ssd.ssd`; ``state`` and the final state are those of the whole sequence."""
        y, final = ssd(x, dt, A, B, C, D=D, dt_bias=dt_bias, seq_idx=self._seq_idx, dt_limit=dt_limit)
        steps = _time_steps(dt, dt_bias, self._padding, dt_limit)  # (b, l, h)
        decays = (steps * A).cumsum(1, dtype=torch.float64).exp().to(final.dtype)
        total = decays[:, -1, :, None, None]
        if self._later is not None:
            decays = decays.masked_fill(self._later[..., None], 0.0)
            C = C.masked_fill(self._later[..., None, None], 0.0)  # 0 times whatever stands at padding is not 0
        entering, after = self._pass_on(state, final, total)
        return _Read.apply(y, C, decays, entering), after

    def selective_scan(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor,
        dt_bias: Tensor,
        state: Tensor,
        dt_limit: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        """As :func:`mamba_core.ops.selective_scan.selective_scan`; both states are those of the whole sequence."""
        y, final = selective_scan(x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, seq_idx=self._seq_idx, dt_limit=dt_limit)
        times = self._block_times(dt, dt_bias, dt_limit)  # (b, blocks, d)
        entering, after = self._pass_on(state, final, (times.sum(1)[..., None] * A).exp())
        reach = _blocks_reached(times, A) * BLOCK
        seq_idx = None if self._seq_idx is None else self._seq_idx[:, :reach]
        dt, B, C, z = (tensor[:, :reach] for tensor in (dt, B, C, z))
        read, _ = selective_scan(
            torch.zeros_like(x[:, :reach]),
            dt,
            A,
            B,
            C,
            z=z,
            dt_bias=dt_bias,
            initial_state=entering,
            seq_idx=seq_idx,
            dt_limit=dt_limit,
        )
        y[:, :reach] += read
        return y, after

    def _pass_on(self, state: Tensor, final: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """The state that enters this rank's slice, and the one behind the whole sequence.

        Args:
            state: (b, ...) before the sequence.
            final: (b, ...) of this slice, from a zero state.
            total: what this slice leaves of the state that enters it; of ``final``'s dimensions.
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

    def _enter(self, rank: int, state: Tensor) -> Tensor:
        """``state``, cleared in the rows whose document does not go on in the slice of ``rank``."""
        if not self._goes_on:
            return state
        return state.masked_fill(~self._goes_on[rank].view(-1, *[1] * (state.ndim - 1)), 0.0)

    def _ends(self, x: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """The last ``count`` real inputs of every slice (ranks, b, up to count, c), and their documents, -1 where a
        slice has fewer (ranks, b, up to count)."""
        count = min(count, x.shape[1])
        if self._seq_idx is None:
            return self._ranks.gather(x[:, x.shape[1] - count :]), None
        assert self._padding is not None
        position = torch.arange(x.shape[1], device=x.device).masked_fill(self._padding, -1)
        position = position.topk(count, dim=1).values.flip(1)  # (b, count)
        at = position.clamp(min=0)
        ends = x.gather(1, at[..., None].expand(-1, -1, x.shape[2])).masked_fill((position < 0)[..., None], 0.0)
        index = self._seq_idx.gather(1, at).masked_fill(position < 0, -1)
        return self._ranks.gather(ends), self._ranks.gather(index)

    def _block_times(self, dt: Tensor, dt_bias: Tensor, dt_limit: tuple[float, float]) -> Tensor:
        """The time steps, summed in blocks of BLOCK tokens: (b, l, d) -> (b, blocks, d). They are not kept."""
        parts = dt.split(BLOCK, dim=1)
        padding = [None] * len(parts) if self._padding is None else self._padding.split(BLOCK, dim=1)
        sums = [
            checkpoint(_sum_of_steps, *pair, dt_bias, dt_limit, use_reentrant=False, preserve_rng_state=False)
            for pair in zip(parts, padding, strict=True)
        ]
        return torch.stack(sums, dim=1)


def _sum_of_steps(dt: Tensor, padding: Tensor | None, dt_bias: Tensor, dt_limit: tuple[float, float]) -> Tensor:
    return _time_steps(dt, dt_bias, padding, dt_limit).sum(1)


def _time_steps(dt: Tensor, dt_bias: Tensor, padding: Tensor | None, dt_limit: tuple[float, float]) -> Tensor:
    """(b, l, h) raw -> the time steps in the working dtype; 0 at padding."""
    if padding is not None:
        dt = dt.masked_fill(padding[..., None], 0.0)
    steps = F.softplus(dt.to(working_dtype(dt)) + dt_bias)
    if dt_limit != (0.0, math.inf):
        steps = steps.clamp(*dt_limit)
    return steps if padding is None else steps.masked_fill(padding[..., None], 0.0)


@torch.no_grad()
def _blocks_reached(times: Tensor, A: Tensor) -> int:
    """How many of the first blocks an entering state reaches before it is 0; at least 1.

    Args:
        times: (b, blocks, d) sums of time steps.
        A: (d, n).
    """
    before = times.cumsum(1, dtype=torch.float64) - times
    left = (before * A.amax(-1)).exp().to(times.dtype)  # of the slowest element, at the start of each block
    return max(1, int((left > 0).any(-1).any(0).sum()))  # waits for the device


class _Read(torch.autograd.Function):
    """Add to y, in place, what an entering state contributes: ``y_t += decay_t C_t . h``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, C: Tensor, decays: Tensor, state: Tensor) -> Tensor:
        """y (b, l, h, p), C (b, l, g, n), decays (b, l, h) from before the slice to t, state (b, h, p, n)."""
        alive = (decays > 0).any(-1).any(0)
        behind = torch.arange(1, len(alive) + 1, device=alive.device)
        ctx.reach = int((alive * behind).max())  # tokens, the last that the state reaches; waits for the device
        ctx.save_for_backward(C, decays[:, : ctx.reach].clone(), state)
        ctx.mark_dirty(y)
        weights = _by_group(state, C)
        for block in _blocks(ctx.reach):
            read = torch.einsum("blgn,bgkn->blgk", C[:, block], weights).reshape(y[:, block].shape)
            y[:, block] += read * decays[:, block, :, None]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        C, decays, state = ctx.saved_tensors
        grad_y = grads[0]
        weights = _by_group(state, C)
        grad_C = torch.zeros_like(C)
        grad_decays = decays.new_zeros(grad_y.shape[:3])
        grad_weights = torch.zeros_like(weights, dtype=state.dtype)
        for block in _blocks(ctx.reach):
            read = torch.einsum("blgn,bgkn->blgk", C[:, block], weights).reshape(grad_y[:, block].shape)
            grad_decays[:, block] = (grad_y[:, block] * read).sum(-1, dtype=state.dtype)
            grad = (grad_y[:, block] * decays[:, block, :, None]).to(C.dtype).unflatten(2, (C.shape[2], -1)).flatten(3)
            grad_C[:, block] = torch.einsum("blgk,bgkn->blgn", grad, weights)
            grad_weights += torch.einsum("blgk,blgn->bgkn", grad, C[:, block])
        return grad_y, grad_C, grad_decays, grad_weights.view_as(state)


def _by_group(state: Tensor, C: Tensor) -> Tensor:
    """(b, h, p, n) -> (b, g, heads of a group x p, n) in the dtype of C, which the kernels read a state in, too."""
    return state.to(C.dtype).unflatten(1, (C.shape[2], -1)).flatten(2, 3)


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
