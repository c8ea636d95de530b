"""Mamba-2 between its two projections (Dao & Gu 2024, arXiv:2405.21060, section 7): the public function, its checks,
and the choice of path."""

import math

import torch
from torch import Tensor

from mamba_core.ops import paths
from mamba_core.ops.arguments import check_arguments, check_extent, check_limit
from mamba_core.ops.direct import Seen, is_plain
from mamba_core.ops.mamba2_inner import composed, operators

__all__ = ["mamba2_inner"]

_seen = Seen()


def mamba2_inner(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    groups: int = 1,
    norm_eps: float = 1e-5,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    log_A: bool = False,
    path: paths.Path | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution and silu of x, B, C; :func:`mamba_core.ops.ssd.ssd`; norm of y silu(z) over each group's channels.

    On a GPU one operator does all three. It keeps what came in and y, and computes the rest again in its backward,
    which writes every gradient of ``projected`` where it belongs: nothing is put together afterwards. Elsewhere the
    three operations run one by one.

    Args:
        projected: (b, l, 2 h p + 2 g n + h) any floating dtype: z, x, B, C, dt behind each other.
        conv_weight: (h p + 2 g n, width), the newest input's weight last. conv_bias: (h p + 2 g n,).
        A: (h,) negative decay rates. D: (h,) skip weight. dt_bias: (h,) added to dt, before softplus.
        norm_weight: (h p,), of the norm over each group's h p / g channels; norm_eps is added to the mean square.
        conv_state: (b, width - 1, h p + 2 g n), the last inputs of the convolution, oldest first; zeros when None.
        ssm_state: (b, h, p, n); zeros when None.
        seq_idx: (b, l) integer document index; nothing crosses a change, -1 is padding (output 0, states kept, whatever
            stands there but in z, which must be finite).
        groups: g, a divisor of h.
        dt_limit: smallest and largest time step.
        log_A: A stands for log(-A), as a mixer keeps it.
        path: force "triton", "chunked" or "reference"; see :mod:`mamba_core.ops.paths`.

    Returns:
        The output (b, l, h p) in the dtype of ``projected``, and conv_state and ssm_state behind the last token, in
        float32 (float64 for float64 inputs). All are differentiable in every floating argument.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, an empty sequence, a dt_limit that is not
            an interval of non-negative numbers, or a path that does not exist or cannot run here.
    """
    tensors = (projected, conv_weight, conv_bias, A, D, dt_bias, norm_weight, conv_state, ssm_state, seq_idx)
    plain = is_plain(projected)
    if not (plain and _seen.knows(tensors, groups, dt_limit)):
        _check(*tensors, groups, dt_limit)
        if plain:
            _seen.add(tensors, groups, dt_limit)
    chosen = paths.choose_path("mamba2_inner", projected, path)
    if chosen == "triton":
        operator = operators.mamba2_inner_direct if plain else operators.mamba2_inner
        y, conv, ssm, *_ = operator(*tensors, groups, float(norm_eps), *map(float, dt_limit), log_A)
        return y, conv, ssm
    if log_A:
        tensors = (*tensors[:3], -torch.exp(A), *tensors[4:])
    return composed.mamba2_inner(*tensors, groups, norm_eps, dt_limit, chosen)


def _check(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    seq_idx: Tensor | None,
    groups: int,
    dt_limit: tuple[float, float],
) -> None:
    if projected.ndim != 3 or conv_weight.ndim != 2 or A.ndim != 1 or norm_weight.ndim != 1:
        found = ", ".join(str(tuple(t.shape)) for t in (projected, conv_weight, A, norm_weight))
        raise ValueError(
            "mamba2_inner: projected must be (b, l, 2 h p + 2 g n + h), conv_weight (h p + 2 g n, width), A (h,) and "
            f"norm_weight (h p,); got {found}"
        )
    b, l, _ = projected.shape
    channels, width = conv_weight.shape
    (heads,), (inner,) = A.shape, norm_weight.shape
    check_extent("mamba2_inner", b, l)
    check_limit("mamba2_inner", dt_limit)
    wide = channels - inner
    if groups < 1 or heads % groups or inner % heads or wide <= 0 or wide % (2 * groups):
        raise ValueError(
            f"mamba2_inner: {heads} heads, {inner} channels, {wide} of B and C and {groups} groups do not go together"
        )
    state = (b, heads, inner // heads, wide // (2 * groups))
    check_arguments(
        "mamba2_inner",
        projected.device,
        {
            "projected": (projected, (b, l, inner + channels + heads)),
            "conv_weight": (conv_weight, (channels, width)),
            "conv_bias": (conv_bias, (channels,)),
            "A": (A, (heads,)),
            "norm_weight": (norm_weight, (inner,)),
            "D": (D, (heads,)),
            "dt_bias": (dt_bias, (heads,)),
            "conv_state": (conv_state, (b, width - 1, channels)),
            "ssm_state": (ssm_state, state),
            "seq_idx": (seq_idx, (b, l)),
        },
    )
