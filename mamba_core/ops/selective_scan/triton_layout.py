"""Where the selective scan keeps numbers of channels: (n, wide), channels in order, each group filled up to a multiple
of 64. Here the caller's (d, n) is brought into that layout and back, in Triton."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import LOG2_E
from mamba_core.ops.tape import launch


@triton.jit
def channel_of(lane, per_group, per_group_wide):
    """The channel that stands at a lane of a state (n, wide), and whether there is one."""
    return lane // per_group_wide * per_group + lane % per_group_wide, lane % per_group_wide < per_group


@triton.jit
def write_rates(A_ptr, to_ptr, lane, N, wide, per_group, per_group_wide, BLOCK_N: tl.constexpr, LOG: tl.constexpr):
    """Decay rates in base 2 of A (d, n), or, if LOG, of log(-A), rounded to the parameter's dtype as a mixer's step
    does, to (n, wide) at some lanes; 0 where there is no channel."""
    n = tl.arange(0, BLOCK_N)
    channel, real = channel_of(lane, per_group, per_group_wide)
    here = (lane < wide)[:, None] & (n < N)[None, :]
    A = tl.load(A_ptr + channel[:, None] * N + n[None, :], mask=here & real[:, None], other=0.0)
    if LOG:
        A = -tl.exp(A.to(tl.float32)).to(A.dtype)
    rate = tl.where(real[:, None], A.to(tl.float32) * LOG2_E, 0.0)
    tl.store(to_ptr + n[None, :] * wide + lane[:, None], rate, mask=here)


@triton.jit(do_not_specialize=["batch_stride"])
def _widen(
    from_ptr, to_ptr, batch_stride, d, wide, per_group, per_group_wide,
    N: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(b, d, n) to (b, n, wide), 0 where there is no channel."""
    batch = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_N)
    channel, real = channel_of(lane, per_group, per_group_wide)
    here = (lane < wide)[:, None] & (n < N)[None, :]
    at = from_ptr + batch * d * N + channel[:, None] * N + n[None, :]
    value = tl.load(at, mask=here & real[:, None], other=0.0).to(tl.float32)
    tl.store(to_ptr + batch * batch_stride + n[None, :] * wide + lane[:, None], value, mask=here)


@triton.jit
def _narrow_parameters(
    from_ptr, A_ptr, dA_ptr, dD_ptr, dbias_ptr, d, wide, per_group, per_group_wide,
    N: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """(n + 2, wide) to (d, n), times A if LOG, which stands in A_ptr as log(-A); and the last two rows to (d,) each."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_N)
    from_ptr += channel // per_group * per_group_wide + channel % per_group
    inside = channel < d
    here = inside[:, None] & (n < N)[None, :]
    value = tl.load(from_ptr[:, None] + n[None, :] * wide, mask=here, other=0.0)
    at = channel[:, None] * N + n[None, :]
    if LOG:
        A = tl.load(A_ptr + at, mask=here, other=0.0)
        value *= -tl.exp(A.to(tl.float32)).to(A.dtype).to(tl.float32)
    tl.store(dA_ptr + at, value, mask=here)
    tl.store(dD_ptr + channel, tl.load(from_ptr + N * wide, mask=inside), mask=inside)
    tl.store(dbias_ptr + channel, tl.load(from_ptr + (N + 1) * wide, mask=inside), mask=inside)


def widen_(out: Tensor, state: Tensor, groups: int) -> None:
    """Write (b, d, n) to ``out`` (b, n, wide)."""
    b, n, wide = out.shape
    d = state.shape[1]
    block, block_n = block_shape(n)
    launch(_widen, (b, triton.cdiv(wide, block)),
        state.contiguous(), out, out.stride(0), d, wide, d // groups, wide // groups,
        N=n, BLOCK=block, BLOCK_N=block_n,
    )  # fmt: skip


def narrow_parameters(
    gradients: Tensor, A: Tensor, groups: int, kinds: Sequence[torch.dtype], log: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(n + 2, wide) as the gradient of A (d, n), in its dtype, and two of vectors (d,), of these dtypes.

    If ``log``, A holds log(-A), and the first gradient is that of the logarithm.
    """
    d, n = A.shape
    wide = gradients.shape[1]
    dA = torch.empty(d, n, dtype=A.dtype, device=A.device)
    vectors = [torch.empty(d, dtype=dtype, device=A.device) for dtype in kinds]
    block, block_n = block_shape(n)
    launch(_narrow_parameters, (triton.cdiv(d, block),),
        gradients, A.contiguous(), dA, *vectors, d, wide, d // groups, wide // groups,
        N=n, BLOCK=block, BLOCK_N=block_n, LOG=log,
    )  # fmt: skip
    return dA, vectors[0], vectors[1]


def block_shape(n: int) -> tuple[int, int]:
    """Channels and numbers of the state that a program moves."""
    block_n = triton.next_power_of_2(n)
    return max(1, 2048 // block_n), block_n
