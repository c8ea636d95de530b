"""The definition of the gated root-mean-square norm."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops.arguments import working_dtype


def gated_rms_norm_reference(
    x: Tensor, z: Tensor | None, weight: Tensor, eps: float = 1e-5, group_size: int | None = None
) -> Tensor:
    """Same arguments and result as :func:`mamba_core.ops.gated_rms_norm`; differentiable by autograd."""
    work = working_dtype(x)
    u = x.to(work)
    if z is not None:
        u = u * F.silu(z.to(work))
    groups = u.unflatten(-1, (-1, group_size or u.shape[-1]))
    groups = groups * torch.rsqrt(groups.pow(2).mean(dim=-1, keepdim=True) + eps)
    return (groups.flatten(-2) * weight.to(work)).to(x.dtype)
