"""The definition of the causal depthwise convolution, one token at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.packing import document_runs


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    activation: bool = True,
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as :func:`mamba_core.ops.causal_conv1d`; differentiable by autograd."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    work = working_dtype(x)
    x_, weight = x.to(work), weight.to(work)
    tail = x_.new_zeros(batch, width - 1, channels) if initial_state is None else initial_state.to(work)
    if seq_idx is not None:
        real, run = document_runs(seq_idx)
    ys = []
    for t in range(length):
        before = tail
        if seq_idx is not None and t > 0:
            before = torch.where((run[:, t] == run[:, t - 1])[:, None, None], tail, 0.0)
        window = torch.cat([before, x_[:, t : t + 1]], dim=1)  # (b, width, c), oldest first
        y = torch.einsum("bwc,cw->bc", window, weight)
        if bias is not None:
            y = y + bias.to(work)
        if activation:
            y = F.silu(y)
        after = window[:, 1:]
        if seq_idx is not None:
            after = torch.where(real[:, t, None, None], after, tail)
            y = torch.where(real[:, t, None], y, 0.0)
        tail = after
        ys.append(y)
    return torch.stack(ys, dim=1).to(x.dtype), tail
