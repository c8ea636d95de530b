"""Mamba-1 between its outer projections, as one operation. The public function and the choice of path."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops import paths
from mamba_core.ops.arguments import check_arguments, check_extent, check_limit
from mamba_core.ops.direct import Seen, is_plain
from mamba_core.ops.mamba1_inner import composed, operators

__all__ = ["mamba1_inner"]

_seen = Seen()


def mamba1_inner(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    log_A: bool = False,
    path: paths.Path | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution and silu of x; the projections to dt, B and C; :func:`mamba_core.ops.selective_scan` gated by z.

    On a GPU it is one function of autograd, whose backward puts the gradients of what x is used for where they belong;
    below some thousand tokens a graph of four operations costs more than their kernels. Elsewhere, and where something
    traces, the operations run one by one.

    Args:
        projected: (b, l, 2 d) any floating dtype: x and z behind each other.
        conv_weight: (d, width), the newest input's weight last. conv_bias: (d,).
        x_weight: (r + 2 n, d), to raw dt of rank r, B and C. dt_weight: (d, r). Both in the dtype of ``projected``, or
            brought to it by autocast.
        A: (d, n) negative decay rates. D: (d,) skip weight. dt_bias: (d,) added to dt, before softplus.
        conv_state: (b, width - 1, d), the last inputs of the convolution, oldest first; zeros when None.
        ssm_state: (b, d, n); zeros when None.
        seq_idx: (b, l) integer document index; nothing crosses a change, -1 is padding (output 0, states kept, whatever
            stands there).
        dt_limit: smallest and largest time step.
        log_A: A stands for log(-A), as a mixer keeps it.
        path: force "triton", "chunked" or "reference"; see :mod:`mamba_core.ops.paths`.

    Returns:
        The output (b, l, d) in the dtype of ``projected``, and conv_state and ssm_state behind the last token, in
        float32 (float64 for float64 inputs). All are differentiable in every floating argument.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, an empty sequence, a dt_limit that is not
            an interval of non-negative numbers, or a path that does not exist or cannot run here.
    """
    tensors = (projected, conv_weight, conv_bias, x_weight, dt_weight, A, D, dt_bias, conv_state, ssm_state, seq_idx)
    plain = is_plain(projected)
    if not (plain and _seen.knows(tensors, dt_limit)):
        _check(*tensors, dt_limit)
        if plain:
            _seen.add(tensors, dt_limit)
    chosen = paths.choose_path("mamba1_inner", projected, path)
    if chosen == "triton" and plain:
        device = projected.device.type
        autocast = torch.is_autocast_enabled(device)
        if autocast and projected.dtype == torch.get_autocast_dtype(device):
            x_weight, dt_weight = x_weight.to(projected.dtype), dt_weight.to(projected.dtype)
            autocast = False  # there is nothing left for it to do
        if not autocast and x_weight.dtype == dt_weight.dtype == projected.dtype:
            weights = (projected, conv_weight, conv_bias, x_weight, dt_weight)
            return operators.mamba1_inner_direct(*weights, *tensors[5:], *map(float, dt_limit), log_A)

    def select(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rank, n = dt_weight.shape[1], A.shape[1]
        dt, B, C = F.linear(x, x_weight).split([rank, n, n], dim=-1)
        return F.linear(dt, dt_weight), B, C

    states = (conv_state, ssm_state, seq_idx)
    return composed.mamba1_inner(
        projected, conv_weight, conv_bias, select, A, D, dt_bias, *states, dt_limit, log_A, chosen
    )


def _check(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_limit: Sequence[float],
) -> None:
    if projected.ndim != 3 or conv_weight.ndim != 2 or dt_weight.ndim != 2 or A.ndim != 2:
        found = ", ".join(str(tuple(t.shape)) for t in (projected, conv_weight, dt_weight, A))
        raise ValueError(
            "mamba1_inner: projected must be (b, l, 2 d), conv_weight (d, width), dt_weight (d, r) and A (d, n); "
            f"got {found}"
        )
    b, l, _ = projected.shape
    d, width = conv_weight.shape
    rank, n = dt_weight.shape[1], A.shape[1]
    check_extent("mamba1_inner", b, l)
    check_limit("mamba1_inner", (dt_limit[0], dt_limit[1]))
    check_arguments(
        "mamba1_inner",
        projected.device,
        {
            "projected": (projected, (b, l, 2 * d)),
            "conv_weight": (conv_weight, (d, width)),
            "conv_bias": (conv_bias, (d,)),
            "x_weight": (x_weight, (rank + 2 * n, d)),
            "dt_weight": (dt_weight, (d, rank)),
            "A": (A, (d, n)),
            "D": (D, (d,)),
            "dt_bias": (dt_bias, (d,)),
            "conv_state": (conv_state, (b, width - 1, d)),
            "ssm_state": (ssm_state, (b, d, n)),
            "seq_idx": (seq_idx, (b, l)),
        },
    )
