"""The kernels of Mamba-1 between its projections, as they lie in the projections' outputs: each function's launches are
remembered for whole tensors, so that taking parts of them costs nothing (:mod:`mamba_core.ops.tape`)."""

from torch import Tensor

from mamba_core.ops.causal_conv1d import triton as convolution
from mamba_core.ops.causal_conv1d import triton_backward as convolution_backward
from mamba_core.ops.selective_scan import triton as selective_scan
from mamba_core.ops.selective_scan import triton_backward as selective_scan_backward
from mamba_core.ops.tape import taped


def _x_and_z(projected: Tensor) -> tuple[Tensor, Tensor]:
    """(b, l, d) each, from (b, l, 2 d)."""
    channels = projected.shape[-1] // 2
    return projected[..., :channels], projected[..., channels:]


def _B_and_C(selected: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(b, l, 1, n) each, from (b, l, r + 2 n)."""
    return selected[..., -2 * n : -n].unsqueeze(2), selected[..., -n:].unsqueeze(2)


@taped
def convolve(
    projected: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None, seq_idx: Tensor | None
) -> tuple[Tensor, Tensor]:
    """x (b, l, d) behind convolution and silu, and the tail."""
    x, _ = _x_and_z(projected)
    return convolution.forward(x, weight, bias, state, seq_idx, True)


@taped
def convolve_backward(
    grad_x: Tensor,
    grad_tail: Tensor | None,
    projected: Tensor,
    weight: Tensor,
    bias: Tensor,
    state: Tensor | None,
    seq_idx: Tensor | None,
    dprojected: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight, bias and state; that of x goes to its half of ``dprojected``."""
    given = (_x_and_z(projected)[0], weight, bias, state, seq_idx)
    _, *grads = convolution_backward.backward(grad_x, grad_tail, *given, True, _x_and_z(dprojected)[0])
    return tuple(grads)


@taped
def scan(
    projected: Tensor,
    x: Tensor,
    selected: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state: Tensor | None,
    seq_idx: Tensor | None,
    dt_min: float,
    dt_max: float,
    log_A: bool,
) -> tuple[Tensor, ...]:
    """y (b, l, d), the final state, and what the backward takes as ``kept``."""
    sequences = (x, dt, A, *_B_and_C(selected, A.shape[1]), D, _x_and_z(projected)[1])
    return selective_scan.forward(*sequences, dt_bias, state, seq_idx, True, (dt_min, dt_max), log_A)


@taped
def scan_backward(
    grad_y: Tensor,
    grad_state: Tensor | None,
    projected: Tensor,
    x: Tensor,
    selected: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    seq_idx: Tensor | None,
    enter: Tensor,
    total: Tensor,
    weights: Tensor,
    A2: Tensor,
    dprojected: Tensor,
    dselected: Tensor,
    wants_state: bool,
    dt_min: float,
    dt_max: float,
    log_A: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, dt, A, D, dt_bias and the state; those of z, B and C go to their parts of ``dprojected`` and
    ``dselected``."""
    n = A.shape[1]
    sequences = (x, dt, A, *_B_and_C(selected, n), D, _x_and_z(projected)[1])
    kept = (dt_bias, seq_idx, enter, total, weights, A2)
    into = (*_B_and_C(dselected, n), _x_and_z(dprojected)[1])
    dx, ddt, dA, _, _, dD, _, dbias, dstate = selective_scan_backward.backward(
        grad_y, grad_state, *sequences, *kept, True, (dt_min, dt_max), log_A, wants_state, into=into
    )
    return dx, ddt, dA, dD, dbias, dstate
