"""The operations of mixers over one slice of a sequence that lies on many ranks.

A scan is linear in (x, state). So each slice is scanned from a zero state, and what the state that enters contributes
is added when :mod:`mamba_core.mixers.split` has told it:

* Mamba-2 on a GPU: the exchange stands between the kernels (:mod:`mamba_core.mixers.split_kernels`): none runs twice.
* ssd elsewhere: ``y_t += C_t exp(sum of dt A up to t) h``, a matrix product and a scaling, no second scan.
* selective_scan: every channel has decays of its own for every element of the state, and no product serves them all: a
  second scan, with x = 0.

The additions end where the entering state has decayed to 0 in every head or channel: behind that they would add zeros.
To know that place the host waits for the device once a layer. Exponents are sums of non-positive numbers, so nothing
overflows, and an underflow to 0 is right.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mamba_core.mixers.split import Slice
from mamba_core.mixers.split_kernels import mamba2_inner_triton
from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.gated_rms_norm import gated_rms_norm
from mamba_core.ops.paths import Path, choose_path
from mamba_core.ops.selective_scan import selective_scan
from mamba_core.ops.ssd import ssd

BLOCK = 16384  # tokens worked on at a time where something as large as y would be written down


def split_conv1d(own: Slice, x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`mamba_core.ops.causal_conv1d.causal_conv1d`; both tails are those of the whole sequence."""
    entering, after = own.pass_tail(tail, *own.ends(x, weight.shape[1] - 1))
    y, _ = causal_conv1d(x, weight, bias, entering, own.seq_idx)
    return y, after


