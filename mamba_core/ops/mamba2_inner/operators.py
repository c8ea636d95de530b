"""The fused path as torch.library sees it: a forward, and a backward in two steps.

Between the two steps y is given up, so that it does not stand beside what the second one needs.
"""

import torch
from torch import Tensor

from mamba_core.ops.results import complete, remember_results


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from mamba_core.ops.mamba2_inner import triton  # late: there is no Triton on a Mac

    weights = (conv_weight, conv_bias, A, D, dt_bias, norm_weight)
    return triton.forward(projected, *weights, conv_state, ssm_state, seq_idx, groups, eps, (dt_min, dt_max))


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
    return projected.new_empty(projected.shape), norm_weight.new_empty(norm_weight.shape, dtype=torch.float32)


@torch.library.custom_op("mamba_core::mamba2_inner_scan_backward", mutates_args=("grads",))
def scan_backward(
    grads: Tensor,
    grad_conv: Tensor,
    grad_ssm: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from mamba_core.ops.mamba2_inner import triton

    tensors = (projected, conv_weight, conv_bias, A, D, dt_bias, conv_state, seq_idx, enter)
    dw, db, dA, dD, dbias, dconv, dssm = triton.scan_backward(
        grads, grad_conv, grad_ssm, *tensors, inner, groups, (dt_min, dt_max)
    )
    return dw, db, dA, dD, dbias, dconv, dssm


@scan_backward.register_fake
def _(grads, grad_conv, grad_ssm, projected, conv_weight, conv_bias, A, D, dt_bias, *_rest):  # type: ignore[no-untyped-def]
    like = (conv_weight, conv_bias, A, D, dt_bias, grad_conv, grad_ssm)
    return tuple(t.new_empty(t.shape, dtype=torch.float32) for t in like)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ssm_state, seq_idx = inputs[:10]
    *results, y, enter = output
    remember_results(ctx, *results)
    ctx.save_for_backward(y, *tensors, seq_idx, enter)
    ctx.options = inputs[10:]
    ctx.dtypes = [None if t is None else t.dtype for t in (*tensors, ssm_state)]


def _backward(ctx, grad, grad_conv, grad_ssm, _grad_y, _grad_enter):  # type: ignore[no-untyped-def]
    y, projected, conv_weight, conv_bias, A, D, dt_bias, norm_weight, conv_state, seq_idx, enter = ctx.saved_tensors
    groups, eps, dt_min, dt_max = ctx.options
    grad, grad_conv, grad_ssm = complete(ctx, grad, grad_conv, grad_ssm)
    if hasattr(ctx, "maybe_clear_saved_tensors"):  # unless the graph is to be kept
        ctx.maybe_clear_saved_tensors()
    grads, dnorm = norm_backward(grad, y, projected, norm_weight, groups, eps)
    del y
    tensors = (projected, conv_weight, conv_bias, A, D, dt_bias, conv_state, seq_idx, enter)
    dw, db, dA, dD, dbias, dconv, dssm = scan_backward(
        grads, grad_conv, grad_ssm, *tensors, len(norm_weight), groups, dt_min, dt_max
    )
    found = zip((grads, dw, db, dA, dD, dbias, dnorm, dconv, dssm), ctx.dtypes, strict=True)
    given = [None if dtype is None else grad.to(dtype) for grad, dtype in found]
    return (*given, None, *[None for _ in ctx.options])


mamba2_inner.register_autograd(_backward, setup_context=_setup_context)
