"""Gradients of the state-space dual operation for GPUs, in Triton; what the forward kernels saw is recomputed.

1. ``_segment_gradients``: the gradient that each segment sends to the state that enters it, from its own outputs alone.
2. ``_pass_gradients``: the gradient of the state that leaves each segment, from the last to the first.
3. ``_border_states``: within each segment, the state that enters each chunk and the gradient of the one that leaves it.
4. ``_gradients``: chunk by chunk, all heads of a group in turn, so that the gradients of B and C are summed in
   registers: no atomics, and nothing of B's or C's size a head.

The formulas are those of ``chunked.backward``. Sums over chunks (A, D, bias) and over parts of the heads (B, C) are
written as partial sums and added in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import LOG2_E, encode_runs, inner_contiguous, run_of, softplus
from mamba_core.ops.ssd.triton import CHUNK, _block, _steps, _tile, plan

LAUNCH = {
    "segments": {"num_warps": 4, "num_stages": 3},
    "borders": {"num_warps": 4, "num_stages": 3},
    "gradients": {"num_warps": 8, "num_stages": 1},
}
PROGRAMS = 512  # chunks x groups x parts aimed at by the last kernel


@triton.jit
def _segment_gradients(
    gy_ptr, dt_ptr, A_ptr, C_ptr, bias_ptr, run_ptr, local_ptr,
    length, segment, heads, per_group, low, high,
    gy_b, gy_l, gy_h, dt_b, dt_l, dt_h, C_b, C_l, C_g,
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
    gy_ptr += batch * gy_b + head * gy_h
    dt_ptr += batch * dt_b + head * dt_h
    C_ptr += batch * C_b + (head // per_group) * C_g
    run_ptr += batch * length
    grad = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    chunks = (last - first + Q - 1) // Q
    for k in tl.range(0, chunks):
        start = first + (chunks - 1 - k) * Q
        at = start + tl.arange(0, Q)
        here = at < last
        real = here
        same = here
        kept = 1.0
        if HAS_RUN:
            code = tl.load(run_ptr + at, mask=here, other=0)
            run = run_of(code)
            before = run_of(tl.load(run_ptr + start - 1, mask=start > 0, other=0))
            now = tl.max(tl.where(here, run, 0), 0)
            real = here & (code >= 0)
            same = real & (run == before)
            kept = tl.where(now == before, 1.0, 0.0)
        step = _steps(dt_ptr, at, dt_l, bias, low, high, real, SOFTPLUS)
        log_decay = step * A
        read = tl.where(same, tl.exp2(tl.cumsum(log_decay, 0)), 0.0)
        gy = _tile(gy_ptr, at, gy_l, cols_p, real, P)
        C = _tile(C_ptr, at, C_l, cols_n, real, N)
        C = (C.to(tl.float32) * read[:, None]).to(gy.dtype)
        grad = tl.dot(tl.trans(C), gy, grad * (tl.exp2(tl.sum(log_decay, 0)) * kept), input_precision=PRECISION)
    slot = (batch * tl.num_programs(0) + index) * heads + head
    mask = (cols_n < N)[:, None] & (cols_p < P)[None, :]
    tl.store(local_ptr + slot * (N * P) + cols_n[:, None] * P + cols_p[None, :], grad, mask=mask)


@triton.jit
def _pass_gradients(local_ptr, kept_ptr, leave_ptr, segments, heads, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """leave[s + 1] is the gradient of the state behind segment s, leave[0] that of the initial state."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < SIZE
    base = batch * (segments + 1) * heads + head
    grad = tl.load(leave_ptr + (base + segments * heads) * SIZE + cols, mask=mask, other=0.0)
    for k in tl.range(0, segments):
        s = segments - 1 - k
        slot = (batch * segments + s) * heads + head
        grad = grad * tl.load(kept_ptr + slot) + tl.load(local_ptr + slot * SIZE + cols, mask=mask, other=0.0)
        tl.store(leave_ptr + (base + s * heads) * SIZE + cols, grad, mask=mask)


