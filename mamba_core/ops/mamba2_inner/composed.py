"""The definition: three operations one after the other, each on the same path."""

from torch import Tensor

from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.gated_rms_norm import gated_rms_norm
from mamba_core.ops.paths import Path
from mamba_core.ops.ssd import ssd


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
    norm_eps: float,
    dt_limit: tuple[float, float],
    path: Path,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mamba_core.ops.mamba2_inner.mamba2_inner`."""
    heads, inner, channels = len(A), len(norm_weight), len(conv_weight)
    z, xBC, dt = projected.split([inner, channels, heads], dim=-1)
    xBC, conv = causal_conv1d(xBC, conv_weight, conv_bias, conv_state, seq_idx, path=path)
    wide = (channels - inner) // 2
    x, B, C = xBC.split([inner, wide, wide], dim=-1)
    y, ssm = ssd(
        x.unflatten(-1, (heads, -1)),
        dt,
        A,
        B.unflatten(-1, (groups, -1)),
        C.unflatten(-1, (groups, -1)),
        D=D,
        dt_bias=dt_bias,
        initial_state=ssm_state,
        seq_idx=seq_idx,
        dt_limit=dt_limit,
        path=path,
    )
    y = gated_rms_norm(y.flatten(-2), z, norm_weight, norm_eps, inner // groups, path=path)
    return y, conv, ssm
