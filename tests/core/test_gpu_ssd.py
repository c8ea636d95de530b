"""The Triton kernels of ssd on a GPU, against the chunked path in float64.

One test goes through all cases that share compiled kernels: compiling takes longer than running.
"""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mamba_core.ops.ssd import ssd
from tests.core import helpers
from tests.core.helpers import (
    assert_equal,
    assert_same,
    compare,
    documents,
    gradients,
    large,
    leaves,
    rounded,
    ssd_inputs,
    strided,
)

pytestmark = pytest.mark.gpu

ALONG_TIME = ("x", "dt", "B", "C", "z")
SIZES = {"batch": 2, "heads": 8, "headdim": 64, "groups": 1, "d_state": 128}
HARD_CASES = ("fast decay", "huge steps", "threshold", "small steps", "long memory", "no decay", "zero A", "zeros")


def inputs(length: int, dtype: torch.dtype = torch.float32, **sizes: int) -> dict[str, Tensor]:
    return rounded(ssd_inputs(**SIZES | sizes, length=length), dtype, ALONG_TIME)


def check(low: dict[str, Tensor], seq_idx: Tensor | None = None, **options: object) -> dict[str, Tensor]:
    return compare(ssd, low, seq_idx, padded=("x", "dt", "B", "C"), **options)


def hard(case: str, low: dict[str, Tensor]) -> dict[str, Tensor]:
    if case == "fast decay":
        low["A"] *= 1e3
        low["dt"] += 5
    elif case == "huge steps":
        low["dt"] += 1e6
    elif case == "threshold":  # of softplus
        low["dt"].fill_(20.1)
        low["dt_bias"].zero_()
        low["A"] *= 0.05
    elif case == "small steps":
        low["dt"] -= 6
    elif case == "long memory":
        low["dt"] -= 14
    elif case == "no decay":
        low["dt"] -= 200
    elif case == "zero A":
        low["A"].zero_()
        low["dt"] -= 3
    else:
        for name in ("x", "B", "C"):
            low[name].zero_()
    return low


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lengths(packed: bool, dtype: torch.dtype) -> None:
    for length in (1, 63, 257, 4097):
        check(inputs(length, dtype), documents(length, packed))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long(packed: bool, dtype: torch.dtype) -> None:
    check(inputs(65537, dtype, batch=1, heads=6), documents(65537, packed, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        {"length": 300, "batch": 1, "heads": 8, "headdim": 32, "groups": 2, "d_state": 16},
        {"length": 300, "headdim": 128, "d_state": 256},
        {"length": 200, "batch": 3, "heads": 9, "headdim": 20, "groups": 3, "d_state": 24},
        {"length": 150, "groups": 4, "d_state": 64},
        {"length": 33, "batch": 300},
    ],
)
def test_widths(sizes: dict[str, int], dtype: torch.dtype) -> None:
    check(inputs(dtype=dtype, **sizes))


def test_optional_arguments() -> None:
    for left_out in (("D",), ("z",), ("dt_bias",), ("initial_state",), ("D", "z", "dt_bias", "initial_state")):
        check({name: tensor for name, tensor in inputs(150).items() if name not in left_out})


@pytest.mark.parametrize("softplus", [True, False])
def test_limited_time_steps(softplus: bool) -> None:
    for limit in ((0.0, math.inf), (0.0, 0.3), (0.2, 0.8)):
        check(inputs(150), dt_limit=limit, dt_softplus=softplus)
    if not softplus:  # steps that lie on the limits keep their gradient
        low = inputs(150)
        low["dt"] = torch.where(low["dt"] > 0, 0.75, 0.25)
        low["dt_bias"].zero_()
        check(low, dt_limit=(0.25, 0.75), dt_softplus=False)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hard_cases(packed: bool, dtype: torch.dtype) -> None:
    for case in HARD_CASES:
        got = check(hard(case, inputs(700, dtype)), documents(700, packed))
        assert all(tensor.isfinite().all() for tensor in got.values()), case


