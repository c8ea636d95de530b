"""Gated root-mean-square norm of Mamba-2: the public function and the choice of path."""

from collections.abc import Callable

from torch import Tensor

from mamba_core.ops import paths
from mamba_core.ops.arguments import check_arguments
from mamba_core.ops.direct import Seen, is_plain
from mamba_core.ops.gated_rms_norm import operators
from mamba_core.ops.gated_rms_norm.reference import gated_rms_norm_reference

__all__ = ["gated_rms_norm"]

_seen = Seen()


def gated_rms_norm(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    eps: float = 1e-5,
    group_size: int | None = None,
    *,
    path: paths.Path | None = None,
) -> Tensor:
    """Root-mean-square norm of ``x silu(z)`` over groups of channels, times a weight.

    Zhang & Sennrich 2019 (arXiv:1910.07467) with the gate inside, as Mamba-2 has it (arXiv:2405.21060, section 7).

    Args:
        x: (..., c) any floating dtype; may be strided.
        z: (..., c) gate, or None for a plain norm.
        weight: (c,).
        eps: added to the mean square.
        group_size: channels a group, dividing c; all of them when None.
        path: force "triton", "chunked" or "reference"; see :mod:`mamba_core.ops.paths`.

    Returns:
        (..., c) in x's dtype, computed in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, or a path that does not exist.
    """
    c = x.shape[-1]
    group = group_size or c
    plain = is_plain(x)
    if not (plain and _seen.knows((x, z, weight), group)):
        if group < 1 or c % group:
            raise ValueError(f"gated_rms_norm: {c} channels want a group size that divides them, got {group}")
        check_arguments("gated_rms_norm", x.device, {"x": (x, x.shape), "z": (z, x.shape), "weight": (weight, (c,))})
        if plain:
            _seen.add((x, z, weight), group)
    chosen = paths.choose_path("gated_rms_norm", x, path)
    if chosen == "reference":
        return gated_rms_norm_reference(x, z, weight, eps, group)
    op: Callable[..., Tensor] = operators.gated_rms_norm
    if chosen == "triton":
        op = operators.gated_rms_norm_direct if plain else operators.gated_rms_norm_triton
    return op(x, z, weight, eps, group)
