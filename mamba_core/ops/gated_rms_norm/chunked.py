"""Gated root-mean-square norm in plain PyTorch, forward and backward by hand, a block of rows at a time.

With u = x silu(z) and r = (mean(u^2) + eps)^(-1/2) over a group of G channels, y = u r w. For a gradient g of y:

    v = g w,    du = r (v - u r^2 mean(u v)),    dx = du silu(z),    dz = du x silu'(z),    dw = sum g u r

Blocks of rows keep the dozen passes over them in cache.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops.arguments import working_dtype

# Elements of a block: 1 MB stays in a CPU core's cache; a GPU wants large launches.
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _block(x: Tensor) -> int:
    return max(1, BLOCK_ELEMENTS.get(x.device.type, BLOCK_ELEMENTS["cuda"]) // x.shape[-1])


def _inverse_rms(u: Tensor, eps: float, group: int) -> Tensor:
    """(rows, c) -> (rows, groups, 1)."""
    return u.unflatten(-1, (-1, group)).square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()


def forward(x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group: int) -> Tensor:
    """y in x's dtype and shape."""
    work = working_dtype(x)
    weight = weight.to(work)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows_x, rows_z, rows_y = _rows(x), None if z is None else _rows(z), _rows(y)
    step = _block(x)
    for start in range(0, rows_x.shape[0], step):
        part = slice(start, start + step)
        u = rows_x[part].to(work)
        if rows_z is not None:
            u = u * F.silu(rows_z[part].to(work))
        r = _inverse_rms(u, eps, group)
        rows_y[part] = (u.unflatten(-1, (-1, group)) * r).flatten(-2) * weight
    return y


def backward(
    grad_y: Tensor, x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, z (empty without a gate) and weight; x's and z's in their dtypes."""
    work = working_dtype(x)
    weight = weight.to(work)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dz = torch.empty(0 if z is None else z.shape, dtype=x.dtype if z is None else z.dtype, device=x.device)
    dw = torch.zeros_like(weight)
    rows_g, rows_x, rows_z = _rows(grad_y), _rows(x), None if z is None else _rows(z)
    rows_dx, rows_dz = _rows(dx), None if z is None else _rows(dz)
    step = _block(x)
    for start in range(0, rows_x.shape[0], step):
        part = slice(start, start + step)
        x_ = u = rows_x[part].to(work)
        if rows_z is not None:
            z_ = rows_z[part].to(work)
            gate = F.silu(z_)
            u = x_ * gate
        g = rows_g[part].to(work)
        r = _inverse_rms(u, eps, group)
        normed = (u.unflatten(-1, (-1, group)) * r).flatten(-2)
        dw += (g * normed).sum(0)
        v = g * weight
        mean = (v * normed).unflatten(-1, (-1, group)).mean(dim=-1, keepdim=True)
        du = (v.unflatten(-1, (-1, group)) - normed.unflatten(-1, (-1, group)) * mean).mul_(r).flatten(-2)
        if rows_z is not None and rows_dz is not None:
            rows_dz[part] = torch.ops.aten.silu_backward(du * x_, z_)
            du *= gate
        rows_dx[part] = du
    return dx, dz, dw
