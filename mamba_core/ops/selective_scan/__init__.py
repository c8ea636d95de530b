"""Selective scan of Mamba-1, S6 (Gu & Dao 2023, arXiv:2312.00752): the public function, its checks, and the choice of
path."""

import math

import torch
from torch import Tensor

from mamba_core.ops import paths
from mamba_core.ops.arguments import Wanted, check_arguments, check_extent, check_limit
from mamba_core.ops.direct import Seen, is_plain
from mamba_core.ops.selective_scan import chunked, operators
from mamba_core.ops.selective_scan.reference import selective_scan_reference

__all__ = ["selective_scan"]

_seen = Seen()


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    log_A: bool = False,
    path: paths.Path | None = None,
) -> tuple[Tensor, Tensor]:
    """Selective state-space scan with a state of n numbers, each with its own decay, for every channel.

    With dt' = clamp(softplus(dt + dt_bias), dt_limit), for each channel (Gu & Dao 2023, arXiv:2312.00752, section 3;
    B discretised by Euler's rule, as in their code)::

        h_t = exp(dt'_t A) h_{t-1} + dt'_t B_t x_t        y_t = C_t . h_t + D x_t        y_t *= silu(z_t)

    Args:
        x: (b, l, d) any floating dtype; may be strided, as may all that follows.
        dt: (b, l, d) raw time steps.
        A: (d, n) decay rates, negative (not checked: the values stay on their device).
        B: (b, l, g, n) input weights; channel i uses group i // (d // g).
        C: (b, l, g, n) output weights, grouped like B.
        D: (d,) skip weight.
        z: (b, l, d) gate.
        dt_bias: (d,) added to dt.
        initial_state: (b, d, n); zeros when None. It belongs to the first document of the row.
        seq_idx: (b, l) integer document index; the state does not cross a change, -1 is padding (y = 0, state kept,
            no gradient, whatever stands there). An infinite state of one document may spoil the next.
        dt_softplus: whether dt goes through softplus.
        dt_limit: smallest and largest time step, 0 <= smallest <= largest; no gradient of dt outside.
        log_A: A stands for log(-A), as a mixer keeps it.
        path: force "triton", "chunked" or "reference".

    Returns:
        y: (b, l, d) in x's dtype, and the final state (b, d, n) in float32 (float64 for float64 x). Both are
        differentiable once in every floating argument. The work is done in float32 (float64), under autocast too.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, an empty sequence, a dt_limit that is not
            an interval of non-negative numbers, or a path that does not exist.
    """
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx)
    plain = is_plain(x)
    if not (plain and _seen.knows(tensors, dt_limit)):
        _check(*tensors)
        check_limit("selective_scan", dt_limit)
        if plain:
            _seen.add(tensors, dt_limit)
    low, high = dt_limit
    chosen = paths.choose_path("selective_scan", x, path)
    if chosen == "triton":
        operator = operators.selective_scan_triton_direct if plain else operators.selective_scan_triton
        y, final_state, *_ = operator(*tensors, dt_softplus, low, high, log_A)
        return y, final_state
    if log_A:
        tensors = (x, dt, -torch.exp(A), *tensors[3:])
    if chosen == "reference":
        return selective_scan_reference(*tensors, dt_softplus=dt_softplus, dt_limit=dt_limit)
    chunks, steps = chunked.plan(x.shape[0], A.shape[0], A.shape[1], x.device.type)
    y, final_state, _ = operators.selective_scan(*tensors, dt_softplus, low, high, chunks, steps)
    return y, final_state


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> None:
    if x.ndim != 3 or A.ndim != 2 or B.ndim != 4:
        raise ValueError(
            "selective_scan: x must be (b, l, d), A (d, n), B and C (b, l, g, n); "
            f"got {tuple(x.shape)}, {tuple(A.shape)} and {tuple(B.shape)}"
        )
    batch, length, channels = x.shape
    n, groups = A.shape[1], B.shape[2]
    check_extent("selective_scan", batch, length)
    if groups == 0 or channels % groups:
        raise ValueError(f"selective_scan: the {groups} groups of B and C must divide the {channels} channels of x")
    sequence, weights, vector = (batch, length, channels), (batch, length, groups, n), (channels,)
    wanted: Wanted = {
        "x": (x, sequence),
        "dt": (dt, sequence),
        "A": (A, (channels, n)),
        "B": (B, weights),
        "C": (C, weights),
        "D": (D, vector),
        "z": (z, sequence),
        "dt_bias": (dt_bias, vector),
        "initial_state": (initial_state, (batch, channels, n)),
        "seq_idx": (seq_idx, (batch, length)),
    }
    check_arguments("selective_scan", x.device, wanted)
