"""State-space dual operation of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060, section 6)."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops import paths
from mamba_core.ops.arguments import Wanted, check_arguments, check_extent, check_limit
from mamba_core.ops.direct import Seen, is_plain
from mamba_core.ops.ssd import operators
from mamba_core.ops.ssd.reference import ssd_reference

__all__ = ["ssd"]

_seen = Seen()


def ssd(
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
    path: paths.Path | None = None,
) -> tuple[Tensor, Tensor]:
    """Selective state-space scan with one decay a head.

    With dt' = clamp(softplus(dt + dt_bias), dt_limit), for each head::

        h_t = exp(dt'_t A) h_{t-1} + dt'_t x_t B_t^T        y_t = h_t C_t + D x_t        y_t *= silu(z_t)

    Args:
        x: (b, l, h, p) any floating dtype; may be strided.
        dt: (b, l, h) raw time steps.
        A: (h,) negative decay rates.
        B: (b, l, g, n), C: (b, l, g, n); head i uses group i // (h // g).
        D: (h,) skip weight. dt_bias: (h,).
        z: (b, l, h, p) gate.
        initial_state: (b, h, p, n); zeros when None. It belongs to the first document of the row.
        seq_idx: (b, l) integer document index; the state does not cross a change, -1 is padding (y = 0, state kept,
            whatever stands there). An infinite value in a document may spoil others that share a chunk with it.
        dt_softplus: whether dt goes through softplus.
        dt_limit: smallest and largest time step.
        path: force "triton", "chunked" or "reference"; see :mod:`mamba_core.ops.paths`.

    Returns:
        y: (b, l, h, p) in x's dtype, and the final state (b, h, p, n) in float32 (float64 for float64 inputs). Both
        are differentiable in every floating argument. The work is done in float32 (float64).

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, an empty sequence, a dt_limit that is not
            an interval of non-negative numbers, or a path that does not exist.
    """
    given = (x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx)
    plain = is_plain(x)
    if not (plain and _seen.knows(given, dt_limit)):
        _check(*given)
        check_limit("ssd", dt_limit)
        if plain:
            _seen.add(given, dt_limit)
    chosen = paths.choose_path("ssd", x, path)
    if chosen == "reference":
        return ssd_reference(
            x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dt_softplus=dt_softplus, dt_limit=dt_limit
        )
    low, high = dt_limit
    op: Callable[..., tuple[Tensor, ...]] = operators.ssd
    if chosen == "triton":
        op = operators.ssd_triton_direct if plain else operators.ssd_triton
    y, final_state, *_ = op(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, low, high)
    if z is not None:
        if seq_idx is not None:  # whatever stands at padding
            z = z.masked_fill((seq_idx < 0)[..., None, None], 0.0)
        y = (y * F.silu(z)).to(x.dtype)
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
    if x.ndim != 4 or B.ndim != 4:
        raise ValueError(f"ssd: x must be (b, l, h, p), B and C (b, l, g, n); got {tuple(x.shape)}, {tuple(B.shape)}")
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    check_extent("ssd", b, l)
    if g == 0 or h % g:
        raise ValueError(f"ssd: the {g} groups of B and C must divide the {h} heads of x")
    wanted: Wanted = {
        "x": (x, (b, l, h, p)),
        "dt": (dt, (b, l, h)),
        "A": (A, (h,)),
        "B": (B, (b, l, g, n)),
        "C": (C, (b, l, g, n)),
        "D": (D, (h,)),
        "z": (z, (b, l, h, p)),
        "dt_bias": (dt_bias, (h,)),
        "initial_state": (initial_state, (b, h, p, n)),
        "seq_idx": (seq_idx, (b, l)),
    }
    check_arguments("ssd", x.device, wanted)
