"""Time steps and running decays of the state-space dual operation, for all heads of a chunk at a time, in Triton.

Every other kernel reads what is written here: (b, h, chunks x q) float32, tokens side by side, 0 steps behind the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import LOG2_E, clamp, power_of_two, sigmoid, softplus
from mamba_core.ops.tape import launch

_HEADS = 32  # a program's share
_ROWS = 64  # of partial sums that are loaded at a time


@triton.jit
def _raw_steps(dt_ptr, bias_ptr, at, head, here, dt_l, dt_h, HAS_BIAS: tl.constexpr):
    """(q, heads): dt + bias."""
    raw = tl.load(dt_ptr + at[:, None] * dt_l + head.to(tl.int64)[None, :] * dt_h, mask=here, other=0.0).to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias_ptr + head).to(tl.float32)[None, :]
    return raw


@triton.jit
def _rates(A_ptr, head, LOG: tl.constexpr):
    """A, or -exp of what stands in its place, rounded to the parameter's dtype as a mixer's step does."""
    A = tl.load(A_ptr + head)
    if LOG:
        A = -tl.exp(A.to(tl.float32)).to(A.dtype)
    return A.to(tl.float32)


@triton.jit(do_not_specialize=["length", "chunks"])
def _steps(
    dt_ptr, A_ptr, bias_ptr, run_ptr, step_ptr, cum_ptr, also_ptr,
    length, chunks, heads, low, high, dt_b, dt_l, dt_h,
    Q: tl.constexpr, HEADS: tl.constexpr, SOFTPLUS: tl.constexpr, LOG: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RUN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    batch, chunk = index // chunks, index % chunks
    at = chunk * Q + tl.arange(0, Q)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    known = head < heads
    head = tl.where(known, head, 0)
    here = (at < length)[:, None] & known[None, :]
    if HAS_RUN:
        code = tl.load(run_ptr + batch * length + at, mask=at < length, other=-1)
        here = here & (code >= 0)[:, None]
    raw = _raw_steps(dt_ptr + batch * dt_b, bias_ptr, at, head, here, dt_l, dt_h, HAS_BIAS)
    step = softplus(raw) if SOFTPLUS else raw
    step = tl.where(here, clamp(step, low, high), 0.0)
    A = _rates(A_ptr, head, LOG) * LOG2_E
    # A decay of 2^-160 is 0 in float32; sums over it stay small enough to keep the digits of what comes behind.
    log_decay = tl.maximum(step * A[None, :], -160.0)
    to = (batch * heads + head)[None, :] * (chunks * Q) + at[:, None]
    tl.store(step_ptr + to, step, mask=known[None, :])
    if EXACT:  # multiples of 2^-7, whose sums are exact, and what is left
        coarse = tl.floor(log_decay * 128.0 + 0.5) * 0.0078125
        tl.store(cum_ptr + to, tl.cumsum(coarse, 0), mask=known[None, :])
        tl.store(also_ptr + to, tl.cumsum(log_decay - coarse, 0), mask=known[None, :])
    else:
        cum = tl.cumsum(log_decay, 0)
        tl.store(cum_ptr + to, cum, mask=known[None, :])
        tl.store(also_ptr + to, cum - tl.log2(step), mask=known[None, :])


@triton.jit(do_not_specialize=["length", "chunks"])
def _steps_backward(
    dt_ptr, A_ptr, bias_ptr, run_ptr, ends_ptr, written_ptr, direct_ptr, keep_ptr, ddt_ptr, dA_ptr, dbias_ptr,
    length, chunks, heads, low, high, dt_b, dt_l, dt_h, ddt_b, ddt_l, ddt_h,
    Q: tl.constexpr, HEADS: tl.constexpr, SOFTPLUS: tl.constexpr, LOG: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RUN: tl.constexpr, P_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Gradient of dt from what the log-decay of each token takes part in: reads at its place or later (``ends``),
    writes before it (``written``), what the chunk keeps of the state; and from its input (``direct``)."""
    index = tl.program_id(0).to(tl.int64)
    batch, chunk = index // chunks, index % chunks
    at = chunk * Q + tl.arange(0, Q)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    known = head < heads
    head = tl.where(known, head, 0)
    here = (at < length)[:, None] & known[None, :]
    real = here
    if HAS_RUN:
        code = tl.load(run_ptr + batch * length + at, mask=at < length, other=-1)
        real = here & (code >= 0)[:, None]
    of = (batch * heads + head)[None, :] * (chunks * Q) + at[:, None]
    ends = tl.load(ends_ptr + of, mask=here, other=0.0)
    written = tl.load(written_ptr + of, mask=here, other=0.0)
    direct = tl.load(direct_ptr + of, mask=here, other=0.0)
    keep = tl.zeros((HEADS,), tl.float32)
    for part in tl.static_range(P_BLOCKS):
        keep += tl.load(keep_ptr + ((batch * chunks + chunk) * heads + head) * P_BLOCKS + part)
    spans = tl.sum(ends, 0)[None, :] - tl.cumsum(ends, 0) + ends + tl.cumsum(written, 0) - written + keep[None, :]
    raw = _raw_steps(dt_ptr + batch * dt_b, bias_ptr, at, head, real, dt_l, dt_h, HAS_BIAS)
    free = softplus(raw) if SOFTPLUS else raw
    step = clamp(free, low, high)
    A = _rates(A_ptr, head, LOG)
    ddt = direct + spans * A[None, :]
    if SOFTPLUS:
        ddt *= sigmoid(raw)
    ddt = tl.where(real & ~((free < low) | (free > high)), ddt, 0.0)  # the clamp lets nothing through outside
    to = batch * ddt_b + at[:, None] * ddt_l + head.to(tl.int64)[None, :] * ddt_h
    tl.store(ddt_ptr + to, ddt, mask=here)
    sums = (batch * chunks + chunk) * heads + head
    dA = tl.sum(tl.where(real, spans * step, 0.0), 0)
    tl.store(dA_ptr + sums, dA * A if LOG else dA, mask=known)
    tl.store(dbias_ptr + sums, tl.sum(ddt, 0), mask=known)


