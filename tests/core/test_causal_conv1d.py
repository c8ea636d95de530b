"""The causal convolution against its definition, in float64."""

import pytest
import torch

from mamba_core.ops.causal_conv1d import causal_conv1d, chunked
from tests.core.helpers import assert_same, gradients, pack


def inputs(length: int, channels: int = 6, width: int = 4) -> dict[str, torch.Tensor]:
    shapes = {
        "x": (2, length, channels),
        "weight": (channels, width),
        "bias": (channels,),
        "initial_state": (2, width - 1, channels),
    }
    return {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}


@pytest.mark.parametrize("length", [1, 2, 3, 63, 257])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_chunked_equals_reference(length: int, packed: bool, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunked.BLOCK_ELEMENTS, "cpu", 2 * 6 * 20)  # blocks of 20 tokens
    arguments = inputs(length, width=width)
    seq_idx = pack(length) if packed else None
    results = [gradients(causal_conv1d, arguments, seq_idx=seq_idx, path=path) for path in ("reference", "chunked")]
    assert_same(*results)


def test_padding_may_hold_anything() -> None:
    arguments, seq_idx = inputs(40), pack(40)
    want = gradients(causal_conv1d, arguments, seq_idx=seq_idx)
    with torch.no_grad():
        arguments["x"][seq_idx < 0] = float("nan")
    got = gradients(causal_conv1d, arguments, seq_idx=seq_idx)
    assert all(tensor.isfinite().all() for tensor in got.values())
    assert_same(want, got)


def test_float32_takes_the_library_path() -> None:
    arguments = {name: tensor.detach().float().requires_grad_() for name, tensor in inputs(257).items()}
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in arguments.items()}
    assert_same(gradients(causal_conv1d, exact, path="reference"), gradients(causal_conv1d, arguments), tolerance=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed: bool) -> None:
    arguments = inputs(9)
    seq_idx = pack(9) if packed else None
    torch.library.opcheck(torch.ops.mamba_core.causal_conv1d.default, (*arguments.values(), seq_idx, True))


def test_shapes_are_checked() -> None:
    arguments = inputs(5)
    with pytest.raises(ValueError, match="weight"):
        causal_conv1d(arguments["x"], arguments["weight"][:3])
    with pytest.raises(ValueError, match="initial_state"):
        causal_conv1d(arguments["x"], arguments["weight"], initial_state=arguments["initial_state"][:, :1])
    with pytest.raises(ValueError, match="unknown path"):
        causal_conv1d(arguments["x"], arguments["weight"], path="fast")
