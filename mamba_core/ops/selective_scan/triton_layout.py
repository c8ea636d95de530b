"""Where the selective scan keeps numbers of channels: (n, wide), channels in order, each group filled up to a multiple
of 64. Here the caller's (d, n) is brought into that layout and back, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import LOG2_E
from mamba_core.ops.tape import launch


@triton.jit(do_not_specialize=["batch_stride"])
def _widen(
    from_ptr, to_ptr, batch_stride, d, wide, per_group, per_group_wide,
    N: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
    GIVEN: tl.constexpr, RATES: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """(b, d, n) to (b, n, wide), 0 where there is no channel, or everywhere unless GIVEN. If RATES, decay rates in base
    2
    of A, or, if LOG, of log(-A), rounded to the parameter's dtype as a mixer's step does."""
    batch = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_N)
    channel = lane // per_group_wide * per_group + lane % per_group_wide
    real = (lane < wide) & (lane % per_group_wide < per_group)
    value = tl.zeros((BLOCK, BLOCK_N), tl.float32)
    if GIVEN:
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
    from_ptr, A_ptr, to_ptr, batch_stride, d, wide, per_group, per_group_wide,
    N: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """(b, n, wide) to (b, d, n); if LOG, times A, which stands in A_ptr as log(-A)."""
    batch = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_N)
    lane = channel // per_group * per_group_wide + channel % per_group
    here = (channel < d)[:, None] & (n < N)[None, :]
    value = tl.load(from_ptr + batch * batch_stride + n[None, :] * wide + lane[:, None], mask=here, other=0.0)
    if LOG:
        A = tl.load(A_ptr + channel[:, None] * N + n[None, :], mask=here, other=0.0)
        value *= -tl.exp(A.to(tl.float32)).to(A.dtype).to(tl.float32)
    tl.store(to_ptr + batch * d * N + channel[:, None] * N + n[None, :], value, mask=here)


def rates(A: Tensor, groups: int, wide: int, log: bool) -> Tensor:
    """A (d, n), or what it stands for if ``log``, as (n, wide) float32 in base 2; 0 where there is no channel."""
    out = torch.empty(A.shape[1], wide, dtype=torch.float32, device=A.device)
    _launch_widen(A.contiguous()[None], out[None], groups, True, log)
    return out


def narrow(
    state: Tensor, groups: int, channels: int, dtype: torch.dtype = torch.float32, log_A: Tensor | None = None
) -> Tensor:
    """(b, n, wide) back to (b, d, n), a new tensor; times A where its logarithm is given."""
    b, n, wide = state.shape
    out = torch.empty(b, channels, n, dtype=dtype, device=state.device)
    block, block_n = _tile(n)
    launch(_narrow, (b, triton.cdiv(channels, block)),
        state, state if log_A is None else log_A.contiguous(), out, state.stride(0), channels, wide,
        channels // groups, wide // groups, N=n, BLOCK=block, BLOCK_N=block_n, LOG=log_A is not None,
    )  # fmt: skip
    return out


def widen_(out: Tensor, state: Tensor | None, groups: int) -> None:
    """Write (b, d, n), or zeros for None, to ``out`` (b, n, wide)."""
    _launch_widen(None if state is None else state.contiguous(), out, groups, False, False)


def _launch_widen(given: Tensor | None, out: Tensor, groups: int, are_rates: bool, log: bool) -> None:
    b, n, wide = out.shape
    d = wide if given is None else given.shape[1]
    block, block_n = _tile(n)
    launch(_widen, (b, triton.cdiv(wide, block)),
        out if given is None else given, out, out.stride(0), d, wide, d // groups, wide // groups,
        N=n, BLOCK=block, BLOCK_N=block_n, GIVEN=given is not None, RATES=are_rates, LOG=log,
    )  # fmt: skip


def _tile(n: int) -> tuple[int, int]:
    """Channels and numbers of the state that a program moves."""
    block_n = triton.next_power_of_2(n)
    return max(1, 2048 // block_n), block_n
