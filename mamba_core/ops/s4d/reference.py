"""The definition of the diagonal time-invariant state space, one token at a time."""

import torch
from torch import Tensor

from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.packing import document_runs


def discretise(dt: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-order hold: exp(dt A), and (exp(dt A) - 1) / A, which B = 1 becomes. A is complex (h, n), so are both."""
    decay = torch.exp(dt[:, None] * A)
    return decay, (decay - 1) / A


def as_complex(tensor: Tensor) -> Tensor:
    """(..., 2) of any real floating dtype -> (...) complex128: angles of many tokens ahead want the digits."""
    return torch.view_as_complex(tensor.double().contiguous())


def s4d_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as :func:`mamba_core.ops.s4d.s4d`; differentiable by autograd."""
    batch, length, _ = x.shape
    work = working_dtype(x)
    x_, state = x.to(work), x.new_zeros(batch, *A.shape, dtype=work) if initial_state is None else initial_state
    state = torch.view_as_complex(state.to(work).contiguous())  # (b, h, n)
    decay, B = (t.to(state.dtype) for t in discretise(dt.double(), as_complex(A)))
    C_ = as_complex(C).to(state.dtype)
    if seq_idx is not None:
        real, run = document_runs(seq_idx)
    ys = []
    for t in range(length):
        before = state
        if seq_idx is not None and t > 0:
            before = torch.where((run[:, t] == run[:, t - 1])[:, None, None], state, 0.0)
        after = decay * before + B * x_[:, t, :, None]
        y = 2 * (C_ * after).sum(-1).real
        if D is not None:
            y = y + D.to(work) * x_[:, t]
        if seq_idx is not None:
            after = torch.where(real[:, t, None, None], after, state)
            y = torch.where(real[:, t, None], y, 0.0)
        state = after
        ys.append(y)
    return torch.stack(ys, dim=1).to(x.dtype), torch.view_as_real(state)
