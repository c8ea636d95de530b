"""The convolution as torch.library sees it: forward and backward of the chunked and of the Triton path."""

import torch
from torch import Tensor

from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.causal_conv1d import chunked
from mamba_core.ops.direct import direct
from mamba_core.ops.results import complete, remember_results


@torch.library.custom_op("mamba_core::causal_conv1d", mutates_args=())
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    activation: bool,
) -> tuple[Tensor, Tensor]:
    return chunked.forward(x, weight, bias, initial_state, seq_idx, activation)


@torch.library.custom_op("mamba_core::causal_conv1d_backward", mutates_args=())
def causal_conv1d_backward(
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
    return dx, dw.to(weight.dtype), db if bias is None else db.to(bias.dtype), ds


@torch.library.custom_op("mamba_core::causal_conv1d_triton", mutates_args=())
def causal_conv1d_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    activation: bool,
) -> tuple[Tensor, Tensor]:
    from mamba_core.ops.causal_conv1d import triton  # late: there is no Triton on a Mac

    return triton.forward(x, weight, bias, initial_state, seq_idx, activation)


@torch.library.custom_op("mamba_core::causal_conv1d_triton_backward", mutates_args=())
def causal_conv1d_triton_backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    activation: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from mamba_core.ops.causal_conv1d import triton_backward

    dx, dw, db, ds = triton_backward.backward(grad_y, grad_final, x, weight, bias, initial_state, seq_idx, activation)
    return dx, dw, db, ds


@causal_conv1d.register_fake
@causal_conv1d_triton.register_fake
def _(x, weight, bias, initial_state, seq_idx, activation):  # type: ignore[no-untyped-def]
    b, _, c = x.shape
    return x.new_empty(x.shape), x.new_empty(b, weight.shape[1] - 1, c, dtype=working_dtype(x))


@causal_conv1d_backward.register_fake
@causal_conv1d_triton_backward.register_fake
def _(grad_y, grad_final, x, weight, bias, initial_state, seq_idx, activation):  # type: ignore[no-untyped-def]
    work = working_dtype(x)
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0], dtype=work if bias is None else bias.dtype),
        x.new_empty(x.shape[0], weight.shape[1] - 1, weight.shape[0], dtype=work),
    )


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.activation = inputs
    remember_results(ctx, *output)
    ctx.save_for_backward(*tensors)


def _in_place_of_inputs(ctx, operator, grad_y, grad_final):  # type: ignore[no-untyped-def]
    """What the backward operator returns, as gradients of the forward's arguments."""
    x, weight, bias, initial_state, seq_idx = ctx.saved_tensors
    if operator is causal_conv1d_backward:
        grad_y, grad_final = complete(ctx, grad_y, grad_final)
    else:
        (grad_y,) = complete(ctx, grad_y)
    dx, dw, db, ds = operator(grad_y, grad_final, x, weight, bias, initial_state, seq_idx, ctx.activation)
    db = None if bias is None else db
    ds = None if initial_state is None else ds.to(initial_state.dtype)
    return dx, dw, db, ds, None, None


def _backward(ctx, grad_y, grad_final):  # type: ignore[no-untyped-def]
    return _in_place_of_inputs(ctx, causal_conv1d_backward, grad_y, grad_final)


def _backward_triton(ctx, grad_y, grad_final):  # type: ignore[no-untyped-def]
    return _in_place_of_inputs(ctx, causal_conv1d_triton_backward, grad_y, grad_final)


def _forward_direct(*arguments):  # type: ignore[no-untyped-def]
    from mamba_core.ops.causal_conv1d import triton

    return triton.forward(*arguments)


def _backward_direct(ctx, grad_y, grad_final):  # type: ignore[no-untyped-def]
    from mamba_core.ops.causal_conv1d import triton_backward

    return _in_place_of_inputs(ctx, triton_backward.backward, grad_y, grad_final)


causal_conv1d.register_autograd(_backward, setup_context=_setup_context)
causal_conv1d_triton.register_autograd(_backward_triton, setup_context=_setup_context)
causal_conv1d_direct = direct(_forward_direct, _setup_context, _backward_direct)
