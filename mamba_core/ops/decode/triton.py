"""Decode kernels in Triton: one token of each row, the state advanced where it lies.

Mamba-2 takes two launches. ``_scan_heads`` convolves and advances the state, a block of a head's rows to a program; B
and C, which all heads of a group share, are convolved anew in each program, for that is cheaper than another launch. It
only reads the tail of the convolution. ``_finish`` runs when no program reads it any more: it moves the tail on, and
takes the gated norm over all the heads of a group. Mamba-1 has two projections between the convolution and the scan,
and so a launch for each.

Where few rows step in ``triton_gemv.py``, a kernel may start while the one before it still runs (PDL, programmatic
dependent launch; Hopper and later): it fetches what that one does not write, and waits for its results only then. With
64 rows that costs more than it saves (1.60 against 1.50 ms for 24 layers on an H200).

A program that overwrites what it reads has a barrier between: where a block is smaller than its threads, several hold
the same element. How a state is cut into programs changes no sum, so neither does the batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import LOG2_E, clamp, inner_contiguous, on_device_of_first, power_of_two, sigmoid, softplus
from mamba_core.ops.paths import gpu_capability
from mamba_core.ops.tape import launch

PDL = True  # where the GPU can
TILE = 2048  # elements of the state in a program, 16 a thread
FULL = 4096  # programs of these that fill a large GPU with some to spare; where there are more, a program takes in turn
MOST_EACH = 4  # tiles, at most, of
WIDE = 2**13  # bytes of the state, 32 a thread
CHANNELS = 1024  # channels of the convolution in a program


@triton.jit
def _convolve(
    x_ptr, weight_ptr, bias_ptr, tail_ptr, channel, here, CHANNELS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """silu of the convolution of some channels of one row, fp32; x and tail point at the row.

    Taps lie along a second axis, so that a channel's weights come in one load, and no thread holds what others hold.
    """
    TAPS: tl.constexpr = triton.next_power_of_2(WIDTH)
    k = tl.arange(0, TAPS)[None, :]
    at, some = channel[:, None], here[:, None]
    weight = tl.load(weight_ptr + at * WIDTH + k, mask=some & (k < WIDTH), other=0.0).to(tl.float32)
    old = tl.load(tail_ptr + k * CHANNELS + at, mask=some & (k < WIDTH - 1), other=0.0).to(tl.float32)
    new = tl.load(x_ptr + at + k * 0, mask=some & (k == WIDTH - 1), other=0.0).to(tl.float32)
    y = tl.sum((old + new) * weight, 1) + tl.load(bias_ptr + channel, mask=here, other=0.0).to(tl.float32)
    return y * sigmoid(y)


@triton.jit
def shift_tail(x_ptr, tail_ptr, channel, here, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """Move the tail of some channels of one row on by one input: all of it is read before any is written."""
    rows = ()
    for k in tl.static_range(1, WIDTH - 1):
        rows = rows + (tl.load(tail_ptr + k * CHANNELS + channel, mask=here),)
    rows = rows + (tl.load(x_ptr + channel, mask=here).to(tail_ptr.dtype.element_ty),)
    tl.debug_barrier()
    for k in tl.static_range(WIDTH - 1):
        tl.store(tail_ptr + k * CHANNELS + channel, rows[k], mask=here)


@triton.jit
def _rate(A_log_ptr, at, here):
    """-exp(A_log) in base 2; rounded to the parameter's dtype, as it is in a mixer's ``forward``."""
    A_log = tl.load(A_log_ptr + at, mask=here, other=0.0)
    return -tl.exp(A_log.to(tl.float32)).to(A_log.dtype).to(tl.float32) * LOG2_E


@triton.jit
def mark(seq_ptr, row, here):
    """A row that has seen a token is in a document."""
    seq = tl.load(seq_ptr + row, mask=here, other=0)
    tl.store(seq_ptr + row, tl.maximum(seq, 0), mask=here)


@triton.jit
def _scan_heads(
    projected_ptr, weight_ptr, bias_ptr, A_log_ptr, D_ptr, dt_bias_ptr, conv_ptr, ssm_ptr, y_ptr,
    row_stride, low, high,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, EACH: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
    EVICT: tl.constexpr,
):  # fmt: skip
    """y (b, h p) fp32 before the norm, times silu(z) if GATED, and the new ssm. A program takes EACH parts of a head's
    rows, with the next one's state on its way while one is worked on. EVICT: what the L2 cache does with the state."""
    INNER: tl.constexpr = HEADS * P
    CHANNELS: tl.constexpr = INNER + 2 * GROUPS * N
    PARTS: tl.constexpr = (P + BLOCK_P * EACH - 1) // (BLOCK_P * EACH)
    row = tl.program_id(0).to(tl.int64)
    head, part = tl.program_id(1) // PARTS, tl.program_id(1) % PARTS
    group = head // (HEADS // GROUPS)
    rows = part * (BLOCK_P * EACH) + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    in_n = n < N
    ssm_ptr += (row * HEADS + head) * (P * N) + rows[:, None] * N + n[None, :]
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    first = (rows < P)[:, None] & in_n[None, :]
    next_state = tl.load(ssm_ptr, mask=first, other=0.0, eviction_policy=EVICT)  # of the last token: no wait
    if PDL:
        tl.extra.cuda.gdc_wait()
    projected_ptr += row * row_stride
    x_ptr = projected_ptr + INNER
    conv_ptr += row * ((WIDTH - 1) * CHANNELS)
    at_B = INNER + group * N + n
    B = _convolve(x_ptr, weight_ptr, bias_ptr, conv_ptr, at_B, in_n, CHANNELS, WIDTH)
    C = _convolve(x_ptr, weight_ptr, bias_ptr, conv_ptr, at_B + GROUPS * N, in_n, CHANNELS, WIDTH)
    dt = tl.load(x_ptr + CHANNELS + head).to(tl.float32) + tl.load(dt_bias_ptr + head).to(tl.float32)
    dt = clamp(softplus(dt), low, high)
    decay = tl.exp2(dt * _rate(A_log_ptr, head, True))
    D = tl.load(D_ptr + head).to(tl.float32)
    for i in tl.static_range(EACH):
        p = rows + i * BLOCK_P
        in_p = p < P
        inside = in_p[:, None] & in_n[None, :]
        state = next_state.to(tl.float32)
        if i + 1 < EACH:
            ahead = (p + BLOCK_P < P)[:, None] & in_n[None, :]
            next_state = tl.load(ssm_ptr + (i + 1) * (BLOCK_P * N), mask=ahead, other=0.0, eviction_policy=EVICT)
        x = _convolve(x_ptr, weight_ptr, bias_ptr, conv_ptr, head * P + p, in_p, CHANNELS, WIDTH)
        state = state * decay + (x * dt)[:, None] * B[None, :]
        y = tl.sum(state * C[None, :], 1) + x * D
        if GATED:
            z = tl.load(projected_ptr + head * P + p, mask=in_p, other=0.0).to(tl.float32)
            y = y * (z * sigmoid(z))
        tl.debug_barrier()
        tl.store(ssm_ptr + i * (BLOCK_P * N), state, mask=inside, eviction_policy=EVICT)
        tl.store(y_ptr + row * INNER + head * P + p, y, mask=in_p)


