"""Gated root-mean-square norm of Mamba-2: the public function, its registration, the choice of path."""

import torch
from torch import Tensor

from mamba_core.ops import paths
from mamba_core.ops.gated_rms_norm import chunked
from mamba_core.ops.gated_rms_norm.reference import gated_rms_norm_reference

__all__ = ["gated_rms_norm"]


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
        path: force "chunked" or "reference".

    Returns:
        (..., c) in x's dtype, computed in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not belong together, or a path that does not exist.
    """
    c = x.shape[-1]
    group = group_size or c
    if weight.shape != (c,) or c % group or (z is not None and z.shape != x.shape):
        raise ValueError(
            f"gated_rms_norm: x {tuple(x.shape)} wants z of its shape, weight ({c},) and a group size that divides {c}"
        )
    if paths.choose_path("gated_rms_norm", x, path) == "reference":
        return gated_rms_norm_reference(x, z, weight, eps, group)
    return _gated_rms_norm(x, z, weight, eps, group)


@torch.library.custom_op("mamba_core::gated_rms_norm", mutates_args=())
def _gated_rms_norm(x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group: int) -> Tensor:
    return chunked.forward(x, z, weight, eps, group)


@_gated_rms_norm.register_fake
def _(x, z, weight, eps, group):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.custom_op("mamba_core::gated_rms_norm_backward", mutates_args=())
def _gated_rms_norm_backward(
    grad_y: Tensor, x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dz, dw = chunked.backward(grad_y, x, z, weight, eps, group)
    return dx, dz, dw.to(weight.dtype)


@_gated_rms_norm_backward.register_fake
def _(grad_y, x, z, weight, eps, group):  # type: ignore[no-untyped-def]
    dz = x.new_empty(0) if z is None else z.new_empty(z.shape)
    return x.new_empty(x.shape), dz, weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, z, weight, ctx.eps, ctx.group = inputs
    ctx.save_for_backward(x, z, weight)


def _backward(ctx, grad_y):  # type: ignore[no-untyped-def]
    x, z, weight = ctx.saved_tensors
    dx, dz, dw = _gated_rms_norm_backward(grad_y, x, z, weight, ctx.eps, ctx.group)
    return dx, None if z is None else dz, dw, None, None


_gated_rms_norm.register_autograd(_backward, setup_context=_setup_context)
