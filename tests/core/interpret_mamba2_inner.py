"""The fused operator of Mamba-2 on a CPU, against the float64 reference; run by test_triton.py in a process of its own.

Triton decides at import whether it interprets, so this cannot share a process with anything that compiles.
"""

import sys
import warnings

import torch

from mamba_core.ops.mamba2_inner import mamba2_inner
from tests.core.helpers import assert_same, every_other, gradients, pack, poisoned
from tests.core.test_mamba2_inner import LIMITS, inner_arguments

CASES = [  # batch, length, heads, headdim, groups, d_state, width; states are given
    ((2, 1, 2, 16, 1, 16, 4), True),
    ((2, 63, 4, 16, 2, 24, 3), True),
    ((1, 150, 2, 32, 1, 16, 4), False),
]


def main() -> int:
    warnings.simplefilter("ignore", RuntimeWarning)  # masked-out lanes overflow in numpy
    torch.manual_seed(0)
    for index, (shape, states) in enumerate(CASES):
        for packed in (False, True):
            arguments = inner_arguments(*shape, states=states)
            batch, length, groups = shape[0], shape[1], shape[4]
            seq_idx = pack(length, batch).t().contiguous().t() if packed else None
            options = {"groups": groups, "dt_limit": LIMITS[index % 2]}
            want = gradients(mamba2_inner, arguments, seq_idx=seq_idx, path="reference", **options)
            low = {name: tensor.detach().float() for name, tensor in arguments.items()}
            if seq_idx is not None:  # padding may hold anything, but in z
                low["projected"][..., len(low["norm_weight"]) :][seq_idx < 0] = float("nan")
            low |= {name: every_other(low[name]) for name in ("A", "D", "dt_bias", "norm_weight", "conv_bias")}
            low = {name: tensor.requires_grad_() for name, tensor in low.items()}
            got = gradients(mamba2_inner, low, seq_idx=seq_idx, path="triton", **options)
            assert_same(want, got, 1e-4)
            print(f"{shape} packed={packed}: same", flush=True)
    return 0


if __name__ == "__main__":
    with poisoned():
        sys.exit(main())