@triton.jit
def _finish(
    y_ptr, projected_ptr, norm_ptr, conv_ptr, seq_ptr, out_ptr, row_stride, eps,
    INNER: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gated norm, a group to a program; the programs behind those move the tail of the convolution on."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    SIZE: tl.constexpr = INNER // GROUPS
    projected_ptr += row * row_stride
    if part < GROUPS:
        cols = tl.arange(0, BLOCK)
        here = cols < SIZE
        cols += part * SIZE
        z = tl.load(projected_ptr + cols, mask=here, other=0.0).to(tl.float32)
        weight = tl.load(norm_ptr + cols, mask=here, other=0.0).to(tl.float32)  # on its way with the others
        u = tl.load(y_ptr + row * INNER + cols, mask=here, other=0.0) * z * sigmoid(z)
        scale = tl.rsqrt(tl.sum(u * u, 0) / SIZE + eps)
        tl.store(out_ptr + row * INNER + cols, u * scale * weight, mask=here)
        mark(seq_ptr, row, part == 0)
    else:
        channel = (part - GROUPS) * BLOCK_C + tl.arange(0, BLOCK_C)
        conv_ptr += row * ((WIDTH - 1) * CHANNELS)
        shift_tail(projected_ptr + INNER, conv_ptr, channel, channel < CHANNELS, CHANNELS, WIDTH)


@triton.jit
def _conv_channels(
    x_ptr, weight_ptr, bias_ptr, tail_ptr, y_ptr, x_row,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = channel < CHANNELS
    x_ptr += row * x_row
    tail_ptr += row * ((WIDTH - 1) * CHANNELS)
    y = _convolve(x_ptr, weight_ptr, bias_ptr, tail_ptr, channel, here, CHANNELS, WIDTH)
    tl.store(y_ptr + row * CHANNELS + channel, y, mask=here)
    tl.debug_barrier()
    shift_tail(x_ptr, tail_ptr, channel, here, CHANNELS, WIDTH)


@triton.jit
def _scan_channels(
    x_ptr, dt_ptr, B_ptr, C_ptr, z_ptr, A_log_ptr, D_ptr, bias_ptr, ssm_ptr, seq_ptr, y_ptr,
    x_row, dt_row, B_row, C_row, z_row, low, high,
    CHANNELS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_N)
    here, in_n = channel < CHANNELS, n < N
    inside = here[:, None] & in_n[None, :]
    at = channel[:, None] * N + n[None, :]
    ssm_ptr += row * (CHANNELS * N)
    state = tl.load(ssm_ptr + at, mask=inside, other=0.0).to(tl.float32)
    rate = _rate(A_log_ptr, at, inside)
    x = tl.load(x_ptr + row * x_row + channel, mask=here, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + row * dt_row + channel, mask=here, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + row * z_row + channel, mask=here, other=0.0).to(tl.float32)
    B = tl.load(B_ptr + row * B_row + n, mask=in_n, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + row * C_row + n, mask=in_n, other=0.0).to(tl.float32)
    dt += tl.load(bias_ptr + channel, mask=here, other=0.0).to(tl.float32)
    dt = clamp(softplus(dt), low, high)
    state = state * tl.exp2(dt[:, None] * rate) + (dt * x)[:, None] * B[None, :]
    y = tl.sum(state * C[None, :], 1) + x * tl.load(D_ptr + channel, mask=here, other=0.0).to(tl.float32)
    tl.debug_barrier()
    tl.store(ssm_ptr + at, state, mask=inside)
    tl.store(y_ptr + row * CHANNELS + channel, y * z * sigmoid(z), mask=here)
    mark(seq_ptr, row, tl.program_id(1) == 0)


@on_device_of_first
def mamba2_step(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    dt_min: float,
    dt_max: float,
    conv: Tensor,
    ssm: Tensor,
    seq_idx: Tensor,
) -> Tensor:
    """As :func:`mamba_core.ops.decode.mamba2_step`; conv, ssm and seq_idx are contiguous and advance in place."""
    b, h, p, n = ssm.shape
    channels, width = conv_weight.shape
    groups = (channels - h * p) // (2 * n)
    projected = inner_contiguous(projected)
    conv_weight, conv_bias, norm_weight = (t.contiguous() for t in (conv_weight, conv_bias, norm_weight))
    A_log, D, dt_bias = (t.contiguous() for t in (A_log, D, dt_bias))
    y = torch.empty(b, h * p, dtype=torch.float32, device=projected.device)
    scan_heads(projected, conv_weight, conv_bias, A_log, D, dt_bias, dt_min, dt_max, conv, ssm, y, False, False)
    out = torch.empty(b, h * p, dtype=projected.dtype, device=projected.device)
    block = power_of_two(h * p // groups)
    launch(_finish, (b, groups + triton.cdiv(channels, CHANNELS)),
        y, projected, norm_weight, conv, seq_idx, out, projected.stride(0), norm_eps,
        h * p, channels, groups, width, block, CHANNELS,
        num_warps=_warps(block, 8),
    )  # fmt: skip
    return out


def starts_early(x: Tensor) -> bool:
    """Whether kernels on the GPU of x may start before the one in front of them has ended."""
    return PDL and x.is_cuda and gpu_capability(x.get_device()) >= (9, 0)


def launched(pdl: bool) -> dict[str, bool]:
    """The option of a launch that lets it start early."""
    return {"launch_pdl": True} if pdl else {}


def scan_heads(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_min: float,
    dt_max: float,
    conv: Tensor,
    ssm: Tensor,
    y: Tensor,
    gated: bool,
    pdl: bool,
) -> None:
    """Advance ``ssm`` and write y (b, h p) in float32, see the kernel; all tensors are contiguous but for rows."""
    b, h, p, n = ssm.shape
    channels, width = conv_weight.shape
    groups = (channels - h * p) // (2 * n)
    block_n = power_of_two(n)
    block_p = min(power_of_two(p), max(1, TILE // block_n))
    full = b * h * triton.cdiv(p, block_p) >= FULL
    if full:
        block_p = min(power_of_two(p), max(1, WIDE // ssm.element_size() // block_n))
    parts = triton.cdiv(p, block_p)
    each = min(power_of_two(parts), MOST_EACH) if full else 1
    launch(_scan_heads, (b, h * triton.cdiv(parts, each)),
        projected, conv_weight, conv_bias, A_log, D, dt_bias, conv, ssm, y,
        projected.stride(0), dt_min, dt_max,
        h, groups, p, n, width, block_p, block_n, each, gated, pdl, "evict_first" if full else "",
        num_warps=_warps(block_p * block_n, 32 // ssm.element_size() if full else 16), **launched(pdl),
    )  # fmt: skip


@on_device_of_first
def conv_step(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor) -> Tensor:
    """As :func:`mamba_core.ops.decode.conv_step`; the tail is contiguous and advances in place."""
    b, c = x.shape
    x, weight, bias = inner_contiguous(x), weight.contiguous(), bias.contiguous()
    y = torch.empty(b, c, dtype=x.dtype, device=x.device)
    block = CHANNELS if b * c >= FULL * CHANNELS else 128  # few rows: more programs
    launch(_conv_channels, (b, triton.cdiv(c, block)),
        x, weight, bias, tail, y, x.stride(0), c, weight.shape[1], block, num_warps=_warps(block, 8)
    )  # fmt: skip
    return y


@on_device_of_first
def selective_scan_step(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_min: float,
    dt_max: float,
    ssm: Tensor,
    seq_idx: Tensor,
) -> Tensor:
    """As :func:`mamba_core.ops.decode.selective_scan_step`; ssm and seq_idx are contiguous and advance in place."""
    b, d, n = ssm.shape
    x, dt, B, C, z = (inner_contiguous(t) for t in (x, dt, B, C, z))
    A_log, D, dt_bias = (t.contiguous() for t in (A_log, D, dt_bias))
    block_n = power_of_two(n)
    block = max(1, TILE // 4 // block_n)
    y = torch.empty(b, d, dtype=x.dtype, device=x.device)
    launch(_scan_channels, (b, triton.cdiv(d, block)),
        x, dt, B, C, z, A_log, D, dt_bias, ssm, seq_idx, y,
        *(t.stride(0) for t in (x, dt, B, C, z)), dt_min, dt_max,
        d, n, block, block_n,
        num_warps=_warps(block * block_n, 8),
    )  # fmt: skip
    return y


def _warps(elements: int, a_thread: int) -> int:
    """Warps that leave each thread so many elements, 1 to 16."""
    return min(16, max(1, elements // (32 * a_thread)))
