"""The Triton kernels of the gated norm on a GPU, against the chunked path in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_core.ops.gated_rms_norm import gated_rms_norm
from tests.core.helpers import assert_same, gradients, poisoned

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def inputs(*shape: int, gate: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """x and z of this shape and dtype, and a weight in float32."""
    x, z, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[-1])
    return {"x": x.to("cuda", dtype)} | ({"z": z.to("cuda", dtype)} if gate else {}) | {"weight": weight.cuda()}


def compare(low: dict[str, Tensor], groups: int = 1, eps: float = 1e-5) -> dict[str, Tensor]:
    """Check output and gradients of both sides on the same, rounded numbers."""
    options: dict[str, Any] = {"group_size": low["x"].shape[-1] // groups, "eps": eps}
    if "z" not in low:
        options["z"] = None
    exact = {name: t.detach().double().requires_grad_() for name, t in low.items()}
    low = {name: t.detach().requires_grad_() for name, t in low.items()}
    rounding = (low["x"].dtype,)
    want = gradients(gated_rms_norm, exact, rounding, path="chunked", **options)
    got = gradients(gated_rms_norm, low, rounding, path="triton", **options)
    assert got["output 0"].dtype == low["x"].dtype
    assert all(got[f"gradient of {name}"].dtype == t.dtype for name, t in low.items())
    assert_same(want, got, TOLERANCE[low["x"].dtype])
    return got


@pytest.mark.parametrize("length", [1, 63, 257, 4097])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lengths(length: int, gate: bool, groups: int, dtype: torch.dtype) -> None:
    compare(inputs(2, length, 768, gate=gate, dtype=dtype), groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize(
    ("channels", "groups"),
    [
        *[(1, 1), (2, 2), (12, 3), (60, 1), (1000, 1), (1536, 2), (2048, 1), (2048, 32), (4096, 1), (8192, 1)],
        *[(9000, 1), (16384, 1), (40000, 1), (30000, 3)],  # wider than a program
    ],
)
def test_widths(channels: int, groups: int, gate: bool, dtype: torch.dtype) -> None:
    compare(inputs(2, 133, channels, gate=gate, dtype=dtype), groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows(dtype: torch.dtype) -> None:
    compare(inputs(1, 70001, 128, dtype=dtype), 2)


@pytest.mark.parametrize("shape", [(256,), (5, 256), (2, 5, 256), (3, 2, 5, 256), (300, 1, 256), (0, 5, 256)])
def test_dimensions(shape: tuple[int, ...]) -> None:
    compare(inputs(*shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [260, 300])  # 260: one stride leads through all rows; 300: another from batch to batch
@pytest.mark.parametrize("offset", [0, 8, 3])  # of the slice, in elements
def test_strided_inputs(rows: int, offset: int, dtype: torch.dtype) -> None:
    """Slices of projections go in as they are."""
    low = inputs(2, 260, 2048, dtype=dtype)
    for name in ("x", "z"):
        wide = torch.full((2, rows, 4384), torch.nan, dtype=dtype, device="cuda")
        low[name] = wide[:, :260, offset : offset + 2048].copy_(low[name])
    assert not low["x"].is_contiguous()
    dense = {name: t.contiguous().requires_grad_() for name, t in low.items()}
    low = {name: t.requires_grad_() for name, t in low.items()}
    want, got = (gradients(gated_rms_norm, side, path="triton") for side in (dense, low))
    assert_same(want, got, 1e-5 if dtype == torch.float32 else 1e-3)
    compare(low)


def test_transposed_inputs() -> None:
    low = inputs(2, 130, 96)
    compare(low | {name: low[name].mT.contiguous().mT for name in ("x", "z")})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "groups"), [(2048, 1), (96, 3), (9000, 1)])
def test_results_in_the_callers_memory(channels: int, groups: int, dtype: torch.dtype) -> None:
    """Slices of wider rows, and the memory of the arguments themselves; nothing around a slice changes."""
    from mamba_core.ops.gated_rms_norm import triton

    x, z, weight = inputs(2, 700, channels, dtype=dtype).values()
    grad_y = torch.randn_like(x)
    group = channels // groups
    want_y = triton.forward(x, z, weight, 1e-5, group)
    want = triton.backward(grad_y, x, z, weight, 1e-5, group)
    wide = torch.full((2, 702, 3 * channels + 32), torch.nan, dtype=dtype, device="cuda")
    y, dx, dz = wide[:, 1:-1, 16:-16].chunk(3, dim=-1)
    triton.forward(x, z, weight, 1e-5, group, out=y)
    *_, dw = triton.backward(grad_y, x, z, weight, 1e-5, group, dx=dx, dz=dz)
    wanted = {"y": want_y, "dx": want[0], "dz": want[1], "dw": want[2]}
    tolerance = 1e-5 if dtype == torch.float32 else 1e-3
    assert_same(wanted, {"y": y, "dx": dx, "dz": dz, "dw": dw}, tolerance)
    assert wide.isfinite().sum() == 3 * x.numel()
    over_x, over_z, over_g = x.clone(), z.clone(), grad_y.clone()
    *_, dw = triton.backward(over_g, x, over_z, weight, 1e-5, group, dx=over_g, dz=over_z)
    triton.forward(over_x, z, weight, 1e-5, group, out=over_x)
    assert_same(wanted, {"y": over_x, "dx": over_g, "dz": over_z, "dw": dw}, tolerance)


@pytest.mark.parametrize("case", ["zero rows", "no eps", "large gates", "small", "large"])
@pytest.mark.parametrize("groups", [1, 8])
def test_hard_cases(case: str, groups: int) -> None:
    low, eps = inputs(2, 333, 512), 1e-5
    if case == "zero rows":
        low["x"][0, :100] = 0
        low["z"][1] = 0
    elif case == "no eps":
        eps = 0.0
    elif case == "large gates":
        low["z"] *= 100
    elif case == "small":
        low["x"] *= 1e-6
    else:
        low["x"] *= 1e6
    got = compare(low, groups, eps)
    assert all(tensor.isfinite().all() for tensor in got.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "groups"), [(2048, 1), (512, 8), (9000, 1)])
def test_two_runs_are_equal_to_the_bit(channels: int, groups: int, dtype: torch.dtype) -> None:
    low = {name: t.requires_grad_() for name, t in inputs(2, 3000, channels, dtype=dtype).items()}
    options: dict[str, Any] = {"group_size": channels // groups, "path": "triton"}
    first, second = (gradients(gated_rms_norm, low, **options) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_memory_that_nobody_wrote_is_not_read() -> None:
    for gate in (True, False):
        with poisoned():
            compare(inputs(2, 333, 300, gate=gate), 3)
            compare(inputs(2, 33, 9000, gate=gate))


def test_every_tensor_may_have_its_own_dtype() -> None:
    low = inputs(2, 100, 768)
    dtypes = {"x": torch.bfloat16, "z": torch.float16, "weight": torch.bfloat16}
    compare({name: t.to(dtypes[name]) for name, t in low.items()}, 3)
    compare({"x": low["x"].half(), "z": low["z"], "weight": low["weight"].bfloat16()})


@pytest.mark.parametrize("gate", [True, False])
def test_opcheck(gate: bool) -> None:
    low = {name: t.requires_grad_() for name, t in inputs(2, 9, 96, gate=gate).items()}
    torch.library.opcheck(
        torch.ops.mamba_core.gated_rms_norm_triton.default, (low["x"], low.get("z"), low["weight"], 1e-5, 32)
    )


@pytest.mark.parametrize("gate", [True, False])
def test_compiles_whole(gate: bool) -> None:
    low = {name: t.requires_grad_() for name, t in inputs(2, 40, 96, gate=gate).items()}
    options: dict[str, Any] = {"group_size": 32, "path": "triton"} | ({} if gate else {"z": None})
    compiled = torch.compile(gated_rms_norm, fullgraph=True)
    want, got = (gradients(f, low, **options) for f in (gated_rms_norm, compiled))
    assert_same(want, got, 1e-6)
