"""A layer's decode step for few rows, in Triton: three launches, each as long as reading its weights takes.

1. ``_gemv``: norm and the projection into the mixer. Every program takes the norm again, of a vector that lies in
cache.
2. ``_scan_heads`` of ``triton.py``: convolution, scan, gate.
3. ``_gemv``: gated norm, the projection out of the mixer, the residual; some programs move the tail of the convolution.

A program holds some rows of the weights and multiplies them with one row of the batch after the other. Sums are
float32; only what goes to memory is rounded.

If PDL, see ``triton.py``, the weights, which nobody writes, are on their way while the kernel before still runs. So is
the state of 2., which the step before wrote three launches earlier: it must have ended by then. Between the steps of a
stack other kernels run that wait for all before them; where that is not promised (``chained``), 1. waits like them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.decode.triton import CHANNELS, launched, mark, scan_heads, shift_tail
from mamba_core.ops.kernels import on_device_of_first, power_of_two
from mamba_core.ops.tape import launch, taped

ROWS = (8, 4)  # of the weights in a program: where there are many, and few
FEW = 2048
TILE = 2**15  # bytes of weights in a program, at most
BLOCK_K = 1024  # columns at a time
WARPS = 4


@triton.jit
def _gemv(
    x_ptr, norm_ptr, weight_ptr, residual_ptr, out_ptr, projected_ptr, conv_ptr, seq_ptr, eps, x_row, projected_row,
    B: tl.constexpr, R: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, TAIL: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out (b, R) = residual + W (R, K) norm(x (b, K)); if TAIL, the programs behind those move the tail on."""
    PROGRAMS: tl.constexpr = (R + ROWS - 1) // ROWS
    TURNS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    pid = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if pid < PROGRAMS:
        row = pid * ROWS + tl.arange(0, ROWS)
        some = row < R
        k = tl.arange(0, BLOCK_K)
        tiles = ()
        for turn in tl.static_range(TURNS):
            col = turn * BLOCK_K + k
            inside = some[:, None] & (col < K)[None, :]
            at = weight_ptr + row.to(tl.int64)[:, None] * K + col[None, :]
            tiles = tiles + (tl.load(at, mask=inside, other=0.0),)
        if PDL:
            tl.extra.cuda.gdc_wait()
        for b in tl.static_range(B):
            square = tl.zeros((BLOCK_K,), tl.float32)
            total = tl.zeros((ROWS, BLOCK_K), tl.float32)
            for turn in tl.static_range(TURNS):
                col = turn * BLOCK_K + k
                x = tl.load(x_ptr + b * x_row + col, mask=col < K, other=0.0).to(tl.float32)
                if NORM:
                    square += x * x
                    x = x * tl.load(norm_ptr + col, mask=col < K, other=0.0).to(tl.float32)
                total += tiles[turn].to(tl.float32) * x[None, :]
            y = tl.sum(total, 1)
            if NORM:
                y = y * tl.rsqrt(tl.sum(square, 0) / K + eps)
            if RESIDUAL:
                y += tl.load(residual_ptr + b * R + row, mask=some, other=0.0).to(tl.float32)
            tl.store(out_ptr + b * R + row, y, mask=some)
    if TAIL:  # noqa: SIM102 - one is known to the compiler
        if pid >= PROGRAMS:
            if PDL:
                tl.extra.cuda.gdc_wait()
            PARTS: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
            batch = ((pid - PROGRAMS) // PARTS).to(tl.int64)
            part = (pid - PROGRAMS) % PARTS
            channel = part * BLOCK_C + tl.arange(0, BLOCK_C)
            shift_tail(
                projected_ptr + batch * projected_row, conv_ptr + batch * ((WIDTH - 1) * CHANNELS), channel,
                channel < CHANNELS, CHANNELS, WIDTH,
            )  # fmt: skip
            mark(seq_ptr, batch, part == 0)


def gemv(
    x: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    weight: Tensor,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
    tail: tuple[Tensor, Tensor, Tensor] | None = None,
    pdl: bool = False,
    early: bool = True,
) -> Tensor:
    """weight (r, k) times the norm of each row of x (b, k), plus residual (b, r), in ``dtype``.

    ``tail`` moves on too: what comes in (b, channels), the tail (b, width - 1, channels), and seq_idx (b,). With
    ``pdl`` the next kernel may start early, and so may this one if ``early``.
    """
    b, k = x.shape
    r = len(weight)
    out = torch.empty(b, r, dtype=dtype or x.dtype, device=x.device)
    block_k = min(BLOCK_K, power_of_two(k))
    rows = max(1, min(ROWS[r <= FEW], TILE // (power_of_two(k) * weight.element_size())))
    programs = triton.cdiv(r, rows)
    came, conv, seq_idx = (x, x, x) if tail is None else tail
    channels, width = (1, 1) if tail is None else (conv.shape[2], conv.shape[1] + 1)
    block = min(CHANNELS, power_of_two(channels))
    grid = programs + (0 if tail is None else b * triton.cdiv(channels, block))
    launch(_gemv, (grid,),
        x, weight if norm_weight is None else norm_weight, weight, x if residual is None else residual, out,
        came, conv, seq_idx, eps, x.stride(0), came.stride(0),
        B=b, R=r, K=k, ROWS=rows, BLOCK_K=block_k, NORM=norm_weight is not None, RESIDUAL=residual is not None,
        TAIL=tail is not None, CHANNELS=channels, WIDTH=width, BLOCK_C=block, PDL=pdl,
        num_warps=WARPS, **launched(pdl and early),
    )  # fmt: skip
    return out


@taped
@on_device_of_first
def mamba2_layer_step(
    x: Tensor,
    norm_weight: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    gate_weight: Tensor,
    out_weight: Tensor,
    conv: Tensor,
    ssm: Tensor,
    seq_idx: Tensor,
    norm_eps: float,
    gate_eps: float,
    dt_min: float,
    dt_max: float,
    pdl: bool,
    chained: bool,
) -> Tensor:
    """x + mixer(norm(x)) of Mamba-2 with one group, for x (b, d_model); conv, ssm and seq_idx advance in place."""
    b, h, p, _ = ssm.shape
    projected = gemv(x, norm_weight, norm_eps, in_weight, pdl=pdl, early=chained)
    u = torch.empty(b, h * p, dtype=torch.float32, device=x.device)
    scan_heads(projected, conv_weight, conv_bias, A_log, D, dt_bias, dt_min, dt_max, conv, ssm, u, True, pdl)
    tail = (projected[:, h * p :], conv, seq_idx)
    return gemv(u, gate_weight, gate_eps, out_weight, x, x.dtype, tail, pdl)