@triton.jit
def _border_states(
    x_ptr, gy_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, bias_ptr, run_ptr, enter_ptr, leave_ptr, state_ptr, grad_ptr,
    length, segment, segments, chunks_all, heads, per_group, low, high,
    x_b, x_l, x_h, gy_b, gy_l, gy_h, dt_b, dt_l, dt_h, B_b, B_l, B_g, C_b, C_l, C_g,
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
    inside = (cols_n < N)[:, None] & (cols_p < P)[None, :]
    tile = cols_n[:, None] * P + cols_p[None, :]
    A = tl.load(A_ptr + head).to(tl.float32) * LOG2_E
    bias = tl.load(bias_ptr + head).to(tl.float32) if HAS_BIAS else 0.0
    x_ptr += batch * x_b + head * x_h
    gy_ptr += batch * gy_b + head * gy_h
    dt_ptr += batch * dt_b + head * dt_h
    B_ptr += batch * B_b + (head // per_group) * B_g
    C_ptr += batch * C_b + (head // per_group) * C_g
    run_ptr += batch * length
    chunks = (last - first + Q - 1) // Q
    slot = (batch * (segments + 1) + index) * heads + head
    state = tl.load(enter_ptr + slot * (N * P) + tile, mask=inside, other=0.0)
    for k in tl.range(0, chunks):
        start = first + k * Q
        at = start + tl.arange(0, Q)
        here = at < last
        real = here
        same = here
        kept = 1.0
        if HAS_RUN:
            code = tl.load(run_ptr + at, mask=here, other=0)
            run = run_of(code)
            before = run_of(tl.load(run_ptr + start - 1, mask=start > 0, other=0))
            now = tl.max(tl.where(here, run, 0), 0)
            real = here & (code >= 0)
            same = here & (run == now)
            kept = tl.where(now == before, 1.0, 0.0)
        chunk = (batch * chunks_all + start // Q) * heads + head
        tl.store(state_ptr + chunk * (N * P) + tile, state, mask=inside)
        step = _steps(dt_ptr, at, dt_l, bias, low, high, real, SOFTPLUS)
        log_decay = step * A
        total = tl.sum(log_decay, 0)
        write = tl.where(same, tl.exp2(total - tl.cumsum(log_decay, 0)) * step, 0.0)
        x = _tile(x_ptr, at, x_l, cols_p, real, P)
        B = _tile(B_ptr, at, B_l, cols_n, real, N)
        B = (B.to(tl.float32) * write[:, None]).to(x.dtype)
        state = tl.dot(tl.trans(B), x, state * (tl.exp2(total) * kept), input_precision=PRECISION)
    grad = tl.load(leave_ptr + (slot + heads) * (N * P) + tile, mask=inside, other=0.0)
    for k in tl.range(0, chunks):
        start = first + (chunks - 1 - k) * Q
        at = start + tl.arange(0, Q)
        here = at < last
        real = here
        same = here
        kept = 1.0
        if HAS_RUN:
            code = tl.load(run_ptr + at, mask=here, other=0)
            run = run_of(code)
            before = run_of(tl.load(run_ptr + start - 1, mask=start > 0, other=0))
            now = tl.max(tl.where(here, run, 0), 0)
            real = here & (code >= 0)
            same = real & (run == before)
            kept = tl.where(now == before, 1.0, 0.0)
        chunk = (batch * chunks_all + start // Q) * heads + head
        tl.store(grad_ptr + chunk * (N * P) + tile, grad, mask=inside)
        step = _steps(dt_ptr, at, dt_l, bias, low, high, real, SOFTPLUS)
        log_decay = step * A
        read = tl.where(same, tl.exp2(tl.cumsum(log_decay, 0)), 0.0)
        gy = _tile(gy_ptr, at, gy_l, cols_p, real, P)
        C = _tile(C_ptr, at, C_l, cols_n, real, N)
        C = (C.to(tl.float32) * read[:, None]).to(gy.dtype)
        grad = tl.dot(tl.trans(C), gy, grad * (tl.exp2(tl.sum(log_decay, 0)) * kept), input_precision=PRECISION)


@triton.jit
def _gradients(
    x_ptr, gy_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, run_ptr, state_ptr, grad_ptr,
    dx_ptr, ddt_ptr, dB_ptr, dC_ptr, dA_ptr, dD_ptr,
    length, chunks_all, heads, groups, per_group, per_part, low, high,
    x_b, x_l, x_h, gy_b, gy_l, gy_h, dt_b, dt_l, dt_h, B_b, B_l, B_g, C_b, C_l, C_g,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_RUN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    index, batch = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    parts = per_group // per_part
    group, part = tl.program_id(1) // parts, tl.program_id(1) % parts
    start = index * Q
    rows = tl.arange(0, Q)
    at = start + rows
    here = at < length
    cols_p = tl.arange(0, BLOCK_P)
    cols_n = tl.arange(0, BLOCK_N)
    inside = (cols_n < N)[:, None] & (cols_p < P)[None, :]
    tile = cols_n[:, None] * P + cols_p[None, :]
    wide = here[:, None] & (cols_p < P)[None, :]
    run_ptr += batch * length
    seen = rows[:, None] >= rows[None, :]
    real = here
    reads = here
    writes = here
    kept = 1.0
    if HAS_RUN:
        code = tl.load(run_ptr + at, mask=here, other=0)
        run = run_of(code)
        before = run_of(tl.load(run_ptr + start - 1, mask=start > 0, other=0))
        now = tl.max(tl.where(here, run, 0), 0)
        real = here & (code >= 0)
        seen = seen & (run[:, None] == run[None, :])
        reads = real & (run == before)
        writes = real & (run == now)
        kept = tl.where(now == before, 1.0, 0.0)
    B = _tile(B_ptr + batch * B_b + group * B_g, at, B_l, cols_n, real, N)
    C = _tile(C_ptr + batch * C_b + group * C_g, at, C_l, cols_n, real, N)
    scores = tl.dot(C, tl.trans(B), input_precision=PRECISION)
    g_scores = tl.zeros((Q, Q), tl.float32)
    dB = tl.zeros((Q, BLOCK_N), tl.float32)
    dC = tl.zeros((Q, BLOCK_N), tl.float32)
    for i in tl.range(0, per_part):
        head = group * per_group + part * per_part + i
        A = tl.load(A_ptr + head).to(tl.float32)
        bias = tl.load(bias_ptr + head).to(tl.float32) if HAS_BIAS else 0.0
        raw = tl.load(dt_ptr + batch * dt_b + head * dt_h + at * dt_l, mask=here, other=0.0).to(tl.float32) + bias
        step = _steps(dt_ptr + batch * dt_b + head * dt_h, at, dt_l, bias, low, high, real, SOFTPLUS)
        log_decay = step * (A * LOG2_E)
        cum = tl.cumsum(log_decay, 0)
        total = tl.sum(log_decay, 0)
        read = tl.where(reads, tl.exp2(cum), 0.0)
        write = tl.where(writes, tl.exp2(total - cum), 0.0)
        x = _tile(x_ptr + batch * x_b + head * x_h, at, x_l, cols_p, real, P)
        gy = _tile(gy_ptr + batch * gy_b + head * gy_h, at, gy_l, cols_p, real, P)
        slot = ((batch * chunks_all + index) * heads + head) * (N * P)
        state = tl.load(state_ptr + slot + tile, mask=inside, other=0.0)
        grad = tl.load(grad_ptr + slot + tile, mask=inside, other=0.0)
        # Through the state.
        gy_read = (gy.to(tl.float32) * read[:, None]).to(x.dtype)
        through_C = tl.dot(gy_read, tl.trans(state), input_precision=PRECISION)
        from_read = tl.sum(through_C * C.to(tl.float32), 1)
        dC += through_C
        u_write = (x.to(tl.float32) * (step * write)[:, None]).to(x.dtype)
        through_B = tl.dot(u_write, tl.trans(grad), input_precision=PRECISION)
        from_write = tl.sum(through_B * B.to(tl.float32), 1)
        dB += through_B
        keep = tl.sum(tl.sum(state.to(tl.float32) * grad.to(tl.float32), 1), 0) * tl.exp2(total) * kept
        gu = tl.dot(B, grad, input_precision=PRECISION) * write[:, None]
        # Inside the chunk.
        decay = tl.where(seen, tl.exp2(cum[:, None] - cum[None, :]), 0.0)
        g_mix = tl.dot(gy, tl.trans(x), input_precision=PRECISION) * decay * step[None, :]
        mix = scores * decay
        gu = tl.dot(tl.trans(mix).to(x.dtype), gy, gu, input_precision=PRECISION)
        g_scores += g_mix
        pairs = tl.where(rows[:, None] > rows[None, :], g_mix * scores, 0.0)
        ends = tl.sum(pairs, 1) - tl.sum(pairs, 0) + from_read
        spans = tl.sum(ends, 0) - tl.cumsum(ends, 0) + ends + tl.cumsum(from_write, 0) - from_write + keep
        gdt = tl.sum(gu * x.to(tl.float32), 1) + spans * A
        slope = 1.0 / (1.0 + tl.exp(-raw)) if SOFTPLUS else tl.full((Q,), 1.0, tl.float32)
        free = softplus(raw) if SOFTPLUS else raw  # outside the limits the clamp lets no gradient through
        gdt = tl.where(real & (free >= low) & (free <= high), gdt * slope, 0.0)
        tl.store(ddt_ptr + (batch * length + at) * heads + head, gdt, mask=here)
        gx = gu * step[:, None]
        if HAS_D:
            D = tl.load(D_ptr + head).to(tl.float32)
            gx += D * gy.to(tl.float32)
        tl.store(dx_ptr + ((batch * length + at) * heads + head)[:, None] * P + cols_p[None, :], gx, mask=wide)
        sums = (batch * chunks_all + index) * heads + head
        tl.store(dA_ptr + sums, tl.sum(spans * step, 0))
        tl.store(dD_ptr + sums, tl.sum(tl.sum(gy.to(tl.float32) * x.to(tl.float32), 1), 0))
    low_scores = g_scores.to(B.dtype)
    dB = tl.dot(tl.trans(low_scores), C, dB, input_precision=PRECISION)
    dC = tl.dot(low_scores, B, dC, input_precision=PRECISION)
    row = ((batch * length + at) * groups + group) * parts + part
    mask = here[:, None] & (cols_n < N)[None, :]
    tl.store(dB_ptr + row[:, None] * N + cols_n[None, :], dB, mask=mask)
    tl.store(dC_ptr + row[:, None] * N + cols_n[None, :], dC, mask=mask)


def _parts(chunks: int, batch: int, groups: int, per_group: int) -> int:
    """Into how many parts the heads of a group are split: a divisor, so that programs come near PROGRAMS."""
    wanted = max(1, PROGRAMS // (chunks * batch * groups))
    return max(d for d in range(1, per_group + 1) if per_group % d == 0 and d <= wanted)


def backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    enter: Tensor,
    kept: Tensor,
    softplus: bool,
    limit: tuple[float, float],
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C, D, dt_bias and the initial state, from what ``triton.forward`` kept of segments."""
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    x, B, C = inner_contiguous(x), inner_contiguous(B.to(x.dtype)), inner_contiguous(C.to(x.dtype))
    gy = inner_contiguous(grad_y.to(x.dtype))
    segments, chunks = enter.shape[1] - 1, -(-l // CHUNK)
    cut = plan(x, B)
    segment = cut.segment
    run = x if seq_idx is None else encode_runs(seq_idx)
    device, low, high = x.device, *limit
    flags = {
        "SOFTPLUS": softplus,
        "HAS_BIAS": dt_bias is not None,
        "HAS_RUN": seq_idx is not None,
        "PRECISION": "tf32x3" if x.dtype == torch.float32 else "tf32",
    }
    shape = {"P": p, "N": n, "BLOCK_P": cut.block_p, "BLOCK_N": cut.block_n, "Q": CHUNK}
    bias = A if dt_bias is None else dt_bias
    strides = {name: t.stride()[:3] for name, t in (("x", x), ("gy", gy), ("B", B), ("C", C))}
    local = torch.empty(b, segments, h, n, p, dtype=torch.float32, device=device)
    leave = torch.empty(b, segments + 1, h, n, p, dtype=torch.float32, device=device)
    leave[:, -1] = grad_final.transpose(-1, -2)
    grid = (segments, h * cut.blocks, b)
    _segment_gradients[grid](
        gy, dt, A, C, bias, run, local,
        l, segment, h, h // g, low, high,
        *strides["gy"], *dt.stride(), *strides["C"], **shape, **flags, **LAUNCH["segments"],
    )  # fmt: skip
    size = n * p
    block = min(1024, triton.next_power_of_2(size))
    _pass_gradients[(-(-size // block), h, b)](local, kept, leave, segments, h, SIZE=size, BLOCK=block)
    states = torch.empty(b, chunks, h, n, p, dtype=x.dtype, device=device)
    grads = torch.empty_like(states)
    _border_states[grid](
        x, gy, dt, A, B, C, bias, run, enter, leave, states, grads,
        l, segment, segments, chunks, h, h // g, low, high,
        *strides["x"], *strides["gy"], *dt.stride(), *strides["B"], *strides["C"],
        **shape, **flags, **LAUNCH["borders"],
    )  # fmt: skip
    parts = _parts(chunks, b, g, h // g)
    dx = torch.empty(b, l, h, p, dtype=x.dtype, device=device)
    ddt = torch.empty(b, l, h, dtype=torch.float32, device=device)
    dB = torch.empty(b, l, g, parts, n, dtype=torch.float32, device=device)
    dC = torch.empty_like(dB)
    dA = torch.empty(b, chunks, h, dtype=torch.float32, device=device)
    dD = torch.empty_like(dA)
    _gradients[(chunks, g * parts, b)](
        x, gy, dt, A, B, C, A if D is None else D, bias, run, states, grads, dx, ddt, dB, dC, dA, dD,
        l, chunks, h, g, h // g, h // g // parts, low, high,
        *strides["x"], *strides["gy"], *dt.stride(), *strides["B"], *strides["C"],
        **(shape | {"BLOCK_P": _block(p)}), **flags, HAS_D=D is not None, **LAUNCH["gradients"],
    )  # fmt: skip
    initial = leave[:, 0].transpose(-1, -2).contiguous()
    return dx, ddt, dA.sum((0, 1)), dB.sum(3), dC.sum(3), dD.sum((0, 1)), ddt.sum((0, 1)), initial
