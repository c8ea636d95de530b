"""Gradients of the selective scan for GPUs, in Triton; layouts and notation are those of ``triton.py``.

1. ``_chunk_gradients``: the gradient that each chunk sends to the state that enters it, from its own outputs alone.
2. ``_pass_states``, backwards: the gradient of the state that leaves each chunk.
3. ``_gradients``: for one chunk and a few blocks of channels in turn, first the states at the borders of its tiles, and
   what the outputs give, the gradient of z; then the tiles from the last to the first: states again, their gradients g,
   and everything else from them::

       g_t = C_t dy_t + u_{t+1}    u_t = decay_t g_t    dB_t = sum_d g_t dt_t x_t    dC_t = sum_d h_t dy_t
       d(dt_t x_t) = sum_n g_t B_t    d dt_t = sum_n A u_t h_{t-1} + ...    dA = sum_t dt_t u_t h_{t-1}

4. ``_sum_parts``: dB and dC of the blocks of channels together.

dB and dC are sums over threads. Those of a tile are matrix products with a matrix of zeros and ones, whose operand is
cut from registers where they are: rows of the matrix are tokens and a quarter of the threads, see :func:`over_lanes`.
Sums over programs (A, B, C, D, bias) are written as partial sums and added in a fixed order. Chunks go in slabs, so
that border states and partial sums need no more memory for a longer sequence.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import LOG2_E, encode_runs, inner_contiguous, on_device_of_first, sigmoid
from mamba_core.ops.selective_scan.triton import (
    UNALIGNED,
    VARYING,
    accumulate,
    advance,
    channels,
    clamps,
    lanes_of,
    load_tile,
    pass_states,
    plan,
    put,
    run_at,
    store_tile,
    take,
    time_steps,
    walk,
    where_here,
)
from mamba_core.ops.selective_scan.triton_layout import narrow_parameters
from mamba_core.ops.tape import launch, taped

LN_2 = tl.constexpr(math.log(2))
PROGRAMS = 4096  # of the last kernel aimed at, chunks x parts of the channels
SCRATCH = 2**28  # bytes of border states aimed at, but never fewer programs than:
AT_ONCE = 1024
LAUNCH = {
    "chunks": {"T": 16, "K": 2, "num_warps": 1, "maxnreg": 128},
    "gradients": {"T": 8, "K": 2, "num_warps": 1, "maxnreg": 255},
}
POINTERS = ["gy", "leave", "border", "parameters", "dx", "ddt", "dz", "part"]
UNALIGNED = [*UNALIGNED, *[f"{name}_ptr" for name in POINTERS]]
VARYING = [*VARYING, "half", "first_index", "parts", "each", "dz_b", "dz_l"]


@triton.jit
def over_lanes(tile, j, t_offset, total, T: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """To total (2 T, 8) add at row t_offset + t the sum over threads of row t of tile (T, 32), left in 8 parts.

    As a matrix of (t bits, 2 bits of the thread, 1 bit of t) by (3 bits of the thread) the tile is, thread by thread,
    what the matrix unit wants of its second operand in 16 bits, so that nothing moves.
    """
    k = tl.arange(0, 4 * T)
    chosen = ((k // 8 * 2 + k % 2)[None, :] + t_offset == j[:, None]).to(OPERAND)
    tile = tl.permute(tl.reshape(tile.to(OPERAND), (T // 2, 2, 8, 4)), (0, 3, 1, 2))
    return tl.dot(chosen, tl.reshape(tile, (4 * T, 8)), total, input_precision=PRECISION)


@triton.jit
def softplus_slope(step):
    """Of softplus where its value is ``step``: 1 - e^-step, without the loss of digits at small steps."""
    small = step * (1.0 - step * (0.5 - step * (1.0 / 6.0 - step * (1.0 / 24.0))))
    return tl.where(step < 0.05, small, 1.0 - tl.exp2(step * -LOG2_E))


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def _chunk_gradients(
    gy_ptr, dt_ptr, z_ptr, A_ptr, C_ptr, bias_ptr, run_ptr, local_ptr,
    length, chunk, chunks, low, high, N, blocks, groups, per_group, padded,
    gy_b, gy_l, dt_b, dt_l, z_b, z_l,
    T: tl.constexpr, K: tl.constexpr, SOFTPLUS: tl.constexpr, CLAMP: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RUN: tl.constexpr, EVEN: tl.constexpr, HAS_Z: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) // blocks
    batch, first = index // chunks, index % chunks * chunk
    last = tl.minimum(first + chunk, length)
    group, col, lane, inside = channels(tl.program_id(0) % blocks, blocks, groups, per_group, K)
    wide = blocks * (32 * K)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + col + lanes_of(K), mask=inside, other=0.0).to(tl.float32)
    gy_ptr += batch * gy_b + col
    dt_ptr += batch * dt_b + col
    z_ptr += batch * z_b + col
    run_ptr += batch * length
    A_ptr += lane
    C_ptr += (batch * groups + group) * N * padded
    local_ptr += index * N * wide + lane
    if HAS_RUN:
        entered = run_at(run_ptr, first - 1, length)
    rows = tl.arange(0, T)[:, None, None]
    total = tl.zeros((K, 32), tl.float32)
    for tile in tl.range(0, (last - first + T - 1) // T, num_stages=1):
        start = tl.multiple_of(first + tile * T, T)
        _there, here, whole = where_here(start, length, run_ptr, inside, T, EVEN, HAS_RUN)
        raw = load_tile(dt_ptr + start * dt_l, dt_l, here, whole, T, K) + bias
        dt = time_steps(raw, low, high, here, SOFTPLUS, CLAMP)
        gy = load_tile(gy_ptr + start * gy_l, gy_l, here, whole, T, K)
        if HAS_Z:
            z = load_tile(z_ptr + start * z_l, z_l, here, whole, T, K)
            gy *= z * sigmoid(z)
        if HAS_RUN:
            at = start + tl.arange(0, T)
            gy = tl.where((run_at(run_ptr, at, length) == entered)[:, None, None], gy, 0.0)
        passed = dt
        for t in tl.static_range(T):
            total += take(dt, rows, t)
            passed = put(passed, total, rows, t)
        tl.debug_barrier()  # the sums that are read below were written at the tile before
        accumulate(local_ptr, A_ptr, C_ptr + start, passed, gy, N, wide, padded, tile > 0, T, K)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def _gradients(
    x_ptr, dt_ptr, z_ptr, gy_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, run_ptr, enter_ptr, leave_ptr, border_ptr,
    dx_ptr, ddt_ptr, dz_ptr, parameters_ptr, part_ptr,
    first_index, length, chunk, chunks, low, high, N, blocks, groups, parts, each, per_group, padded, half,
    x_b, x_l, dt_b, dt_l, z_b, z_l, gy_b, gy_l, dz_b, dz_l,
    T: tl.constexpr, K: tl.constexpr, SOFTPLUS: tl.constexpr, CLAMP: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RUN: tl.constexpr, EVEN: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    slot = program // (groups * parts)  # of the chunk in this slab
    index = first_index + slot
    batch, first = index // chunks, index % chunks * chunk
    last = tl.minimum(first + chunk, length)
    tiles = (last - first + T - 1) // T
    group, part = program % (groups * parts) // parts, program % parts
    wide = blocks * (32 * K)
    size = N * wide
    x_ptr += batch * x_b
    dt_ptr += batch * dt_b
    z_ptr += batch * z_b
    gy_ptr += batch * gy_b
    d = groups * per_group
    dx_ptr += batch * length * d
    ddt_ptr += batch * length * d
    dz_ptr += batch * dz_b
    run_ptr += batch * length
    B_ptr += (batch * groups + group) * N * padded
    C_ptr += (batch * groups + group) * N * padded
    part_ptr += ((batch * groups + group) * N * parts + part) * padded
    enter_ptr += (index + batch) * size
    leave_ptr += (index + batch + 1) * size
    border_ptr += program * (chunk // T) * N * (32 * K)
    dA_ptr = parameters_ptr + slot * (size + 2 * wide)
    dvector_ptr = dA_ptr + size
    lanes = lanes_of(K)
    rows = tl.arange(0, T)[:, None, None]
    j = tl.arange(0, 2 * T)
    group_blocks = blocks // groups
    for block in tl.range(part * each, tl.minimum(part * each + each, group_blocks), num_stages=1):
        again = block > part * each
        _group, col, lane, inside = channels(group * group_blocks + block, blocks, groups, per_group, K)
        bias, D = 0.0, 0.0
        if HAS_BIAS:
            bias = tl.load(bias_ptr + col + lanes, mask=inside, other=0.0).to(tl.float32)
        if HAS_D:
            D = tl.load(D_ptr + col + lanes, mask=inside, other=0.0).to(tl.float32)
        tl.debug_barrier()  # border states of the block before have been read

        for tile in tl.range(0, tiles if HAS_Z else tiles - 1, num_stages=1):
            start = tl.multiple_of(first + tile * T, T)
            there, here, whole = where_here(start, length, run_ptr, inside, T, EVEN, HAS_RUN)
            raw = load_tile(dt_ptr + start * dt_l + col, dt_l, here, whole, T, K) + bias
            dt = time_steps(raw, low, high, here, SOFTPLUS, CLAMP)
            dtx = dt * load_tile(x_ptr + start * x_l + col, x_l, here, whole, T, K)
            new = dt
            if HAS_RUN:
                at = start + tl.arange(0, T)
                new = (run_at(run_ptr, at, length) != run_at(run_ptr, at - 1, length))[:, None, None]
            from_ptr, stride = enter_ptr + lane, wide
            if tile > 0:
                from_ptr, stride = border_ptr + (tile - 1) * N * (32 * K), 32 * K
            tl.debug_barrier()
            y = walk(
                from_ptr, stride, border_ptr + tile * N * (32 * K), 32 * K, A_ptr + lane, B_ptr + start, C_ptr + start,
                dt, dtx, new, N, wide, padded, T, K, HAS_RUN, HAS_Z,
            )  # fmt: skip
            if HAS_Z:
                x = load_tile(x_ptr + start * x_l + col, x_l, here, whole, T, K)
                gy = load_tile(gy_ptr + start * gy_l + col, gy_l, here, whole, T, K)
                z = load_tile(z_ptr + start * z_l + col, z_l, here, whole, T, K)
                s = sigmoid(z)
                dz = gy * (y + D * x) * (s * (1.0 + z * (1.0 - s)))
                store_tile(dz_ptr + start * dz_l + col, dz_l, dz, there, whole, T, K)

        d_bias = tl.zeros((K, 32), tl.float32)
        d_D = tl.zeros((K, 32), tl.float32)
        for done in tl.range(0, tiles, num_stages=1):
            tile = tiles - 1 - done
            start = tl.multiple_of(first + tile * T, T)
            there, here, whole = where_here(start, length, run_ptr, inside, T, EVEN, HAS_RUN)
            raw = load_tile(dt_ptr + start * dt_l + col, dt_l, here, whole, T, K) + bias
            dt = time_steps(raw, low, high, here, SOFTPLUS, CLAMP)
            dtx = dt * load_tile(x_ptr + start * x_l + col, x_l, here, whole, T, K)
            gy = load_tile(gy_ptr + start * gy_l + col, gy_l, here, whole, T, K)
            if HAS_Z:
                z = load_tile(z_ptr + start * z_l + col, z_l, here, whole, T, K)
                gy *= z * sigmoid(z)
            if HAS_RUN:
                at = start + tl.arange(0, T)
                new = (run_at(run_ptr, at, length) != run_at(run_ptr, at - 1, length))[:, None, None]
            d_input = tl.zeros((T, K, 32), tl.float32)  # gradient of dt x
            d_step = tl.zeros((T, K, 32), tl.float32)  # that of dt by way of the decay, over log 2
            rate_ptr, read_ptr, write_ptr = A_ptr + lane, B_ptr + start, C_ptr + start
            from_ptr, stride = enter_ptr + lane, wide
            if tile > 0:
                from_ptr, stride = border_ptr + (tile - 1) * N * (32 * K), 32 * K
            u_ptr, rate_grad_ptr = leave_ptr + lane, dA_ptr + lane
            to_ptr = part_ptr + start + j % T + (j // T) * half
            tl.debug_barrier()
            next_A, next_state = tl.load(rate_ptr + lanes), tl.load(from_ptr + lanes)
            next_B, next_C = tl.load(read_ptr + tl.arange(0, T)), tl.load(write_ptr + tl.arange(0, T))
            next_u, next_dA = tl.load(u_ptr + lanes), tl.load(rate_grad_ptr + lanes, mask=done > 0, other=0.0)
            sums, others = tl.zeros((2 * T, 8), tl.float32), tl.zeros((2 * T,), tl.float32)
            for n in tl.range(0, N, num_stages=1):
                # The sums over threads of the n before go out only now, among other work: they take long to be there.
                tl.store(to_ptr - parts * padded, tl.sum(sums, 1) + others, mask=(j >= 0) & (n > 0))
                others = tl.load(to_ptr, mask=again & (j >= 0), other=0.0)
                to_ptr += parts * padded
                A, state, B, C, u, dA = next_A, next_state, next_B, next_C, next_u, next_dA
                leaves_ptr, adds_ptr = u_ptr, rate_grad_ptr
                rate_ptr, from_ptr = advance(rate_ptr, n, N, wide), advance(from_ptr, n, N, stride)
                read_ptr, write_ptr = advance(read_ptr, n, N, padded), advance(write_ptr, n, N, padded)
                u_ptr, rate_grad_ptr = advance(u_ptr, n, N, wide), advance(rate_grad_ptr, n, N, wide)
                next_A, next_state = tl.load(rate_ptr + lanes), tl.load(from_ptr + lanes)
                next_B, next_C = tl.load(read_ptr + tl.arange(0, T)), tl.load(write_ptr + tl.arange(0, T))
                next_u, next_dA = tl.load(u_ptr + lanes), tl.load(rate_grad_ptr + lanes, mask=done > 0, other=0.0)
                B, C = B.to(tl.float32)[:, None, None], C.to(tl.float32)[:, None, None]
                decay = tl.exp2(dt * A[None])
                if HAS_RUN:
                    decay = tl.where(new, 0.0, decay)
                add = dtx * B
                before = add
                states = add
                for t in tl.static_range(T):
                    before = put(before, state, rows, t)
                    state = take(decay, rows, t) * state + take(add, rows, t)
                    states = put(states, state, rows, t)
                out = gy * C
                grads = out
                us = out
                for i in tl.static_range(T):
                    g = take(out, rows, T - 1 - i) + u
                    u = take(decay, rows, T - 1 - i) * g
                    grads = put(grads, g, rows, T - 1 - i)
                    us = put(us, u, rows, T - 1 - i)
                d_input += grads * B
                through = us * before
                d_step += through * A[None]
                tl.store(leaves_ptr + lanes, u)
                tl.store(adds_ptr + lanes, dA + tl.sum(through * dt, 0))
                sums = tl.zeros((2 * T, 8), tl.float32)
                sums = over_lanes(tl.sum(grads * dtx, 1), j, 0, sums, T, OPERAND, PRECISION)
                sums = over_lanes(tl.sum(states * gy, 1), j, T, sums, T, OPERAND, PRECISION)
            tl.store(to_ptr - parts * padded, tl.sum(sums, 1) + others)

            # What the loop did not need is read again rather than kept.
            x = load_tile(x_ptr + start * x_l + col, x_l, here, whole, T, K)
            to = start * d + col
            store_tile(dx_ptr + to, d, d_input * dt + D * gy, there, whole, T, K)
            d_D += tl.sum(gy * x, 0)
            d_raw = d_step * LN_2 + d_input * x
            if CLAMP:
                # At the limits themselves the gradient passes, so the step before it is clamped has to be asked.
                raw = load_tile(dt_ptr + start * dt_l + col, dt_l, here, whole, T, K) + bias
                free = time_steps(raw, low, high, here, SOFTPLUS, False)
                d_raw = tl.where((free < low) | (free > high), 0.0, d_raw)
            if SOFTPLUS:
                d_raw *= softplus_slope(dt)
            d_raw = tl.where(here, d_raw, 0.0)
            d_bias += tl.sum(d_raw, 0)
            store_tile(ddt_ptr + to, d, d_raw, there, whole, T, K)
        tl.store(dvector_ptr + lane + lanes, d_D)
        tl.store(dvector_ptr + wide + lane + lanes, d_bias)


@triton.jit(do_not_specialize=["length", "N", "parts", "half", "to_b", "to_l", "to_g"])
def _sum_parts(
    part_ptr, dB_ptr, dC_ptr, length, N, groups, parts, padded, half, to_b, to_l, to_g,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """(2, b, g, n, parts, padded), summed over parts, ROWS of them at a time, to dB and dC (b, l, g, n)."""
    cuts = padded // TOKENS
    batch = tl.program_id(0).to(tl.int64) // cuts
    at = tl.program_id(0).to(tl.int64) % cuts * TOKENS + tl.arange(0, TOKENS)
    group = tl.program_id(1)
    n = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = (n < N)[None, :, None]
    row = tl.arange(0, ROWS)[:, None, None]
    part_ptr += ((batch * groups + group) * N + n)[None, :, None] * (parts.to(tl.int64) * padded) + at[None, None, :]
    dB = tl.zeros((ROWS, BLOCK, TOKENS), tl.float32)
    dC = tl.zeros((ROWS, BLOCK, TOKENS), tl.float32)
    for start in tl.range(0, parts, ROWS):
        from_ = part_ptr + (start + row) * padded
        here = inside & (start + row < parts)
        dB += tl.load(from_, mask=here, other=0.0)
        dC += tl.load(from_ + half, mask=here, other=0.0)
    to = batch * to_b + at[:, None] * to_l + group.to(tl.int64) * to_g + n[None, :]
    there = (at < length)[:, None] & (n < N)[None, :]
    tl.store(dB_ptr + to, tl.trans(tl.sum(dB, 0)), mask=there)
    tl.store(dC_ptr + to, tl.trans(tl.sum(dC, 0)), mask=there)


@triton.jit(do_not_specialize=["count", "size"])
def _add_parts(part_ptr, to_ptr, count, size, BLOCK: tl.constexpr, FIRST: tl.constexpr):
    """(count, size), summed over the first, to or onto (size,)."""
    ROWS: tl.constexpr = 16
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < size
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in tl.range(0, count, ROWS):
        at = start + tl.arange(0, ROWS)
        from_ = at.to(tl.int64)[:, None] * size + cols[None, :]
        total += tl.load(part_ptr + from_, mask=(at < count)[:, None] & inside[None, :], other=0.0)
    added = tl.sum(total, 0)
    if not FIRST:
        added += tl.load(to_ptr + cols, mask=inside, other=0.0)
    tl.store(to_ptr + cols, added, mask=inside)


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
    z: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    enter: Tensor,
    total: Tensor,
    weights: Tensor,
    A2: Tensor,
    softplus: bool,
    limit: tuple[float, float],
    log: bool,
    wants_state: bool = True,
    *,
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and the initial state; D and dt_bias count as given, in float32.

    That of the state is float32, and None unless it is wanted; the others have the dtypes of what was given. With
    ``log`` A holds log(-A), and so does its gradient. Those of B, C and z go ``into`` memory of such shapes where it is
    given: any strides but the last, which is 1; the first two have the same.
    """
    b, l, d = x.shape
    g, n = B.shape[2:]
    cut = plan(x, B)
    has_run = seq_idx is not None
    x, dt, gy = inner_contiguous(x), inner_contiguous(dt), inner_contiguous(grad_y)
    gate = x if z is None else inner_contiguous(z)
    run = x if seq_idx is None else encode_runs(seq_idx)
    local = torch.empty(b, cut.chunks, n, cut.wide, dtype=torch.float32, device=x.device)
    leave = torch.empty_like(enter)
    flags = {
        "SOFTPLUS": softplus,
        "CLAMP": clamps(softplus, limit),
        "HAS_BIAS": dt_bias is not None,
        "HAS_RUN": has_run,
        "EVEN": cut.wide == d,
        "HAS_Z": z is not None,
    }
    bias = A2 if dt_bias is None else dt_bias.contiguous()
    skip = A2 if D is None else D.contiguous()
    sizes = (l, cut.chunk, cut.chunks, *limit, n)
    how = LAUNCH["chunks"]
    blocks = cut.wide // (32 * how["K"])
    launch(_chunk_gradients, (b * cut.chunks * blocks,),
        gy, dt, gate, A2, weights[1], bias, run, local, *sizes, blocks, g, d // g, cut.padded,
        *gy.stride()[:2], *dt.stride()[:2], *gate.stride()[:2], **flags, **how,
    )  # fmt: skip
    dstate = torch.empty(b, d, n, dtype=torch.float32, device=x.device) if wants_state else None
    pass_states(grad_final, local, total, A2, run, leave, dstate, l, cut, d, g, has_run, reverse=True)
    del local

    how = LAUNCH["gradients"]
    width = 32 * how["K"]
    blocks = cut.wide // width
    each = max(1, b * cut.chunks * blocks // PROGRAMS)  # blocks of channels that a program works on in turn
    each = min(each, blocks // g)
    parts = -(-blocks // g // each)
    scratch = cut.chunk // how["T"] * n * width  # border states of one program
    slab = max(1, max(AT_ONCE, SCRATCH // (4 * scratch)) // (g * parts))  # chunks at once
    slab = min(slab, b * cut.chunks)
    border = torch.empty(slab * g * parts * scratch, dtype=torch.float32, device=x.device)
    part = torch.empty(2, b, g, n, parts, cut.padded, dtype=torch.float32, device=x.device)
    of_chunks = torch.empty(slab, n + 2, cut.wide, dtype=torch.float32, device=x.device)  # of A, D and dt_bias
    of_all = torch.empty(n + 2, cut.wide, dtype=torch.float32, device=x.device)
    dx, ddt = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, dt))
    if into is None:
        dB, dC = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (B, C))
        to_z = dx if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    else:
        dB, dC, to_z = into
    for start in range(0, b * cut.chunks, slab):
        count = min(slab, b * cut.chunks - start)
        launch(_gradients, (count * g * parts,),
            x, dt, gate, gy, A2, weights[0], weights[1], skip, bias, run, enter, leave, border,
            dx, ddt, to_z, of_chunks, part,
            start, *sizes, blocks, g, parts, each, d // g, cut.padded, part[0].numel(),
            *x.stride()[:2], *dt.stride()[:2], *gate.stride()[:2], *gy.stride()[:2], *to_z.stride()[:2],
            **flags, HAS_D=D is not None,
            OPERAND=tl.float32 if x.dtype == torch.float32 else tl.bfloat16, PRECISION="tf32x3", **how,
        )  # fmt: skip
        block = 128
        launch(_add_parts, (triton.cdiv(of_all.numel(), block),),
            of_chunks, of_all, count, of_all.numel(), BLOCK=block, FIRST=start == 0
        )  # fmt: skip

    tokens, block = 32, 16
    launch(_sum_parts, (b * cut.padded // tokens, g, -(-n // block)),
        part, dB, dC, l, n, g, parts, cut.padded, part[0].numel(), *dB.stride()[:3],
        TOKENS=tokens, BLOCK=block, ROWS=8, num_warps=8,
    )  # fmt: skip
    kinds = [torch.float32 if t is None else t.dtype for t in (D, dt_bias)]
    dA, dD, dbias = narrow_parameters(of_all, A, g, kinds, log)
    return dx, ddt, dA, dB, dC, dD, None if z is None else to_z, dbias, dstate
