"""The decode kernels on a CPU, against the float64 reference; run by test_triton.py in a process of its own.

Triton decides at import whether it interprets, so this cannot share a process with anything that compiles.
"""

import sys
import warnings
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from mamba_core import Mamba2Config, State
from mamba_core.blocks import Block
from mamba_core.ops import decode
from tests.core.helpers import assert_same, poisoned
from tests.core.steps import (
    conv_step_arguments,
    mamba2_step_arguments,
    named,
    s4d_step_arguments,
    selective_scan_step_arguments,
)

MAMBA2 = [  # batch, heads, headdim, groups, d_state, width
    (2, 2, 16, 1, 16, 4),
    (1, 2, 64, 1, 128, 4),
    (2, 4, 20, 2, 24, 3),
    (1, 6, 33, 3, 100, 2),
    (1, 2, 32, 1, 256, 1),
]
SCAN = [(2, 40, 16), (1, 70, 5), (2, 33, 128)]  # batch, channels, d_state
S4D = [(2, 40, 8), (1, 3, 32), (2, 9, 5)]  # batch, channels, pairs
CONV = [(2, 300, 4), (1, 70, 3), (3, 33, 2), (2, 5, 1)]  # batch, channels, width
LAYERS = [  # batch, width, configuration
    (2, 40, Mamba2Config(d_state=16, headdim=16)),
    (1, 24, Mamba2Config(d_state=24, headdim=8, d_conv=3)),
    (3, 16, Mamba2Config(d_state=16, headdim=8, d_conv=1, dt_limit=(0.05, 0.2))),
]
LIMITS = ((0.0, float("inf")), (0.2, 0.8))


def compare(op: str, exact: dict[str, Tensor], **options: object) -> None:
    """The kernels in float32, functional and in place, against the reference."""
    function: Callable[..., tuple[Tensor, ...]] = getattr(decode, op)
    want = named(op, function(**exact, path="reference", **options))
    low = {n: t.float() if t.is_floating_point() else t.clone() for n, t in exact.items()}
    with poisoned():
        got = named(op, function(**low, path="triton", **options))
        given = {n: low[n].clone() for n in got if n != "y"}
        again = named(op, function(**low | given, path="triton", in_place=True, **options))
    assert_same(want, got, 1e-5)
    for name, tensor in got.items():
        assert torch.equal(again[name], tensor), name
        if name != "y":
            assert again[name] is given[name], name
            assert torch.equal(low[name].double(), exact[name].float().double()), name  # what was given stays
    print(f"{op} {[tuple(t.shape) for t in got.values()]} {options}: same", flush=True)


def compare_layers(batch: int, width: int, config: Mamba2Config) -> None:
    """Norm, mixer, residual in three launches, functional and in place, against float64; a state of another layout."""
    block, exact = (Block(width, config.build(width, 1e-5), 1e-5) for _ in range(2))
    exact.double().load_state_dict(block.state_dict())
    state, large, want_state = (
        block.mixer.init_state(batch),
        block.mixer.init_state(2 * batch),
        exact.mixer.init_state(batch),
    )
    every_other = State({name: tensor[::2] for name, tensor in large.items()})
    with torch.no_grad(), poisoned(), patch("mamba_core.ops.paths.takes_triton", lambda x: x.dtype == torch.float32):
        for _ in range(3):
            x = torch.randn(batch, width)
            want, want_state = exact.step(x.double(), want_state)
            before = state.clone()
            got, after = block.step(x, state)
            assert all(torch.equal(before[name], state[name]) for name in state)  # what was given stays
            state = after
            assert torch.equal(block.step_(x, every_other), got)
            assert_same({"y": want}, {"y": got}, 1e-5)
    assert_same(want_state, state, 1e-5)
    assert all(torch.equal(every_other[name], state[name]) for name in state)
    assert all((t[1::2] == (-1 if name == "seq_idx" else 0)).all() for name, t in large.items())
    print(f"layer of {batch} x {width}: same", flush=True)


def main() -> int:
    warnings.simplefilter("ignore", RuntimeWarning)  # masked-out lanes overflow in numpy
    torch.manual_seed(0)
    for index, shape in enumerate(MAMBA2):
        compare("mamba2_step", mamba2_step_arguments(*shape), dt_limit=LIMITS[index % 2])
    with patch("mamba_core.ops.decode.triton.FULL", 1):  # the tiles of a large batch
        compare("mamba2_step", mamba2_step_arguments(1, 2, 70, 1, 128, 4))
        compare("conv_step", conv_step_arguments(2, 300, 4))
    for sizes in SCAN:
        for limit in LIMITS:
            compare("selective_scan_step", selective_scan_step_arguments(*sizes), dt_limit=limit)
    with patch("mamba_core.ops.decode.triton.FULL", 1), patch("mamba_core.ops.decode.triton.TILE", 1024):
        compare("mamba2_step", mamba2_step_arguments(1, 2, 70, 1, 128, 4))  # several tiles a program
    for layer in LAYERS:
        compare_layers(*layer)
    for sizes in S4D:
        compare("s4d_step", s4d_step_arguments(*sizes))
    for sizes in CONV:
        compare("conv_step", conv_step_arguments(*sizes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
