"""The decode kernels as torch.library sees them: each advances the state tensors that it is given, in place."""

import torch
from torch import Tensor


@torch.library.custom_op("mamba_core::conv_step_triton", mutates_args=("tail",))
def conv_step(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor) -> Tensor:
    from mamba_core.ops.decode import triton  # late: there is no Triton on a Mac

    return triton.conv_step(x, weight, bias, tail)


@conv_step.register_fake
def _(x, weight, bias, tail):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.custom_op("mamba_core::selective_scan_step_triton", mutates_args=("ssm", "seq_idx"))
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
) -> Tensor:
    from mamba_core.ops.decode import triton

    return triton.selective_scan_step(x, dt, B, C, z, A_log, D, dt_bias, dt_min, dt_max, ssm, seq_idx)


@selective_scan_step.register_fake
def _(x, dt, B, C, z, A_log, D, dt_bias, dt_min, dt_max, ssm, seq_idx):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.custom_op("mamba_core::s4d_step_triton", mutates_args=("ssm", "seq_idx"))
def s4d_step(
    x: Tensor, log_dt: Tensor, A_log: Tensor, A_imag: Tensor, C: Tensor, D: Tensor, ssm: Tensor, seq_idx: Tensor
) -> Tensor:
    from mamba_core.ops.s4d import triton

    return triton.s4d_step(x, log_dt, A_log, A_imag, C, D, ssm, seq_idx)


@s4d_step.register_fake
def _(x, log_dt, A_log, A_imag, C, D, ssm, seq_idx):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.custom_op("mamba_core::mamba2_step_triton", mutates_args=("conv", "ssm", "seq_idx"))
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
) -> Tensor:
    from mamba_core.ops.decode import triton

    return triton.mamba2_step(
        projected, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, norm_eps, dt_min, dt_max, conv, ssm, seq_idx
    )


@mamba2_step.register_fake
def _(projected, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, norm_eps, dt_min, dt_max, conv, ssm, seq_idx):  # type: ignore[no-untyped-def]
    return projected.new_empty(projected.shape[0], norm_weight.shape[0])
