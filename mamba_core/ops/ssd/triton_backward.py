"""Gradients of the state-space dual operation for GPUs, in Triton; what the forward kernels saw is recomputed.

1. ``_segment_gradients``: the gradient that each segment sends to the state that enters it, from its own outputs alone.
2. ``pass_states``, backwards: the gradient of the state that leaves each segment.
3. ``chunk_states``, ``_chunk_gradients``: the state that enters each chunk, the gradient of that which leaves it.
4. ``_read_gradients``: chunk by chunk, what was read: C, and for each pair of tokens the gradient of its score.
5. ``_write_gradients``: chunk by chunk, what was written: x and B.
6. ``triton_steps``: time steps and decay rates.

4 and 5 take the heads of a group in turn, so that the gradients of B and C are summed in registers: no atomics, and
nothing of B's or C's size a head. 3 to 5 go through the sequence slab by slab, so that the states between chunks take
bounded memory. The formulas are those of ``chunked.backward``.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import encode_runs, inner_contiguous, on_device_of_first, run_of
from mamba_core.ops.ssd.triton import (
    chunk_states,
    decay_from_start,
    decay_to,
    entered_run,
    load_tile,
    pass_states,
    plan,
    precision,
    weights_within,
)
from mamba_core.ops.ssd.triton_steps import Steps
from mamba_core.ops.tape import launch, taped

_PROGRAMS = 256  # of the last two kernels, aimed at: more cost memory for sums over parts of the heads
LAUNCH = {
    "segments": {"num_warps": 4, "num_stages": 3},
    "states": {"num_warps": 4, "num_stages": 3},
    "gradients": {"num_warps": 4, "num_stages": 3},
    "reads": {"num_warps": 4, "num_stages": 3},
    "writes": {"num_warps": 4, "num_stages": 3},
}
_CHUNK = 64  # tokens, at most: two accumulators as wide as the state leave room for no more
_TOKENS = 16  # of a program that adds up gradients of B and C
_SLAB = 2**28  # bytes of states and gradients of states between the chunks of a slab


@triton.jit
def _keeps(cum_ptr, also_ptr, run_ptr, chunk, length, Q: tl.constexpr, HAS_RUN: tl.constexpr, EXACT: tl.constexpr):
    """What a chunk keeps of the state that enters it."""
    start = chunk * Q
    decay = decay_from_start(cum_ptr + start, also_ptr + start, Q - 1, EXACT)
    if HAS_RUN:
        now = run_of(tl.load(run_ptr + tl.minimum(start + Q, length) - 1))
        decay = tl.where(now == entered_run(run_ptr, start), decay, 0.0)
    return decay


@triton.jit
def _read(
    kept, gy_ptr, C_ptr, cum_ptr, also_ptr, run_ptr, chunk, length, gy_l, C_l, cols_p, cols_n,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient (n, p) of the state before a chunk from what the chunk lets through of that of the state behind."""
    start = chunk * Q
    at = tl.arange(0, Q)
    left = length - start
    real = at < left
    read = tl.where(real, decay_from_start(cum_ptr + start, also_ptr + start, at, EXACT), 0.0)
    if HAS_RUN:
        code = tl.load(run_ptr + start + at, mask=real, other=-1)
        read = tl.where(run_of(code) == entered_run(run_ptr, start), read, 0.0)
        real = real & (code >= 0)
    gy = load_tile(gy_ptr + start * gy_l, at, gy_l, cols_p, real, left, P, HAS_RUN)
    C = load_tile(C_ptr + start * C_l, at, C_l, cols_n, real, left, N, HAS_RUN)
    gy = (gy.to(tl.float32) * read[:, None]).to(gy.dtype)
    return tl.dot(tl.trans(C), gy, kept, input_precision=PRECISION)


