"""The Triton kernels of ssd on a CPU, against the float64 reference; run by test_triton.py in a process of its own.

Triton decides at import whether it interprets, so this cannot share a process with anything that compiles.
"""

import itertools
import sys
import warnings
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from mamba_core.ops.ssd import ssd
from tests.core.helpers import assert_equal, assert_same, every_other, gradients, pack, poisoned, ssd_inputs

SHAPES = [  # batch, length, heads, headdim, groups, d_state
    (2, 1, 2, 16, 1, 16),
    (1, 63, 4, 20, 2, 24),
    (2, 257, 2, 16, 1, 16),
    (1, 300, 2, 32, 1, 130),
    (1, 9, 2, 1, 1, 16),
    (1, 9, 2, 16, 1, 1),
]


def main() -> int:
    warnings.simplefilter("ignore", RuntimeWarning)  # masked-out lanes overflow in numpy
    torch.manual_seed(0)
    for shape, packed, limit in itertools.product(SHAPES, (False, True), ((0.0, float("inf")), (0.2, 0.8))):
        arguments = ssd_inputs(*shape)
        seq_idx = pack(shape[1], shape[0]).t().contiguous().t() if packed else None  # of any layout
        want = gradients(ssd, arguments, seq_idx=seq_idx, dt_limit=limit, path="reference")
        low = {name: tensor.detach().float() for name, tensor in arguments.items()}
        if seq_idx is not None:  # padding may hold anything
            for name in ("x", "dt", "B", "C"):
                low[name][seq_idx < 0] = float("nan")
        low |= {name: every_other(low[name]) for name in ("A", "D", "dt_bias")}
        low = {name: tensor.requires_grad_() for name, tensor in low.items()}
        got = gradients(ssd, low, seq_idx=seq_idx, dt_limit=limit, path="triton")
        assert_same(want, got, 2e-4)
        print(f"{shape} packed={packed} limit={limit}: same", flush=True)
    low = {name: t.detach().float().requires_grad_() for name, t in ssd_inputs(1, 9, 2, 16, 1, 16).items()}
    again = partial(checkpoint, ssd, use_reentrant=False)
    assert_equal(*(gradients(call, low, path="triton") for call in (ssd, again)))
    return 0


if __name__ == "__main__":
    with poisoned():
        sys.exit(main())
