"""State-space dual operation for GPUs, in Triton.

The sequence is cut into segments, one program each for every head, and a program works through its segment chunk by
chunk with the state in registers: no chunk state, score or decay goes through memory.

1. ``_segment_states``: what each segment adds to the state, from zero, and how much it lets pass of what came before.
2. ``_pass_states``: the state that enters each segment; as many steps as there are segments.
3. ``_outputs``: from that state, the outputs.

x, B and dt are read twice, C once, y is written once. Notation and chunk algebra are those of ``chunked.py``; exponents
are in base 2. The length of a segment depends on the shapes alone, so that results do too.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import LOG2_E, encode_runs, inner_contiguous, softplus

CHUNK = 64  # tokens a program works on at a time
PROGRAMS = 1024  # segments x heads x batch aimed at: several for each multiprocessor of a large GPU
LAUNCH = {"states": {"num_warps": 4, "num_stages": 3}, "outputs": {"num_warps": 4, "num_stages": 2}}


@triton.jit
def _steps(dt_ptr, at, stride, bias, low, high, here, SOFTPLUS: tl.constexpr):
    """Time steps of a chunk (q,): fp32, 0 where there is no token."""
    raw = tl.load(dt_ptr + at * stride, mask=here, other=0.0).to(tl.float32) + bias
    step = softplus(raw) if SOFTPLUS else raw
    return tl.where(here, tl.minimum(tl.maximum(step, low), high), 0.0)


@triton.jit
def _tile(ptr, at, stride, columns, here, WIDTH):
    """(q, columns) of a tensor whose last stride is 1; 0 outside."""
    mask = here[:, None] & (columns < WIDTH)[None, :]
    return tl.load(ptr + at[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _segment_states(
    x_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, run_ptr, local_ptr, kept_ptr,
    length, segment, heads, per_group, low, high,
    x_b, x_l, x_h, dt_b, dt_l, dt_h, B_b, B_l, B_g,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RUN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    index, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    P_BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    head, part = tl.program_id(1) // P_BLOCKS, tl.program_id(1) % P_BLOCKS
    first = index.to(tl.int64) * segment
    last = tl.minimum(first + segment, length)
    cols_p = part * BLOCK_P + tl.arange(0, BLOCK_P)
    cols_n = tl.arange(0, BLOCK_N)
    A = tl.load(A_ptr + head).to(tl.float32) * LOG2_E
    bias = tl.load(bias_ptr + head).to(tl.float32) if HAS_BIAS else 0.0
    x_ptr += batch * x_b + head * x_h
    dt_ptr += batch * dt_b + head * dt_h
    B_ptr += batch * B_b + (head // per_group) * B_g
    run_ptr += batch * length
    state = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    log_kept = 0.0
    before = 0
    if HAS_RUN:
        before = tl.load(run_ptr + first - 1, mask=first > 0, other=0)
        before = tl.where(before < 0, -1 - before, before)
    entered = before
    for start in tl.range(first, last, Q):
        at = start + tl.arange(0, Q)
        here = at < last
        kept = 1.0
        real = here
        write_mask = here
        if HAS_RUN:
            code = tl.load(run_ptr + at, mask=here, other=0)
            run = tl.where(code < 0, -1 - code, code)
            now = tl.max(tl.where(here, run, 0), 0)
            write_mask = here & (run == now)
            kept = tl.where(now == before, 1.0, 0.0)
            before = now
            real = here & (code >= 0)
        step = _steps(dt_ptr, at, dt_l, bias, low, high, real, SOFTPLUS)
        log_decay = step * A
        total = tl.sum(log_decay, 0)
        write = tl.where(write_mask, tl.exp2(total - tl.cumsum(log_decay, 0)) * step, 0.0)
        x = _tile(x_ptr, at, x_l, cols_p, real, P)
        B = _tile(B_ptr, at, B_l, cols_n, real, N)
        B = (B.to(tl.float32) * write[:, None]).to(x.dtype)
        state = tl.dot(tl.trans(B), x, state * (tl.exp2(total) * kept), input_precision=PRECISION)
        log_kept += total
    whole = tl.exp2(log_kept) * tl.where(before == entered, 1.0, 0.0)
    slot = (batch * tl.num_programs(0) + index) * heads + head
    mask = (cols_n < N)[:, None] & (cols_p < P)[None, :]
    tl.store(local_ptr + slot * (N * P) + cols_n[:, None] * P + cols_p[None, :], state, mask=mask)
    if part == 0:
        tl.store(kept_ptr + slot, whole)


@triton.jit
def _pass_states(
    local_ptr, kept_ptr, enter_ptr, segments, heads, SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """enter[0] holds the initial state; enter[s + 1] = kept[s] enter[s] + local[s], for one head of one row."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < SIZE
    base = batch * (segments + 1) * heads + head
    state = tl.load(enter_ptr + base * SIZE + cols, mask=mask, other=0.0)
    for s in tl.range(0, segments):
        slot = (batch * segments + s) * heads + head
        kept = tl.load(kept_ptr + slot)
        state = state * kept + tl.load(local_ptr + slot * SIZE + cols, mask=mask, other=0.0)
        tl.store(enter_ptr + (base + (s + 1) * heads) * SIZE + cols, state, mask=mask)


