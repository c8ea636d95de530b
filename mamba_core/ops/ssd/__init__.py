"""State-space dual operation of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060, section 6): the public function, the
registered operators behind it, and the choice of path."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops import paths
from mamba_core.ops.ssd import chunked
from mamba_core.ops.ssd.reference import ssd_reference

__all__ = ["ssd"]


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
        seq_idx: (b, l) integer document index; the state does not cross a change, -1 is padding (y = 0, state kept).
        dt_softplus: whether dt goes through softplus.
        dt_limit: smallest and largest time step.
        path: force "chunked" or "reference".

    Returns:
        y: (b, l, h, p) in x's dtype, and the final state (b, h, p, n) in float32 (float64 for float64 inputs). Both
        are differentiable in every floating argument. The work is done in float32 (float64).

    Raises:
        ValueError: shapes that do not belong together, or a path that does not exist.
    """
    _check(x, dt, A, B, C, initial_state)
    if paths.choose_path("ssd", x.device.type, path) == "reference":
        return ssd_reference(
            x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dt_softplus=dt_softplus, dt_limit=dt_limit
        )
    low, high = dt_limit
    y, final_state, _ = _ssd(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, low, high)
    if z is not None:
        y = y * F.silu(z)
    return y, final_state


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None) -> None:
    b, l, h, p = x.shape
    if l == 0:
        raise ValueError("ssd: the sequence has no token")
    if dt.shape != (b, l, h) or A.shape != (h,):
        raise ValueError(f"ssd: x {tuple(x.shape)} wants dt {(b, l, h)} and A {(h,)}; got {dt.shape} and {A.shape}")
    if B.shape != C.shape or B.shape[:2] != (b, l) or h % B.shape[2]:
        raise ValueError(f"ssd: B {tuple(B.shape)} and C {tuple(C.shape)} must be (b, l, groups dividing {h}, n)")
    if initial_state is not None and initial_state.shape != (b, h, p, B.shape[3]):
        raise ValueError(f"ssd: initial_state must be {(b, h, p, B.shape[3])}, got {tuple(initial_state.shape)}")


@torch.library.custom_op("mamba_core::ssd", mutates_args=())
def _ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return chunked.forward(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, (dt_min, dt_max))


@_ssd.register_fake
def _(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, dt_min, dt_max):  # type: ignore[no-untyped-def]
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    chunks = (l + chunked.CHUNK - 1) // chunked.CHUNK
    states = x.new_empty(b, chunks + 1, g, n, h // g * p, dtype=work)
    return x.new_empty(x.shape), x.new_empty(b, h, p, n, dtype=work), states


@torch.library.custom_op("mamba_core::ssd_backward", mutates_args=())
def _ssd_backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    states: Tensor,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    limit = (dt_min, dt_max)
    dx, ddt, dA, dB, dC, dD, dbias, dstate = chunked.backward(
        grad_y, grad_final, x, dt, A, B, C, D, dt_bias, seq_idx, states, dt_softplus, limit
    )
    return dx.to(x.dtype), ddt.to(dt.dtype), dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), dD, dbias, dstate


@_ssd_backward.register_fake
def _(grad_y, grad_final, x, dt, A, B, C, D, dt_bias, seq_idx, states, dt_softplus, dt_min, dt_max):  # type: ignore[no-untyped-def]
    h = x.shape[2]
    vector = x.new_empty(h, dtype=states.dtype)
    shaped = [t.new_empty(t.shape) for t in (x, dt, A, B, C)]
    return (*shaped, vector, torch.empty_like(vector), x.new_empty(grad_final.shape, dtype=states.dtype))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, dt_min, dt_max = inputs
    ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, seq_idx, output[2])
    ctx.options = (dt_softplus, dt_min, dt_max)
    ctx.dtypes = tuple(None if t is None else t.dtype for t in (D, dt_bias, initial_state))


def _backward(ctx, grad_y, grad_final, _grad_states):  # type: ignore[no-untyped-def]
    *saved, states = ctx.saved_tensors
    grads = _ssd_backward(grad_y, grad_final, *saved, states, *ctx.options)
    optional = [None if dtype is None else g.to(dtype) for g, dtype in zip(grads[5:], ctx.dtypes, strict=True)]
    return (*grads[:5], *optional, None, None, None, None)


_ssd.register_autograd(_backward, setup_context=_setup_context)