@pytest.mark.parametrize("packed", [False, True])
def test_steep_decay_leaves_A_its_digits(packed: bool) -> None:
    """What a token reads of its own is much more than all that decays on its way, and none of A's business."""
    low = inputs(257)
    low["A"] *= 30
    check(low, documents(257, packed))


def test_rows_of_padding() -> None:
    """One row of nothing else, which keeps its state, and one that begins with it."""
    seq_idx = torch.zeros(3, 257, dtype=torch.int64, device=helpers.DEVICE)
    seq_idx[1] = -1
    seq_idx[2, :100] = -1
    low = inputs(257, batch=3)
    got = check(low, seq_idx)
    assert_equal({"state": low["initial_state"][1]}, {"state": got["output 1"][1]})


def test_slices_of_projections() -> None:
    """In place and to the bit as dense ones, where rows are aligned; z and dt come from rows of odd length."""
    low = inputs(260)
    wide = torch.randn(2, 260, 512 + 2 * 128, device=helpers.DEVICE)
    x, B, C = wide.split([512, 128, 128], dim=-1)
    low |= {"x": x.unflatten(-1, (8, 64)), "B": B.unsqueeze(2), "C": C.unsqueeze(2)}
    low |= {name: strided(low[name]) for name in ("dt", "z")}
    for seq_idx in (None, documents(260, True)):
        dense = leaves({name: t.contiguous() for name, t in low.items()})
        want, got = (gradients(ssd, side, seq_idx=seq_idx, path="triton") for side in (dense, leaves(low)))
        assert_equal(want, got)


def test_vectors_may_be_strided() -> None:
    low = inputs(70)
    wide = {name: torch.stack([low[name], torch.randn_like(low[name])], dim=-1) for name in ("A", "D", "dt_bias")}
    strided_ = low | {name: tensor[..., 0] for name, tensor in wide.items()}
    want, got = (gradients(ssd, leaves(side), path="triton") for side in (low, strided_))
    assert_equal(want, got)


def test_a_step_that_is_not_a_number_shows() -> None:
    low = inputs(70)
    low["dt_bias"][1] = torch.nan
    y, final = ssd(**low, path="triton")
    assert y[:, :, 1].isnan().all()
    assert final[:, 1].isnan().all()
    assert y[:, :, 2].isfinite().all()


def test_any_strides() -> None:
    """Rows that are not aligned, and tensors whose last dimension is not the one that is dense."""
    low = inputs(260)
    low |= {name: strided(low[name]) for name in ("x", "dt", "B", "C", "z")}
    check(low)
    low = inputs(260)
    low |= {name: low[name].transpose(1, -1).contiguous().transpose(1, -1) for name in ("x", "dt", "B", "C", "z")}
    check(low)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    low = leaves(inputs(4097, dtype))
    for seq_idx in (None, documents(4097, True)):
        first, second = (gradients(ssd, low, seq_idx=seq_idx, path="triton") for _ in range(2))
        assert_equal(first, second)


