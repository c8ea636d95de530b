"""The Triton kernels of the convolution on a CPU, against the float64 reference; run by test_triton.py in a process of
its own.

Triton decides at import whether it interprets, so this cannot share a process with anything that compiles.
"""

import sys
import warnings

import torch
from torch import Tensor

from mamba_core.ops.causal_conv1d import causal_conv1d, triton, triton_backward
from tests.core.helpers import assert_same, gradients, pack, poisoned, strided

CASES = [  # batch, length, channels, width, activation, tokens of a segment, leave out bias and state
    (2, 1, 6, 4, True, 32, False),
    (1, 2, 5, 4, True, 32, True),
    (2, 63, 24, 4, True, 16, False),
    (1, 63, 40, 4, False, 2, False),
    (2, 37, 24, 1, True, 8, False),
    (1, 37, 16, 2, True, 2, True),
    (1, 41, 24, 7, True, 4, False),
    (1, 101, 300, 3, True, 40, False),
]


def inputs(batch: int, length: int, channels: int, width: int, plain: bool) -> dict[str, Tensor]:
    """Random float64 arguments, all with gradients."""
    shapes = {"x": (batch, length, channels), "weight": (channels, width)}
    if not plain:
        shapes |= {"bias": (channels,), "initial_state": (batch, width - 1, channels)}
    return {name: torch.randn(s, dtype=torch.float64, requires_grad=True) for name, s in shapes.items()}


def assert_same_in_place(low: dict[str, Tensor], seq_idx: Tensor | None, activation: bool) -> None:
    """Gradients of x written over those of y, rows of something wider: the same bits."""
    given = {name: tensor.detach() for name, tensor in low.items()}
    tensors = (given["x"], given["weight"], given.get("bias"), given.get("initial_state"), seq_idx, activation)
    y, final = triton.forward(*tensors)
    grad_y, grad_final = strided(torch.randn_like(y)), torch.randn_like(final)
    apart = triton_backward.backward(grad_y, grad_final, *tensors)
    over = triton_backward.backward(grad_y, grad_final, *tensors, dx=grad_y)
    assert over[0] is grad_y
    for one, other in zip(apart, over, strict=True):
        assert torch.equal(one, other)


def main() -> int:
    warnings.simplefilter("ignore", RuntimeWarning)  # masked-out lanes overflow in numpy
    torch.manual_seed(0)
    for batch, length, channels, width, activation, segment, plain in CASES:
        triton.SEGMENT = {"forward": (segment, segment), "backward": (segment, segment)}
        for packed in (False, True):
            arguments = inputs(batch, length, channels, width, plain)
            seq_idx = pack(length, batch).t().contiguous().t() if packed else None
            want = gradients(causal_conv1d, arguments, seq_idx=seq_idx, activation=activation, path="reference")
            low = {name: tensor.detach().float() for name, tensor in arguments.items()}
            if seq_idx is not None:  # padding may hold anything
                low["x"][seq_idx < 0] = float("nan")
            low["x"] = strided(low["x"])
            low = {name: tensor.requires_grad_() for name, tensor in low.items()}
            got = gradients(causal_conv1d, low, seq_idx=seq_idx, activation=activation, path="triton")
            assert_same(want, got, 1e-5)
            if segment in (2, 40):
                assert_same_in_place(low, seq_idx, activation)
            print(f"{(batch, length, channels, width)} segment={segment} packed={packed}: same", flush=True)
    return 0


if __name__ == "__main__":
    with poisoned():
        sys.exit(main())
