"""Gradients of the state-space dual operation for GPUs, in Triton; what the forward kernels saw is recomputed.

1. ``_segment_gradients``: the gradient that each segment sends to the state that enters it, from its own outputs alone.
2. ``_pass_gradients``: the gradient of the state that leaves each segment, from the last to the first.
3. ``_border_states``: within each segment, the state that enters each chunk and the gradient of the one that leaves it.
4. ``_read_gradients``: chunk by chunk, what was read: C, and for each pair of tokens the gradient of its score.
5. ``_write_gradients``: chunk by chunk, what was written: x and B.
6. ``triton_steps``: time steps and decay rates.

4 and 5 take the heads of a group in turn, so that the gradients of B and C are summed in registers: no atomics, and
nothing of B's or C's size a head. 3 to 5 go through the sequence slab by slab, so that the states between chunks take
bounded memory. The formulas are those of ``chunked.backward``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import encode_runs, inner_contiguous, run_of
from mamba_core.ops.ssd.triton import (
    decay_from_start,
    decay_to,
    decays_within,
    entered_run,
    load_tile,
    pass_states,
    plan,
    precision,
    written,
)
from mamba_core.ops.ssd.triton_steps import Steps

_PROGRAMS = 256  # of the last two kernels, aimed at: more cost memory for sums over parts of the heads
_CHUNK = 64  # tokens
_SLAB = 2**29  # bytes of states and gradients of states between the chunks of a slab


@triton.jit
def _read(
    grad, gy_ptr, C_ptr, cum_ptr, rest_ptr, run_ptr, chunk, length, gy_l, C_l, cols_p, cols_n,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient (n, p) of the state before a chunk from that of the state behind it, and what the chunk keeps."""
    at = chunk * Q + tl.arange(0, Q)
    real = at < length
    read = decay_from_start(cum_ptr, rest_ptr, at, EXACT)
    decay = decay_from_start(cum_ptr, rest_ptr, chunk * Q + Q - 1, EXACT)
    if HAS_RUN:
        code = tl.load(run_ptr + at, mask=real, other=-1)
        before = entered_run(run_ptr, chunk * Q)
        now = run_of(tl.load(run_ptr + tl.minimum(chunk * Q + Q, length) - 1))
        read = tl.where(run_of(code) == before, read, 0.0)
        decay = tl.where(now == before, decay, 0.0)
        real = real & (code >= 0)
    gy = load_tile(gy_ptr, at, gy_l, cols_p, real, P)
    C = load_tile(C_ptr, at, C_l, cols_n, real, N)
    gy = (gy.to(tl.float32) * read[:, None]).to(gy.dtype)
    return tl.dot(tl.trans(C), gy, grad * decay, input_precision=PRECISION), decay


