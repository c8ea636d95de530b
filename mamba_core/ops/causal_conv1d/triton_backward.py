"""Gradients of the causal depthwise convolution for GPUs, in Triton; layout and walk are those of ``triton.py``.

The backward computes the convolution again, and keeps with each row of the window what its gradient has gathered so
far; the gradient is whole and written when the row leaves the window. Behind the segment, the width - 1 tokens that
still see its last rows are computed once more, by this program for its own rows. Where the gradients of x take the
place of those of y, these few rows are copied beforehand: another program may be through there.

The gradients of weight and bias are summed by each program, then over programs in their order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.causal_conv1d.triton import (
    BLOCK,
    convolve,
    is_mixed,
    links,
    load_codes,
    load_parameters,
    load_rows,
    load_window,
    options,
    push,
    row_ptr,
    row_strides,
    seen_rows,
    segment_length,
)
from mamba_core.ops.kernels import encode_runs, inner_contiguous, on_device_of_first, power_of_two, run_of, sigmoid
from mamba_core.ops.tape import launch, taped


@triton.jit
def _before_silu(gy, seen, x, weights, bias, W: tl.constexpr, SILU: tl.constexpr):
    """The gradient of one token's convolution before silu."""
    g = gy.to(tl.float32)
    if SILU:
        total = convolve(weights, bias, seen, x, W)
        gate = sigmoid(total)
        g = g * gate * (1.0 + total * (1.0 - gate))
    return g


@triton.jit
def _spread(g, weights, runs, sums, run, W: tl.constexpr, HAS_RUN: tl.constexpr):
    """Sums of the window's rows, with what a token's gradient ``g`` adds to them, and its own behind them."""
    more = ()
    for i in tl.static_range(W - 1):
        total = sums[i] + weights[i] * g
        if HAS_RUN:
            total = tl.where(runs[i] == run, total, sums[i])
        more = more + (total,)
    return more + (weights[W - 1] * g,)


@triton.jit
def _move_on(spread, sums, real, W: tl.constexpr, ALWAYS: tl.constexpr):
    """The sums that belong to the window once it has moved on; the old ones where it does not."""
    kept = spread[1:]
    if not ALWAYS:
        kept = ()
        for i in tl.static_range(W - 1):
            kept = kept + (tl.where(real, spread[i + 1], sums[i]),)
    return kept


@triton.jit
def _token_gradients(
    dx_ptr, at, code, x, gy, places, runs, rows, sums, dws, db, weights, bias, first, dx_l, cols, inside,
    W: tl.constexpr, UNIT: tl.constexpr, SILU: tl.constexpr, HAS_RUN: tl.constexpr,
):  # fmt: skip
    """Work off one token of the segment; the oldest row of the window is complete and goes out. Padding gets 0."""
    real = code >= 0
    run = run_of(code)
    x = x.to(tl.float32)
    if HAS_RUN:
        x = tl.where(real, x, 0.0)
    rows = seen_rows(runs, rows, run, HAS_RUN)  # nothing that follows sees the rows of earlier documents either
    g = _before_silu(gy, rows, x, weights, bias, W, SILU)
    if HAS_RUN:
        g = tl.where(real, g, 0.0)
    more = ()
    for i in tl.static_range(W - 1):
        more = more + (dws[i] + g * rows[i],)
    more = more + (dws[W - 1] + g * x,)
    spread = _spread(g, weights, runs, sums, run, W, HAS_RUN)
    place = (places + (at,))[0]
    value = spread[0]
    if HAS_RUN:
        place = tl.where(real, place, at)
        value = tl.where(real, value, 0.0)
    tl.store(row_ptr(dx_ptr, place, dx_l, UNIT) + cols, value, mask=inside & (place >= first))
    return (
        push(places, at, real, not HAS_RUN),
        push(runs, run, real, not HAS_RUN),
        push(rows, x, real, not HAS_RUN),
        _move_on(spread, sums, real, W, not HAS_RUN),
        more,
        db + g,
    )


