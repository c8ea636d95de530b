"""The gated norm as torch.library sees it: forward and backward of the chunked and of the Triton path."""

import torch
from torch import Tensor

from mamba_core.ops.direct import direct
from mamba_core.ops.gated_rms_norm import chunked


@torch.library.custom_op("mamba_core::gated_rms_norm", mutates_args=())
def gated_rms_norm(x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group: int) -> Tensor:
    return chunked.forward(x, z, weight, eps, group)


@torch.library.custom_op("mamba_core::gated_rms_norm_backward", mutates_args=())
def gated_rms_norm_backward(
    grad_y: Tensor, x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dz, dw = chunked.backward(grad_y, x, z, weight, eps, group)
    return dx, dz, dw.to(weight.dtype)


@torch.library.custom_op("mamba_core::gated_rms_norm_triton", mutates_args=())
def gated_rms_norm_triton(x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group: int) -> Tensor:
    from mamba_core.ops.gated_rms_norm import triton  # late: there is no Triton on a Mac

    return triton.forward(x, z, weight, eps, group)


@torch.library.custom_op("mamba_core::gated_rms_norm_triton_backward", mutates_args=())
def gated_rms_norm_triton_backward(
    grad_y: Tensor, x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    from mamba_core.ops.gated_rms_norm import triton

    dx, dz, dw = triton.backward(grad_y, x, z, weight, eps, group)
    return dx, dz, dw


@gated_rms_norm.register_fake
@gated_rms_norm_triton.register_fake
def _(x, z, weight, eps, group):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@gated_rms_norm_backward.register_fake
@gated_rms_norm_triton_backward.register_fake
def _(grad_y, x, z, weight, eps, group):  # type: ignore[no-untyped-def]
    dz = x.new_empty(0) if z is None else z.new_empty(z.shape)
    return x.new_empty(x.shape), dz, weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.eps, ctx.group = inputs
    ctx.save_for_backward(*tensors)


def _in_place_of_inputs(ctx, operator, grad_y):  # type: ignore[no-untyped-def]
    """What the backward operator returns, as gradients of the forward's arguments."""
    x, z, weight = ctx.saved_tensors
    dx, dz, dw = operator(grad_y, x, z, weight, ctx.eps, ctx.group)
    return dx, None if z is None else dz, dw, None, None


def _backward(ctx, grad_y):  # type: ignore[no-untyped-def]
    return _in_place_of_inputs(ctx, gated_rms_norm_backward, grad_y)


def _backward_triton(ctx, grad_y):  # type: ignore[no-untyped-def]
    return _in_place_of_inputs(ctx, gated_rms_norm_triton_backward, grad_y)


gated_rms_norm.register_autograd(_backward, setup_context=_setup_context)
gated_rms_norm_triton.register_autograd(_backward_triton, setup_context=_setup_context)


def _forward_direct(*arguments):  # type: ignore[no-untyped-def]
    from mamba_core.ops.gated_rms_norm import triton

    return triton.forward(*arguments)


def _backward_direct(ctx, grad_y):  # type: ignore[no-untyped-def]
    from mamba_core.ops.gated_rms_norm import triton

    return _in_place_of_inputs(ctx, triton.backward, grad_y)


gated_rms_norm_direct = direct(_forward_direct, _setup_context, _backward_direct)
