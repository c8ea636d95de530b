"""The gated norm against its definition, in float64."""

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
    with pytest.raises(ValueError, match="group size"):
        gated_rms_norm(**arguments, group_size=5)