@triton.jit
def _behind_border(
    x_ptr, gy_ptr, gf_ptr, run_ptr, after_ptr, out_ptr, border, lowest, length, places, runs, rows, sums,
    weights, bias, x_l, gy_l, out_l, cols, inside,
    C: tl.constexpr, W: tl.constexpr, UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, SILU: tl.constexpr,
    HAS_RUN: tl.constexpr, COPIED: tl.constexpr, HAS_FINAL: tl.constexpr,
):  # fmt: skip
    """Complete the rows that are in the window at a border, and write those from position ``lowest`` on.

    The real tokens behind the border are worked off, as many as there are of W - 1. Where they run out, the window is
    the final tail. If COPIED, gy_ptr points to a copy of the rows behind this border.
    """
    more = border < length
    for j in tl.static_range(W - 1):
        at = border + j
        if HAS_RUN:
            at = tl.load(after_ptr + j)
        more = at < length
        x = load_rows(row_ptr(x_ptr, at, x_l, UNIT), at, length, x_l, cols, inside, UNIT, 1)[0].to(tl.float32)
        gy_row = gy_ptr + j * C if COPIED else row_ptr(gy_ptr, at, gy_l, UNIT)
        gy = load_rows(gy_row, at, length, gy_l, cols, inside, UNIT, 1)[0]
        run = load_codes(run_ptr, at, length, 1, HAS_RUN)[0]
        g = tl.where(more, _before_silu(gy, seen_rows(runs, rows, run, HAS_RUN), x, weights, bias, W, SILU), 0.0)
        spread = _spread(g, weights, runs, sums, run, W, HAS_RUN)
        mask = inside & more & (places[0] >= lowest) & (places[0] < border)
        tl.store(row_ptr(out_ptr, places[0], out_l, OUT_UNIT) + cols, spread[0], mask=mask)
        places = push(places, at, more, False)
        runs = push(runs, run, more, False)
        rows = push(rows, x, more, False)
        sums = _move_on(spread, sums, more, W, False)
    for i in tl.static_range(W - 1):
        gradient = sums[i]
        if HAS_FINAL:
            more_ = tl.load(gf_ptr + i * C + cols, mask=inside, other=0.0).to(tl.float32)
            if HAS_RUN:
                more_ = tl.where(runs[i] == runs[W - 2], more_, 0.0)
            gradient += more_
        mask = inside & (not more) & (places[i] >= lowest) & (places[i] < border)
        tl.store(row_ptr(out_ptr, places[i], out_l, OUT_UNIT) + cols, gradient, mask=mask)


