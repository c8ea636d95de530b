"""One token of S4D in Triton: discretisation, state, output and gelu in one launch, the state advanced where it lies.

Whoever trains discretises in float64 (:mod:`mamba_core.ops.s4d.chunked`), for a pole that turns many times within its
memory keeps its phase only so. The same is done here for every token: next to a launch it costs nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import inner_contiguous, on_device_of_first, power_of_two
from mamba_core.ops.tape import launch

TILE = 256  # pairs of the state in a program
SQRT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit
def _step(
    x_ptr, log_dt_ptr, A_log_ptr, A_imag_ptr, C_ptr, D_ptr, ssm_ptr, seq_ptr, y_ptr, x_row,
    CHANNELS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_N)
    here = channel < CHANNELS
    inside = here[:, None] & (n < N)[None, :]
    at = channel[:, None] * N + n[None, :]
    dt = tl.exp(tl.load(log_dt_ptr + channel, mask=here, other=0.0).to(tl.float64))[:, None]
    A_log = tl.load(A_log_ptr + at, mask=inside, other=0.0)
    A_re = -tl.exp(A_log.to(tl.float32)).to(A_log.dtype).to(tl.float64)  # rounded as in the mixer's ``forward``
    A_im = tl.load(A_imag_ptr + at, mask=inside, other=0.0).to(tl.float64)
    size = tl.exp(dt * A_re)
    decay_re, decay_im = size * tl.cos(dt * A_im), size * tl.sin(dt * A_im)
    norm = A_re * A_re + A_im * A_im
    B_re = (((decay_re - 1.0) * A_re + decay_im * A_im) / norm).to(tl.float32)
    B_im = ((decay_im * A_re - (decay_re - 1.0) * A_im) / norm).to(tl.float32)
    decay_re, decay_im = decay_re.to(tl.float32), decay_im.to(tl.float32)
    x = tl.load(x_ptr + row * x_row + channel, mask=here, other=0.0).to(tl.float32)
    ssm_ptr += row * (CHANNELS * N * 2)
    old_re = tl.load(ssm_ptr + 2 * at, mask=inside, other=0.0).to(tl.float32)
    old_im = tl.load(ssm_ptr + 2 * at + 1, mask=inside, other=0.0).to(tl.float32)
    new_re = decay_re * old_re - decay_im * old_im + B_re * x[:, None]
    new_im = decay_re * old_im + decay_im * old_re + B_im * x[:, None]
    C_re = tl.load(C_ptr + 2 * at, mask=inside, other=0.0).to(tl.float32)
    C_im = tl.load(C_ptr + 2 * at + 1, mask=inside, other=0.0).to(tl.float32)
    y = 2.0 * tl.sum(C_re * new_re - C_im * new_im, 1)
    y += tl.load(D_ptr + channel, mask=here, other=0.0).to(tl.float32) * x
    tl.debug_barrier()  # where several threads hold an element
    tl.store(ssm_ptr + 2 * at, new_re, mask=inside)
    tl.store(ssm_ptr + 2 * at + 1, new_im, mask=inside)
    tl.store(y_ptr + row * CHANNELS + channel, 0.5 * y * (1.0 + tl.erf(y * SQRT_HALF)), mask=here)
    if tl.program_id(1) == 0:
        tl.store(seq_ptr + row, tl.maximum(tl.load(seq_ptr + row), 0))


@on_device_of_first
def s4d_step(
    x: Tensor, log_dt: Tensor, A_log: Tensor, A_imag: Tensor, C: Tensor, D: Tensor, ssm: Tensor, seq_idx: Tensor
) -> Tensor:
    """As :func:`mamba_core.ops.decode.s4d_step`; ssm and seq_idx are contiguous and advance in place."""
    b, h, n, _ = ssm.shape
    x = inner_contiguous(x)
    log_dt, A_log, A_imag, C, D = (t.contiguous() for t in (log_dt, A_log, A_imag, C, D))
    block_n = power_of_two(n)
    block = max(1, TILE // block_n)
    y = torch.empty(b, h, dtype=x.dtype, device=x.device)
    launch(_step, (b, triton.cdiv(h, block)),
        x, log_dt, A_log, A_imag, C, D, ssm, seq_idx, y, x.stride(0), h, n, block, block_n, num_warps=4
    )  # fmt: skip
    return y
