"""The fused path as torch.library sees it: a forward, and a backward in two steps.

Between the two steps y is given up, so that it does not stand beside what the second one needs. A short sequence in
eager mode takes both at once (:data:`mamba2_inner_direct`).
"""

import torch
from torch import Tensor

from mamba_core.ops.direct import direct
from mamba_core.ops.results import complete, remember_results

_SHORT = 2**26  # bytes of y up to which it may stay until the end of the backward


@torch.library.custom_op("mamba_core::mamba2_inner", mutates_args=())
def mamba2_inner(
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
    eps: float,
    dt_min: float,
    dt_max: float,
    log: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = (conv_weight, conv_bias, A, D, dt_bias, norm_weight)
    return _forward(projected, *weights, conv_state, ssm_state, seq_idx, groups, eps, dt_min, dt_max, log)


def _forward(*arguments):  # type: ignore[no-untyped-def]
    from mamba_core.ops.mamba2_inner import triton  # late: there is no Triton on a Mac

    *tensors, groups, eps, dt_min, dt_max, log = arguments
    return triton.forward(*tensors, groups, eps, (dt_min, dt_max), log)


@mamba2_inner.register_fake
def _(projected, conv_weight, conv_bias, A, D, dt_bias, norm_weight, conv_state, ssm_state, seq_idx, groups, *_options):  # type: ignore[no-untyped-def]
    from mamba_core.ops.mamba2_inner.triton import Columns
    from mamba_core.ops.ssd.triton import plan

    b, l, _ = projected.shape
    columns = Columns(len(norm_weight), len(conv_weight), len(A), groups)
    y = projected.new_empty(b, l, columns.inner)
    x, B, _ = columns.operands(projected.new_empty(b, l, columns.channels))
    (h, p), n = x.shape[2:], B.shape[3]
    conv = projected.new_empty(b, conv_weight.shape[1] - 1, columns.channels, dtype=torch.float32)
    ssm = projected.new_empty(b, h, p, n, dtype=torch.float32)
    enter = projected.new_empty(b, plan(x, B).segments + 1, h, n, p, dtype=torch.float32)
    return y, conv, ssm, torch.empty_like(y), enter


@torch.library.custom_op("mamba_core::mamba2_inner_norm_backward", mutates_args=())
def norm_backward(
    grad: Tensor, y: Tensor, projected: Tensor, norm_weight: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    from mamba_core.ops.mamba2_inner import triton

    return triton.norm_backward(grad, y, projected, norm_weight, groups, eps)


@norm_backward.register_fake
def _(grad, y, projected, norm_weight, groups, eps):  # type: ignore[no-untyped-def]
    return projected.new_empty(projected.shape), norm_weight.new_empty(norm_weight.shape)


@torch.library.custom_op("mamba_core::mamba2_inner_scan_backward", mutates_args=("grads",))
def scan_backward(
    grads: Tensor,
    grad_conv: Tensor | None,
    grad_ssm: Tensor | None,
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    conv_state: Tensor | None,
    seq_idx: Tensor | None,
    enter: Tensor,
    inner: int,
    groups: int,
    dt_min: float,
    dt_max: float,
    log: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from mamba_core.ops.mamba2_inner import triton

    tensors = (projected, conv_weight, conv_bias, A, D, dt_bias, conv_state, seq_idx, enter)
    dw, db, dA, dD, dbias, dconv, dssm = triton.scan_backward(
        grads, grad_conv, grad_ssm, *tensors, inner, groups, (dt_min, dt_max), log
    )
    return dw, db, dA, dD, dbias, dconv, dssm


@scan_backward.register_fake
def _(grads, grad_conv, grad_ssm, projected, conv_weight, conv_bias, A, D, dt_bias, conv_state, seq_idx, enter, *_rest):  # type: ignore[no-untyped-def]
    b, _, h, n, p = enter.shape
    weights = [t.new_empty(t.shape) for t in (conv_weight, conv_bias, A, D, dt_bias)]
    dconv = enter.new_empty(b, conv_weight.shape[1] - 1, len(conv_weight))
    return (*weights, dconv, enter.new_empty(b, h, p, n))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ssm_state, seq_idx = inputs[:10]
    *results, y, enter = output
    remember_results(ctx, *results)
    ctx.save_for_backward(y, *tensors, seq_idx, enter)
    ctx.options = inputs[10:]
    ctx.states = [None if t is None else t.dtype for t in (tensors[-1], ssm_state)]


def _backward(ctx, grad, grad_conv, grad_ssm, _grad_y, _grad_enter):  # type: ignore[no-untyped-def]
    y, projected, conv_weight, conv_bias, A, D, dt_bias, norm_weight, conv_state, seq_idx, enter = ctx.saved_tensors
    groups, eps, dt_min, dt_max, log = ctx.options
    (grad,) = complete(ctx, grad)
    if hasattr(ctx, "maybe_clear_saved_tensors"):  # unless the graph is to be kept
        ctx.maybe_clear_saved_tensors()
    grads, dnorm = norm_backward(grad, y, projected, norm_weight, groups, eps)
    del y
    tensors = (projected, conv_weight, conv_bias, A, D, dt_bias, conv_state, seq_idx, enter)
    found = scan_backward(grads, grad_conv, grad_ssm, *tensors, len(norm_weight), groups, dt_min, dt_max, log)
    return _in_place_of_inputs(ctx, grads, dnorm, *found)


def _in_place_of_inputs(ctx, grads, dnorm, dw, db, dA, dD, dbias, dconv, dssm):  # type: ignore[no-untyped-def]
    states = [None if dtype is None else t.to(dtype) for t, dtype in zip((dconv, dssm), ctx.states, strict=True)]
    return (grads, dw, db, dA, dD, dbias, dnorm, *states, None, *[None for _ in ctx.options])


mamba2_inner.register_autograd(_backward, setup_context=_setup_context)


def _backward_direct(ctx, grad, grad_conv, grad_ssm):  # type: ignore[no-untyped-def]
    from mamba_core.ops.mamba2_inner import triton

    y, projected, conv_weight, conv_bias, A, D, dt_bias, norm_weight, conv_state, seq_idx, enter = ctx.saved_tensors
    groups, eps, dt_min, dt_max, log = ctx.options
    (grad,) = complete(ctx, grad)
    tensors = (conv_weight, conv_bias, A, D, dt_bias, conv_state, seq_idx, enter)
    short = y.nbytes <= _SHORT
    if short:
        found = triton.backward(
            grad, y, projected, norm_weight, grad_conv, grad_ssm, *tensors, groups, eps, (dt_min, dt_max), log
        )
        return _in_place_of_inputs(ctx, *found)
    if hasattr(ctx, "maybe_clear_saved_tensors"):
        ctx.maybe_clear_saved_tensors()
    grads, dnorm = triton.norm_backward(grad, y, projected, norm_weight, groups, eps)
    del y
    found = triton.scan_backward(
        grads, grad_conv, grad_ssm, projected, *tensors, len(norm_weight), groups, (dt_min, dt_max), log
    )
    return _in_place_of_inputs(ctx, grads, dnorm, *found)


mamba2_inner_direct = direct(_forward, _setup_context, _backward_direct, results=3)