@triton.jit(do_not_specialize=["length", "segment", "segments", "chunks_all"])
def _segment_gradients(
    gy_ptr, C_ptr, cum_ptr, also_ptr, run_ptr, local_ptr, kept_ptr,
    length, segment, segments, chunks_all, heads, per_group, gy_b, gy_l, gy_h, C_b, C_l, C_g,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    batch, index = index // segments, index % segments
    P_BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    head, part = (tl.program_id(1) // P_BLOCKS).to(tl.int64), tl.program_id(1) % P_BLOCKS
    cols_p = part * BLOCK_P + tl.arange(0, BLOCK_P)
    cols_n = tl.arange(0, BLOCK_N)
    row = (batch * heads + head) * chunks_all * Q
    grad = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    kept = 1.0
    first = index * segment
    last = tl.minimum(first + segment, chunks_all) - 1
    for back in tl.range(0, last + 1 - first):
        chunk = last - back
        decay = _keeps(cum_ptr + row, also_ptr + row, run_ptr + batch * length, chunk, length, Q, HAS_RUN, EXACT)
        grad = _read(
            grad * decay, gy_ptr + batch * gy_b + head * gy_h, C_ptr + batch * C_b + (head // per_group) * C_g,
            cum_ptr + row, also_ptr + row, run_ptr + batch * length, chunk, length, gy_l, C_l, cols_p, cols_n,
            P, N, Q, HAS_RUN, EXACT, PRECISION,
        )  # fmt: skip
        kept *= decay
    slot = (batch * segments + index) * heads + head
    inside = (cols_n < N)[:, None] & (cols_p < P)[None, :]
    tl.store(local_ptr + slot * (N * P) + cols_n[:, None] * P + cols_p[None, :], grad, mask=inside)
    if part == 0:
        tl.store(kept_ptr + slot, kept)


@triton.jit(do_not_specialize=["length", "slab", "slabs", "segment", "segments", "chunks_all", "chunks_slab"])
def _chunk_gradients(
    gy_ptr, C_ptr, cum_ptr, also_ptr, run_ptr, leave_ptr, states_ptr, grads_ptr, keep_ptr,
    length, slab, slabs, segment, segments, chunks_all, chunks_slab, heads, per_group,
    gy_b, gy_l, gy_h, C_b, C_l, C_g,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The mirror of ``chunk_states``; and of each chunk's log-decay the gradient through the state that it keeps."""
    index = tl.program_id(0).to(tl.int64)
    batch, index = index // slabs, slab + index % slabs
    P_BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    head, part = (tl.program_id(1) // P_BLOCKS).to(tl.int64), tl.program_id(1) % P_BLOCKS
    cols_p = part * BLOCK_P + tl.arange(0, BLOCK_P)
    cols_n = tl.arange(0, BLOCK_N)
    inside = (cols_n < N)[:, None] & (cols_p < P)[None, :]
    tile = cols_n[:, None] * P + cols_p[None, :]
    row = (batch * heads + head) * chunks_all * Q
    first = index * segment
    last = tl.minimum(first + segment, chunks_all) - 1
    border = (batch * (segments + 1) + index + 1) * heads + head
    grad = tl.load(leave_ptr + border * (N * P) + tile, mask=inside, other=0.0)
    ahead = _keeps(cum_ptr + row, also_ptr + row, run_ptr + batch * length, last, length, Q, HAS_RUN, EXACT)
    for back in tl.range(0, last + 1 - first):
        chunk, decay = last - back, ahead
        at = ((batch * chunks_slab + chunk - slab * segment) * heads + head) * (N * P) + tile
        # Of a state that decays to less than its last digit, 2^-24, no row is read.
        rows = tl.where(decay > 5.9604645e-8, N, 0)
        state = tl.load(states_ptr + at, mask=inside & (cols_n < rows)[:, None], other=0.0)
        tl.store(grads_ptr + at, grad.to(grads_ptr.dtype.element_ty), mask=inside)
        both = tl.sum(tl.sum(state.to(tl.float32) * grad, 1), 0)
        before = tl.maximum(chunk - 1, first)
        ahead = _keeps(cum_ptr + row, also_ptr + row, run_ptr + batch * length, before, length, Q, HAS_RUN, EXACT)
        grad = _read(
            grad * decay, gy_ptr + batch * gy_b + head * gy_h, C_ptr + batch * C_b + (head // per_group) * C_g,
            cum_ptr + row, also_ptr + row, run_ptr + batch * length, chunk, length, gy_l, C_l, cols_p, cols_n,
            P, N, Q, HAS_RUN, EXACT, PRECISION,
        )  # fmt: skip
        tl.store(keep_ptr + ((batch * chunks_all + chunk) * heads + head) * P_BLOCKS + part, both * decay)


@triton.jit(do_not_specialize=["length", "slab", "chunks_all", "chunks_slab"])
def _read_gradients(
    x_ptr, gy_ptr, B_ptr, C_ptr, step_ptr, cum_ptr, also_ptr, run_ptr, state_ptr,
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
    group, part = (tl.program_id(1) // parts).to(tl.int64), tl.program_id(1) % parts
    start = chunk * Q
    at = tl.arange(0, Q)
    left = length - start
    here = at < left
    real = here
    reads = here
    seen = (at[:, None] >= at[None, :]) & here[:, None]  # rows read, columns write
    if HAS_RUN:
        code = tl.load(run_ptr + batch * length + start + at, mask=here, other=-1)
        run = run_of(code)
        real = here & (code >= 0)
        seen = seen & (run[:, None] == run[None, :])
        reads = real & (run == entered_run(run_ptr + batch * length, start))
    cols_n = tl.arange(0, BLOCK_N)
    B = load_tile(B_ptr + batch * B_b + group * B_g + start * B_l, at, B_l, cols_n, real, left, N, HAS_RUN)
    C = load_tile(C_ptr + batch * C_b + group * C_g + start * C_l, at, C_l, cols_n, real, left, N, HAS_RUN)
    # A token's pair with itself spans no decay, and may be so large that the rest would be lost beside it.
    earlier = seen & (at[:, None] > at[None, :])
    scores = tl.where(earlier, tl.dot(C, tl.trans(B), input_precision=PRECISION), 0.0).to(C.dtype)
    g_scores = tl.zeros((Q, Q), tl.float32)
    dC = tl.zeros((Q, BLOCK_N), tl.float32)
    for i in tl.range(0, per_part):
        head = group * per_group + part * per_part + i
        row = (batch * heads + head) * chunks_all * Q + start
        slot = (index * heads + head) * (N * P)
        read = tl.where(reads, decay_from_start(cum_ptr + row, also_ptr + row, at, EXACT), 0.0)
        pairs = tl.zeros((Q, Q), tl.float32)
        from_read = tl.zeros((Q,), tl.float32)
        skip = tl.zeros((Q,), tl.float32)
        for block in tl.static_range(P_BLOCKS):
            cols = block * BLOCK_P + tl.arange(0, BLOCK_P)
            inside = (cols_n < N)[:, None] & (cols < P)[None, :]
            x = load_tile(x_ptr + batch * x_b + head * x_h + start * x_l, at, x_l, cols, real, left, P, HAS_RUN)
            gy = load_tile(gy_ptr + batch * gy_b + head * gy_h + start * gy_l, at, gy_l, cols, real, left, P, HAS_RUN)
            state = tl.load(state_ptr + slot + cols_n[:, None] * P + cols[None, :], mask=inside, other=0.0)
            pairs = tl.dot(gy, tl.trans(x), pairs, input_precision=PRECISION)
            carried = tl.dot(C, state, input_precision=PRECISION)
            gy_ = gy.to(tl.float32)
            from_read += tl.sum(carried * gy_, 1)
            skip += tl.sum(gy_ * x.to(tl.float32), 1)
            dC = tl.dot((gy_ * read[:, None]).to(x.dtype), tl.trans(state), dC, input_precision=PRECISION)
        weights = weights_within(step_ptr + row, cum_ptr + row, also_ptr + row, at, gy_ptr.dtype.element_ty, EXACT)
        g_scores += pairs * weights
        pairs *= scores.to(tl.float32) * weights
        ends = tl.sum(pairs, 1) - tl.sum(pairs, 0) + from_read * read
        tl.store(ends_ptr + row + at, ends)
        tl.store(dD_ptr + (batch * chunks_all + chunk) * heads + head, tl.sum(tl.where(here, skip, 0.0), 0))
    low = tl.where(seen, g_scores, 0.0).to(C.dtype)
    place = (index * groups + group) * parts + part
    pair = at[None, :] * Q + at[:, None]  # as the next kernel reads them
    tl.store(scores_ptr + place * (Q * Q) + pair, low)
    # Loaded once more: kept in shared memory, it would leave a multiprocessor room for one program, not two.
    B = load_tile(B_ptr + batch * B_b + group * B_g + start * B_l, at, B_l, cols_n, real, left, N, HAS_RUN)
    dC = tl.dot(low, B, dC, input_precision=PRECISION)
    dC_ptr += start * dC_l + batch * dC_b + group * dC_g + part * dC_p
    tl.store(dC_ptr + at[:, None] * dC_l + cols_n[None, :], dC, mask=here[:, None] & (cols_n < N)[None, :])


@triton.jit
def _decays_ahead(cum_ptr, also_ptr, at, EXACT: tl.constexpr):
    """Decays from row to column, (q, q); finite where that runs against time."""
    cum = tl.load(cum_ptr + at)
    span = cum[None, :] - cum[:, None]
    if EXACT:
        also = tl.load(also_ptr + at)
        span += also[None, :] - also[:, None]
    return tl.exp2(tl.minimum(span, 15.0))


@triton.jit(do_not_specialize=["length", "slab", "chunks_all", "chunks_slab"])
def _write_gradients(
    x_ptr, gy_ptr, B_ptr, C_ptr, D_ptr, step_ptr, cum_ptr, also_ptr, run_ptr, grad_ptr, scores_ptr,
    dx_ptr, dB_ptr, written_ptr, direct_ptr,
    length, slab, chunks_all, chunks_slab, heads, groups, per_group, per_part,
    x_b, x_l, x_h, gy_b, gy_l, gy_h, B_b, B_l, B_g, C_b, C_l, C_g, dx_b, dx_l, dx_h, dB_b, dB_l, dB_g, dB_p,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    HAS_D: tl.constexpr, HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    P_BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    # From the end: what _read_gradients read last may still be in cache.
    index = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    batch, chunk = index // chunks_slab, slab + index % chunks_slab
    parts = per_group // per_part
    group, part = (tl.program_id(1) // parts).to(tl.int64), tl.program_id(1) % parts
    start = chunk * Q
    at = tl.arange(0, Q)
    left = length - start
    here = at < left
    real = here
    seen = (at[:, None] <= at[None, :]) & here[None, :]  # rows write, columns read
    if HAS_RUN:
        code = tl.load(run_ptr + batch * length + start + at, mask=here, other=-1)
        run = run_of(code)
        real = here & (code >= 0)
        seen = seen & (run[:, None] == run[None, :])
        writes = run == run_of(tl.load(run_ptr + batch * length + tl.minimum(start + Q, length) - 1))
    cols_n = tl.arange(0, BLOCK_N)
    B = load_tile(B_ptr + batch * B_b + group * B_g + start * B_l, at, B_l, cols_n, real, left, N, HAS_RUN)
    C = load_tile(C_ptr + batch * C_b + group * C_g + start * C_l, at, C_l, cols_n, real, left, N, HAS_RUN)
    scores = tl.where(seen, tl.dot(B, tl.trans(C), input_precision=PRECISION), 0.0).to(B.dtype)
    dB = tl.zeros((Q, BLOCK_N), tl.float32)
    for i in tl.range(0, per_part):
        head = group * per_group + part * per_part + i
        row = (batch * heads + head) * chunks_all * Q + start
        slot = (index * heads + head) * (N * P)
        write, _ = decay_to(cum_ptr + row, also_ptr + row, at, Q - 1, EXACT)
        if HAS_RUN:
            write = tl.where(writes, write, 0.0)
        step = tl.load(step_ptr + row + at)
        mix = scores * _decays_ahead(cum_ptr + row, also_ptr + row, at, EXACT).to(B.dtype)
        D = tl.load(D_ptr + head).to(tl.float32) if HAS_D else 0.0
        direct = tl.zeros((Q,), tl.float32)
        from_write = tl.zeros((Q,), tl.float32)
        for block in tl.static_range(P_BLOCKS):
            cols = block * BLOCK_P + tl.arange(0, BLOCK_P)
            inside = (cols_n < N)[:, None] & (cols < P)[None, :]
            x = load_tile(x_ptr + batch * x_b + head * x_h + start * x_l, at, x_l, cols, real, left, P, HAS_RUN)
            gy = load_tile(gy_ptr + batch * gy_b + head * gy_h + start * gy_l, at, gy_l, cols, real, left, P, HAS_RUN)
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
            to = dx_ptr + batch * dx_b + head * dx_h + start * dx_l + at[:, None] * dx_l + cols[None, :]
            # dx may take the place of gy: its product, which took all of it, is known. A barrier would end pipelining.
            tl.store(to, dx, mask=here[:, None] & (cols < P)[None, :])
        tl.store(written_ptr + row + at, from_write * step)
        tl.store(direct_ptr + row + at, direct)
    place = (index * groups + group) * parts + part
    pair = at[:, None] * Q + at[None, :]
    low = tl.load(scores_ptr + place * (Q * Q) + pair)
    # Once more, as B above.
    C = load_tile(C_ptr + batch * C_b + group * C_g + start * C_l, at, C_l, cols_n, real, left, N, HAS_RUN)
    dB = tl.dot(low, C, dB, input_precision=PRECISION)
    dB_ptr += start * dB_l + batch * dB_b + group * dB_g + part * dB_p
    tl.store(dB_ptr + at[:, None] * dB_l + cols_n[None, :], dB, mask=here[:, None] & (cols_n < N)[None, :])


@triton.jit(do_not_specialize=["length"])
def _sum_parts(
    sums_B_ptr, sums_C_ptr, dB_ptr, dC_ptr, length, groups, parts, dB_b, dB_l, dB_g, dC_b, dC_l, dC_g,
    N: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(b, l, g, parts, n), summed over parts, to dB, and by the other half of the programs to dC."""
    cuts = tl.cdiv(length, TOKENS)
    batch = (tl.program_id(0) // cuts).to(tl.int64)
    at = (tl.program_id(0) % cuts * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    group = tl.program_id(1)
    n = tl.arange(0, BLOCK_N)
    here = (at < length)[:, None] & (n < N)[None, :]
    from_ = ((batch * length + at)[:, None] * groups + group) * (parts * N) + n[None, :]
    total = tl.zeros((TOKENS, BLOCK_N), tl.float32)
    if tl.program_id(2) == 0:
        for part in tl.range(0, parts):
            total += tl.load(sums_B_ptr + from_ + part * N, mask=here, other=0.0)
        tl.store(dB_ptr + batch * dB_b + group * dB_g + at[:, None] * dB_l + n[None, :], total, mask=here)
    else:
        for part in tl.range(0, parts):
            total += tl.load(sums_C_ptr + from_ + part * N, mask=here, other=0.0)
        tl.store(dC_ptr + batch * dC_b + group * dC_g + at[:, None] * dC_l + n[None, :], total, mask=here)


@taped
@on_device_of_first
def backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
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
    log: bool = False,
    into: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    exchange: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C, D, dt_bias and the initial state, from the ``enter`` of ``triton.forward``.

    Those of x, B and C are in x's dtype, that of the state in float32, the others in their own (float32 for D and
    dt_bias where they are None). With ``log`` A holds log(-A), and so does its gradient. ``into`` gives memory for
    those of x, dt, B and C, in their shapes, strided but for the last dimension of x, B and C; the first may be
    ``grad_y``. With ``exchange`` the gradient of the final state is what that returns, when it is told the gradient
    that the initial state gets if that is 0.
    """
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    x, B, C = inner_contiguous(x), inner_contiguous(B.to(x.dtype)), inner_contiguous(C.to(x.dtype))
    gy = inner_contiguous(grad_y.to(x.dtype))
    cut = plan(x, B, _CHUNK)
    run = None if seq_idx is None else encode_runs(seq_idx)
    flags = {"HAS_RUN": run is not None, **precision(x)}
    sizes = {"P": p, "N": n, "BLOCK_P": cut.block_p, "BLOCK_N": cut.block_n, "Q": cut.chunk}
    steps = Steps(dt, A, dt_bias, run, cut.chunk, softplus, limit, flags["EXACT"] is True, log)
    D = None if D is None else D.contiguous()
    run_, skip = A if run is None else run, A if D is None else D
    decays = (steps.cum, steps.also, run_)
    strides = {name: t.stride()[:3] for name, t in (("x", x), ("gy", gy), ("B", B), ("C", C))}
    device, work = x.device, torch.float32
    how = {name: cut.launch(chosen) for name, chosen in LAUNCH.items()}

    local = torch.empty(b, cut.segments, h, n, p, dtype=work, device=device)
    kept = torch.empty(b, cut.segments, h, dtype=work, device=device)
    launch(_segment_gradients, (b * cut.segments, h * cut.p_blocks),
        gy, C, *decays, local, kept, l, cut.segment, cut.segments, cut.chunks, h, h // g, *strides["gy"], *strides["C"],
        **sizes, **flags, **how["segments"],
    )  # fmt: skip
    leave = torch.empty(b, cut.segments + 1, h, n, p, dtype=work, device=device)
    if exchange is not None:
        pass_states(local, kept, None, leave, leave, reverse=True)
        grad_final = exchange(leave[:, 0].mT)
    dstate = torch.empty(b, h, p, n, dtype=work, device=device)
    pass_states(local, kept, grad_final, leave, leave, dstate, reverse=True)
    del local, kept

    together = cut.heads_together(b, g, h // g, _PROGRAMS)
    parts = h // g // together
    dx, ddt, dB, dC = (t.new_empty(t.shape) for t in (x, dt, B, C)) if into is None else into
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
        grid = (b * segments, h * cut.p_blocks)
        where = (l, first, segments, cut.segment, cut.segments, cut.chunks, chunks, h, h // g)
        launch(chunk_states, grid,
            x, B, steps.step, *decays, states, enter, enter, enter, enter, *where, *strides["x"], *strides["B"],
            **sizes, **flags, ENTERED=True, **how["states"],
        )  # fmt: skip
        launch(_chunk_gradients, grid,
            gy, C, *decays, leave, states, grads, keep, *where, *strides["gy"], *strides["C"],
            **sizes, **flags, **how["gradients"],
        )  # fmt: skip
        grid = (b * chunks, g * parts)
        heads = (l, chunk, cut.chunks, chunks, h, g, h // g, together)
        launch(_read_gradients, grid,
            x, gy, B, C, steps.step, *decays, states, sums_C, scores, ends, dD, *heads,
            *strides["x"], *strides["gy"], *strides["B"], *strides["C"], *sums_C.stride()[:4],
            **sizes, **flags, **how["reads"],
        )  # fmt: skip
        launch(_write_gradients, grid,
            x, gy, B, C, skip, steps.step, *decays, grads, scores, dx, sums_B, wrote, direct, *heads,
            *strides["x"], *strides["gy"], *strides["B"], *strides["C"], *dx.stride()[:3], *sums_B.stride()[:4],
            **sizes, **flags, HAS_D=D is not None, **how["writes"],
        )  # fmt: skip
    if parts > 1:
        launch(_sum_parts, (b * triton.cdiv(l, _TOKENS), g, 2),
            sums_B, sums_C, dB, dC, l, g, parts, *dB.stride()[:3], *dC.stride()[:3],
            N=n, TOKENS=_TOKENS, BLOCK_N=cut.block_n,
        )  # fmt: skip
    dA, dbias, dD = steps.backward(ends, wrote, direct, keep, ddt, dD, D)
    return dx, ddt, dA, dB, dC, dD, dbias, dstate
