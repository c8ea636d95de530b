"""The Triton kernels of selective_scan on a CPU, against the float64 reference; run by test_triton.py in a process of
its own. Memory that no kernel has written holds NaN.

Triton decides at import whether it interprets, so this cannot share a process with anything that compiles.
"""

import sys
import warnings
from typing import Any

from mamba_core.ops.selective_scan import selective_scan, triton, triton_backward
from tests.core.helpers import assert_same, every_other, gradients, pack, poisoned
from tests.core.test_selective_scan import ALONG_TIME, inputs

CASES: list[tuple[dict[str, int], dict[str, Any]]] = [
    ({"length": 1, "batch": 2, "channels": 6, "groups": 2, "d_state": 3}, {}),
    ({"length": 1, "batch": 2, "channels": 6, "groups": 2, "d_state": 3}, {"packed": True}),
    ({"length": 45, "batch": 2, "channels": 8, "d_state": 2}, {}),
    ({"length": 45, "batch": 2, "channels": 8, "d_state": 2}, {"packed": True}),
    ({"length": 70, "batch": 1, "channels": 70, "d_state": 1}, {"packed": True, "dt_limit": (0.2, 0.8)}),
    (
        {"length": 33, "batch": 1, "channels": 64, "d_state": 2},
        {"dt_softplus": False, "left_out": ("z", "D", "dt_bias")},
    ),
    ({"length": 40, "batch": 1, "channels": 8, "d_state": 2}, {"left_out": ("initial_state",), "scale_A": 1e5}),
    ({"length": 40, "batch": 1, "channels": 8, "d_state": 2}, {"packed": True, "scale_A": 0.0}),
    ({"length": 35, "batch": 2, "channels": 128, "d_state": 1}, {"packed": True, "few": True}),
    ({"length": 35, "batch": 1, "channels": 128, "groups": 2, "d_state": 1}, {"few": True}),
]


def check(
    shape: dict[str, int],
    packed: bool = False,
    left_out: tuple[str, ...] = (),
    scale_A: float = 1.0,
    **options: Any,
) -> None:
    exact = {name: t.detach() for name, t in inputs(**shape).items() if name not in left_out}
    exact["A"] = exact["A"] * scale_A
    seq_idx = pack(shape["length"], shape["batch"]).t().contiguous().t() if packed else None
    low = {name: t.float() for name, t in exact.items()}
    if seq_idx is not None:  # padding may hold anything
        for name in ALONG_TIME:
            if name in low:
                low[name][seq_idx < 0] = float("nan")
    low |= {name: every_other(low[name]) for name in low.keys() & {"A", "D", "dt_bias"}}
    exact, low = ({name: t.requires_grad_() for name, t in side.items()} for side in (exact, low))
    want = gradients(selective_scan, exact, seq_idx=seq_idx, path="reference", **options)
    got = gradients(selective_scan, low, seq_idx=seq_idx, path="triton", **options)
    assert_same(want, got, 1e-5)


def main() -> int:
    warnings.simplefilter("ignore", RuntimeWarning)  # masked-out lanes overflow in numpy
    for shape, options in CASES:
        few = options.pop("few", False)  # long chunks, all channels to one program, one chunk to a slab
        triton.PROGRAMS = triton_backward.PROGRAMS = triton_backward.AT_ONCE = 1 if few else 4096
        triton_backward.SCRATCH = 0
        check(shape, **options)
        print(f"{shape} {options}: same", flush=True)
    return 0


if __name__ == "__main__":
    with poisoned():
        sys.exit(main())
