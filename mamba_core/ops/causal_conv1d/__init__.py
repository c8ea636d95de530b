"""Causal depthwise convolution of the Mamba mixers: the public function, its registration, the choice of path."""

import torch
from torch import Tensor

from mamba_core.ops import paths
from mamba_core.ops.arguments import Wanted, check_arguments, check_extent, working_dtype
from mamba_core.ops.causal_conv1d import chunked
from mamba_core.ops.causal_conv1d.reference import causal_conv1d_reference

__all__ = ["causal_conv1d"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    activation: bool = True,
    path: paths.Path | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own short causal filter, then silu.

    ``y_t = silu(bias + sum_k weight[:, width - 1 - k] x_{t-k})``, with the inputs before the first from the state.

    Args:
        x: (b, l, c) any floating dtype; may be strided.
        weight: (c, width), the newest input's weight last. bias: (c,).
        initial_state: (b, width - 1, c), the last inputs before x, oldest first; zeros when None.
        seq_idx: (b, l) integer document index; taps do not cross a change, -1 is padding (y = 0, tail unchanged).
        activation: whether silu follows.
        path: force "chunked" or "reference".

    Returns:
        y: (b, l, c) in x's dtype, and the final tail (b, width - 1, c) in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, an empty sequence, or a path that does not
            exist.
    """
    b, l, c = x.shape
    width = weight.shape[-1]
    check_extent("causal_conv1d", b, l)
    wanted: Wanted = {
        "weight": (weight, (c, width)),
        "bias": (bias, (c,)),
        "initial_state": (initial_state, (b, width - 1, c)),
        "seq_idx": (seq_idx, (b, l)),
    }
    check_arguments("causal_conv1d", x.device, wanted)
    if paths.choose_path("causal_conv1d", x, path) == "reference":
        return causal_conv1d_reference(x, weight, bias, initial_state, seq_idx, activation=activation)
    return _causal_conv1d(x, weight, bias, initial_state, seq_idx, activation)


@torch.library.custom_op("mamba_core::causal_conv1d", mutates_args=())
def _causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    activation: bool,
) -> tuple[Tensor, Tensor]:
    return chunked.forward(x, weight, bias, initial_state, seq_idx, activation)


@_causal_conv1d.register_fake
def _(x, weight, bias, initial_state, seq_idx, activation):  # type: ignore[no-untyped-def]
    b, _, c = x.shape
    return x.new_empty(x.shape), x.new_empty(b, weight.shape[1] - 1, c, dtype=working_dtype(x))


@torch.library.custom_op("mamba_core::causal_conv1d_backward", mutates_args=())
def _causal_conv1d_backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    activation: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dw, db, ds = chunked.backward(grad_y, grad_final, x, weight, bias, initial_state, seq_idx, activation)
    return dx, dw.to(weight.dtype), db, ds


@_causal_conv1d_backward.register_fake
def _(grad_y, grad_final, x, weight, bias, initial_state, seq_idx, activation):  # type: ignore[no-untyped-def]
    work = working_dtype(x)
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0], dtype=work),
        x.new_empty(grad_final.shape, dtype=work),
    )


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_y, grad_final):  # type: ignore[no-untyped-def]
    x, weight, bias, initial_state, seq_idx = ctx.saved_tensors
    dx, dw, db, ds = _causal_conv1d_backward(
        grad_y, grad_final, x, weight, bias, initial_state, seq_idx, ctx.activation
    )
    db = None if bias is None else db.to(bias.dtype)
    ds = None if initial_state is None else ds.to(initial_state.dtype)
    return dx, dw, db, ds, None, None


_causal_conv1d.register_autograd(_backward, setup_context=_setup_context)
