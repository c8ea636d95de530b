"""The gated norm against its definition, in float64."""

from importlib.util import find_spec

import pytest
import torch

from mamba_core.ops.gated_rms_norm import chunked, gated_rms_norm
from tests.core.helpers import assert_same, gradients


def inputs(gate: bool) -> dict[str, torch.Tensor]:
    shapes = {"x": (2, 37, 12), "z": (2, 37, 12), "weight": (12,)}
    if not gate:
        del shapes["z"]
    return {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("group", [None, 4])
def test_chunked_equals_reference(gate: bool, group: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunked.BLOCK_ELEMENTS, "cpu", 12 * 10)  # blocks of 10 rows
    options = {"group_size": group} if gate else {"group_size": group, "z": None}
    results = [gradients(gated_rms_norm, inputs_, path=path, **options) for inputs_ in [inputs(gate)] for path in PATHS]
    assert_same(*results)


PATHS = ("reference", "chunked")


def test_a_zero_row_stays_finite() -> None:
    arguments = inputs(True)
    with torch.no_grad():
        arguments["x"][0, 0] = 0
    results = [gradients(gated_rms_norm, arguments, path=path) for path in PATHS]
    assert all(tensor.isfinite().all() for tensor in results[1].values())
    assert_same(*results)


@pytest.mark.parametrize("gate", [True, False])
def test_opcheck(gate: bool) -> None:
    arguments = inputs(gate)
    torch.library.opcheck(
        torch.ops.mamba_core.gated_rms_norm.default,
        (arguments["x"], arguments.get("z"), arguments["weight"], 1e-5, 12),
    )


def test_shapes_are_checked() -> None:
    arguments = inputs(True)
    for group in (5, -4):
        with pytest.raises(ValueError, match="group size"):
            gated_rms_norm(**arguments, group_size=group)
    with pytest.raises(ValueError, match="z must be"):
        gated_rms_norm(**arguments | {"z": arguments["x"][:, :5]})
    with pytest.raises(ValueError, match="weight must be"):
        gated_rms_norm(**arguments | {"weight": arguments["weight"][:4]})


def test_nonsense_is_refused() -> None:
    arguments = inputs(True)
    with pytest.raises(ValueError, match="real floating dtype"):
        gated_rms_norm(**arguments | {"z": torch.ones(2, 37, 12, dtype=torch.int64)})
    with pytest.raises(ValueError, match="float32"):
        gated_rms_norm(**arguments, path="triton")
    with pytest.raises(ValueError, match="unknown path"):
        gated_rms_norm(**arguments, path="fast")


@pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")
def test_triton_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        gated_rms_norm(**{name: t.float() for name, t in inputs(True).items()}, path="triton")


@pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")
@pytest.mark.parametrize("gate", [True, False])
def test_both_paths_look_alike_without_data(gate: bool) -> None:
    """Shapes, strides and dtypes that a compiler sees, forward and backward."""
    dtypes = {"x": torch.bfloat16, "z": torch.float32, "weight": torch.float16}
    arguments = [t.detach().to("meta", dtypes[name]) for name, t in inputs(gate).items()]
    if not gate:
        arguments.insert(1, None)
    ops = torch.ops.mamba_core
    for names, leading in (
        (("gated_rms_norm", "gated_rms_norm_triton"), ()),
        (("gated_rms_norm_backward", "gated_rms_norm_triton_backward"), (arguments[0],)),
    ):
        chunked_, triton_ = (getattr(ops, name)(*leading, *arguments, 1e-5, 12) for name in names)
        want, got = ((t,) if isinstance(t, torch.Tensor) else t for t in (chunked_, triton_))
        assert [(t.shape, t.stride(), t.dtype) for t in want] == [(t.shape, t.stride(), t.dtype) for t in got]
