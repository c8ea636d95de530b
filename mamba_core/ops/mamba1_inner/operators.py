"""One function of autograd for what Mamba-1 does between its outer projections, by kernels and matrix products.

It is for eager mode alone: what traces sees the operations that it is made of (``composed.py``).
"""

import torch
import torch.nn.functional as F

from mamba_core.ops.direct import direct
from mamba_core.ops.results import complete, remember_results

_WEIGHTS = (3, 4)  # x_weight and dt_weight, among the arguments


def _forward(*arguments):  # type: ignore[no-untyped-def]
    from mamba_core.ops.mamba1_inner import triton  # late: there is no Triton on a Mac

    projected, conv_weight, conv_bias, x_weight, dt_weight, *scan = arguments[:8]
    conv_state, ssm_state, seq_idx, *options = arguments[8:]
    x, conv = triton.convolve(projected, conv_weight, conv_bias, conv_state, seq_idx)
    selected = F.linear(x, x_weight)
    dt = F.linear(selected.narrow(-1, 0, dt_weight.shape[1]), dt_weight)
    y, ssm, *kept = triton.scan(projected, x, selected, dt, *scan, ssm_state, seq_idx, *options)
    return y, conv, ssm, x, selected, dt, *kept


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ssm_state, seq_idx = inputs[:11]
    remember_results(ctx, *output[:3])
    ctx.save_for_backward(*tensors, seq_idx, *output[3:])
    ctx.options = inputs[11:]
    ctx.dtypes = [tensor.dtype for tensor in tensors[5:8]]  # A, D, dt_bias
    ctx.states = [None if state is None else state.dtype for state in (tensors[-1], ssm_state)]


def _backward(ctx, grad_y, grad_conv, grad_ssm):  # type: ignore[no-untyped-def]
    from mamba_core.ops.mamba1_inner import triton

    saved = ctx.saved_tensors  # once: checkpointing does not unpack twice
    projected, conv_weight, conv_bias, x_weight, dt_weight, *scan = saved[:8]
    conv_state, seq_idx, x, selected, dt, *kept = saved[8:]
    (grad_y,) = complete(ctx, grad_y)
    rank = dt_weight.shape[1]
    dprojected, dselected = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (projected, selected))
    dx, ddt, dA, dD, dbias, dssm = triton.scan_backward(
        grad_y, grad_ssm, projected, x, selected, dt, *scan, seq_idx, *kept, dprojected, dselected,
        ctx.states[1] is not None, *ctx.options,
    )  # fmt: skip
    dx2, ddt2, selected2, dselected2 = (t.flatten(0, 1) for t in (dx, ddt, selected, dselected))
    torch.mm(ddt2, dt_weight, out=dselected2.narrow(1, 0, rank))
    dx_weight, ddt_weight = (
        left.t() @ right if ctx.needs_input_grad[place] else None
        for place, left, right in zip(
            _WEIGHTS, (dselected2, ddt2), (x.flatten(0, 1), selected2.narrow(1, 0, rank)), strict=True
        )
    )
    dx2.addmm_(dselected2, x_weight)
    weights = (conv_weight, conv_bias, conv_state, seq_idx)
    dconv_weight, dconv_bias, dconv = triton.convolve_backward(dx, grad_conv, projected, *weights, dprojected)
    dscan = (grad.to(dtype) for grad, dtype in zip((dA, dD, dbias), ctx.dtypes, strict=True))
    states = (None if dtype is None else t.to(dtype) for t, dtype in zip((dconv, dssm), ctx.states, strict=True))
    return (
        dprojected, dconv_weight, dconv_bias, dx_weight, ddt_weight, *dscan, *states, None, *[None for _ in ctx.options]
    )  # fmt: skip


mamba1_inner_direct = direct(_forward, _setup_context, _backward, results=3)
