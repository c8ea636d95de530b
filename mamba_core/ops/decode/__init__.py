"""Decode: one token of each row, with the state where it is. The public functions and the choice of path.

What a mixer does between two of its projections is one call here, and one or two kernels on a GPU. Each function
returns its output and the state after the token; with ``in_place`` that state is written over the one that was given
(and is the same tensors), with the same bits. The kernels have no backward: where autograd is to follow, the reference
in plain PyTorch runs instead.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mamba_core.ops import paths
from mamba_core.ops.arguments import check_arguments, check_extent, check_limit
from mamba_core.ops.decode import operators, reference
from mamba_core.ops.direct import is_plain, is_plain_projection

__all__ = [
    "conv_step",
    "layer_step_runs",
    "mamba2_layer_step",
    "mamba2_step",
    "s4d_step",
    "selective_scan_step",
]

# Rows of a batch whose layers step in kernels of their own. On an H200 24 layers of Mamba-2 take 0.35 ms for one row
# and 0.98 for eight: a row adds 0.08, and three take as long as matrix products do.
MOST_ROWS = 2


def conv_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    tail: Tensor,
    *,
    in_place: bool = False,
    path: paths.Path | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of :func:`mamba_core.ops.causal_conv1d`: silu of a short causal filter for each channel.

    Args:
        x: (b, c) any floating dtype; may be strided.
        weight: (c, width), the newest input's weight last. bias: (c,).
        tail: (b, width - 1, c), the last inputs, oldest first.
        in_place: write the new tail over ``tail``.
        path: force "reference" or "triton".

    Returns:
        y (b, c) in x's dtype, and the tail after it.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, or a path that cannot run here.
    """
    b, c = x.shape
    width = weight.shape[-1]
    check_extent("conv_step", b, 1)
    check_arguments(
        "conv_step", x.device, {"weight": (weight, (c, width)), "bias": (bias, (c,)), "tail": (tail, (b, width - 1, c))}
    )
    inputs = (x, weight, bias)
    y, after = _advance("conv_step", reference.conv_step, operators.conv_step, inputs, (tail,), in_place, path)
    return y, after