@triton.jit(do_not_specialize=["length", "segment", "segments", "chunks_all"])
def _segment_gradients(
    gy_ptr, C_ptr, cum_ptr, rest_ptr, run_ptr, local_ptr, kept_ptr,
    length, segment, segments, chunks_all, heads, per_group, gy_b, gy_l, gy_h, C_b, C_l, C_g,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    batch, index = index // segments, index % segments
    P_BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    head, part = tl.program_id(1) // P_BLOCKS, tl.program_id(1) % P_BLOCKS
    cols_p = part * BLOCK_P + tl.arange(0, BLOCK_P)
    cols_n = tl.arange(0, BLOCK_N)
    row = (batch * heads + head) * chunks_all * Q
    grad = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    kept = 1.0
    first = index * segment
    last = tl.minimum(first + segment, chunks_all) - 1
    for back in tl.range(0, last + 1 - first):
        grad, decay = _read(
            grad, gy_ptr + batch * gy_b + head * gy_h, C_ptr + batch * C_b + (head // per_group) * C_g,
            cum_ptr + row, rest_ptr + row, run_ptr + batch * length, last - back, length, gy_l, C_l, cols_p, cols_n,
            P, N, Q, HAS_RUN, EXACT, PRECISION,
        )  # fmt: skip
        kept *= decay
    slot = (batch * segments + index) * heads + head
    inside = (cols_n < N)[:, None] & (cols_p < P)[None, :]
    tl.store(local_ptr + slot * (N * P) + cols_n[:, None] * P + cols_p[None, :], grad, mask=inside)
    if part == 0:
        tl.store(kept_ptr + slot, kept)


@triton.jit(do_not_specialize=["segments"])
def _pass_gradients(local_ptr, kept_ptr, leave_ptr, segments, heads, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """leave[s + 1] is the gradient of the state behind segment s, leave[0] that of the initial state."""
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cols = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < SIZE
    base = batch * (segments + 1) * heads + head
    grad = tl.load(leave_ptr + (base + segments * heads) * SIZE + cols, mask=mask, other=0.0)
    for k in tl.range(0, segments):
        s = segments - 1 - k
        slot = (batch * segments + s) * heads + head
        grad = grad * tl.load(kept_ptr + slot) + tl.load(local_ptr + slot * SIZE + cols, mask=mask, other=0.0)
        tl.store(leave_ptr + (base + s * heads) * SIZE + cols, grad, mask=mask)


@triton.jit(do_not_specialize=["length", "slab", "slabs", "segment", "segments", "chunks_all", "chunks_slab"])
def _border_states(
    x_ptr, gy_ptr, B_ptr, C_ptr, step_ptr, cum_ptr, rest_ptr, run_ptr, enter_ptr, leave_ptr,
    state_ptr, grad_ptr, keep_ptr,
    length, slab, slabs, segment, segments, chunks_all, chunks_slab, heads, per_group,
    x_b, x_l, x_h, gy_b, gy_l, gy_h, B_b, B_l, B_g, C_b, C_l, C_g,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For the segments of a slab: ``slabs`` of them from ``slab`` on."""
    index = tl.program_id(0).to(tl.int64)
    batch, index = index // slabs, slab + index % slabs
    P_BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    head, part = tl.program_id(1) // P_BLOCKS, tl.program_id(1) % P_BLOCKS
    cols_p = part * BLOCK_P + tl.arange(0, BLOCK_P)
    cols_n = tl.arange(0, BLOCK_N)
    inside = (cols_n < N)[:, None] & (cols_p < P)[None, :]
    tile = cols_n[:, None] * P + cols_p[None, :]
    row = (batch * heads + head) * chunks_all * Q
    run_ptr += batch * length
    first = index * segment
    last = tl.minimum(first + segment, chunks_all) - 1
    border = ((batch * (segments + 1) + index) * heads + head) * (N * P)
    slot = (batch * chunks_slab - slab * segment) * heads + head  # of chunk 0, were it in this slab
    state = tl.load(enter_ptr + border + tile, mask=inside, other=0.0)
    for chunk in tl.range(first, last + 1):
        to = state_ptr + (slot + chunk * heads) * (N * P) + tile
        tl.store(to, state.to(state_ptr.dtype.element_ty), mask=inside)
        state, _ = written(
            state, x_ptr + batch * x_b + head * x_h, B_ptr + batch * B_b + (head // per_group) * B_g,
            step_ptr + row, cum_ptr + row, rest_ptr + row, run_ptr, chunk, length, x_l, B_l, cols_p, cols_n,
            P, N, Q, HAS_RUN, EXACT, PRECISION,
        )  # fmt: skip
    tl.debug_barrier()  # the states just written are read again
    grad = tl.load(leave_ptr + border + heads * (N * P) + tile, mask=inside, other=0.0)
    for back in tl.range(0, last + 1 - first):
        chunk = last - back
        at = (slot + chunk * heads) * (N * P) + tile
        tl.store(grad_ptr + at, grad.to(grad_ptr.dtype.element_ty), mask=inside)
        behind = grad
        grad, decay = _read(
            grad, gy_ptr + batch * gy_b + head * gy_h, C_ptr + batch * C_b + (head // per_group) * C_g,
            cum_ptr + row, rest_ptr + row, run_ptr, chunk, length, gy_l, C_l, cols_p, cols_n,
            P, N, Q, HAS_RUN, EXACT, PRECISION,
        )  # fmt: skip
        before = tl.load(state_ptr + at, mask=inside, other=0.0).to(tl.float32)
        keep = tl.sum(tl.sum(before * behind, 1), 0) * decay
        tl.store(keep_ptr + ((batch * chunks_all + chunk) * heads + head) * P_BLOCKS + part, keep)


@triton.jit(do_not_specialize=["length", "slab", "chunks_all", "chunks_slab"])
def _read_gradients(
    x_ptr, gy_ptr, B_ptr, C_ptr, step_ptr, cum_ptr, rest_ptr, run_ptr, state_ptr,
    dC_ptr, scores_ptr, ends_ptr, dD_ptr,
    length, slab, chunks_all, chunks_slab, heads, groups, per_group, per_part,
    x_b, x_l, x_h, gy_b, gy_l, gy_h, B_b, B_l, B_g, C_b, C_l, C_g, dC_b, dC_l, dC_g, dC_p,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    P_BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    index = tl.program_id(0).to(tl.int64)
    batch, chunk = index // chunks_slab, slab + index % chunks_slab
    parts = per_group // per_part
    group, part = tl.program_id(1) // parts, tl.program_id(1) % parts
    at = chunk * Q + tl.arange(0, Q)
    here = at < length
    real = here
    seen = at[:, None] >= at[None, :]
    if HAS_RUN:
        code = tl.load(run_ptr + batch * length + at, mask=here, other=-1)
        run = run_of(code)
        real = here & (code >= 0)
        seen = seen & (run[:, None] == run[None, :])
        reads = run == entered_run(run_ptr + batch * length, chunk * Q)
    cols_n = tl.arange(0, BLOCK_N)
    B = load_tile(B_ptr + batch * B_b + group * B_g, at, B_l, cols_n, real, N)
    C = load_tile(C_ptr + batch * C_b + group * C_g, at, C_l, cols_n, real, N)
    scores = tl.where(seen, tl.dot(C, tl.trans(B), input_precision=PRECISION), 0.0).to(C.dtype)
    g_scores = tl.zeros((Q, Q), tl.float32)
    dC = tl.zeros((Q, BLOCK_N), tl.float32)
    for i in tl.range(0, per_part):
        head = group * per_group + part * per_part + i
        row = (batch * heads + head) * chunks_all * Q
        slot = (index * heads + head) * (N * P)
        read = decay_from_start(cum_ptr + row, rest_ptr + row, at, EXACT)
        if HAS_RUN:
            read = tl.where(reads, read, 0.0)
        pairs = tl.zeros((Q, Q), tl.float32)
        from_read = tl.zeros((Q,), tl.float32)
        skip = tl.zeros((Q,), tl.float32)
        for block in tl.static_range(P_BLOCKS):
            cols = block * BLOCK_P + tl.arange(0, BLOCK_P)
            inside = (cols_n < N)[:, None] & (cols < P)[None, :]
            x = load_tile(x_ptr + batch * x_b + head * x_h, at, x_l, cols, real, P)
            gy = load_tile(gy_ptr + batch * gy_b + head * gy_h, at, gy_l, cols, real, P)
            state = tl.load(state_ptr + slot + cols_n[:, None] * P + cols[None, :], mask=inside, other=0.0)
            pairs = tl.dot(gy, tl.trans(x), pairs, input_precision=PRECISION)
            carried = tl.dot(C, state, input_precision=PRECISION)
            gy_ = gy.to(tl.float32)
            from_read += tl.sum(carried * gy_, 1)
            skip += tl.sum(gy_ * x.to(tl.float32), 1)
            dC = tl.dot((gy_ * read[:, None]).to(x.dtype), tl.trans(state), dC, input_precision=PRECISION)
        decay = decays_within(cum_ptr + row, rest_ptr + row, at, True, EXACT) * tl.load(step_ptr + row + at)[None, :]
        g_scores += pairs * decay
        pairs *= scores.to(tl.float32) * decay
        # A token's pair with itself spans no decay, and is in both sums.
        ends = tl.sum(pairs, 1) - tl.sum(pairs, 0) + from_read * read
        tl.store(ends_ptr + row + at, ends)
        tl.store(dD_ptr + (batch * chunks_all + chunk) * heads + head, tl.sum(skip, 0))
    low = tl.where(seen, g_scores, 0.0).to(B.dtype)
    place = (index * groups + group) * parts + part
    pair = tl.arange(0, Q)[:, None] * Q + tl.arange(0, Q)[None, :]
    tl.store(scores_ptr + place * (Q * Q) + pair, low)
    dC = tl.dot(low, B, dC, input_precision=PRECISION)
    dC_ptr += batch * dC_b + group * dC_g + part * dC_p
    tl.store(dC_ptr + at[:, None] * dC_l + cols_n[None, :], dC, mask=here[:, None] & (cols_n < N)[None, :])


@triton.jit(do_not_specialize=["length", "slab", "chunks_all", "chunks_slab"])
def _write_gradients(
    x_ptr, gy_ptr, B_ptr, C_ptr, D_ptr, step_ptr, cum_ptr, rest_ptr, run_ptr, grad_ptr, scores_ptr,
    dx_ptr, dB_ptr, written_ptr, direct_ptr,
    length, slab, chunks_all, chunks_slab, heads, groups, per_group, per_part,
    x_b, x_l, x_h, gy_b, gy_l, gy_h, B_b, B_l, B_g, C_b, C_l, C_g, dx_b, dx_l, dx_h, dB_b, dB_l, dB_g, dB_p,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    HAS_D: tl.constexpr, HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    P_BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    index = tl.program_id(0).to(tl.int64)
    batch, chunk = index // chunks_slab, slab + index % chunks_slab
    parts = per_group // per_part
    group, part = tl.program_id(1) // parts, tl.program_id(1) % parts
    at = chunk * Q + tl.arange(0, Q)
    here = at < length
    real = here
    seen = at[:, None] <= at[None, :]  # rows write, columns read
    if HAS_RUN:
        code = tl.load(run_ptr + batch * length + at, mask=here, other=-1)
        run = run_of(code)
        real = here & (code >= 0)
        seen = seen & (run[:, None] == run[None, :])
        writes = run == run_of(tl.load(run_ptr + batch * length + tl.minimum(chunk * Q + Q, length) - 1))
    cols_n = tl.arange(0, BLOCK_N)
    B = load_tile(B_ptr + batch * B_b + group * B_g, at, B_l, cols_n, real, N)
    C = load_tile(C_ptr + batch * C_b + group * C_g, at, C_l, cols_n, real, N)
    scores = tl.where(seen, tl.dot(B, tl.trans(C), input_precision=PRECISION), 0.0).to(B.dtype)
    place = (index * groups + group) * parts + part
    pair = tl.arange(0, Q)[None, :] * Q + tl.arange(0, Q)[:, None]
    low = tl.load(scores_ptr + place * (Q * Q) + pair)
    dB = tl.dot(low, C, input_precision=PRECISION)
    for i in tl.range(0, per_part):
        head = group * per_group + part * per_part + i
        row = (batch * heads + head) * chunks_all * Q
        slot = (index * heads + head) * (N * P)
        write, _ = decay_to(cum_ptr + row, rest_ptr + row, at, chunk * Q + Q - 1, EXACT)
        if HAS_RUN:
            write = tl.where(writes, write, 0.0)
        step = tl.load(step_ptr + row + at)
        decay = decays_within(cum_ptr + row, rest_ptr + row, at, False, EXACT)
        mix = (scores.to(tl.float32) * decay).to(B.dtype)
        D = tl.load(D_ptr + head).to(tl.float32) if HAS_D else 0.0
        direct = tl.zeros((Q,), tl.float32)
        from_write = tl.zeros((Q,), tl.float32)
        for block in tl.static_range(P_BLOCKS):
            cols = block * BLOCK_P + tl.arange(0, BLOCK_P)
            inside = (cols_n < N)[:, None] & (cols < P)[None, :]
            x = load_tile(x_ptr + batch * x_b + head * x_h, at, x_l, cols, real, P)
            gy = load_tile(gy_ptr + batch * gy_b + head * gy_h, at, gy_l, cols, real, P)
            grad = tl.load(grad_ptr + slot + cols_n[:, None] * P + cols[None, :], mask=inside, other=0.0)
            x_ = x.to(tl.float32)
            gu = tl.dot(B, grad, input_precision=PRECISION) * write[:, None]
            from_write += tl.sum(gu * x_, 1)
            gu = tl.dot(mix, gy, gu, input_precision=PRECISION)
            direct += tl.sum(gu * x_, 1)
            dB = tl.dot((x_ * (step * write)[:, None]).to(x.dtype), tl.trans(grad), dB, input_precision=PRECISION)
            dx = gu * step[:, None]
            if HAS_D:
                dx += D * gy.to(tl.float32)
            to = dx_ptr + batch * dx_b + head * dx_h + at[:, None] * dx_l + cols[None, :]
            tl.store(to, dx, mask=here[:, None] & (cols < P)[None, :])
        tl.store(written_ptr + row + at, from_write * step)
        tl.store(direct_ptr + row + at, direct)
    dB_ptr += batch * dB_b + group * dB_g + part * dB_p
    tl.store(dB_ptr + at[:, None] * dB_l + cols_n[None, :], dB, mask=here[:, None] & (cols_n < N)[None, :])


def _chunk_of(x: Tensor, block_n: int) -> int:
    """Tokens of a chunk: what two accumulators as wide as the state leave room for."""
    return _CHUNK if block_n * x.element_size() <= 512 else _CHUNK // 2


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
    softplus: bool,
    limit: tuple[float, float],
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C, D, dt_bias and the initial state, from the ``enter`` of ``triton.forward``.

    Those of x, B and C are in x's dtype, the others in float32. ``into`` gives memory for the three, in their shapes,
    strided but for the last dimension.
    """
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    x, B, C = inner_contiguous(x), inner_contiguous(B.to(x.dtype)), inner_contiguous(C.to(x.dtype))
    gy = inner_contiguous(grad_y.to(x.dtype))
    cut = plan(x, B, _chunk_of(x, plan(x, B).block_n))
    run = None if seq_idx is None else encode_runs(seq_idx)
    flags = {"HAS_RUN": run is not None, **precision(x)}
    sizes = {"P": p, "N": n, "BLOCK_P": cut.block_p, "BLOCK_N": cut.block_n, "Q": cut.chunk}
    steps = Steps(dt, A, dt_bias, run, cut.chunk, softplus, limit, flags["EXACT"] is True)
    run_ = A if run is None else run
    decays = (steps.cum, steps.rest, run_)
    strides = {name: t.stride()[:3] for name, t in (("x", x), ("gy", gy), ("B", B), ("C", C))}
    device, work = x.device, torch.float32

    local = torch.empty(b, cut.segments, h, n, p, dtype=work, device=device)
    kept = torch.empty(b, cut.segments, h, dtype=work, device=device)
    _segment_gradients[(b * cut.segments, h * cut.p_blocks)](
        gy, C, *decays, local, kept, l, cut.segment, cut.segments, cut.chunks, h, h // g, *strides["gy"], *strides["C"],
        **sizes, **flags, num_warps=4, num_stages=3,
    )  # fmt: skip
    leave = torch.empty(b, cut.segments + 1, h, n, p, dtype=work, device=device)
    leave[:, -1] = grad_final.transpose(-1, -2)
    pass_states(_pass_gradients, local, kept, leave)

    together = cut.heads_together(b, g, h // g, _PROGRAMS)
    parts = h // g // together
    if into is None:
        into = (torch.empty_like(x, memory_format=torch.contiguous_format), *(t.new_empty(t.shape) for t in (B, C)))
    dx, dB, dC = into
    sums_B, sums_C = (
        t.unsqueeze(3) if parts == 1 else torch.empty(b, l, g, parts, n, dtype=work, device=device) for t in (dB, dC)
    )
    ends, wrote, direct = (torch.empty_like(steps.step) for _ in range(3))
    keep = torch.empty(b, cut.chunks, h, cut.p_blocks, dtype=work, device=device)
    dD = torch.empty(b, cut.chunks, h, dtype=work, device=device)
    slab = max(1, _SLAB // (2 * b * cut.segment * h * n * p * x.element_size()))  # segments
    slab = min(slab, cut.segments)
    size = min(slab * cut.segment, cut.chunks)
    states = torch.empty(b, size, h, n, p, dtype=x.dtype, device=device)
    grads = torch.empty_like(states)
    scores = torch.empty(b, size, g, parts, cut.chunk, cut.chunk, dtype=x.dtype, device=device)
    for first in range(0, cut.segments, slab):
        segments = min(slab, cut.segments - first)
        chunk = first * cut.segment
        chunks = min(segments * cut.segment, cut.chunks - chunk)
        _border_states[(b * segments, h * cut.p_blocks)](
            x, gy, B, C, steps.step, *decays, enter, leave, states, grads, keep,
            l, first, segments, cut.segment, cut.segments, cut.chunks, chunks, h, h // g,
            *strides["x"], *strides["gy"], *strides["B"], *strides["C"], **sizes, **flags, num_warps=4, num_stages=3,
        )  # fmt: skip
        grid = (b * chunks, g * parts)
        heads = (l, chunk, cut.chunks, chunks, h, g, h // g, together)
        _read_gradients[grid](
            x, gy, B, C, steps.step, *decays, states, sums_C, scores, ends, dD, *heads,
            *strides["x"], *strides["gy"], *strides["B"], *strides["C"], *sums_C.stride()[:4],
            **sizes, **flags, num_warps=8 if cut.block_n > 128 else 4, num_stages=2,
        )  # fmt: skip
        _write_gradients[grid](
            x, gy, B, C, A if D is None else D, steps.step, *decays, grads, scores, dx, sums_B, wrote, direct, *heads,
            *strides["x"], *strides["gy"], *strides["B"], *strides["C"], *dx.stride()[:3], *sums_B.stride()[:4],
            **sizes, **flags, HAS_D=D is not None, num_warps=8 if cut.block_n > 128 else 4, num_stages=2,
        )  # fmt: skip
    if parts > 1:
        dB.copy_(sums_B.sum(3))
        dC.copy_(sums_C.sum(3))
    ddt, dA, dbias = steps.backward(ends, wrote, direct, keep.sum(3))
    return dx, ddt, dA, dB, dC, dD.sum((0, 1)), dbias, leave[:, 0].transpose(-1, -2).contiguous()
