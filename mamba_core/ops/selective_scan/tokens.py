"""What the selective scan reads and writes once a token: the caller's tensors, cut into blocks, and the elementwise
arithmetic around the recurrence (time steps, padding, skip), with its backward."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.packing import document_runs


def mask(t: Tensor, pad: Tensor | None) -> Tensor:
    """Zero ``t`` (b, m, ...) where ``pad`` (b, m) is true."""
    return t if pad is None else t.masked_fill(pad.view(*pad.shape, *[1] * (t.ndim - 2)), 0.0)


@dataclass
class Block:
    """The tokens of one block in the work dtype, in the caller's layout (b, m, ...), zero at padding."""

    raw: Tensor  # (b, m, d), dt + dt_bias
    free: Tensor  # (b, m, d), the time step before it is clamped
    dt: Tensor  # (b, m, d), the time step
    x: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    pad: Tensor | None  # (b, m) bool
    keep: Tensor | None  # (b, m), 0 where a document starts and forgets the one before, else 1
    softplus: bool
    limit: tuple[float, float]

    def skip(self, out: Tensor) -> Tensor:
        return out if self.D is None else out + self.D * self.x

    def step_backward(self, grad: Tensor) -> Tensor:
        """From the gradient of the time step to that of the raw dt."""
        low, high = self.limit
        if not (self.softplus and low == 0 and high == math.inf):  # that pair clamps nothing
            grad = grad.masked_fill((self.free < low) | (self.free > high), 0.0)
        if self.softplus:
            grad = torch.ops.aten.softplus_backward(grad, self.raw, 1.0, 20.0)  # with the threshold of F.softplus
        return mask(grad, self.pad)


class Tokens:
    """The caller's tensors, handed out block by block."""

    def __init__(
        self,
        x: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        seq_idx: Tensor | None,
        softplus: bool,
        limit: tuple[float, float],
    ):
        self.x, self.dt, self.B, self.C, self.z = x, dt, B, C, z
        self.work = working_dtype(x)
        self.D = None if D is None else D.to(self.work)
        self.dt_bias = None if dt_bias is None else dt_bias.to(self.work)
        self.softplus, self.limit = softplus, limit
        self.pad = self.keep = None
        if seq_idx is not None:
            real, run = document_runs(seq_idx)
            self.pad = ~real
            self.keep = (run.diff(dim=1, prepend=run[:, :1]) == 0).to(self.work)

    def spans(self, size: int) -> list[slice]:
        length = self.x.shape[1]
        return [slice(start, min(start + size, length)) for start in range(0, length, size)]

    def block(self, span: slice) -> Block:
        pad = None if self.pad is None else self.pad[:, span]
        raw = self.dt[:, span].to(self.work)
        if self.dt_bias is not None:
            raw = raw + self.dt_bias
        free = F.softplus(raw) if self.softplus else raw
        # Zeros at padding make it harmless, whatever stands there: the step keeps the state, adds and reads nothing.
        return Block(
            raw=raw,
            free=free,
            dt=mask(free.clamp(*self.limit), pad),
            x=mask(self.x[:, span].to(self.work), pad),
            B=mask(self.B[:, span].to(self.work), pad),
            C=mask(self.C[:, span].to(self.work), pad),
            D=self.D,
            z=None if self.z is None else mask(self.z[:, span].to(self.work), pad),
            pad=pad,
            keep=None if self.keep is None else self.keep[:, span],
            softplus=self.softplus,
            limit=self.limit,
        )