@triton.jit(do_not_specialize=["rows"])
def _sum_heads(
    dA_ptr, dbias_ptr, dD_ptr, to_A_ptr, to_bias_ptr, to_D_ptr, rows, heads, ROWS: tl.constexpr, HEADS: tl.constexpr
):  # fmt: skip
    """Three sums over rows, (rows, heads) -> (heads,), each by the programs of its number."""
    head = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    which = tl.program_id(1)
    ptr = dA_ptr
    if which == 1:
        ptr = dbias_ptr
    elif which == 2:
        ptr = dD_ptr
    total = tl.zeros((ROWS, HEADS), tl.float32)
    for start in tl.range(0, rows, ROWS):
        at = start + tl.arange(0, ROWS)
        here = (at < rows)[:, None] & (head < heads)[None, :]
        total += tl.load(ptr + at.to(tl.int64)[:, None] * heads + head[None, :], mask=here, other=0.0)
    total = tl.sum(total, 0)
    tl.store(to_A_ptr + head, total, mask=(head < heads) & (which == 0))
    tl.store(to_bias_ptr + head, total, mask=(head < heads) & (which == 1))
    tl.store(to_D_ptr + head, total, mask=(head < heads) & (which == 2))


def _launch(heads: int) -> tuple[int, int]:
    """Heads a program, and programs to cover them."""
    share = min(_HEADS, power_of_two(heads))
    return share, -(-heads // share)


class Steps:
    """Time steps, and the running sum of log2 decays inside each chunk of ``q`` tokens."""

    step: Tensor  # (b, h, chunks q) float32
    cum: Tensor  # (b, h, chunks q) float32, in base 2
    also: Tensor  # (b, h, chunks q) float32: cum - log2(step); but for float32 inputs, which want all digits, what
    # rounding left out of cum

    def __init__(
        self,
        dt: Tensor,
        A: Tensor,
        dt_bias: Tensor | None,
        run: Tensor | None,
        q: int,
        softplus: bool,
        limit: tuple[float, float],
        exact: bool,
        log: bool = False,
    ):
        b, l, h = dt.shape
        self.chunks = -(-l // q)
        A, dt_bias = A.contiguous(), None if dt_bias is None else dt_bias.contiguous()
        self.dt, self.A, self.dt_bias, self.run, self.q, self.exact = dt, A, dt_bias, run, q, exact
        self.limit = limit
        self.flags = {"SOFTPLUS": softplus, "LOG": log, "HAS_BIAS": dt_bias is not None, "HAS_RUN": run is not None}
        self.step = torch.empty(b, h, self.chunks * q, dtype=torch.float32, device=dt.device)
        self.cum = torch.empty_like(self.step)
        self.also = torch.empty_like(self.step)
        share, programs = _launch(h)
        launch(_steps, (b * self.chunks, programs),
            dt, A, A if dt_bias is None else dt_bias, A if run is None else run, self.step, self.cum, self.also,
            l, self.chunks, h, *limit, *dt.stride(), Q=q, HEADS=share, EXACT=exact, **self.flags,
        )  # fmt: skip

    def backward(
        self, ends: Tensor, written: Tensor, direct: Tensor, keep: Tensor, ddt: Tensor, dD: Tensor, D: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Write the gradient of dt to ``ddt`` (b, l, h).

        Args:
            ends, written, direct: (b, h, chunks q), see the kernel.
            keep: (b, chunks, h, parts), as well.
            dD: (b, chunks, h), what is to be summed for D.
            D: skip weight.

        Returns:
            Gradients of A (h,), dt_bias (h,) and D (h,), in their dtypes; float32 for one that was not given.
        """
        dt, A = self.dt, self.A
        b, l, h = dt.shape
        dA = torch.empty(b, self.chunks, h, dtype=torch.float32, device=dt.device)
        dbias = torch.empty_like(dA)
        share, programs = _launch(h)
        launch(_steps_backward, (b * self.chunks, programs),
            dt, A, A if self.dt_bias is None else self.dt_bias, A if self.run is None else self.run,
            ends, written, direct, keep, ddt, dA, dbias,
            l, self.chunks, h, *self.limit, *dt.stride(), *ddt.stride(), Q=self.q, HEADS=share,
            P_BLOCKS=keep.shape[3], **self.flags,
        )  # fmt: skip
        found = [
            torch.empty(h, dtype=torch.float32 if t is None else t.dtype, device=dt.device)
            for t in (A, self.dt_bias, D)
        ]
        launch(_sum_heads, (programs, 3), dA, dbias, dD, *found, b * self.chunks, h, ROWS=_ROWS, HEADS=share)
        return found[0], found[1], found[2]
