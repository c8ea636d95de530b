"""Remembered launches on a CPU: other numbers, in other memory, give the bits of the function itself; run by
test_triton.py, as interpret_mamba2_inner.py is.
"""

import sys
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.causal_conv1d import triton as conv
from mamba_core.ops.causal_conv1d import triton_backward as conv_backward
from mamba_core.ops.gated_rms_norm import gated_rms_norm
from mamba_core.ops.gated_rms_norm import triton as norm
from mamba_core.ops.mamba1_inner import mamba1_inner
from mamba_core.ops.mamba1_inner import triton as inner1
from mamba_core.ops.mamba2_inner import mamba2_inner
from mamba_core.ops.mamba2_inner import triton as inner
from mamba_core.ops.selective_scan import selective_scan
from mamba_core.ops.selective_scan import triton as scan
from mamba_core.ops.selective_scan import triton_backward as scan_backward
from mamba_core.ops.ssd import ssd
from mamba_core.ops.ssd import triton as dual
from mamba_core.ops.ssd import triton_backward as dual_backward
from tests.core.helpers import assert_equal, gradients, ssd_inputs
from tests.core.test_mamba1_inner import inner_arguments as inner1_arguments
from tests.core.test_mamba2_inner import inner_arguments

Arguments = Mapping[str, Tensor]


def shapes(**sizes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.randn(size) for name, size in sizes.items()}


def scan_arguments() -> dict[str, Tensor]:
    found = shapes(x=(1, 20, 24), dt=(1, 20, 24), A=(24, 2), B=(1, 20, 1, 2), C=(1, 20, 1, 2), D=(24,), z=(1, 20, 24))
    return found | shapes(dt_bias=(24,)) | {"A": found["A"].abs().neg()}


def floats(arguments: Arguments) -> dict[str, Tensor]:
    return {name: t.detach().float() for name, t in arguments.items()}


INNER1 = (inner1.convolve, inner1.scan, inner1.scan_backward, inner1.convolve_backward)
CASES: dict[str, tuple[Callable, Callable[[], dict[str, Tensor]], tuple[Callable, ...], dict[str, object]]] = {
    "mamba1_inner": (mamba1_inner, lambda: floats(inner1_arguments(2, 40, 24, 3, 2, 4)), INNER1, {}),
    "mamba1_inner without states, A as its logarithm": (
        mamba1_inner,
        lambda: floats(inner1_arguments(1, 20, 64, 3, 2, 4, states=False)) | shapes(A=(64, 3)),
        INNER1,
        {"log_A": True},
    ),
    "mamba2_inner": (
        mamba2_inner,
        lambda: floats(inner_arguments(1, 40, 2, 16, 2, 24, 3)),
        (inner.forward, inner.backward),
        {"groups": 2},
    ),
    "mamba2_inner without states, A as its logarithm": (
        mamba2_inner,
        lambda: floats(inner_arguments(2, 20, 2, 16, 1, 16, 4, states=False)) | shapes(A=(2,)),
        (inner.forward, inner.backward),
        {"log_A": True},
    ),
    "ssd": (ssd, lambda: floats(ssd_inputs(1, 70, 2, 16, 1, 16)), (dual.forward, dual_backward.backward), {}),
    "selective_scan, A as its logarithm": (
        selective_scan,
        lambda: scan_arguments() | shapes(A=(24, 2), initial_state=(1, 24, 2)),
        (scan.forward, scan_backward.backward),
        {"log_A": True},
    ),
    "causal_conv1d": (
        causal_conv1d,
        lambda: shapes(x=(1, 50, 40), weight=(40, 4), bias=(40,), initial_state=(1, 3, 40)),
        (conv.forward, conv_backward.backward),
        {},
    ),
    "gated_rms_norm": (
        gated_rms_norm,
        lambda: shapes(x=(2, 9, 48), z=(2, 9, 48), weight=(48,)),
        (norm.forward, norm.backward),
        {},
    ),
}


def main() -> int:
    warnings.simplefilter("ignore", RuntimeWarning)
    torch.manual_seed(0)
    for name, (function, make, taped, options) in CASES.items():
        first, other = ({name: t.detach().requires_grad_() for name, t in make().items()} for _ in range(2))
        with torch.no_grad():
            for tensor in other.values():
                tensor.mul_(torch.rand_like(tensor) + 0.5)
        for one in taped:
            one.tapes.clear()
        gradients(function, first, path="triton", **options)
        for one in taped:
            assert len(one.tapes) == 1, name
            assert None not in one.tapes.values(), name
        got = gradients(function, other, path="triton", **options)
        assert all(len(one.tapes) == 1 for one in taped), f"{name}: the second call was of another kind"
        for one in taped:
            one.tapes.clear()
        assert_equal(gradients(function, other, path="triton", **options), got)
        print(f"{name}: same", flush=True)
    given_twice()
    return 0


def given_twice() -> None:
    """A call with one tensor in two places says nothing about calls with two."""
    for one in INNER1:
        one.tapes.clear()
    first = floats(inner1_arguments(1, 20, 24, 3, 2, 4, states=False))
    second = {name: t * 1.5 for name, t in first.items()} | {"dt_bias": torch.rand(24)}
    for arguments in (first | {"dt_bias": first["D"]}, second):
        low = {name: t.clone().requires_grad_() for name, t in arguments.items()}
        if arguments is not second:
            low["dt_bias"] = low["D"]
        gradients(mamba1_inner, low, path="triton")
    got = gradients(mamba1_inner, low, path="triton")
    for one in INNER1:
        one.tapes.clear()
    assert_equal(gradients(mamba1_inner, low, path="triton"), got)
    print("given twice: same", flush=True)


if __name__ == "__main__":
    sys.exit(main())
