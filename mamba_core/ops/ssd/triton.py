"""State-space dual operation for GPUs, in Triton.

The sequence is cut into segments of chunks.

1. ``triton_steps``: time steps and running decays, once.
2. ``chunk_states``: a program works through a segment chunk by chunk with the state in registers, from zero. It writes
   down, in the dtype of x, the state that enters each chunk, and in float32 what the segment adds to the state.
3. ``_pass_states``: the state that enters each segment; as many steps as there are segments.
4. ``_outputs``: every chunk by itself: what its tokens read from each other, from the chunks of the segment before
   them, and from what entered the segment. C.B^T is worked out once for the heads of a group that share a program.

x, B and C are read twice, y is written once, no float32 state of a chunk goes through memory. Notation and algebra are
those of ``chunked.py``; exponents are in base 2. The cut depends on the shapes alone, so results do too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import encode_runs, inner_contiguous, on_device_of_first, power_of_two, run_of
from mamba_core.ops.ssd.triton_steps import Steps
from mamba_core.ops.tape import launch, taped

_PROGRAMS = 1024  # aimed at: several for each multiprocessor of a large GPU
LAUNCH = {  # found best on an H100 among those that change no digit
    "states": {"num_warps": 4, "num_stages": 2},
    "outputs": {"num_warps": 8, "num_stages": 3},
}
_LONGEST = 128  # tokens of a chunk; a segment is a multiple of it


@triton.jit
def load_tile(ptr, at, stride, columns, real, left, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """(rows, columns) of a tensor whose last stride is 1; offsets in a tile fit in 32 bits. If MASKED, padding is 0;
    else there is none, and behind the last of the ``left`` tokens that one is repeated."""
    inside = (columns < WIDTH)[None, :]
    if MASKED:
        inside = inside & real[:, None]
    else:
        at = tl.minimum(at, left - 1)
    return tl.load(ptr + at[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def entered_run(run_ptr, start):
    """The run of the token before ``start``; 0, that of the initial state, before the first."""
    return run_of(tl.load(run_ptr + start - 1, mask=start > 0, other=0))


@triton.jit
def weights_within(step_ptr, cum_ptr, also_ptr, at, DTYPE: tl.constexpr, EXACT: tl.constexpr):
    """Decay from column to row times the column's step, (q, q). Above the diagonal the number means nothing, but is
    finite in DTYPE, so that 0 times it is 0."""
    LARGEST: tl.constexpr = 15.0 if tl.float16 == DTYPE else 127.0
    cum = tl.load(cum_ptr + at)
    also = tl.load(also_ptr + at)
    if EXACT:
        span = cum[:, None] - cum[None, :] + (also[:, None] - also[None, :])
        return tl.exp2(tl.minimum(span, 0.0)) * tl.load(step_ptr + at)[None, :]
    return tl.exp2(tl.minimum(cum[:, None] - also[None, :], LARGEST))


@triton.jit
def decay_to(cum_ptr, also_ptr, at, end, EXACT: tl.constexpr):
    """Decays (q,) from behind each token to ``end``, the last of its chunk, and the chunk's own."""
    total = tl.load(cum_ptr + end)
    span = total - tl.load(cum_ptr + at)
    if EXACT:
        rest = tl.load(also_ptr + end)
        span += rest - tl.load(also_ptr + at)
        total += rest
    return tl.exp2(span), tl.exp2(total)


@triton.jit
def decay_from_start(cum_ptr, also_ptr, at, EXACT: tl.constexpr):
    """Decays (q,) from the start of a chunk to behind each token."""
    cum = tl.load(cum_ptr + at)
    if EXACT:
        cum += tl.load(also_ptr + at)
    return tl.exp2(cum)


