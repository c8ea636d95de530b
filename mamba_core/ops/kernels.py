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
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), to seven digits everywhere."""
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    # log(1 + e) / e on [0, 1], relative error 2e-7.
    p = -0.00853909645 * e + 0.0440892391
    p = p * e - 0.1076811701
    p = p * e + 0.1774520427
    p = p * e - 0.2449544966
    p = p * e + 0.3327547908
    p = p * e - 0.4999740422
    p = p * e + 0.9999998212
    return tl.maximum(x, 0.0) + p * e


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x); tl.exp2 is one instruction, tl.exp minds the denormals."""
    return 1.0 / (1.0 + tl.exp2(x * -LOG2_E))


@triton.jit
def clamp(x, low, high):
    """Between low and high; NaN stays, so that it shows."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def run_of(code):
    """Run of a token from what :func:`encode_runs` made of it."""
    return tl.where(code < 0, -1 - code, code)


def encode_runs(seq_idx: Tensor) -> Tensor:
    """(b, l) int32: the run of each token (:mod:`mamba_core.ops.packing`), and -1 - run at padding."""
    real, run = document_runs(seq_idx)
    return torch.where(real, run, -1 - run).int().contiguous()


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
