"""Causal depthwise convolution for GPUs, in Triton: each row is read and written once.

A program holds a block of channels and walks along a segment of tokens with the last width - 1 rows in registers (the
window). Packed documents cost no other walk: a window row counts for tokens of its own run only, and padding leaves the
window as it is. Only the rows around the borders of segments are looked up beforehand (:func:`links`). Positions before
the sequence, -1 down to -(width - 1), stand for the rows of the initial state.

How shapes are cut into programs depends on the shapes alone.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import encode_runs, inner_contiguous, on_device_of_first, power_of_two, run_of, sigmoid
from mamba_core.ops.tape import launch, taped

BLOCK = 256  # channels of a program: one warp, 16 bytes a thread in bf16
STEP = {"forward": 4, "backward": 4}  # tokens that are fetched together, while those before are worked on
# Programs aimed at. The forward has several waves of them. The backward has one, 8 a multiprocessor of a large GPU, for
# each of its programs writes a partial sum of width + 1 rows.
PROGRAMS = {"forward": 8192, "backward": 1056}
SEGMENT = {"forward": (32, 256), "backward": (32, 1024)}  # fewest and most tokens of a program


@triton.jit
def push(entries, new, real, ALWAYS: tl.constexpr):
    """Entries without the oldest, the new one behind; unchanged where ``real`` is false."""
    longer = entries + (new,)
    pushed = longer[1:]
    if not ALWAYS:
        pushed = ()
        for i in tl.static_range(len(entries)):
            pushed = pushed + (tl.where(real, longer[i + 1], longer[i]),)
    return pushed


@triton.jit
def row_ptr(ptr, at, stride, UNIT: tl.constexpr):
    """Where row ``at`` begins; strides count in UNITs."""
    return ptr + at.to(tl.int64) * stride * UNIT


@triton.jit
def load_rows(ptr, first, end, stride, cols, inside, UNIT: tl.constexpr, STEP: tl.constexpr):
    """STEP rows, as they are stored, the first of which, row ``first``, begins at ``ptr``; 0 from row ``end`` on."""
    rows = ()
    for i in tl.static_range(STEP):
        rows = rows + (tl.load(ptr + stride * (i * UNIT) + cols, mask=inside & (first + i < end), other=0.0),)
    return rows


@triton.jit
def load_codes(run_ptr, first, end, STEP: tl.constexpr, HAS_RUN: tl.constexpr):
    """The codes (``encode_runs``) of STEP tokens from ``first`` on; 0 without documents and from ``end`` on."""
    codes = ()
    for i in tl.static_range(STEP):
        at = first + i
        codes = codes + (tl.load(run_ptr + at, mask=at < end, other=0) if HAS_RUN else at * 0,)
    return codes


@triton.jit
def is_mixed(codes, runs, STEP: tl.constexpr):
    """Whether there is padding, or more than one run, among the next tokens and the window."""
    mixed = codes[0] < 0
    for i in tl.static_range(1, STEP):
        mixed |= codes[i] != codes[0]
    for i in tl.static_range(len(runs)):
        mixed |= runs[i] != codes[0]
    return mixed


@triton.jit
def load_window(
    x_ptr, initial_ptr, run_ptr, link_ptr, end, x_l, cols, inside,
    C: tl.constexpr, W: tl.constexpr, UNIT: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_RUN: tl.constexpr,
):  # fmt: skip
    """Positions, runs and fp32 rows of the last W - 1 tokens before ``end``, oldest first."""
    places = ()
    runs = ()
    rows = ()
    for i in tl.static_range(W - 1):
        at = end - (W - 1) + i
        run = at * 0
        if HAS_RUN:
            at = tl.load(link_ptr + i)
            run = tl.load(run_ptr + at, mask=at >= 0, other=0)
        row = tl.load(row_ptr(x_ptr, at, x_l, UNIT) + cols, mask=inside & (at >= 0), other=0.0).to(tl.float32)
        if HAS_INITIAL:
            earlier = tl.load(initial_ptr + (at + W - 1) * C + cols, mask=inside & (at < 0), other=0.0)
            row = tl.where(at < 0, earlier.to(tl.float32), row)
        places = places + (at,)
        runs = runs + (run,)
        rows = rows + (row,)
    return places, runs, rows


@triton.jit
def load_parameters(w_ptr, bias_ptr, w_c, w_k, cols, inside, W: tl.constexpr, HAS_BIAS: tl.constexpr):
    """W rows of weights, oldest tap first, and the bias, in fp32."""
    weights = ()
    for i in tl.static_range(W):
        weights = weights + (tl.load(w_ptr + cols * w_c + i * w_k, mask=inside, other=0.0).to(tl.float32),)
    bias = weights[0] * 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    return weights, bias


@triton.jit
def seen_rows(runs, rows, run, HAS_RUN: tl.constexpr):
    """The rows of the window as a token of this run sees them: 0 where they are another's (they may be infinite)."""
    seen = rows
    if HAS_RUN:
        seen = ()
        for i in tl.static_range(len(rows)):
            seen = seen + (tl.where(runs[i] == run, rows[i], 0.0),)
    return seen