def split_mamba2_inner(
    own: Slice,
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    *,
    groups: int,
    norm_eps: float,
    dt_limit: tuple[float, float],
    path: Path | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`mamba_core.ops.mamba2_inner.mamba2_inner`; the states are those of the whole sequence."""
    weights = (conv_weight, conv_bias, A, D, dt_bias, norm_weight)
    if choose_path("mamba2_inner", projected, path) == "triton":
        return mamba2_inner_triton(own, projected, *weights, conv_state, ssm_state, groups, norm_eps, dt_limit)
    heads, inner, channels = len(A), len(norm_weight), len(conv_weight)
    z, xBC, dt = projected.split([inner, channels, heads], dim=-1)
    xBC, conv_state = split_conv1d(own, xBC, conv_weight, conv_bias, conv_state)
    wide = (channels - inner) // 2
    x, B, C = xBC.split([inner, wide, wide], dim=-1)
    x, B, C = x.unflatten(-1, (heads, -1)), B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1))
    y, ssm_state = split_ssd(own, x, dt, A, B, C, D, dt_bias, ssm_state, dt_limit)
    return gated_rms_norm(y.flatten(-2), z, norm_weight, norm_eps, inner // groups), conv_state, ssm_state


def split_ssd(
    own: Slice,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    dt_limit: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """As :func:`mamba_core.ops.ssd.ssd`; both states are those of the whole sequence."""
    y, final = ssd(x, dt, A, B, C, D=D, dt_bias=dt_bias, seq_idx=own.seq_idx, dt_limit=dt_limit)
    steps = _time_steps(dt, own.padding, dt_bias, dt_limit)  # (b, l, h)
    decays = (steps * A).cumsum(1, dtype=torch.float64).exp().to(final.dtype)
    total = decays[:, -1, :, None, None]
    if own.later is not None:
        decays = decays.masked_fill(own.later[..., None], 0.0)  # so that the reading ends there
        C = C.masked_fill(own.later[..., None, None], 0.0)  # 0 times whatever stands at padding is not 0
    entering, after = own.pass_on(state, final, total)
    return _Read.apply(y, C, decays, entering), after


def split_selective_scan(
    own: Slice,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    dt_limit: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """As :func:`mamba_core.ops.selective_scan.selective_scan`; both states are those of the whole sequence."""
    y, final = selective_scan(x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, seq_idx=own.seq_idx, dt_limit=dt_limit)
    times = _block_times(own, dt, dt_bias, dt_limit)  # (b, blocks, d)
    entering, after = own.pass_on(state, final, (times.sum(1)[..., None] * A).exp())
    reach = _blocks_reached(times, A) * BLOCK
    seq_idx = None if own.seq_idx is None else own.seq_idx[:, :reach]
    dt, B, C, z = (tensor[:, :reach] for tensor in (dt, B, C, z))
    read, _ = selective_scan(
        torch.zeros_like(x[:, :reach]),
        dt,
        A,
        B,
        C,
        z=z,
        dt_bias=dt_bias,
        initial_state=entering,
        seq_idx=seq_idx,
        dt_limit=dt_limit,
    )
    y[:, :reach] += read
    return y, after


def _block_times(own: Slice, dt: Tensor, dt_bias: Tensor, dt_limit: tuple[float, float]) -> Tensor:
    """The time steps, summed in blocks of BLOCK tokens: (b, l, d) -> (b, blocks, d). They are not kept."""
    parts = dt.split(BLOCK, dim=1)
    padding = [None] * len(parts) if own.padding is None else own.padding.split(BLOCK, dim=1)
    sums = [
        checkpoint(_sum_of_steps, *pair, dt_bias, dt_limit, use_reentrant=False, preserve_rng_state=False)
        for pair in zip(parts, padding, strict=True)
    ]
    return torch.stack(sums, dim=1)


def _sum_of_steps(dt: Tensor, padding: Tensor | None, dt_bias: Tensor, dt_limit: tuple[float, float]) -> Tensor:
    return _time_steps(dt, padding, dt_bias, dt_limit).sum(1)


def _time_steps(dt: Tensor, padding: Tensor | None, dt_bias: Tensor, dt_limit: tuple[float, float]) -> Tensor:
    """(b, l, h) raw -> the time steps in the working dtype; 0 at padding."""
    if padding is not None:
        dt = dt.masked_fill(padding[..., None], 0.0)
    steps = F.softplus(dt.to(working_dtype(dt)) + dt_bias)
    if dt_limit != (0.0, math.inf):
        steps = steps.clamp(*dt_limit)
    return steps if padding is None else steps.masked_fill(padding[..., None], 0.0)


@torch.no_grad()
def _blocks_reached(times: Tensor, A: Tensor) -> int:
    """How many of the first blocks an entering state reaches before it is 0; at least 1.

    Args:
        times: (b, blocks, d) sums of time steps.
        A: (d, n).
    """
    before = times.cumsum(1, dtype=torch.float64) - times
    left = (before * A.amax(-1)).exp().to(times.dtype)  # of the slowest element, at the start of each block
    return max(1, int((left > 0).any(-1).any(0).sum()))  # waits for the device


class _Read(torch.autograd.Function):
    """Add to y, in place, what an entering state contributes: ``y_t += decay_t C_t . h``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, C: Tensor, decays: Tensor, state: Tensor) -> Tensor:
        """y (b, l, h, p), C (b, l, g, n), decays (b, l, h) from before the slice to t, state (b, h, p, n)."""
        alive = (decays > 0).any(-1).any(0)
        behind = torch.arange(1, len(alive) + 1, device=alive.device)
        ctx.reach = int((alive * behind).max())  # tokens, the last that the state reaches; waits for the device
        ctx.save_for_backward(C, decays[:, : ctx.reach].clone(), state)
        ctx.mark_dirty(y)
        weights = _by_group(state, C)
        for block in _blocks(ctx.reach):
            read = torch.einsum("blgn,bgkn->blgk", C[:, block], weights).reshape(y[:, block].shape)
            y[:, block] += read * decays[:, block, :, None]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        C, decays, state = ctx.saved_tensors
        grad_y = grads[0]
        weights = _by_group(state, C)
        grad_C = torch.zeros_like(C)
        grad_decays = decays.new_zeros(grad_y.shape[:3])
        grad_weights = torch.zeros_like(weights, dtype=state.dtype)
        for block in _blocks(ctx.reach):
            read = torch.einsum("blgn,bgkn->blgk", C[:, block], weights).reshape(grad_y[:, block].shape)
            grad_decays[:, block] = (grad_y[:, block] * read).sum(-1, dtype=state.dtype)
            grad = (grad_y[:, block] * decays[:, block, :, None]).to(C.dtype).unflatten(2, (C.shape[2], -1)).flatten(3)
            grad_C[:, block] = torch.einsum("blgk,bgkn->blgn", grad, weights)
            grad_weights += torch.einsum("blgk,blgn->bgkn", grad, C[:, block])
        return grad_y, grad_C, grad_decays, grad_weights.view_as(state)


def _by_group(state: Tensor, C: Tensor) -> Tensor:
    """(b, h, p, n) -> (b, g, heads of a group x p, n) in the dtype of C, which the kernels read a state in, too."""
    return state.to(C.dtype).unflatten(1, (C.shape[2], -1)).flatten(2, 3)


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
