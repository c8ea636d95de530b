"""The Triton kernels of selective_scan on a GPU, against the chunked path in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_core.ops.selective_scan import selective_scan
from tests.core import helpers
from tests.core.helpers import assert_equal, assert_same, gradients, leaves, pack, rounded
from tests.core.test_selective_scan import ALONG_TIME, cut, inputs

pytestmark = pytest.mark.gpu


def compare(
    shape: dict[str, int],
    dtype: torch.dtype = torch.float32,
    packed: bool = False,
    arguments: dict[str, Tensor] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """As helpers.compare; sequences in ``dtype``."""
    low = rounded(arguments or inputs(**shape), dtype, ALONG_TIME)
    seq_idx = pack(shape["length"], shape.get("batch", 2)).to(helpers.DEVICE) if packed else None
    return helpers.compare(selective_scan, low, seq_idx, padded=ALONG_TIME, **options)


@pytest.mark.parametrize("length", [1, 63, 257, 4097])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lengths(length: int, packed: bool, dtype: torch.dtype) -> None:
    compare({"length": length, "channels": 192, "groups": 2, "d_state": 16}, dtype, packed)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long(packed: bool, dtype: torch.dtype) -> None:
    compare({"length": 65537, "channels": 64, "d_state": 16, "batch": 1}, dtype, packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        {"length": 300, "channels": 2048, "d_state": 16, "batch": 1},
        {"length": 300, "channels": 128, "d_state": 256},
        {"length": 200, "channels": 60, "groups": 3, "d_state": 5},
        {"length": 50, "channels": 1, "d_state": 1},
        {"length": 130, "channels": 8, "groups": 8, "d_state": 17, "batch": 3},
        {"length": 33, "channels": 64, "d_state": 16, "batch": 300},
    ],
)
def test_widths(shape: dict[str, int], dtype: torch.dtype) -> None:
    compare(shape, dtype)


@pytest.mark.parametrize("left_out", [("D",), ("z",), ("dt_bias",), ("initial_state",), ("D", "z", "dt_bias")])
def test_optional_arguments(left_out: tuple[str, ...]) -> None:
    shape = {"length": 150, "channels": 64, "d_state": 16}
    arguments = {name: tensor for name, tensor in inputs(**shape).items() if name not in left_out}
    compare(shape, arguments=arguments)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.0, 0.3), (0.2, 0.8)])
def test_limited_time_steps(limit: tuple[float, float], softplus: bool) -> None:
    compare({"length": 150, "channels": 64, "d_state": 16}, dt_limit=limit, dt_softplus=softplus)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "case", ["fast decay", "huge steps", "threshold", "small steps", "no decay", "zero A", "zeros"]
)
def test_hard_cases(case: str, packed: bool) -> None:
    shape = {"length": 700, "channels": 64, "d_state": 16}
    arguments = {name: tensor.detach() for name, tensor in inputs(**shape).items()}
    if case == "fast decay":
        arguments["A"] *= 1e5
    elif case == "huge steps":
        arguments["dt"] += 1e6
    elif case == "threshold":
        arguments["dt"].fill_(20.1)
        arguments["dt_bias"].zero_()
    elif case == "small steps":
        arguments["dt"] -= 6
    elif case == "no decay":
        arguments["dt"] -= 200
    elif case == "zero A":
        arguments["A"].zero_()
        arguments["dt"] -= 3
    else:
        for name in ("x", "B", "C"):
            arguments[name].zero_()
    got = compare(shape, packed=packed, arguments=arguments)
    assert all(tensor.isfinite().all() for tensor in got.values())


def test_strided_inputs() -> None:
    """Slices of projections go in as they are, transposed tensors as copies."""
    low = {name: t.detach().float().cuda() for name, t in inputs(260, channels=96, d_state=16).items()}
    both, mixed = torch.randn(2, 260, 2 * 96).cuda(), torch.randn(2, 260, 7 + 2 * 16).cuda()
    B, C = (t.unsqueeze(2) for t in mixed[..., 7:].chunk(2, dim=-1))
    low |= {"x": both[..., :96], "z": both[..., 96:], "B": B, "C": C}
    low |= {name: low[name].mT.contiguous().mT for name in ("dt", "A")}
    assert not low["x"].is_contiguous()
    dense = {name: t.detach().contiguous().requires_grad_() for name, t in low.items()}
    low = {name: t.detach().requires_grad_() for name, t in low.items()}
    want, got = (gradients(selective_scan, side, path="triton") for side in (dense, low))
    for name, tensor in want.items():
        assert torch.equal(tensor, got[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    arguments = inputs(3000, channels=1024, d_state=16)
    low = {name: t.detach().to("cuda", dtype).requires_grad_() for name, t in arguments.items()}
    first, second = (gradients(selective_scan, low, seq_idx=pack(3000).cuda(), path="triton") for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_segments_equal_the_whole() -> None:
    low = {name: t.detach().cuda().float() for name, t in inputs(5000, channels=128, d_state=16).items()}
    want, final = selective_scan(**low, path="triton")
    state, parts, start = low["initial_state"], [], 0
    for length in (1, 63, 2000, 2936):
        piece = cut(low, slice(start, start + length)) | {"initial_state": state}
        y, state = selective_scan(**piece, path="triton")
        parts.append(y)
        start += length
    assert_same({"y": want, "state": final}, {"y": torch.cat(parts, dim=1), "state": state}, 1e-5)


def test_every_tensor_may_have_its_own_dtype() -> None:
    arguments = inputs(100, channels=64, d_state=16)
    dtypes = dict.fromkeys(arguments, torch.float32) | {"x": torch.bfloat16, "B": torch.float16, "A": torch.bfloat16}
    low = {name: t.detach().to("cuda", dtypes[name]).requires_grad_() for name, t in arguments.items()}
    exact = {name: t.detach().double().requires_grad_() for name, t in low.items()}
    want, got = (gradients(selective_scan, side, path=p) for side, p in ((exact, "chunked"), (low, "triton")))
    assert all(got[f"gradient of {name}"].dtype == dtype for name, dtype in dtypes.items())
    assert_same(want, got, 1e-2)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("optional", [False, True])
def test_opcheck(packed: bool, optional: bool) -> None:
    arguments = {name: t.detach().float().cuda().requires_grad_() for name, t in inputs(9, groups=2).items()}
    tensors = [t if optional or name in ("x", "dt", "A", "B", "C") else None for name, t in arguments.items()]
    seq_idx = pack(9).cuda() if packed else None
    torch.library.opcheck(
        torch.ops.mamba_core.selective_scan_triton.default, (*tensors, seq_idx, True, 0.0, float("inf"), False)
    )


def test_compiles_whole() -> None:
    arguments = {name: t.detach().float().cuda().requires_grad_() for name, t in inputs(40, channels=64).items()}
    compiled = torch.compile(selective_scan, fullgraph=True)
    for seq_idx in (None, pack(40).cuda()):
        want, got = (gradients(f, arguments, seq_idx=seq_idx, path="triton") for f in (selective_scan, compiled))
        assert_same(want, got, 1e-6)


def test_compiles_for_many_lengths() -> None:
    """With few graphs: the cut depends on ranges of lengths."""
    compiled = torch.compile(selective_scan, fullgraph=True)
    with torch.no_grad():
        for length in range(1000, 3300, 200):
            low = rounded(inputs(length, channels=2048, d_state=2, batch=1), torch.float32, ())
            y, _ = compiled(**low, path="triton")
            assert_same({"y": selective_scan(**low, path="triton")[0]}, {"y": y}, 1e-6)


def test_vectors_may_be_strided() -> None:
    low = rounded(inputs(70, channels=64, d_state=16), torch.float32, ())
    dense = leaves(low)
    wide = {name: torch.randn(*low[name].shape[:-1], 2 * low[name].shape[-1]).cuda() for name in ("A", "D", "dt_bias")}
    for name, tensor in wide.items():
        tensor[..., ::2] = low[name]
    strided = leaves(low | {name: tensor[..., ::2] for name, tensor in wide.items()})
    want, got = (gradients(selective_scan, side, path="triton") for side in (dense, strided))
    assert_equal(want, got)


def test_a_step_that_is_not_a_number_shows() -> None:
    low = rounded(inputs(70, channels=64, d_state=16), torch.float32, ())
    low["dt_bias"][3] = torch.nan
    for limit in ((0.0, float("inf")), (0.2, 0.8)):
        y, final = selective_scan(**low, dt_limit=limit, path="triton")
        assert y[..., 3].isnan().all()
        assert final[:, 3].isnan().all()
        assert y[..., 4].isfinite().all()
