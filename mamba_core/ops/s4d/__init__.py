"""Diagonal, complex, time-invariant state space (S4D: Gu et al. 2022, arXiv:2206.11893)."""

from typing import Literal

import torch
from torch import Tensor

from mamba_core.ops.arguments import Wanted, check_arguments, check_extent
from mamba_core.ops.s4d import chunked
from mamba_core.ops.s4d.reference import s4d_reference

__all__ = ["s4d"]

Path = Literal["reference", "chunked"]


def s4d(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    path: Path | None = None,
) -> tuple[Tensor, Tensor]:
    """A state space of n conjugate pairs for each channel, the same at every token.

    Complex numbers come as pairs of real ones, (..., 2). Discretised by a zero-order hold, with B = 1::

        h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A x_t        y_t = 2 Re(C h_t) + D x_t

    Args:
        x: (b, l, h) any floating dtype; may be strided.
        dt: (h,) positive time steps.
        A: (h, n, 2) one pole of each pair, with negative real part. C: (h, n, 2).
        D: (h,) skip weight.
        initial_state: (b, h, n, 2); zeros when None. It belongs to the first document of the row.
        seq_idx: (b, l) integer document index; the state does not cross a change, -1 is padding (y = 0, state kept,
            whatever stands there).
        path: force "chunked" or "reference".

    Returns:
        y: (b, l, h) in x's dtype, and the final state (b, h, n, 2) in float32 (float64 for float64 inputs). Both are
        differentiable in every floating argument. The work is done in float32 (float64), under autocast too.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, an empty sequence, or a path that does not
            exist.
    """
    if x.ndim != 3 or A.ndim != 3:
        raise ValueError(f"s4d: x must be (b, l, h) and A (h, n, 2); got {tuple(x.shape)}, {tuple(A.shape)}")
    b, l, h = x.shape
    n = A.shape[1]
    check_extent("s4d", b, l)
    wanted: Wanted = {
        "x": (x, (b, l, h)),
        "dt": (dt, (h,)),
        "A": (A, (h, n, 2)),
        "C": (C, (h, n, 2)),
        "D": (D, (h,)),
        "initial_state": (initial_state, (b, h, n, 2)),
        "seq_idx": (seq_idx, (b, l)),
    }
    check_arguments("s4d", x.device, wanted)
    if path not in (None, "reference", "chunked"):
        raise ValueError(f"s4d: unknown path {path!r}; choose one of reference, chunked")
    function = s4d_reference if path == "reference" else chunked.s4d_chunked
    with torch.autocast(x.device.type, enabled=False):
        return function(x, dt, A, C, D, initial_state, seq_idx)
