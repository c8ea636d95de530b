"""Mamba-2 between its projections for GPUs: the kernels of the three operations, each writing where the next one reads.

In the backward the gradient of ``projected`` is the only large tensor beside those that came in. Its columns [z, x, B,
C, dt] take the gradient of z; of y, which becomes that of x, B and C behind the convolution, and then that before it;
and of dt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mamba_core.ops.causal_conv1d import triton as conv_kernels
from mamba_core.ops.causal_conv1d import triton_backward as conv_gradients
from mamba_core.ops.gated_rms_norm import triton as norm_kernels
from mamba_core.ops.ssd import triton as ssd_kernels
from mamba_core.ops.ssd import triton_backward as ssd_gradients
from mamba_core.ops.tape import taped


@dataclass(frozen=True)
class Columns:
    """What stands where in ``projected`` and in its gradient."""

    inner: int  # h p
    channels: int  # of the convolution, h p + 2 g n
    heads: int
    groups: int

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, [x, B, C], dt."""
        z, xBC, dt = projected.split([self.inner, self.channels, self.heads], dim=-1)
        return z, xBC, dt

    def operands(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (b, l, h, p), B and C (b, l, g, n)."""
        wide = (self.channels - self.inner) // 2
        x, B, C = xBC.split([self.inner, wide, wide], dim=-1)
        return x.unflatten(-1, (self.heads, -1)), B.unflatten(-1, (self.groups, -1)), C.unflatten(-1, (self.groups, -1))


@taped
def forward(
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
    limit: tuple[float, float],
    log: bool,
    exchange: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output (b, l, h p), the states, and for the backward y before the norm and the states within the sequence
    (``ssd.triton.forward``, which takes ``exchange``). With ``log`` A holds log(-A)."""
    columns = Columns(len(norm_weight), len(conv_weight), len(A), groups)
    z, xBC, dt = columns.split(projected)
    xBC, conv = conv_kernels.forward(xBC, conv_weight, conv_bias, conv_state, seq_idx, True)
    x, B, C = columns.operands(xBC)
    options: dict[str, Any] = {} if exchange is None else {"exchange": exchange}
    y, ssm, enter = ssd_kernels.forward(x, dt, A, B, C, D, dt_bias, ssm_state, seq_idx, True, limit, log, **options)
    y = y.flatten(-2)
    return norm_kernels.forward(y, z, norm_weight, eps, columns.inner // groups), conv, ssm, y, enter


@taped
def backward(
    grad: Tensor,
    y: Tensor,
    projected: Tensor,
    norm_weight: Tensor,
    grad_conv: Tensor | None,
    grad_ssm: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    conv_state: Tensor | None,
    seq_idx: Tensor | None,
    enter: Tensor,
    groups: int,
    eps: float,
    limit: tuple[float, float],
    log: bool,
) -> tuple[Tensor, ...]:
    """:func:`norm_backward` and :func:`scan_backward` in one: gradients of ``projected`` and the norm's weight, then
    those of the latter. y stands until the end."""
    grads, dnorm = norm_backward(grad, y, projected, norm_weight, groups, eps)
    tensors = (projected, conv_weight, conv_bias, A, D, dt_bias, conv_state, seq_idx, enter)
    return grads, dnorm, *scan_backward(grads, grad_conv, grad_ssm, *tensors, len(norm_weight), groups, limit, log)


def norm_backward(
    grad: Tensor, y: Tensor, projected: Tensor, norm_weight: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradient of ``projected`` with that of z, that of y where that of x goes, and the rest unwritten; and the
    gradient of the norm's weight."""
    inner = len(norm_weight)
    grads = torch.empty(projected.shape, dtype=projected.dtype, device=projected.device)
    z = projected[..., :inner]
    dz, dy = grads[..., :inner], grads[..., inner : 2 * inner]
    _, _, dw = norm_kernels.backward(grad, y, z, norm_weight, eps, inner // groups, dx=dy, dz=dz)
    return grads, dw


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
    limit: tuple[float, float],
    log: bool,
    exchange: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Complete ``grads`` of :func:`norm_backward`; the gradients of conv_weight, conv_bias, A, D and dt_bias in their
    dtypes, of conv_state and ssm_state in float32. ``exchange`` is for ``ssd.triton_backward.backward``."""
    columns = Columns(inner, len(conv_weight), len(A), groups)
    _, before, dt = columns.split(projected)
    _, d_xBC, d_dt = columns.split(grads)
    xBC, _ = conv_kernels.forward(before, conv_weight, conv_bias, conv_state, seq_idx, True)
    x, B, C = columns.operands(xBC)
    dx, dB, dC = columns.operands(d_xBC)
    _, _, dA, _, _, dD, dbias, dssm = ssd_gradients.backward(
        dx,
        grad_ssm,
        x,
        dt,
        A,
        B,
        C,
        D,
        dt_bias,
        seq_idx,
        enter,
        True,
        limit,
        log,
        into=(dx, d_dt, dB, dC),
        exchange=exchange,
    )
    del x, B, C, xBC
    _, dw, db, dconv = conv_gradients.backward(
        d_xBC, grad_conv, before, conv_weight, conv_bias, conv_state, seq_idx, True, dx=d_xBC
    )
    return dw, db, dA, dD, dbias, dconv, dssm
