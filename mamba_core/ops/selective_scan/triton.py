"""Selective scan for GPUs, in Triton.

The sequence is cut into chunks, and a program holds 32 K channels of one chunk, so that batch 1 fills the chip:

1. ``_prepare``: B and C as (b, g, n, l), so that a thread reads one n of all tokens of a tile at once; rates of decay.
2. ``_chunk_states``: the state that each chunk reaches from zero, and the sum of its time steps, which is all that its
   decay depends on.
3. ``_pass_states``: the state that enters each chunk; as many steps as there are chunks.
4. ``_outputs``: from that state, the outputs.

A tile is (T, K, 32): T tokens and K channels to each of the 32 threads of a program. So time is a dimension of
registers alone, a recurrence is a walk over rows (:func:`take`, :func:`put`) that costs its own arithmetic and nothing
else, and no thread waits for another. Triton lays tiles out like this by itself as long as no thread may read
neighbouring channels at once, hence the pointers of unknown alignment (right, if slower, in any layout). The state goes
to memory (the first-level cache) and back between tiles, which makes the loop over its n numbers an ordinary one: any
d_state. A program is one warp, and waits for its loads alone: so each loop over n loads what the next n wants before it
works on this one.

States are (n, wide): channels in order, each group filled up to a multiple of 64. Exponents are in base 2. Chunks
depend on the shapes alone, so that results do too.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import (
    clamp,
    encode_runs,
    inner_contiguous,
    on_device_of_first,
    run_of,
    sigmoid,
    softplus,
)
from mamba_core.ops.selective_scan.triton_layout import block_shape, channel_of, widen_, write_rates
from mamba_core.ops.tape import launch, taped

WIDTH = 64  # a group's channels are filled up to a multiple of it
TOKENS = 64  # the length of B and C as _prepare writes them is a multiple of it
PROGRAMS = 4096  # chunks x blocks of channels x batch aimed at: many for each multiprocessor of a large GPU
CHUNKS = (32, 128)  # shortest and longest chunk; the state that enters each is kept for the backward
# T divides the shortest chunk, 32 K divides WIDTH. maxnreg: more programs at once, as long as no inner loop spills.
LAUNCH = {
    "states": {"T": 16, "K": 2, "num_warps": 1, "maxnreg": 128},
    "pass": {"T": 16, "K": 1, "num_warps": 1},
    "outputs": {"T": 16, "K": 2, "num_warps": 1, "maxnreg": 168},
}
POINTERS = ["x", "dt", "z", "y", "A", "D", "bias", "local", "enter", "total", "run", "states"]
UNALIGNED = [f"{name}_ptr" for name in POINTERS]
STRIDES = [f"{name}_{axis}" for name in ("x", "dt", "z", "gy") for axis in "bl"]
VARYING = ["length", "chunk", "chunks", "low", "high", "N", "blocks", "groups", "per_group", *STRIDES]


@triton.jit
def take(tile, rows, t: tl.constexpr):
    """Row t of a tile. Free: every register knows its row, and a maximum with the least integer folds away."""
    bits = tl.where(rows == t, tile.to(tl.int32, bitcast=True), -2147483648)
    return tl.max(bits, 0).to(tl.float32, bitcast=True)


@triton.jit
def put(tile, row, rows, t: tl.constexpr):
    """The tile with row t replaced; as free."""
    return tl.where(rows == t, row[None], tile)


@triton.jit
def load_tile(ptr, stride, here, whole, T: tl.constexpr, K: tl.constexpr):
    """(T, K, 32) in float32 of a tensor whose last stride is 1; 0 where there is nothing ``here``.

    ``whole``: everything is here, and no mask need be looked at.
    """
    ptrs = ptr + tl.arange(0, T)[:, None, None] * stride.to(tl.int64) + lanes_of(K)[None]
    if whole:
        tile = tl.load(ptrs)
    else:
        tile = tl.load(ptrs, mask=here, other=0.0)
    return tile.to(tl.float32)


@triton.jit
def store_tile(ptr, stride, tile, there, whole, T: tl.constexpr, K: tl.constexpr):
    """The reverse, in the dtype of the tensor."""
    ptrs = ptr + tl.arange(0, T)[:, None, None] * stride.to(tl.int64) + lanes_of(K)[None]
    tile = tile.to(ptr.dtype.element_ty)
    if whole:
        tl.store(ptrs, tile)
    else:
        tl.store(ptrs, tile, mask=there)


@triton.jit
def where_here(start, length, run_ptr, inside, T: tl.constexpr, EVEN: tl.constexpr, HAS_RUN: tl.constexpr):
    """Whether a token of the tile exists (T, 1, 1), whether it is also no padding and its channel exists too (T, K, 32)
    or (T, 1, 1), and whether the latter holds for the whole tile."""
    left = tl.minimum(length - start, T).to(tl.int32)
    there = tl.arange(0, T) < left
    here = there
    if HAS_RUN:
        here = here & (tl.load(run_ptr + start + tl.arange(0, T), mask=there, other=-1) >= 0)
    there = there[:, None, None]
    here = here[:, None, None]
    if not EVEN:
        there = there & inside[None]
        here = here & inside[None]
    whole = left == T
    if HAS_RUN or not EVEN:
        whole = left < 0
    return there, here, whole


@triton.jit
def run_at(run_ptr, at, length):
    """Document (its run) at a position: the first one's before the first token, the last one's behind the last."""
    return run_of(tl.load(run_ptr + tl.minimum(at, length - 1), mask=at >= 0, other=0))


@triton.jit
def time_steps(raw, low, high, here, SOFTPLUS: tl.constexpr, CLAMP: tl.constexpr):
    """Time steps from dt + bias, 0 where nothing is here."""
    step = softplus(raw) if SOFTPLUS else raw
    if CLAMP:
        step = clamp(step, low, high)
    return tl.where(here, step, 0.0)


@triton.jit
def channels(block, blocks, groups, per_group, K: tl.constexpr):
    """For a block of 32 K channels: its group, where it begins among the channels and in a state, which of it exist."""
    group = block // (blocks // groups)
    inner = block % (blocks // groups) * (32 * K)
    return group, group * per_group + inner, block * (32 * K), inner + lanes_of(K) < per_group


@triton.jit
def lanes_of(K: tl.constexpr):
    """(K, 32) places in a block."""
    return tl.arange(0, K)[:, None] * 32 + tl.arange(0, 32)[None, :]


@triton.jit
def advance(ptr, n, N, stride):
    """The pointer for n + 1, which behind the last n stays where it is."""
    return ptr + tl.where(n + 1 < N, stride, 0)


@triton.jit
def accumulate(sum_ptr, A_ptr, weight_ptr, passed, value, N, wide, padded, again, T: tl.constexpr, K: tl.constexpr):
    """For every n add the sum over tokens of exp(A passed) weight value to the sums; begin them unless ``again``.

    passed and value: (T, K, 32); pointers to (n, block of channels), weight to (n, T).
    """
    at, lanes = tl.arange(0, T), lanes_of(K)
    next_A, next_weight = tl.load(A_ptr + lanes), tl.load(weight_ptr + at)
    next_before = tl.load(sum_ptr + lanes, mask=again, other=0.0)
    for n in tl.range(0, N, num_stages=1):
        A, weight, before, to_ptr = next_A, next_weight, next_before, sum_ptr
        A_ptr, sum_ptr, weight_ptr = (
            advance(A_ptr, n, N, wide),
            advance(sum_ptr, n, N, wide),
            advance(weight_ptr, n, N, padded),
        )
        next_A, next_weight = tl.load(A_ptr + lanes), tl.load(weight_ptr + at)
        next_before = tl.load(sum_ptr + lanes, mask=again, other=0.0)
        added = tl.exp2(passed * A[None]) * (value * weight.to(tl.float32)[:, None, None])
        tl.store(to_ptr + lanes, before + tl.sum(added, 0))


@triton.jit
def walk(
    from_ptr, from_stride, to_ptr, to_stride, A_ptr, B_ptr, C_ptr, dt, dtx, new, N, wide, padded,
    T: tl.constexpr, K: tl.constexpr, HAS_RUN: tl.constexpr, READ: tl.constexpr,
):  # fmt: skip
    """Take the states (n, block of channels) before a tile to those behind it; if READ, what C reads of them on the
    way, (T, K, 32). dt and dt x: (T, K, 32); ``new`` (T, 1, 1): where a document begins."""
    at, lanes = tl.arange(0, T), lanes_of(K)
    rows = tl.arange(0, T)[:, None, None]
    y = tl.zeros((T, K, 32), tl.float32)
    next_A, next_state = tl.load(A_ptr + lanes), tl.load(from_ptr + lanes)
    next_B, next_C = tl.load(B_ptr + at), tl.load(C_ptr + at)
    for n in tl.range(0, N, num_stages=1):
        A, state, B, C = next_A, next_state, next_B, next_C
        A_ptr, from_ptr = advance(A_ptr, n, N, wide), advance(from_ptr, n, N, from_stride)
        B_ptr, C_ptr = advance(B_ptr, n, N, padded), advance(C_ptr, n, N, padded)
        next_A, next_state = tl.load(A_ptr + lanes), tl.load(from_ptr + lanes)
        next_B, next_C = tl.load(B_ptr + at), tl.load(C_ptr + at)
        decay = tl.exp2(dt * A[None])
        if HAS_RUN:
            decay = tl.where(new, 0.0, decay)
        add = dtx * B.to(tl.float32)[:, None, None]
        states = add
        for t in tl.static_range(T):
            state = take(decay, rows, t) * state + take(add, rows, t)
            states = put(states, state, rows, t)
        tl.store(to_ptr + lanes, state)
        to_ptr += to_stride
        if READ:
            y += C.to(tl.float32)[:, None, None] * states
    return y


@triton.jit(do_not_specialize=["tiles", "length", "N", "B_b", "B_l", "B_g", "C_b", "C_l", "C_g", "half"])
def _prepare(
    B_ptr, C_ptr, run_ptr, A_ptr, out_ptr, rates_ptr,
    tiles, length, N, groups, padded, half, B_b, B_l, B_g, C_b, C_l, C_g, wide, per_group, per_group_wide,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr, HAS_RUN: tl.constexpr,
    LANES: tl.constexpr, BLOCK_N: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """B and C (b, l, g, n) to (2, b, g, n, padded), 0 at padding and behind the end; the programs behind those tiles
    make decay rates of A."""
    if tl.program_id(0) < tiles:
        cuts = padded // TOKENS
        batch = tl.program_id(0).to(tl.int64) // cuts
        at = tl.program_id(0).to(tl.int64) % cuts * TOKENS + tl.arange(0, TOKENS)
        group = tl.program_id(1).to(tl.int64)
        n = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
        here = at < length
        if HAS_RUN:
            here = here & (tl.load(run_ptr + batch * length + at, mask=here, other=-1) >= 0)
        here = here[:, None] & (n < N)[None, :]
        B = tl.load(B_ptr + batch * B_b + group * B_g + at[:, None] * B_l + n[None, :], mask=here, other=0.0)
        C = tl.load(C_ptr + batch * C_b + group * C_g + at[:, None] * C_l + n[None, :], mask=here, other=0.0)
        to_ptr = out_ptr + ((batch * groups + group) * N + n)[:, None] * padded + at[None, :]
        tl.store(to_ptr, tl.trans(B).to(out_ptr.dtype.element_ty), mask=(n < N)[:, None])
        tl.store(to_ptr + half, tl.trans(C).to(out_ptr.dtype.element_ty), mask=(n < N)[:, None])
    elif (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
        lane = (tl.program_id(0) - tiles) * LANES + tl.arange(0, LANES)
        write_rates(A_ptr, rates_ptr, lane, N, wide, per_group, per_group_wide, BLOCK_N, LOG)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def _chunk_states(
    x_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, run_ptr, local_ptr, total_ptr,
    length, chunk, chunks, low, high, N, blocks, groups, per_group, padded,
    x_b, x_l, dt_b, dt_l,
    T: tl.constexpr, K: tl.constexpr, SOFTPLUS: tl.constexpr, CLAMP: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RUN: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) // blocks
    batch, first = index // chunks, index % chunks * chunk
    last = tl.minimum(first + chunk, length)
    group, col, lane, inside = channels(tl.program_id(0) % blocks, blocks, groups, per_group, K)
    wide = blocks * (32 * K)
    lanes = lanes_of(K)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + col + lanes, mask=inside, other=0.0).to(tl.float32)
    x_ptr += batch * x_b + col
    dt_ptr += batch * dt_b + col
    run_ptr += batch * length
    B_ptr += (batch * groups + group) * N * padded
    local_ptr += index * N * wide + lane
    A_ptr += lane
    if HAS_RUN:
        now = run_at(run_ptr, last - 1, length)
    rows = tl.arange(0, T)[:, None, None]
    total = tl.zeros((K, 32), tl.float32)
    tiles = (last - first + T - 1) // T
    for tile in tl.range(0, tiles, num_stages=1):
        start = tl.multiple_of(first + (tiles - 1 - tile) * T, T)
        _there, here, whole = where_here(start, length, run_ptr, inside, T, EVEN, HAS_RUN)
        raw = load_tile(dt_ptr + start * dt_l, dt_l, here, whole, T, K) + bias
        dt = time_steps(raw, low, high, here, SOFTPLUS, CLAMP)
        value = dt * load_tile(x_ptr + start * x_l, x_l, here, whole, T, K)
        if HAS_RUN:
            at = start + tl.arange(0, T)
            value = tl.where((run_at(run_ptr, at, length) == now)[:, None, None], value, 0.0)
        behind = dt
        for t in tl.static_range(T):
            behind = put(behind, total, rows, T - 1 - t)
            total += take(dt, rows, T - 1 - t)
        tl.debug_barrier()  # the sums that are read below were written at the tile before
        accumulate(local_ptr, A_ptr, B_ptr + start, behind, value, N, wide, padded, tile > 0, T, K)
    tl.store(total_ptr + index * wide + lane + lanes, total)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def _pass_states(
    local_ptr, total_ptr, A_ptr, run_ptr, states_ptr, last_ptr,
    length, chunk, chunks, N, wide, per_group, per_group_wide,
    T: tl.constexpr, K: tl.constexpr, HAS_RUN: tl.constexpr, GIVEN: tl.constexpr, WANTED: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """states[c + 1] = decay[c] states[c] + local[c] from states[0]; reverse, states[c] from states[c + 1]. What they
    come from stands there if GIVEN, else zeros are put there; what they come to goes to last (b, d, n), too, if WANTED.
    """
    size = N * wide
    batch = tl.program_id(0).to(tl.int64) // (size // (32 * K))
    place = tl.program_id(0) % (size // (32 * K)) * (32 * K)
    lanes = lanes_of(K)
    A = tl.load(A_ptr + place + lanes)[None]
    local_ptr += batch * chunks * size + place
    states_ptr += batch * (chunks + 1) * size + place
    total_ptr += batch * chunks * wide + place % wide
    run_ptr += batch * length
    rows = tl.arange(0, T)[:, None, None]
    begin_ptr = states_ptr + (chunks * size.to(tl.int64) if REVERSE else 0) + lanes
    state = tl.zeros((K, 32), tl.float32)
    if GIVEN:
        state = tl.load(begin_ptr)
    else:
        tl.store(begin_ptr, state)
    for done in tl.range(0, chunks, T, num_stages=1):
        c = (done + tl.arange(0, T)).to(tl.int64)
        here = (c < chunks)[:, None, None]
        if REVERSE:
            c = chunks - 1 - c
        total = tl.load(total_ptr + (c * wide)[:, None, None] + lanes[None], mask=here, other=0.0)
        local = tl.load(local_ptr + (c * size)[:, None, None] + lanes[None], mask=here, other=0.0)
        decay = tl.exp2(A * total)
        if HAS_RUN:
            before = run_at(run_ptr, c * chunk - 1, length)
            behind = run_at(run_ptr, c * chunk + chunk - 1, length)
            decay = tl.where((before == behind)[:, None, None] | ~here, decay, 0.0)
        passed = local
        for t in tl.static_range(T):
            state = take(decay, rows, t) * state + take(local, rows, t)
            passed = put(passed, state, rows, t)
        to = c if REVERSE else c + 1
        tl.store(states_ptr + (to * size)[:, None, None] + lanes[None], passed, mask=here)
    if WANTED:
        channel, real = channel_of(place % wide + lanes, per_group, per_group_wide)
        last_ptr += batch * N * (wide // per_group_wide * per_group)
        tl.store(last_ptr + channel * N + place // wide, state, mask=real)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def _outputs(
    x_ptr, dt_ptr, z_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, run_ptr, enter_ptr, local_ptr, y_ptr,
    length, chunk, chunks, low, high, N, blocks, groups, per_group, padded,
    x_b, x_l, dt_b, dt_l, z_b, z_l,
    T: tl.constexpr, K: tl.constexpr, SOFTPLUS: tl.constexpr, CLAMP: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RUN: tl.constexpr, EVEN: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
):  # fmt: skip
    """The state of the tile before lies where the chunk's own addition, used up by now, lay."""
    index = tl.program_id(0).to(tl.int64) // blocks
    batch, first = index // chunks, index % chunks * chunk
    last = tl.minimum(first + chunk, length)
    group, col, lane, inside = channels(tl.program_id(0) % blocks, blocks, groups, per_group, K)
    wide = blocks * (32 * K)
    lanes = lanes_of(K)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + col + lanes, mask=inside, other=0.0).to(tl.float32)
    x_ptr += batch * x_b + col
    dt_ptr += batch * dt_b + col
    z_ptr += batch * z_b + col
    y_l = groups * per_group
    y_ptr += batch * length * y_l + col
    run_ptr += batch * length
    B_ptr += (batch * groups + group) * N * padded
    C_ptr += (batch * groups + group) * N * padded
    enter_ptr += (index + batch) * N * wide + lane
    local_ptr += index * N * wide + lane
    A_ptr += lane
    for tile in tl.range(0, (last - first + T - 1) // T, num_stages=1):
        start = tl.multiple_of(first + tile * T, T)
        there, here, whole = where_here(start, length, run_ptr, inside, T, EVEN, HAS_RUN)
        raw = load_tile(dt_ptr + start * dt_l, dt_l, here, whole, T, K) + bias
        dt = time_steps(raw, low, high, here, SOFTPLUS, CLAMP)
        x = load_tile(x_ptr + start * x_l, x_l, here, whole, T, K)
        dtx = dt * x
        new = dt
        if HAS_RUN:
            at = start + tl.arange(0, T)
            new = (run_at(run_ptr, at, length) != run_at(run_ptr, at - 1, length))[:, None, None]
        before_ptr = enter_ptr if tile == 0 else local_ptr
        tl.debug_barrier()  # the states that are read below were written at the tile before
        y = walk(
            before_ptr, wide, local_ptr, wide, A_ptr, B_ptr + start, C_ptr + start, dt, dtx, new, N, wide, padded,
            T, K, HAS_RUN, True,
        )  # fmt: skip
        if HAS_D:
            y += tl.load(D_ptr + col + lanes, mask=inside, other=0.0).to(tl.float32)[None] * x
        if HAS_Z:
            z = load_tile(z_ptr + start * z_l, z_l, here, whole, T, K)
            y *= z * sigmoid(z)
        store_tile(y_ptr + start * y_l, y_l, tl.where(here, y, 0.0), there, whole, T, K)


@dataclass(frozen=True)
class Plan:
    """How shapes are cut; decided by the shapes alone, so that results are."""

    chunk: int  # tokens
    chunks: int
    wide: int  # channels of a state, filled up
    padded: int  # tokens of the transposed B and C, filled up


def plan(x: Tensor, B: Tensor) -> Plan:
    """The cut for x (b, l, d) and B (b, l, g, n): a chunk of a power of two, long unless programs become too few."""
    b, l, d = x.shape
    g, n = B.shape[2:]
    wide = g * (-(-(d // g) // WIDTH)) * WIDTH
    chunk, longest = CHUNKS[0], max(CHUNKS[1], triton.next_power_of_2(2 * n))
    while chunk < longest and 2 * chunk * WIDTH * PROGRAMS <= l * b * wide:
        chunk *= 2  # compared rather than computed: so torch.compile knows ranges of lengths, not single ones
    return Plan(chunk, -(-l // chunk), wide, -(-l // TOKENS) * TOKENS)


def prepare(A: Tensor, B: Tensor, C: Tensor, run: Tensor, has_run: bool, cut: Plan, log: bool) -> tuple[Tensor, Tensor]:
    """B and C (b, l, g, n) as (2, b, g, n, padded) in their dtype; A (d, n), or what it stands for if ``log``, as decay
    rates (n, wide) float32 in base 2, 0 where there is no channel."""
    b, l, g, n = B.shape
    B, C = inner_contiguous(B), inner_contiguous(C)
    dtype = B.dtype if B.dtype == C.dtype else torch.float32  # 16 bits: half the registers
    out = torch.empty(2, b, g, n, cut.padded, dtype=dtype, device=B.device)
    rates = torch.empty(n, cut.wide, dtype=torch.float32, device=A.device)
    block = min(64, max(16, triton.next_power_of_2(n)))
    lanes, block_n = block_shape(n)
    tiles = b * cut.padded // TOKENS
    launch(_prepare, (tiles + triton.cdiv(cut.wide, lanes), g, -(-n // block)),
        B, C, run, A.contiguous(), out, rates,
        tiles, l, n, g, cut.padded, b * g * n * cut.padded, *B.stride()[:3], *C.stride()[:3],
        cut.wide, A.shape[0] // g, cut.wide // g,
        TOKENS=TOKENS, BLOCK=block, HAS_RUN=has_run, LANES=lanes, BLOCK_N=block_n, LOG=log,
    )  # fmt: skip
    return out, rates


def clamps(softplus: bool, limit: tuple[float, float]) -> bool:
    """Whether the limit can change a time step."""
    return not (softplus and limit[0] == 0 and limit[1] == math.inf)


@taped
@on_device_of_first
def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    softplus: bool,
    limit: tuple[float, float],
    log: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs (b, l, d) in x's dtype and the final state (b, d, n) in float32. With ``log`` A holds log(-A).

    For the backward, too, the states that enter each chunk (b, chunks + 1, n, wide), the sums of its time steps
    (b, chunks, wide), and what :func:`prepare` makes.
    """
    b, l, d = x.shape
    g, n = B.shape[2:]
    cut = plan(x, B)
    x, dt = inner_contiguous(x), inner_contiguous(dt)
    gate = x if z is None else inner_contiguous(z)
    run = x if seq_idx is None else encode_runs(seq_idx)
    weights, A2 = prepare(A, B, C, run, seq_idx is not None, cut, log)
    local, total, enter = (
        torch.empty(b, *shape, dtype=torch.float32, device=x.device)
        for shape in ((cut.chunks, n, cut.wide), (cut.chunks, cut.wide), (cut.chunks + 1, n, cut.wide))
    )
    y = torch.empty(b, l, d, dtype=x.dtype, device=x.device)
    flags = {
        "SOFTPLUS": softplus,
        "CLAMP": clamps(softplus, limit),
        "HAS_BIAS": dt_bias is not None,
        "HAS_RUN": seq_idx is not None,
        "EVEN": cut.wide == d,
    }
    bias = A2 if dt_bias is None else dt_bias.contiguous()
    sizes = (l, cut.chunk, cut.chunks, *limit, n)
    how = LAUNCH["states"]
    blocks = cut.wide // (32 * how["K"])
    launch(_chunk_states, (b * cut.chunks * blocks,),
        x, dt, A2, weights[0], bias, run, local, total, *sizes, blocks, g, d // g, cut.padded,
        *x.stride()[:2], *dt.stride()[:2], **flags, **how,
    )  # fmt: skip
    final = torch.empty(b, d, n, dtype=torch.float32, device=x.device)
    pass_states(initial_state, local, total, A2, run, enter, final, l, cut, d, g, seq_idx is not None)
    how = LAUNCH["outputs"]
    blocks = cut.wide // (32 * how["K"])
    launch(_outputs, (b * cut.chunks * blocks,),
        x, dt, gate, A2, weights[0], weights[1], A2 if D is None else D.contiguous(), bias, run, enter, local, y,
        *sizes, blocks, g, d // g, cut.padded,
        *x.stride()[:2], *dt.stride()[:2], *gate.stride()[:2],
        **flags, HAS_D=D is not None, HAS_Z=z is not None, **how,
    )  # fmt: skip
    return y, final, enter, total, weights, A2


def pass_states(
    first: Tensor | None, local: Tensor, total: Tensor, A2: Tensor, run: Tensor, states: Tensor, last: Tensor | None,
    length: int, cut: Plan, d: int, groups: int, has_run: bool, reverse: bool = False,
) -> None:  # fmt: skip
    """Fill ``states`` (b, chunks + 1, n, wide) from its first entry on, or from its last one back; that one is
    ``first`` (b, d, n), zeros for None. The entry at the other end goes to ``last`` (b, d, n), too."""
    how = LAUNCH["pass"]
    b, _, n, wide = local.shape
    if first is not None:
        widen_(states[:, -1 if reverse else 0], first, groups)
    launch(_pass_states, (b * n * wide // (32 * how["K"]),),
        local, total, A2, run, states, states if last is None else last,
        length, cut.chunk, cut.chunks, n, wide, d // groups, wide // groups,
        HAS_RUN=has_run, GIVEN=first is not None, WANTED=last is not None, REVERSE=reverse, **how,
    )  # fmt: skip