def selective_scan_step(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    ssm: Tensor,
    seq_idx: Tensor,
    *,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    in_place: bool = False,
    path: paths.Path | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One token of :func:`mamba_core.ops.selective_scan` (Gu & Dao 2023, arXiv:2312.00752, section 3), one group.

    Args:
        x: (b, d) any floating dtype; may be strided, as may dt, B, C and z.
        dt: (b, d) raw time steps.
        B, C: (b, n) input and output weights.
        z: (b, d) gate.
        A_log: (d, n), A = -exp(A_log).
        D: (d,) skip weight. dt_bias: (d,) added to dt, before softplus.
        ssm: (b, d, n) state.
        seq_idx: (b,) integer index of the last document; -1, no token yet, becomes 0.
        dt_limit: (low, high) limits of the time step.
        in_place: write the new state over ``ssm`` and ``seq_idx``.
        path: force "reference" or "triton".

    Returns:
        y (b, d) in x's dtype, and ssm and seq_idx after it.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, or a path that cannot run here.
    """
    b, d = x.shape
    n = A_log.shape[-1]
    check_extent("selective_scan_step", b, 1)
    check_limit("selective_scan_step", dt_limit)
    check_arguments(
        "selective_scan_step",
        x.device,
        {
            "dt": (dt, (b, d)),
            "B": (B, (b, n)),
            "C": (C, (b, n)),
            "z": (z, (b, d)),
            "A_log": (A_log, (d, n)),
            "D": (D, (d,)),
            "dt_bias": (dt_bias, (d,)),
            "ssm": (ssm, (b, d, n)),
            "seq_idx": (seq_idx, (b,)),
        },
    )
    inputs = (x, dt, B, C, z, A_log, D, dt_bias, *map(float, dt_limit))
    y, *after = _advance(
        "selective_scan_step",
        reference.selective_scan_step,
        operators.selective_scan_step,
        inputs,
        (ssm, seq_idx),
        in_place,
        path,
    )
    return y, after[0], after[1]


def mamba2_step(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    conv: Tensor,
    ssm: Tensor,
    seq_idx: Tensor,
    *,
    norm_eps: float = 1e-5,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    in_place: bool = False,
    path: paths.Path | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One token of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060) between its two projections.

    Convolution and silu of x, B, C; one token of :func:`mamba_core.ops.ssd` with g groups; gated norm.

    Args:
        projected: (b, 2 h p + 2 g n + h) any floating dtype: z, x, B, C, dt behind each other. Rows may be strided.
        conv_weight: (h p + 2 g n, width), the newest input's weight last. conv_bias: (h p + 2 g n,).
        A_log: (h,), A = -exp(A_log). D: (h,) skip weight. dt_bias: (h,) added to dt, before softplus.
        norm_weight: (h p,), of the norm over each group's h p / g channels; norm_eps is added to the mean square.
        conv: (b, width - 1, h p + 2 g n), the last inputs of the convolution, oldest first.
        ssm: (b, h, p, n) state.
        seq_idx: (b,) integer index of the last document; -1, no token yet, becomes 0.
        dt_limit: (low, high) limits of the time step.
        in_place: write the new state over ``conv``, ``ssm`` and ``seq_idx``.
        path: force "reference" or "triton".

    Returns:
        y (b, h p) in the dtype of ``projected``, and conv, ssm and seq_idx after it.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, or a path that cannot run here.
    """
    b, h, p, n = ssm.shape
    channels, width = conv_weight.shape
    check_extent("mamba2_step", b, 1)
    check_limit("mamba2_step", dt_limit)
    groups = (channels - h * p) // (2 * n)
    if groups < 1 or h % groups or channels != h * p + 2 * groups * n:
        raise ValueError(
            f"mamba2_step: conv_weight of {channels} channels does not fit ssm {tuple(ssm.shape)}: "
            f"with g groups, a divisor of {h} heads, it has {h * p} + g x {2 * n}"
        )
    check_arguments(
        "mamba2_step",
        projected.device,
        {
            "projected": (projected, (b, h * p + channels + h)),
            "conv_weight": (conv_weight, (channels, width)),
            "conv_bias": (conv_bias, (channels,)),
            "A_log": (A_log, (h,)),
            "D": (D, (h,)),
            "dt_bias": (dt_bias, (h,)),
            "norm_weight": (norm_weight, (h * p,)),
            "conv": (conv, (b, width - 1, channels)),
            "ssm": (ssm, (b, h, p, n)),
            "seq_idx": (seq_idx, (b,)),
        },
    )
    inputs = (projected, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, float(norm_eps), *map(float, dt_limit))
    y, *after = _advance(
        "mamba2_step",
        reference.mamba2_step,
        operators.mamba2_step,
        inputs,
        (conv, ssm, seq_idx),
        in_place,
        path,
    )
    return y, after[0], after[1], after[2]


def s4d_step(
    x: Tensor,
    log_dt: Tensor,
    A_log: Tensor,
    A_imag: Tensor,
    C: Tensor,
    D: Tensor,
    ssm: Tensor,
    seq_idx: Tensor,
    *,
    in_place: bool = False,
    path: paths.Path | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One token of :func:`mamba_core.ops.s4d.s4d` (Gu et al. 2022, arXiv:2206.11893), and gelu of what it gives.

    Args:
        x: (b, h) any floating dtype; may be strided.
        log_dt: (h,) logarithms of the time steps.
        A_log: (h, n), A_imag: (h, n): the poles are -exp(A_log) + i A_imag.
        C: (h, n, 2) output weights. D: (h,) skip weight.
        ssm: (b, h, n, 2) state.
        seq_idx: (b,) integer index of the last document; -1, no token yet, becomes 0.
        in_place: write the new state over ``ssm`` and ``seq_idx``.
        path: force "reference" or "triton".

    Returns:
        y (b, h) in x's dtype, and ssm and seq_idx after it.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, or a path that cannot run here.
    """
    b, h = x.shape
    n = A_log.shape[-1]
    check_extent("s4d_step", b, 1)
    check_arguments(
        "s4d_step",
        x.device,
        {
            "log_dt": (log_dt, (h,)),
            "A_log": (A_log, (h, n)),
            "A_imag": (A_imag, (h, n)),
            "C": (C, (h, n, 2)),
            "D": (D, (h,)),
            "ssm": (ssm, (b, h, n, 2)),
            "seq_idx": (seq_idx, (b,)),
        },
    )
    inputs = (x, log_dt, A_log, A_imag, C, D)
    y, *after = _advance("s4d_step", reference.s4d_step, operators.s4d_step, inputs, (ssm, seq_idx), in_place, path)
    return y, after[0], after[1]


def layer_step_runs(x: Tensor, norm_weight: Tensor, projections: Sequence[nn.Linear]) -> bool:
    """Whether a whole layer, norm and residual included, can step x (b, d_model) in kernels of its own.

    For a few rows on a GPU, without autograd, autocast or torch.compile, and plain projections in the dtype of x.
    """
    if not (1 <= len(x) <= MOST_ROWS and x.is_contiguous() and is_plain(x)):
        return False
    if not all(is_plain_projection(p) and p.weight.dtype == x.dtype for p in projections):
        return False
    if any(not p.weight.is_contiguous() for p in projections) or torch.is_autocast_enabled(x.device.type):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or norm_weight.requires_grad):
        return False
    return paths.takes_triton(x)


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
    *,
    norm_eps: float,
    gate_eps: float,
    dt_limit: tuple[float, float],
    in_place: bool,
    chained: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``x + W_out mamba2_step(W_in norm(x))`` for a few rows of Mamba-2 with one group, by kernels alone.

    Args:
        x: (b, d_model) contiguous, for which :func:`layer_step_runs`.
        norm_weight: (d_model,), of the root-mean-square norm in front; norm_eps belongs to it.
        in_weight: (2 h p + 2 n + h, d_model). out_weight: (d_model, h p). Both in the dtype of x.
        conv_weight, conv_bias, A_log, D, dt_bias, conv, ssm, seq_idx, dt_limit, in_place: as in :func:`mamba2_step`.
        gate_weight: (h p,), of the norm of y silu(z); gate_eps belongs to it.
        chained: see :meth:`mamba_core.mixers.Mixer.step_around`.

    Returns:
        x after the layer, in its dtype, and conv, ssm and seq_idx after the token. What is between the two projections
        is never rounded to 16 bits, so results differ from those of three calls by these roundings.
    """
    from mamba_core.ops.decode import triton, triton_gemv  # late: there is no Triton on a Mac

    state = (conv, ssm, seq_idx)
    after = _to_advance(state, in_place)
    weights = (norm_weight, in_weight, conv_weight, conv_bias, A_log, D, dt_bias, gate_weight, out_weight)
    numbers = (float(norm_eps), float(gate_eps), *map(float, dt_limit), triton.starts_early(x), chained)
    y = triton_gemv.mamba2_layer_step(x, *[weight.contiguous() for weight in weights], *after, *numbers)
    return (y, *_put_back(state, after, in_place))


def _to_advance(state: tuple[Tensor, ...], in_place: bool) -> tuple[Tensor, ...]:
    """What a kernel may write over: the state itself, or copies."""
    return tuple(t if in_place and t.is_contiguous() else t.clone(memory_format=torch.contiguous_format) for t in state)


def _put_back(state: tuple[Tensor, ...], after: tuple[Tensor, ...], in_place: bool) -> tuple[Tensor, ...]:
    """The state after the token, written over the one that was given if ``in_place``."""
    if not in_place:
        return after
    for tensor, new in zip(state, after, strict=True):
        if new is not tensor:
            tensor.copy_(new)
    return state


def _advance(
    op: str,
    definition: Callable[..., tuple[Tensor, ...]],
    kernel: Callable[..., Tensor],
    inputs: Sequence[Any],
    state: tuple[Tensor, ...],
    in_place: bool,
    path: paths.Path | None,
) -> tuple[Tensor, ...]:
    """y and the state after the token: by the kernel, which advances the tensors that it is given, or by definition."""
    if _choose(op, [t for t in (*inputs, *state) if isinstance(t, Tensor)], path) == "triton":
        after = _to_advance(state, in_place)
        y = kernel(*inputs, *after)
    else:
        y, *new = definition(*inputs, *state)
        after = tuple(new)
    return (y, *_put_back(state, after, in_place))


def _choose(op: str, tensors: list[Tensor], forced: paths.Path | None) -> paths.Path:
    """float64 anywhere rules the kernels out, and so does autograd."""
    if forced is None and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        forced = "reference"
    deciding = next((t for t in tensors if t.dtype == torch.float64), tensors[0])
    return paths.choose_path(op, deciding, forced, otherwise="reference")
