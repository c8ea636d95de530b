"""Mamba-1's one operation on a CPU, against the float64 reference; run by test_triton.py in a process of its own.

Triton decides at import whether it interprets, so this cannot share a process with anything that compiles.
"""

import sys
import warnings
from functools import partial
from unittest.mock import patch

import torch
from torch.utils.checkpoint import checkpoint

from mamba_core.ops.mamba1_inner import composed, mamba1_inner
from tests.core.helpers import assert_equal, assert_same, every_other, gradients, pack, poisoned
from tests.core.test_mamba1_inner import LIMITS, inner_arguments

CASES = [  # batch, length, channels, d_state, rank, width; states are given
    ((2, 1, 16, 16, 2, 4), True),
    ((1, 36, 20, 5, 3, 3), False),
]


def compare_under_autocast() -> None:
    """Of projections in float32 too, which come from a layer that autocast does not know."""
    arguments = {
        name: tensor.detach().float().requires_grad_()
        for name, tensor in inner_arguments(1, 20, 16, 4, 3, 4, states=False).items()
    }
    with torch.autocast("cpu", torch.bfloat16):
        want = gradients(mamba1_inner, arguments, path="chunked")
        got = gradients(mamba1_inner, arguments, path="triton")
    assert_same(want, got, 4e-2)
    print("under autocast: same", flush=True)


def main() -> int:
    warnings.simplefilter("ignore", RuntimeWarning)  # masked-out lanes overflow in numpy
    torch.manual_seed(0)
    compare_under_autocast()
    for index, (shape, states) in enumerate(CASES):
        for packed in (False, True):
            arguments = inner_arguments(*shape, states=states)
            batch, length = shape[:2]
            seq_idx = pack(length, batch).t().contiguous().t() if packed else None
            options = {"dt_limit": LIMITS[index % 2]}
            want = gradients(mamba1_inner, arguments, seq_idx=seq_idx, path="reference", **options)
            low = {name: tensor.detach().float() for name, tensor in arguments.items()}
            if seq_idx is not None:  # padding may hold anything
                low["projected"][seq_idx < 0] = float("nan")
            low |= {name: every_other(low[name]) for name in ("D", "dt_bias", "conv_bias")}
            low = {name: tensor.requires_grad_() for name, tensor in low.items()}
            with patch.object(composed, "mamba1_inner", None):  # the one operation, and nothing else
                got = gradients(mamba1_inner, low, seq_idx=seq_idx, path="triton", **options)
                if length == 1:
                    again = partial(checkpoint, mamba1_inner, use_reentrant=False)
                    assert_equal(got, gradients(again, low, seq_idx=seq_idx, path="triton", **options))
            assert_same(want, got, 1e-4)
            print(f"{shape} packed={packed}: same", flush=True)
    return 0


if __name__ == "__main__":
    with poisoned():
        sys.exit(main())
