"""Gradients of an operator's results: zeros stand in for missing ones only where the backward reads them.

PyTorch by itself makes zeros for every result without a gradient, those that are returned for the backward alone
included; of long sequences that would be gigabytes.
"""

from typing import Any

import torch
from torch import Tensor


def remember_results(ctx: Any, *results: Tensor) -> None:
    """In ``setup_context``: the results that have gradients, in order."""
    ctx.set_materialize_grads(False)
    ctx.results = [(result.shape, result.dtype, result.device) for result in results]


def complete(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, ...]:
    """In the backward: the gradients of the first of them, zeros where there is none."""
    return tuple(
        torch.zeros(shape, dtype=dtype, device=device) if grad is None else grad
        for grad, (shape, dtype, device) in zip(grads, ctx.results, strict=False)
    )