@triton.jit
def _written(
    state, x_ptr, B_ptr, step_ptr, cum_ptr, also_ptr, run_ptr, chunk, length, x_l, B_l, cols_p, cols_n,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state (n, p) behind a chunk from the one before it, and what the chunk keeps of the latter."""
    start = chunk * Q
    at = tl.arange(0, Q)
    left = length - start
    real = at < left
    write, decay = decay_to(cum_ptr + start, also_ptr + start, at, Q - 1, EXACT)
    write *= tl.load(step_ptr + start + at)
    if HAS_RUN:
        code = tl.load(run_ptr + start + at, mask=real, other=-1)
        now = run_of(tl.load(run_ptr + tl.minimum(start + Q, length) - 1))
        write = tl.where(run_of(code) == now, write, 0.0)
        decay = tl.where(now == entered_run(run_ptr, start), decay, 0.0)
        real = real & (code >= 0)
    x = load_tile(x_ptr + start * x_l, at, x_l, cols_p, real, left, P, HAS_RUN)
    B = load_tile(B_ptr + start * B_l, at, B_l, cols_n, real, left, N, HAS_RUN)
    x = (x.to(tl.float32) * write[:, None]).to(x.dtype)
    return tl.dot(tl.trans(B), x, state * decay, input_precision=PRECISION), decay


@triton.jit(do_not_specialize=["length", "slab", "slabs", "segment", "segments", "chunks_all", "chunks_slab"])
def chunk_states(
    x_ptr, B_ptr, step_ptr, cum_ptr, also_ptr, run_ptr, states_ptr, since_ptr, local_ptr, kept_ptr, enter_ptr,
    length, slab, slabs, segment, segments, chunks_all, chunks_slab, heads, per_group, x_b, x_l, x_h, B_b, B_l, B_g,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    ENTERED: tl.constexpr, HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The states that enter the chunks of ``slabs`` segments from segment ``slab`` on: in full from the states that
    enter the segments if ENTERED, else from zero, and then what a segment adds and keeps as well."""
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
    if ENTERED:
        border = (batch * (segments + 1) + index) * heads + head
        state = tl.load(enter_ptr + border * (N * P) + tile, mask=inside, other=0.0)
    else:
        state = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    since = 1.0  # what is left at this chunk of the state that entered the segment
    for chunk in tl.range(first, tl.minimum(first + segment, chunks_all)):
        slot = (batch * chunks_slab + chunk - slab * segment) * heads + head
        tl.store(states_ptr + slot * (N * P) + tile, state.to(states_ptr.dtype.element_ty), mask=inside)
        if not ENTERED and part == 0:
            tl.store(since_ptr + slot, since)
        state, decay = _written(
            state, x_ptr + batch * x_b + head * x_h, B_ptr + batch * B_b + (head // per_group) * B_g,
            step_ptr + row, cum_ptr + row, also_ptr + row, run_ptr + batch * length, chunk, length, x_l, B_l,
            cols_p, cols_n, P, N, Q, HAS_RUN, EXACT, PRECISION,
        )  # fmt: skip
        since *= decay
    if not ENTERED:
        slot = (batch * segments + index) * heads + head
        tl.store(local_ptr + slot * (N * P) + tile, state, mask=inside)
        if part == 0:
            tl.store(kept_ptr + slot, since)


@triton.jit(do_not_specialize=["segments", "first_b", "first_h"])
def _pass_states(
    local_ptr, kept_ptr, border_ptr, low_ptr, first_ptr, last_ptr,
    segments, heads, first_b, first_h, first_n, first_p,
    P: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    HAS_FIRST: tl.constexpr, LOW: tl.constexpr, REVERSE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """For one head of one row: border[0] = first, border[s + 1] = kept[s] border[s] + local[s]; REVERSE, from
    border[segments] = first back to border[0]. If LOW, also in the dtype of low; if LAST, what is written last also to
    last (b, h, p, n)."""
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    cols = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < SIZE
    state = tl.zeros((BLOCK,), tl.float32)
    if HAS_FIRST:
        first_ptr += batch * first_b + head * first_h
        state = tl.load(first_ptr + cols // P * first_n + cols % P * first_p, mask=mask, other=0.0).to(tl.float32)
    for k in tl.range(0, segments + 1):
        place = segments - k if REVERSE else k
        at = ((batch * (segments + 1) + place) * heads + head) * SIZE + cols
        tl.store(border_ptr + at, state, mask=mask)
        if LOW:
            tl.store(low_ptr + at, state, mask=mask)
        more = k < segments
        if LAST:
            to = last_ptr + (batch * heads + head) * SIZE + cols % P * (SIZE // P) + cols // P
            tl.store(to, state, mask=mask & (not more))
        slot = (batch * segments + (place - 1 if REVERSE else place)) * heads + head
        kept = tl.load(kept_ptr + slot, mask=more, other=0.0)
        state = state * kept + tl.load(local_ptr + slot * SIZE + cols, mask=mask & more, other=0.0)


@triton.jit
def _of_head(since_ptr, cum_ptr, also_ptr, D_ptr, row, slot, head, at, HAS_D: tl.constexpr, EXACT: tl.constexpr):
    """What ``_outputs`` wants of a head beside its tiles: loaded a turn ahead, so that nobody waits for it."""
    D = tl.load(D_ptr + head).to(tl.float32) if HAS_D else 0.0
    return tl.load(since_ptr + slot), decay_from_start(cum_ptr + row, also_ptr + row, at, EXACT), D


@triton.jit(do_not_specialize=["length", "segment", "segments", "chunks_all"])
def _outputs(
    x_ptr, B_ptr, C_ptr, D_ptr, step_ptr, cum_ptr, also_ptr, run_ptr, states_ptr, since_ptr, enter_ptr, y_ptr,
    length, segment, segments, chunks_all, heads, per_group, per_part,
    x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, y_b, y_l, y_h,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    HAS_D: tl.constexpr, HAS_RUN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    P_BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    index = tl.program_id(0).to(tl.int64)
    batch, chunk = index // chunks_all, index % chunks_all
    parts = per_group // per_part
    group, part = (tl.program_id(1) // parts).to(tl.int64), tl.program_id(1) % parts
    start = chunk * Q
    at = tl.arange(0, Q)
    left = length - start
    here = at < left
    real = here
    seen = at[:, None] >= at[None, :]
    if HAS_RUN:
        code = tl.load(run_ptr + batch * length + start + at, mask=here, other=-1)
        run = run_of(code)
        real = here & (code >= 0)
        seen = seen & (run[:, None] == run[None, :])
        reads = run == entered_run(run_ptr + batch * length, start)
    cols_n = tl.arange(0, BLOCK_N)
    cols_p = tl.arange(0, BLOCK_P)
    B = load_tile(B_ptr + batch * B_b + group * B_g + start * B_l, at, B_l, cols_n, real, left, N, HAS_RUN)
    C = load_tile(C_ptr + batch * C_b + group * C_g + start * C_l, at, C_l, cols_n, real, left, N, HAS_RUN)
    scores = tl.where(seen, tl.dot(C, tl.trans(B), input_precision=PRECISION), 0.0).to(C.dtype)
    head = group * per_group + part * per_part
    row = (batch * heads + head) * chunks_all * Q + start
    slot = (batch * chunks_all + chunk) * heads + head
    since, read, D = _of_head(since_ptr, cum_ptr, also_ptr, D_ptr, row, slot, head, at, HAS_D, EXACT)
    turns = per_part * P_BLOCKS
    for i in tl.range(0, turns):
        cols = (i % P_BLOCKS) * BLOCK_P + cols_p
        inside = (cols_n < N)[:, None] & (cols < P)[None, :]
        tile = cols_n[:, None] * P + cols[None, :]
        this = head + i // P_BLOCKS
        row = (batch * heads + this) * chunks_all * Q + start
        slot = (batch * chunks_all + chunk) * heads + this
        from_segment = (batch * (segments + 1) + chunk // segment) * heads + this
        now_since, now_read, now_D = since, read, D
        ahead = head + tl.minimum(i + 1, turns - 1) // P_BLOCKS
        since, read, D = _of_head(
            since_ptr, cum_ptr, also_ptr, D_ptr, (batch * heads + ahead) * chunks_all * Q + start,
            (batch * chunks_all + chunk) * heads + ahead, ahead, at, HAS_D, EXACT,
        )  # fmt: skip
        x = load_tile(x_ptr + batch * x_b + this * x_h + start * x_l, at, x_l, cols, real, left, P, HAS_RUN)
        state = tl.load(states_ptr + slot * (N * P) + tile, mask=inside, other=0.0)
        enter = tl.load(enter_ptr + from_segment * (N * P) + tile, mask=inside, other=0.0)
        y = tl.dot(C, enter, input_precision=PRECISION) * now_since
        y = tl.dot(C, state, y, input_precision=PRECISION)
        if HAS_RUN:
            now_read = tl.where(reads, now_read, 0.0)
        y *= now_read[:, None]
        mix = scores * weights_within(step_ptr + row, cum_ptr + row, also_ptr + row, at, x.dtype, EXACT).to(x.dtype)
        y = tl.dot(mix, x, y, input_precision=PRECISION)
        if HAS_D:
            y += now_D * x.to(tl.float32)
        y = tl.where(real[:, None], y, 0.0)
        mask = here[:, None] & (cols < P)[None, :]
        to = y_ptr + batch * y_b + this * y_h + start * y_l
        tl.store(to + at[:, None] * y_l + cols[None, :], y, mask=mask)


@dataclass(frozen=True)
class Plan:
    """How shapes are cut into programs; decided by shapes and dtype alone, so that results are."""

    chunk: int  # tokens
    chunks: int
    segment: int  # chunks of a segment
    segments: int
    block_p: int  # columns of the state a program holds
    block_n: int
    p_blocks: int  # of block_p, to cover headdim
    wide: bool  # float32, or a state of more than 128 columns

    def launch(self, how: dict[str, int]) -> dict[str, int]:
        """Launch parameters: those of usual sizes, or what fits beside tiles twice as large."""
        if not self.wide:
            return how
        return {"num_warps": 4 if self.chunk < 64 else how["num_warps"] if self.block_n <= 128 else 8, "num_stages": 1}

    def heads_together(self, batch: int, groups: int, per_group: int, programs: int) -> int:
        """How many heads of a group share a program: a divisor of them that leaves about so many ``programs``."""
        rows = batch * self.chunks * groups
        fits = [d for d in range(1, per_group + 1) if per_group % d == 0 and rows * (per_group // d) >= programs]
        return max(fits, default=1)


def plan(x: Tensor, B: Tensor, longest: int = _LONGEST) -> Plan:
    """The cut for x (b, l, h, p) and B (b, l, g, n). Chunks may be shorter in the backward; segments are the same."""
    b, l, h, p = x.shape
    size = x.element_size()
    # Triton 3.6 miscompiles 16-bit products with fewer than 64 columns on Hopper: rather some columns of zeros.
    narrowest = 64 if size == 2 else 16
    block_n, block_p = power_of_two(B.shape[3], narrowest), min(power_of_two(p, narrowest), 64)
    p_blocks = -(-p // block_p)
    wanted = max(1, _PROGRAMS // (b * h * p_blocks))
    segment = min(max(2, -(-l // (_LONGEST * wanted))), 16) * _LONGEST  # tokens
    chunk = min(longest, _LONGEST * 256 // max(256, block_n * size))  # its B and C stay in shared memory
    wide = size == 4 or block_n > 128
    return Plan(chunk, -(-l // chunk), segment // chunk, -(-l // segment), block_p, block_n, p_blocks, wide)


def precision(x: Tensor) -> dict[str, object]:
    """How products are formed, and whether decays keep all float32 digits."""
    exact = x.dtype == torch.float32
    return {"EXACT": exact, "PRECISION": "tf32x3" if exact else "tf32"}


@taped
@on_device_of_first
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
    log: bool = False,
    exchange: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (b, l, h, p) in x's dtype, final state (b, h, p, n) in float32, and for the backward the states that
    enter each segment (b, segments + 1, h, n, p). With ``log`` A holds log(-A).

    With ``exchange`` the initial state is what that returns, when it is told the final state from a zero state and what
    the whole leaves of a state (b, h)."""
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    x, B, C = inner_contiguous(x), inner_contiguous(B.to(x.dtype)), inner_contiguous(C.to(x.dtype))
    cut = plan(x, B)
    run = None if seq_idx is None else encode_runs(seq_idx)
    flags = {"HAS_RUN": run is not None, **precision(x)}
    steps = Steps(dt, A, dt_bias, run, cut.chunk, softplus, limit, flags["EXACT"] is True, log)
    decays = (steps.step, steps.cum, steps.also, A if run is None else run)
    sizes = {"P": p, "N": n, "BLOCK_P": cut.block_p, "BLOCK_N": cut.block_n, "Q": cut.chunk}
    states = torch.empty(b, cut.chunks, h, n, p, dtype=x.dtype, device=x.device)
    since = torch.empty(b, cut.chunks, h, dtype=torch.float32, device=x.device)
    local = torch.empty(b, cut.segments, h, n, p, dtype=torch.float32, device=x.device)
    kept = torch.empty(b, cut.segments, h, dtype=torch.float32, device=x.device)
    launch(chunk_states, (b * cut.segments, h * cut.p_blocks),
        x, B, *decays, states, since, local, kept, local,
        l, 0, cut.segments, cut.segment, cut.segments, cut.chunks, cut.chunks, h, h // g,
        *x.stride()[:3], *B.stride()[:3], **sizes, **flags, ENTERED=False, **cut.launch(LAUNCH["states"]),
    )  # fmt: skip
    enter = torch.empty(b, cut.segments + 1, h, n, p, dtype=torch.float32, device=x.device)
    low = enter if x.dtype == torch.float32 else torch.empty(enter.shape, dtype=x.dtype, device=x.device)
    if exchange is not None:
        pass_states(local, kept, None, enter, low)
        initial_state = exchange(enter[:, -1].mT, kept.prod(1))
    final = torch.empty(b, h, p, n, dtype=torch.float32, device=x.device)
    pass_states(local, kept, initial_state, enter, low, final)
    y = torch.empty(b, l, h, p, dtype=x.dtype, device=x.device)
    together = cut.heads_together(b, g, h // g, _PROGRAMS)
    launch(_outputs, (b * cut.chunks, h // together),
        x, B, C, A if D is None else D.contiguous(), *decays, states, since, low, y,
        l, cut.segment, cut.segments, cut.chunks, h, h // g, together,
        *x.stride()[:3], *B.stride()[:3], *C.stride()[:3], *y.stride()[:3],
        **sizes, **flags, HAS_D=D is not None, **cut.launch(LAUNCH["outputs"]),
    )  # fmt: skip
    return y, final, enter


def pass_states(
    local: Tensor,
    kept: Tensor,
    first: Tensor | None,
    border: Tensor,
    low: Tensor,
    last: Tensor | None = None,
    reverse: bool = False,
) -> None:
    """Fill ``border`` (b, segments + 1, h, n, p), and ``low`` where it is another tensor, from ``first`` (b, h, p, n)
    and what each segment adds and keeps; backwards, from the last entry. ``last`` (b, h, p, n) takes the entry at the
    other end."""
    b, segments, h, n, p = local.shape
    block = min(256, power_of_two(n * p))
    b_, h_, p_, n_ = (0, 0, 0, 0) if first is None else first.stride()
    launch(_pass_states, (b, h, -(-n * p // block)),
        local, kept, border, low, local if first is None else first, local if last is None else last,
        segments, h, b_, h_, n_, p_, P=p, SIZE=n * p, BLOCK=block, HAS_FIRST=first is not None,
        LOW=low is not border, REVERSE=reverse, LAST=last is not None, num_warps=2,
    )  # fmt: skip
