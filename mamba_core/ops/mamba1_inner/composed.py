"""The definition: the operations one after the other, each on the same path."""

from collections.abc import Callable

from torch import Tensor

from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.paths import Path
from mamba_core.ops.selective_scan import selective_scan


def mamba1_inner(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    select: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_limit: tuple[float, float],
    log_A: bool,
    path: Path | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`mamba_core.ops.mamba1_inner.mamba1_inner`; ``select`` makes raw dt (b, l, d), B, C (b, l, n) of x."""
    x, z = projected.chunk(2, dim=-1)
    x, conv = causal_conv1d(x, conv_weight, conv_bias, conv_state, seq_idx, path=path)
    dt, B, C = select(x)
    y, ssm = selective_scan(
        x,
        dt,
        A,
        B.unsqueeze(2),
        C.unsqueeze(2),
        D=D,
        z=z,
        dt_bias=dt_bias,
        initial_state=ssm_state,
        seq_idx=seq_idx,
        dt_limit=dt_limit,
        log_A=log_A,
        path=path,
    )
    return y, conv, ssm
