"""One function of autograd for what Mamba-1 does between its outer projections, by kernels and matrix products.

It is for eager mode alone: what traces sees the operations that it is made of (``composed.py``).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops.direct import direct
from mamba_core.ops.results import complete, remember_results

_WEIGHTS = (3, 4)  # x_weight and dt_weight, among the arguments


def _forward(*arguments):  # type: ignore[no-untyped-def]
    from mamba_core.ops.causal_conv1d import triton as convolution  # late: there is no Triton on a Mac
    from mamba_core.ops.selective_scan import triton as scan

    projected, conv_weight, conv_bias, x_weight, dt_weight, A, D, dt_bias = arguments[:8]
    conv_state, ssm_state, seq_idx, dt_min, dt_max, log = arguments[8:]
    channels = len(conv_weight)
    x, conv = convolution.forward(projected[..., :channels], conv_weight, conv_bias, conv_state, seq_idx, True)
    selected = F.linear(x, x_weight)
    dt = F.linear(selected[..., : dt_weight.shape[1]], dt_weight)
    B, C = _B_and_C(selected, dt_weight)
    limit = (dt_min, dt_max)
    y, ssm, enter, total = scan.forward(
        x, dt, A, B, C, D, projected[..., channels:], dt_bias, ssm_state, seq_idx, True, limit, log
    )
    return y, conv, ssm, x, selected, dt, enter, total


def _B_and_C(selected: Tensor, dt_weight: Tensor) -> tuple[Tensor, Tensor]:
    """(b, l, 1, n) each, from (b, l, r + 2 n)."""
    rank = dt_weight.shape[1]
    n = (selected.shape[-1] - rank) // 2
    return selected[..., rank : rank + n].unsqueeze(2), selected[..., rank + n :].unsqueeze(2)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ssm_state, seq_idx = inputs[:11]
    remember_results(ctx, *output[:3])
    ctx.save_for_backward(*tensors, seq_idx, *output[3:])
    ctx.options = inputs[11:]
    ctx.dtypes = [tensor.dtype for tensor in tensors[5:8]]  # A, D, dt_bias
    ctx.states = [None if state is None else state.dtype for state in (tensors[-1], ssm_state)]


def _backward(ctx, grad_y, grad_conv, grad_ssm, *_grads):  # type: ignore[no-untyped-def]
    from mamba_core.ops.causal_conv1d import triton_backward as convolution
    from mamba_core.ops.selective_scan import triton_backward as scan

    saved = ctx.saved_tensors  # once: checkpointing does not unpack twice
    projected, conv_weight, conv_bias, x_weight, dt_weight, A, D, dt_bias, conv_state, seq_idx = saved[:10]
    x, selected, dt, enter, total = saved[10:]
    dt_min, dt_max, log = ctx.options
    (grad_y,) = complete(ctx, grad_y)
    channels, rank = dt_weight.shape
    B, C = _B_and_C(selected, dt_weight)
    tensors = (x, dt, A, B, C, D, projected[..., channels:], dt_bias, seq_idx, enter, total)
    dx, ddt, dA, dB, dC, dD, dz, dbias, dssm = scan.backward(grad_y, grad_ssm, *tensors, True, (dt_min, dt_max), log)
    rows = dx.shape[0] * dx.shape[1]
    dx2, ddt2, selected2 = dx.view(rows, -1), ddt.view(rows, -1), selected.view(rows, -1)
    dselected = torch.cat([ddt2 @ dt_weight, dB.view(rows, -1), dC.view(rows, -1)], dim=1)
    dx_weight, ddt_weight = (
        left.t() @ right if ctx.needs_input_grad[place] else None
        for place, left, right in zip(_WEIGHTS, (dselected, ddt2), (x.view(rows, -1), selected2[:, :rank]), strict=True)
    )
    dx2.addmm_(dselected, x_weight)
    grads = torch.empty(projected.shape, dtype=projected.dtype, device=projected.device)
    given = (projected[..., :channels], conv_weight, conv_bias, conv_state, seq_idx, True)
    _, dconv_weight, dconv_bias, dconv = convolution.backward(dx, grad_conv, *given, grads[..., :channels])
    grads[..., channels:] = dz
    dA, dD, dbias = (grad.to(dtype) for grad, dtype in zip((dA, dD, dbias), ctx.dtypes, strict=True))
    states = [None if dtype is None else t.to(dtype) for t, dtype in zip((dconv, dssm), ctx.states, strict=True)]
    weights = (dconv_weight, dconv_bias, dx_weight, ddt_weight)
    return (grads, *weights, dA, dD, dbias, *states, None, *[None for _ in ctx.options])


mamba1_inner_direct = direct(_forward, _setup_context, _backward)