@triton.jit
def convolve(weights, bias, seen, x, W: tl.constexpr):
    total = bias + weights[W - 1] * x
    for i in tl.static_range(W - 1):
        total += weights[i] * seen[i]
    return total


@triton.jit
def _output(
    y_row, code, x, runs, rows, weights, bias, cols, inside,
    W: tl.constexpr, SILU: tl.constexpr, HAS_RUN: tl.constexpr,
):  # fmt: skip
    """Write one token's output; the window behind it."""
    x = x.to(tl.float32)
    run = run_of(code)
    y = convolve(weights, bias, seen_rows(runs, rows, run, HAS_RUN), x, W)
    if SILU:
        y = y * sigmoid(y)
    if HAS_RUN:
        y = tl.where(code >= 0, y, 0.0)
    tl.store(y_row + cols, y, mask=inside)
    return push(runs, run, code >= 0, not HAS_RUN), push(rows, x, code >= 0, not HAS_RUN)


@triton.jit
def _outputs(
    y_row, y_l, codes, xs, runs, rows, weights, bias, cols, inside,
    W: tl.constexpr, UNIT: tl.constexpr, STEP: tl.constexpr, SILU: tl.constexpr, HAS_RUN: tl.constexpr,
):  # fmt: skip
    """Write the outputs of STEP tokens; the window behind them."""
    for i in tl.static_range(STEP):
        to = y_row + y_l * (i * UNIT)
        runs, rows = _output(to, codes[i], xs[i], runs, rows, weights, bias, cols, inside, W, SILU, HAS_RUN)
    return runs, rows


