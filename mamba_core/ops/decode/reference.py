"""The definition of a decode step, and what runs where Triton does not: one token of each row in plain PyTorch.

Arithmetic is in float32, or float64 for a float64 state, under autocast too; a state in 16 bits is rounded when it is
written. Nothing is written in place, so autograd can follow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops.gated_rms_norm import gated_rms_norm
from mamba_core.ops.s4d.reference import as_complex, discretise


def conv_step(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`mamba_core.ops.decode.conv_step`."""
    y, after = _convolve(x, weight, bias, tail)
    return y.to(x.dtype), after


def selective_scan_step(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_min: float,
    dt_max: float,
    ssm: Tensor,
    seq_idx: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mamba_core.ops.decode.selective_scan_step`."""
    work = _working_dtype(ssm)
    x_, B, C = x.to(work), B.to(work), C.to(work)
    step = _time_step(dt, dt_bias, dt_min, dt_max, work)  # (b, d)
    decay = torch.exp(step[..., None] * _A(A_log))  # (b, d, n)
    after = torch.addcmul(ssm.to(work) * decay, (step * x_)[..., None], B[:, None])
    y = torch.addcmul(_read(after, C), x_, D.to(work)) * F.silu(z.to(work))
    return y.to(x.dtype), after.to(ssm.dtype), seq_idx.clamp(min=0)


def mamba2_step(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    dt_min: float,
    dt_max: float,
    conv: Tensor,
    ssm: Tensor,
    seq_idx: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`mamba_core.ops.decode.mamba2_step`."""
    _, h, p, n = ssm.shape
    inner, wide = h * p, (conv.shape[2] - h * p) // 2
    groups = wide // n
    z, xBC, dt = projected.split([inner, conv.shape[2], h], dim=-1)
    xBC, tail = _convolve(xBC, conv_weight, conv_bias, conv)
    x, B, C = xBC.split([inner, wide, wide], dim=-1)
    x = x.unflatten(-1, (h, p))
    B, C = (t.unflatten(-1, (groups, n)).repeat_interleave(h // groups, dim=1) for t in (B, C))  # (b, h, n)
    work = _working_dtype(ssm)
    step = _time_step(dt, dt_bias, dt_min, dt_max, work)  # (b, h)
    decay = torch.exp(step * _A(A_log))[..., None, None]
    after = torch.addcmul(ssm.to(work) * decay, (x * step[..., None])[..., None], B[:, :, None])
    y = torch.addcmul(_read(after, C), x, D.to(work)[:, None])
    y = gated_rms_norm(y.flatten(-2).to(z.dtype), z, norm_weight, norm_eps, inner // groups)
    return y, tail, after.to(ssm.dtype), seq_idx.clamp(min=0)


def s4d_step(
    x: Tensor, log_dt: Tensor, A_log: Tensor, A_imag: Tensor, C: Tensor, D: Tensor, ssm: Tensor, seq_idx: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mamba_core.ops.decode.s4d_step`."""
    work = _working_dtype(ssm)
    state = torch.view_as_complex(ssm.to(work).contiguous())
    A = as_complex(torch.stack([_A(A_log), A_imag], dim=-1))
    decay, B = (t.to(state.dtype) for t in discretise(log_dt.double().exp(), A))
    x_ = x.to(work)
    after = decay * state + B * x_[..., None]
    y = 2 * (as_complex(C).to(state.dtype) * after).sum(-1).real + D.to(work) * x_
    return F.gelu(y).to(x.dtype), torch.view_as_real(after).to(ssm.dtype), seq_idx.clamp(min=0)


def _working_dtype(state: Tensor) -> torch.dtype:
    return torch.float64 if state.dtype == torch.float64 else torch.float32


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """silu of the convolution (b, c) and the new tail, both in the tail's dtype."""
    work = tail.dtype
    window = torch.cat([tail, x.to(work)[:, None]], dim=1)
    y = torch.addcmul(bias.to(work), window[:, -1], weight[:, -1].to(work))
    for k in range(weight.shape[1] - 1):
        y = torch.addcmul(y, window[:, k], weight[:, k].to(work))
    return F.silu(y), window[:, 1:]


def _time_step(dt: Tensor, bias: Tensor, dt_min: float, dt_max: float, work: torch.dtype) -> Tensor:
    return F.softplus(dt.to(work) + bias.to(work)).clamp(dt_min, dt_max)


def _A(A_log: Tensor) -> Tensor:
    """In the dtype of the parameter, as in a mixer's ``forward``."""
    return -torch.exp(A_log)


def _read(state: Tensor, C: Tensor) -> Tensor:
    """C . h: (b, ..., n) of states (b, ..., p, n), whatever autocast makes of matrix products."""
    with torch.autocast(state.device.type, enabled=False):
        return (state @ C[..., None]).squeeze(-1)