@triton.jit(do_not_specialize=["length", "segment", "segments", "x_b", "x_l", "gy_b", "gy_l", "dx_b", "dx_l"])
def _backward(
    x_ptr, gy_ptr, gf_ptr, w_ptr, bias_ptr, initial_ptr, run_ptr, link_ptr, after_ptr, behind_ptr,
    dx_ptr, ds_ptr, sum_ptr,
    length, segment, segments, x_b, x_l, gy_b, gy_l, w_c, w_k, dx_b, dx_l,
    C: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, UNIT: tl.constexpr,
    SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_RUN: tl.constexpr,
    COPIED: tl.constexpr, HAS_FINAL: tl.constexpr,
):  # fmt: skip
    BLOCKS: tl.constexpr = (C + BLOCK - 1) // BLOCK
    part, index = tl.program_id(0) % BLOCKS, (tl.program_id(0) // BLOCKS) % segments
    batch = (tl.program_id(0) // BLOCKS // segments).to(tl.int64)
    first = index * segment
    last = tl.minimum(first + segment, length)
    cols = part * BLOCK + tl.arange(0, BLOCK)
    inside = cols < C
    x_l, gy_l, dx_l = x_l.to(tl.int64), gy_l.to(tl.int64), dx_l.to(tl.int64)
    x_ptr += batch * x_b * UNIT
    gy_ptr += batch * gy_b * UNIT
    dx_ptr += batch * dx_b * UNIT
    gf_ptr += batch * (W - 1) * C
    ds_ptr += batch * (W - 1) * C
    initial_ptr += batch * (W - 1) * C
    run_ptr += batch * length
    link_ptr += (batch * (segments + 1) + index) * (W - 1)
    after_ptr += (batch * (segments + 1) + index) * (W - 1)
    sum_ptr += (batch * segments + index) * (W + 1) * C
    behind_ptr = behind_ptr + (batch * (segments + 1) + index) * (W - 1) * C if COPIED else gy_ptr
    weights, bias = load_parameters(w_ptr, bias_ptr, w_c, w_k, cols, inside, W, HAS_BIAS)
    places, runs, rows = load_window(
        x_ptr, initial_ptr, run_ptr, link_ptr, first, x_l, cols, inside, C, W, UNIT, HAS_INITIAL, HAS_RUN
    )
    db = tl.zeros((BLOCK,), tl.float32)
    sums = ()
    dws = (db,)
    for _ in tl.static_range(W - 1):
        sums = sums + (db,)
        dws = dws + (db,)
    if index == 0:
        _behind_border(
            x_ptr, behind_ptr, gf_ptr, run_ptr, after_ptr, ds_ptr + (W - 1) * C, first, 1 - W, length,
            places, runs, rows, sums, weights, bias, x_l, gy_l, C, cols, inside, C, W, UNIT, 1, SILU, HAS_RUN, COPIED,
            HAS_FINAL,
        )  # fmt: skip
    steps = (last - first) // STEP
    whole = first + steps * STEP
    x_row, gy_row = row_ptr(x_ptr, first, x_l, UNIT), row_ptr(gy_ptr, first, gy_l, UNIT)
    xs = load_rows(x_row, first, last, x_l, cols, inside, UNIT, STEP)
    gys = load_rows(gy_row, first, last, gy_l, cols, inside, UNIT, STEP)
    codes = load_codes(run_ptr, first, last, STEP, HAS_RUN)
    for step in tl.range(0, steps):
        start = first + step * STEP
        x_row += x_l * (STEP * UNIT)
        gy_row += gy_l * (STEP * UNIT)
        next_xs = load_rows(x_row, start + STEP, last, x_l, cols, inside, UNIT, STEP)
        next_gys = load_rows(gy_row, start + STEP, last, gy_l, cols, inside, UNIT, STEP)
        next_codes = load_codes(run_ptr, start + STEP, last, STEP, HAS_RUN)
        if HAS_RUN and is_mixed(codes, runs, STEP):
            for i in tl.static_range(STEP):
                places, runs, rows, sums, dws, db = _token_gradients(
                    dx_ptr, start + i, codes[i], xs[i], gys[i], places, runs, rows, sums, dws, db, weights, bias,
                    first, dx_l, cols, inside, W, UNIT, SILU, True,
                )  # fmt: skip
        else:
            for i in tl.static_range(STEP):
                places, runs, rows, sums, dws, db = _token_gradients(
                    dx_ptr, start + i, codes[i], xs[i], gys[i], places, runs, rows, sums, dws, db, weights, bias,
                    first, dx_l, cols, inside, W, UNIT, SILU, False,
                )  # fmt: skip
        xs = next_xs
        gys = next_gys
        codes = next_codes
    for rest in tl.range(0, last - whole):
        at = whole + rest
        x = load_rows(row_ptr(x_ptr, at, x_l, UNIT), at, last, x_l, cols, inside, UNIT, 1)[0]
        gy = load_rows(row_ptr(gy_ptr, at, gy_l, UNIT), at, last, gy_l, cols, inside, UNIT, 1)[0]
        code = load_codes(run_ptr, at, last, 1, HAS_RUN)[0]
        places, runs, rows, sums, dws, db = _token_gradients(
            dx_ptr, at, code, x, gy, places, runs, rows, sums, dws, db, weights, bias,
            first, dx_l, cols, inside, W, UNIT, SILU, HAS_RUN,
        )  # fmt: skip
    for i in tl.static_range(W):
        tl.store(sum_ptr + i * C + cols, dws[i], mask=inside)
    tl.store(sum_ptr + W * C + cols, db, mask=inside)
    if COPIED:
        behind_ptr += (W - 1) * C
    _behind_border(
        x_ptr, behind_ptr, gf_ptr, run_ptr, after_ptr + (W - 1), dx_ptr, last, first, length,
        places, runs, rows, sums, weights, bias, x_l, gy_l, dx_l, cols, inside, C, W, UNIT, UNIT, SILU, HAS_RUN, COPIED,
        HAS_FINAL,
    )  # fmt: skip


@triton.jit(do_not_specialize=["length", "segment", "segments"])
def _copy_rows(
    from_ptr, after_ptr, to_ptr, length, segment, segments, from_b, from_l,
    C: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr, HAS_RUN: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)  # of the row among those that are written, (b, borders, W - 1)
    at = index % ((segments + 1) * (W - 1))
    batch = index // ((segments + 1) * (W - 1))
    if HAS_RUN:
        row = tl.load(after_ptr + index)
    else:
        row = at // (W - 1) * segment + at % (W - 1)
    row = tl.minimum(row, length - 1).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < C
    value = tl.load(from_ptr + batch.to(tl.int64) * from_b + row * from_l + cols, mask=inside)
    tl.store(to_ptr + index.to(tl.int64) * C + cols, value, mask=inside)


def _copy_behind(rows: Tensor, after: Tensor | None, width: int, segment: int) -> Tensor:
    """Of rows (b, l, c) the width - 1 behind each border of segments, (b, borders, width - 1, c); for ``after`` see
    :func:`links`. Behind the end stand other rows, which nobody reads."""
    b, l, c = rows.shape
    segments = triton.cdiv(l, segment)
    copy = torch.empty(b, segments + 1, width - 1, c, dtype=rows.dtype, device=rows.device)
    block = min(1024, power_of_two(c))
    launch(_copy_rows, (b * (segments + 1) * (width - 1), triton.cdiv(c, block)),
        rows, rows if after is None else after, copy, l, segment, segments, *rows.stride()[:2],
        C=c, W=width, BLOCK=block, HAS_RUN=after is not None,
    )  # fmt: skip
    return copy


@triton.jit(do_not_specialize=["rows"])
def _sum_weights(sum_ptr, dw_ptr, db_ptr, rows, C: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr):
    """(rows, W + 1, C), summed over rows, to dw (C, W) and db (C,)."""
    ROWS: tl.constexpr = 32
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tap = tl.program_id(1)
    inside = cols < C
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in tl.range(0, rows, ROWS):
        at = start + tl.arange(0, ROWS)
        from_ = (at.to(tl.int64) * (W + 1) + tap)[:, None] * C + cols[None, :]
        total += tl.load(sum_ptr + from_, mask=(at < rows)[:, None] & inside[None, :], other=0.0)
    total = tl.sum(total, 0)
    tl.store(dw_ptr + cols * W + tap, total, mask=inside & (tap < W))
    tl.store(db_ptr + cols, total, mask=inside & (tap == W))


@taped
@on_device_of_first
def backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    activation: bool,
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias in their dtypes (float32 without a bias), and of the initial state in float32.

    ``dx`` (b, l, c) takes the first where it is given: any floating dtype, last stride 1. It may be ``grad_y``, and
    overlaps nothing else.
    """
    b, l, c = x.shape
    width = weight.shape[1]
    x, grad_y = inner_contiguous(x), inner_contiguous(grad_y)
    if dx is None:
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    ds = torch.empty(b, width - 1, c, dtype=torch.float32, device=x.device)
    segment = segment_length("backward", b, l, c)
    segments = triton.cdiv(l, segment)
    sums = torch.empty(b * segments, width + 1, c, dtype=torch.float32, device=x.device)
    codes = link = after = behind = weight
    if seq_idx is not None:
        codes = encode_runs(seq_idx)
        link, after = links(codes, width, segment)
    in_place = dx.data_ptr() == grad_y.data_ptr()
    if in_place and width > 1:
        behind = _copy_behind(grad_y, None if seq_idx is None else after, width, segment)
    strides, unit = row_strides(x, grad_y, dx)
    launch(_backward, (b * segments * triton.cdiv(c, BLOCK),),
        x, grad_y, weight if grad_final is None else grad_final.contiguous(), weight,
        weight if bias is None else bias.contiguous(), weight if initial_state is None else initial_state.contiguous(),
        codes, link, after, behind, dx, ds, sums, l, segment, segments, *strides[:4], *weight.stride(), *strides[4:],
        **options("backward", c, width, unit, activation, bias, initial_state, seq_idx), COPIED=in_place,
        HAS_FINAL=grad_final is not None,
    )  # fmt: skip
    dw = torch.empty(c, width, dtype=weight.dtype, device=x.device)
    db = torch.empty(c, dtype=torch.float32 if bias is None else bias.dtype, device=x.device)
    block = min(128, power_of_two(c))
    launch(_sum_weights, (triton.cdiv(c, block), width + 1), sums, dw, db, b * segments, C=c, W=width, BLOCK=block)
    return dx, dw, db, ds
