"""What the Triton kernels of several operations share."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.packing import document_runs

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def softplus(x):
    """log(1 + e^x) to the last digits, also where it is tiny."""
    e = tl.exp(x)
    small = e * (1.0 - e * (0.5 - e * (1.0 / 3.0)))
    return tl.where(x > 20.0, x, tl.where(e < 2e-3, small, tl.log(1.0 + e)))


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def run_of(code):
    """Run of a token from what :func:`encode_runs` made of it."""
    return tl.where(code < 0, -1 - code, code)


def encode_runs(seq_idx: Tensor) -> Tensor:
    """(b, l) int32: the run of each token (:mod:`mamba_core.ops.packing`), and -1 - run at padding."""
    real, run = document_runs(seq_idx)
    return torch.where(real, run, -1 - run).int()


def inner_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself where its last stride is 1, as in a slice of a projection's output; else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def power_of_two(size: int, at_least: int = 1) -> int:
    """Smallest power of two that holds ``size``, and is no less than ``at_least``."""
    return max(at_least, triton.next_power_of_2(size))


def on_device_of_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """For functions that launch kernels: Triton launches on the current GPU, which need not be that of the tensors."""

    @wraps(function)
    def launch(first: Tensor, *args: Any, **options: Any) -> Any:
        with torch.cuda.device_of(first):
            return function(first, *args, **options)

    return launch
