"""Where the selective scan keeps numbers of channels: (n, wide), channels in order, each group filled up to a multiple
of 64. Here the caller's (d, n) is brought into that layout and back, in Triton."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import LOG2_E
from mamba_core.ops.tape import launch


@triton.jit(do_not_specialize=["batch_stride"])
def _widen(
    from_ptr, to_ptr, batch_stride, d, wide, per_group, per_group_wide,
    N: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, RATES: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """(b, d, n) to (b, n, wide), 0 where there is no channel. If RATES, decay rates in base 2 of A, or, if LOG, of
    log(-A), rounded to the parameter's dtype as a mixer's step does."""
    batch = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_N)
    channel = lane // per_group_wide * per_group + lane % per_group_wide
    real = (lane < wide) & (lane % per_group_wide < per_group)
    at = from_ptr + batch * d * N + channel[:, None] * N + n[None, :]
    value = tl.load(at, mask=real[:, None] & (n < N)[None, :], other=0.0)
    if LOG:
        value = -tl.exp(value.to(tl.float32)).to(value.dtype)
    value = value.to(tl.float32)
    if RATES:
        value = tl.where(real[:, None], value * LOG2_E, 0.0)
    to = to_ptr + batch * batch_stride + n[None, :] * wide + lane[:, None]
    tl.store(to, value, mask=(lane < wide)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=["batch_stride"])
def _narrow(
    from_ptr, to_ptr, batch_stride, d, wide, per_group, per_group_wide,
    N: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(b, n, wide) to (b, d, n)."""
    batch = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_N)
    lane = channel // per_group * per_group_wide + channel % per_group
    here = (channel < d)[:, None] & (n < N)[None, :]
    value = tl.load(from_ptr + batch * batch_stride + n[None, :] * wide + lane[:, None], mask=here, other=0.0)
    tl.store(to_ptr + batch * d * N + channel[:, None] * N + n[None, :], value, mask=here)


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


def rates(A: Tensor, groups: int, wide: int, log: bool) -> Tensor:
    """A (d, n), or what it stands for if ``log``, as (n, wide) float32 in base 2; 0 where there is no channel."""
    out = torch.empty(A.shape[1], wide, dtype=torch.float32, device=A.device)
    _launch_widen(A[None], out[None], groups, True, log)
    return out


def widen_(out: Tensor, state: Tensor, groups: int) -> None:
    """Write (b, d, n) to ``out`` (b, n, wide)."""
    _launch_widen(state, out, groups, False, False)


def _launch_widen(given: Tensor, out: Tensor, groups: int, are_rates: bool, log: bool) -> None:
    b, n, wide = out.shape
    d = given.shape[1]
    block, block_n = _tile(n)
    launch(_widen, (b, triton.cdiv(wide, block)),
        given.contiguous(), out, out.stride(0), d, wide, d // groups, wide // groups,
        N=n, BLOCK=block, BLOCK_N=block_n, RATES=are_rates, LOG=log,
    )  # fmt: skip


def narrow(state: Tensor, groups: int, channels: int) -> Tensor:
    """(b, n, wide) back to (b, d, n), a new tensor in float32."""
    b, n, wide = state.shape
    out = torch.empty(b, channels, n, dtype=torch.float32, device=state.device)
    block, block_n = _tile(n)
    launch(_narrow, (b, triton.cdiv(channels, block)),
        state, out, state.stride(0), channels, wide, channels // groups, wide // groups,
        N=n, BLOCK=block, BLOCK_N=block_n,
    )  # fmt: skip
    return out


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
    block, block_n = _tile(n)
    launch(_narrow_parameters, (triton.cdiv(d, block),),
        gradients, A.contiguous(), dA, *vectors, d, wide, d // groups, wide // groups,
        N=n, BLOCK=block, BLOCK_N=block_n, LOG=log,
    )  # fmt: skip
    return dA, vectors[0], vectors[1]


def _tile(n: int) -> tuple[int, int]:
    """Channels and numbers of the state that a program moves."""
    block_n = triton.next_power_of_2(n)
    return max(1, 2048 // block_n), block_n