@triton.jit
def _outputs(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, run_ptr, enter_ptr, y_ptr,
    length, segment, segments, heads, per_group, low, high,
    x_b, x_l, x_h, dt_b, dt_l, dt_h, B_b, B_l, B_g, C_b, C_l, C_g, y_b, y_l, y_h,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_RUN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    index, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    P_BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    head, part = tl.program_id(1) // P_BLOCKS, tl.program_id(1) % P_BLOCKS
    first = index.to(tl.int64) * segment
    last = tl.minimum(first + segment, length)
    cols_p = part * BLOCK_P + tl.arange(0, BLOCK_P)
    cols_n = tl.arange(0, BLOCK_N)
    A = tl.load(A_ptr + head).to(tl.float32) * LOG2_E
    bias = tl.load(bias_ptr + head).to(tl.float32) if HAS_BIAS else 0.0
    D = tl.load(D_ptr + head).to(tl.float32) if HAS_D else 0.0
    x_ptr += batch * x_b + head * x_h
    dt_ptr += batch * dt_b + head * dt_h
    B_ptr += batch * B_b + (head // per_group) * B_g
    C_ptr += batch * C_b + (head // per_group) * C_g
    y_ptr += batch * y_b + head * y_h
    run_ptr += batch * length
    slot = (batch * (segments + 1) + index) * heads + head
    inside = (cols_n < N)[:, None] & (cols_p < P)[None, :]
    state = tl.load(enter_ptr + slot * (N * P) + cols_n[:, None] * P + cols_p[None, :], mask=inside, other=0.0)
    rows = tl.arange(0, Q)
    before = 0
    if HAS_RUN:
        before = tl.load(run_ptr + first - 1, mask=first > 0, other=0)
        before = tl.where(before < 0, -1 - before, before)
    for start in tl.range(first, last, Q):
        at = start + rows
        here = at < last
        seen = rows[:, None] >= rows[None, :]
        if HAS_RUN:
            code = tl.load(run_ptr + at, mask=here, other=0)
            run = tl.where(code < 0, -1 - code, code)
            now = tl.max(tl.where(here, run, 0), 0)
            real = here & (code >= 0)
            seen = seen & (run[:, None] == run[None, :])
        else:
            real = here
        step = _steps(dt_ptr, at, dt_l, bias, low, high, real, SOFTPLUS)
        log_decay = step * A
        cum = tl.cumsum(log_decay, 0)
        total = tl.sum(log_decay, 0)
        read = tl.exp2(cum)
        write = tl.exp2(total - cum) * step
        decay = tl.exp2(total)
        if HAS_RUN:
            read = tl.where(run == before, read, 0.0)
            write = tl.where(run == now, write, 0.0)
            decay = tl.where(now == before, decay, 0.0)
            before = now
        x = _tile(x_ptr, at, x_l, cols_p, real, P)
        B = _tile(B_ptr, at, B_l, cols_n, real, N)
        C = _tile(C_ptr, at, C_l, cols_n, real, N)
        mix = tl.dot(C, tl.trans(B), input_precision=PRECISION)
        mix = tl.where(seen, mix * tl.exp2(cum[:, None] - cum[None, :]) * step[None, :], 0.0)
        y = tl.dot(C, state.to(x.dtype), input_precision=PRECISION) * read[:, None]
        y = tl.dot(mix.to(x.dtype), x, y, input_precision=PRECISION)
        if HAS_D:
            y += D * x.to(tl.float32)
        y = tl.where(real[:, None], y, 0.0)
        tl.store(y_ptr + at[:, None] * y_l + cols_p[None, :], y, mask=here[:, None] & (cols_p < P)[None, :])
        B = (B.to(tl.float32) * write[:, None]).to(x.dtype)
        state = tl.dot(tl.trans(B), x, state * decay, input_precision=PRECISION)


def _block(size: int) -> int:
    """Smallest power of two that holds ``size``, at least the 16 that a matrix product takes."""
    return max(16, triton.next_power_of_2(size))


@dataclass(frozen=True)
class Plan:
    """How shapes are cut into programs; decided by the shapes alone, so that results are."""

    block_p: int  # columns of the state a program holds
    block_n: int
    blocks: int  # of columns, to cover headdim
    segment: int  # tokens
    segments: int


def plan(x: Tensor, B: Tensor) -> Plan:
    """The cut for x (b, l, h, p) and B (b, l, g, n): segments of whole chunks, at least four, near PROGRAMS in all."""
    b, l, h, p = x.shape
    block_n = _block(B.shape[3])
    block_p = min(_block(p), 64 if block_n > 64 else 128)
    blocks = -(-p // block_p)
    wanted = max(1, PROGRAMS // (b * h * blocks))
    segment = max(4, triton.cdiv(triton.cdiv(l, CHUNK), wanted)) * CHUNK
    return Plan(block_p, block_n, blocks, segment, -(-l // segment))


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    softplus: bool,
    limit: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs (b, l, h, p) in x's dtype, final state (b, h, p, n) in float32, and for the backward the states that
    enter each segment (b, segments + 1, h, n, p) and what it keeps of them (b, segments, h)."""
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    x, B, C = inner_contiguous(x), inner_contiguous(B.to(x.dtype)), inner_contiguous(C.to(x.dtype))
    cut = plan(x, B)
    segment, segments = cut.segment, cut.segments
    y = torch.empty(b, l, h, p, dtype=x.dtype, device=x.device)
    local = torch.empty(b, segments, h, n, p, dtype=torch.float32, device=x.device)
    kept = torch.empty(b, segments, h, dtype=torch.float32, device=x.device)
    enter = torch.empty(b, segments + 1, h, n, p, dtype=torch.float32, device=x.device)
    enter[:, 0] = 0 if initial_state is None else initial_state.transpose(-1, -2)
    run = x if seq_idx is None else encode_runs(seq_idx)
    shape = {"P": p, "N": n, "BLOCK_P": cut.block_p, "BLOCK_N": cut.block_n, "Q": CHUNK}
    flags = {
        "SOFTPLUS": softplus,
        "HAS_BIAS": dt_bias is not None,
        "HAS_RUN": seq_idx is not None,
        "PRECISION": "tf32x3" if x.dtype == torch.float32 else "tf32",
    }
    bias = A if dt_bias is None else dt_bias
    grid = (segments, h * cut.blocks, b)
    low, high = limit
    _segment_states[grid](
        x, dt, A, B, bias, run, local, kept,
        l, segment, h, h // g, low, high,
        *x.stride()[:3], *dt.stride(), *B.stride()[:3],
        **shape, **flags, **LAUNCH["states"],
    )  # fmt: skip
    size = n * p
    block = min(1024, triton.next_power_of_2(size))
    _pass_states[(-(-size // block), h, b)](local, kept, enter, segments, h, SIZE=size, BLOCK=block)
    _outputs[grid](
        x, dt, A, B, C, A if D is None else D, bias, run, enter, y,
        l, segment, segments, h, h // g, low, high,
        *x.stride()[:3], *dt.stride(), *B.stride()[:3], *C.stride()[:3], *y.stride()[:3],
        **shape, **flags, HAS_D=D is not None, **LAUNCH["outputs"],
    )  # fmt: skip
    return y, enter[:, -1].transpose(-1, -2).contiguous(), enter, kept
