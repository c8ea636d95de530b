"""The definition of the state-space dual operation, one token at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.packing import document_runs


def ssd_reference(
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
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as :func:`mamba_core.ops.ssd`; differentiable by autograd."""
    batch, length, heads, headdim = x.shape
    work = working_dtype(x)
    x_, dt, A = x.to(work), dt.to(work), A.to(work)
    B = B.to(work).repeat_interleave(heads // B.shape[2], dim=2)  # (b, l, h, n)
    C = C.to(work).repeat_interleave(heads // C.shape[2], dim=2)
    if dt_bias is not None:
        dt = dt + dt_bias.to(work)
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    if initial_state is None:
        state = x_.new_zeros(batch, heads, headdim, B.shape[-1])
    else:
        state = initial_state.to(work)
    if seq_idx is not None:
        real, run = document_runs(seq_idx)
    ys = []
    for t in range(length):
        decay = torch.exp(dt[:, t] * A)[..., None, None]  # (b, h, 1, 1)
        update = torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x_[:, t], B[:, t])
        before = state
        if seq_idx is not None and t > 0:
            before = torch.where((run[:, t] == run[:, t - 1])[:, None, None, None], state, 0.0)
        after = decay * before + update
        y = torch.einsum("bhpn,bhn->bhp", after, C[:, t])
        if D is not None:
            y = y + D.to(work)[:, None] * x_[:, t]
        if z is not None:
            y = y * F.silu(z[:, t].to(work))
        if seq_idx is not None:
            here = real[:, t, None, None]
            after = torch.where(here[..., None], after, state)
            y = torch.where(here, y, 0.0)
        state = after
        ys.append(y)
    return torch.stack(ys, dim=1).to(x.dtype), state