def test_slabs_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward takes the segments of a long sequence a few at a time."""
    low = leaves(inputs(4097))
    whole = gradients(ssd, low, path="triton")
    monkeypatch.setattr("mamba_core.ops.ssd.triton_backward._SLAB", 1)
    assert_equal(whole, gradients(ssd, low, path="triton"))


def test_segments_equal_the_whole() -> None:
    low = inputs(4097)
    want, final = ssd(**low, path="triton")
    state, parts, start = low["initial_state"], [], 0
    for length in (1, 63, 2000, 2033):
        piece = {name: t[:, start : start + length] if name in ALONG_TIME else t for name, t in low.items()}
        y, state = ssd(**piece | {"initial_state": state}, path="triton")
        parts.append(y)
        start += length
    assert_same({"y": want, "state": final}, {"y": torch.cat(parts, dim=1), "state": state}, 1e-5)


def test_every_tensor_may_have_its_own_dtype() -> None:
    low, half = inputs(100), {"x": torch.bfloat16, "B": torch.float16, "A": torch.bfloat16, "D": torch.float16}
    check(low | {name: low[name].to(dtype) for name, dtype in half.items()}, documents(100, True))


def test_opcheck() -> None:
    arguments = {name: t for name, t in inputs(70).items() if name != "z"}
    low = leaves(arguments)
    for seq_idx in (None, documents(70, True)):
        for wanted in (tuple(low), ("x", "dt", "A", "B", "C")):
            tensors = [low[name] if name in wanted else None for name in low]
            torch.library.opcheck(torch.ops.mamba_core.ssd_triton.default, (*tensors, seq_idx, True, 0.0, float("inf")))


def test_compiles_whole() -> None:
    low = leaves(inputs(70))
    compiled = torch.compile(ssd, fullgraph=True)
    for seq_idx in (None, documents(70, True)):
        want, got = (gradients(f, low, seq_idx=seq_idx, path="triton") for f in (ssd, compiled))
        assert_same(want, got, 1e-5)  # the gate is PyTorch's, and rounds in another way when compiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_no_bit(dtype: torch.dtype) -> None:
    low, again = leaves(inputs(257, dtype)), partial(checkpoint, ssd, use_reentrant=False)
    assert_equal(*(gradients(f, low, path="triton") for f in (ssd, again)))


def test_more_rows_than_blocks_in_a_grid() -> None:
    """A grid has at most 65,535 blocks along its second and third dimension."""
    check(inputs(2, batch=70_000, heads=2, headdim=32, d_state=16), exact="reference")


@large(24)
def test_more_than_2_to_the_31_elements() -> None:
    """The end of the sequence equals the operation on that end alone, which takes over the state."""
    length, end, device = 600_000, 5_000, helpers.DEVICE
    projected = torch.randn(1, length, 4384, dtype=torch.bfloat16, device=device)
    _, x, B, C, dt = projected.split([2048, 2048, 128, 128, 32], dim=-1)
    along = leaves({"x": x.unflatten(-1, (32, 64)), "dt": dt, "B": B.unsqueeze(2), "C": C.unsqueeze(2)})
    fixed = {"A": -torch.randn(32, device=device).exp(), "D": torch.randn(32, device=device)}
    grads = torch.randn(1, length, 32, 64, dtype=torch.bfloat16, device=device), torch.randn(1, 32, 64, 128).to(device)

    def run(start: int, state: Tensor | None) -> dict[str, Tensor]:
        part = leaves({name: t[:, start:] for name, t in along.items()})
        y, final = ssd(**part, **fixed, initial_state=state, path="triton")
        back = torch.autograd.grad((y, final), list(part.values()), (grads[0][:, start:], grads[1]))
        at_end = dict(zip(("y", *part), (y.detach(), *back), strict=True))
        return {"state": final.detach(), **{name: t[:, -end:].clone() for name, t in at_end.items()}}

    whole = run(0, None)
    with torch.no_grad():
        _, state = ssd(**{name: t[:, :-end] for name, t in along.items()}, **fixed, path="triton")
    assert_same(run(length - end, state), whole, 1e-2)


@large(24)
def test_outputs_of_more_than_2_to_the_31_elements() -> None:
    """Forward alone: x and y are dense."""
    length, end, device = 1_100_000, 5_000, helpers.DEVICE
    sizes = {"x": (32, 64), "dt": (32,), "B": (1, 128), "C": (1, 128)}
    along = {n: torch.randn(1, length, *size, dtype=torch.bfloat16, device=device) for n, size in sizes.items()}
    fixed = {"A": -torch.randn(32, device=device).exp(), "D": torch.randn(32, device=device)}
    y, final = ssd(**along, **fixed, path="triton")
    y = y[:, -end:].clone()
    _, state = ssd(**{n: t[:, :-end] for n, t in along.items()}, **fixed, path="triton")
    at_end = {n: t[:, -end:] for n, t in along.items()}
    want, state = ssd(**at_end, **fixed, initial_state=state, path="triton")
    assert_same({"y": want, "state": state}, {"y": y, "state": final}, 1e-2)