@triton.jit(do_not_specialize=["length", "segment", "segments", "x_b", "x_l", "y_b", "y_l"])
def _forward(
    x_ptr, w_ptr, bias_ptr, initial_ptr, run_ptr, link_ptr, y_ptr, final_ptr,
    length, segment, segments, x_b, x_l, w_c, w_k, y_b, y_l,
    C: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, UNIT: tl.constexpr,
    SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_RUN: tl.constexpr,
):  # fmt: skip
    BLOCKS: tl.constexpr = (C + BLOCK - 1) // BLOCK
    part, index = tl.program_id(0) % BLOCKS, (tl.program_id(0) // BLOCKS) % segments
    batch = (tl.program_id(0) // BLOCKS // segments).to(tl.int64)
    first = index * segment
    last = tl.minimum(first + segment, length)
    cols = part * BLOCK + tl.arange(0, BLOCK)
    inside = cols < C
    x_l, y_l = x_l.to(tl.int64), y_l.to(tl.int64)
    x_ptr += batch * x_b * UNIT
    y_ptr += batch * y_b * UNIT
    initial_ptr += batch * (W - 1) * C
    run_ptr += batch * length
    link_ptr += (batch * (segments + 1) + index) * (W - 1)
    weights, bias = load_parameters(w_ptr, bias_ptr, w_c, w_k, cols, inside, W, HAS_BIAS)
    _, runs, rows = load_window(
        x_ptr, initial_ptr, run_ptr, link_ptr, first, x_l, cols, inside, C, W, UNIT, HAS_INITIAL, HAS_RUN
    )
    steps = (last - first) // STEP
    whole = first + steps * STEP
    x_row, y_row = row_ptr(x_ptr, first, x_l, UNIT), row_ptr(y_ptr, first, y_l, UNIT)
    xs = load_rows(x_row, first, last, x_l, cols, inside, UNIT, STEP)
    codes = load_codes(run_ptr, first, last, STEP, HAS_RUN)
    for step in tl.range(0, steps):
        start = first + step * STEP
        x_row += x_l * (STEP * UNIT)
        next_xs = load_rows(x_row, start + STEP, last, x_l, cols, inside, UNIT, STEP)
        next_codes = load_codes(run_ptr, start + STEP, last, STEP, HAS_RUN)
        if HAS_RUN and W > 1:  # W 1 has no window, and Triton no branch without a result
            if is_mixed(codes, runs, STEP):
                runs, rows = _outputs(
                    y_row, y_l, codes, xs, runs, rows, weights, bias, cols, inside, W, UNIT, STEP, SILU, True
                )
            else:
                runs, rows = _outputs(
                    y_row, y_l, codes, xs, runs, rows, weights, bias, cols, inside, W, UNIT, STEP, SILU, False
                )
        else:
            runs, rows = _outputs(
                y_row, y_l, codes, xs, runs, rows, weights, bias, cols, inside, W, UNIT, STEP, SILU, HAS_RUN
            )
        xs = next_xs
        codes = next_codes
        y_row += y_l * (STEP * UNIT)
    for rest in tl.range(0, last - whole):
        at = whole + rest
        x = load_rows(row_ptr(x_ptr, at, x_l, UNIT), at, last, x_l, cols, inside, UNIT, 1)[0]
        code = load_codes(run_ptr, at, last, 1, HAS_RUN)[0]
        runs, rows = _output(
            row_ptr(y_ptr, at, y_l, UNIT), code, x, runs, rows, weights, bias, cols, inside, W, SILU, HAS_RUN
        )
    if index == segments - 1:
        final_ptr += batch * (W - 1) * C
        _, runs, rows = load_window(
            x_ptr, initial_ptr, run_ptr, link_ptr + (W - 1), length, x_l, cols, inside,
            C, W, UNIT, HAS_INITIAL, HAS_RUN,
        )  # fmt: skip
        if W > 1:
            rows = seen_rows(runs, rows, runs[W - 2], HAS_RUN)
        for i in tl.static_range(W - 1):
            tl.store(final_ptr + i * C + cols, rows[i], mask=inside)


def links(codes: Tensor, width: int, segment: int) -> tuple[Tensor, Tensor]:
    """The width - 1 real tokens before and behind each border of segments, (b, borders, width - 1) int32, oldest first.

    Where too few real tokens come before, the last rows of the initial state stand for them; l stands for too few
    behind.
    """
    b, l = codes.shape
    count = torch.cat([codes.new_zeros(b, 1), (codes >= 0).cumsum(1, dtype=torch.int32)], dim=1)  # real ones before
    borders = torch.arange(0, l + segment, segment, device=codes.device).clamp(max=l)
    order = torch.arange(1, width, dtype=torch.int32, device=codes.device)
    rank = count[:, borders, None]  # of the last real token before the border, from 1
    before = rank - order.flip(0) + 1
    found = torch.searchsorted(count, torch.cat([before, rank + order], dim=2).flatten(1), out_int32=True) - 1
    found_before, after = found.view(b, len(borders), 2, width - 1).unbind(2)
    return torch.where(before > 0, found_before, before - 1).contiguous(), after.contiguous()


def segment_length(direction: str, b: int, l: int, c: int) -> int:
    """Tokens of a program."""
    wanted = max(1, PROGRAMS[direction] // (b * triton.cdiv(c, BLOCK)))
    step, (fewest, most) = STEP[direction], SEGMENT[direction]
    return triton.cdiv(min(max(fewest, triton.cdiv(l, wanted)), most), step) * step


def row_strides(*tensors: Tensor) -> tuple[list[int], int]:
    """Batch and row strides of (b, l, c) tensors, in a unit that divides them all.

    Triton looks for multiples of 16 only; rows of 8 bf16 numbers are aligned as well.
    """
    strides = [
        stride if size > 1 else 0 for t in tensors for size, stride in zip(t.shape[:2], t.stride()[:2], strict=True)
    ]
    unit = math.gcd(16, *strides)
    return [stride // unit for stride in strides], unit


@taped
@on_device_of_first
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    activation: bool,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs (b, l, c) in x's dtype and the final tail (b, width - 1, c) in float32.

    ``out`` (b, l, c) takes the outputs where it is given: any floating dtype, last stride 1, no overlap with x.
    """
    b, l, c = x.shape
    width = weight.shape[1]
    x = inner_contiguous(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    final = torch.empty(b, width - 1, c, dtype=torch.float32, device=x.device)
    segment = segment_length("forward", b, l, c)
    segments = triton.cdiv(l, segment)
    codes = link = weight
    if seq_idx is not None:
        codes = encode_runs(seq_idx)
        link, _ = links(codes, width, segment)
    strides, unit = row_strides(x, y)
    launch(_forward, (b * segments * triton.cdiv(c, BLOCK),),
        x, weight, weight if bias is None else bias.contiguous(),
        weight if initial_state is None else initial_state.contiguous(), codes, link, y, final,
        l, segment, segments, *strides[:2], *weight.stride(), *strides[2:],
        **options("forward", c, width, unit, activation, bias, initial_state, seq_idx),
    )  # fmt: skip
    return y, final


def options(
    direction: str,
    c: int,
    width: int,
    unit: int,
    activation: bool,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> dict[str, int]:
    """The compile-time arguments that both directions share."""
    return {
        "C": c,
        "W": width,
        "BLOCK": min(BLOCK, power_of_two(c, 32)),
        "STEP": STEP[direction],
        "UNIT": unit,
        "SILU": activation,
        "HAS_BIAS": bias is not None,
        "HAS_INITIAL": initial_state is not None,
        "HAS_RUN": seq_idx is not None,
        "num_warps": 1,
    }
