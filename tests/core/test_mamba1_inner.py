"""Mamba-1 between its projections: one function on every path, and what it refuses. Its kernels: test_triton.py."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mamba_core import Mamba1Config, Mamba2Config
from mamba_core.ops.direct import is_plain_projection
from mamba_core.ops.mamba1_inner import mamba1_inner
from tests.core.helpers import assert_same, gradients, pack

LIMITS = [(0.0, math.inf), (0.2, 0.8)]


def inner_arguments(
    batch: int, length: int, channels: int, d_state: int, rank: int, width: int, states: bool = True
) -> dict[str, Tensor]:
    """Random float64 arguments of mamba1_inner, all with gradients."""
    generator = torch.Generator().manual_seed(7)
    shapes = {
        "projected": (batch, length, 2 * channels),
        "conv_weight": (channels, width),
        "conv_bias": (channels,),
        "x_weight": (rank + 2 * d_state, channels),
        "dt_weight": (channels, rank),
        "A": (channels, d_state),
        "D": (channels,),
        "dt_bias": (channels,),
    }
    if states:
        shapes |= {"conv_state": (batch, width - 1, channels), "ssm_state": (batch, channels, d_state)}
    tensors = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    for name, fan in (("x_weight", channels), ("dt_weight", rank)):
        tensors[name] /= math.sqrt(fan)
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("limit", LIMITS)
def test_chunked_is_the_reference(packed: bool, limit: tuple[float, float], states: bool) -> None:
    arguments = inner_arguments(2, 70, 6, 5, 3, 4, states=states)
    options: dict[str, Any] = {"dt_limit": limit, "seq_idx": pack(70) if packed else None}
    want, got = (gradients(mamba1_inner, arguments, path=path, **options) for path in ("reference", "chunked"))
    assert_same(want, got)


def test_splits_change_nothing() -> None:
    arguments = inner_arguments(2, 90, 6, 5, 3, 4)
    want, conv, ssm = mamba1_inner(**arguments)
    state = {name: arguments.pop(name) for name in ("conv_state", "ssm_state")}
    projected, parts = arguments.pop("projected"), []
    for piece in projected.split([1, 2, 50, 37], dim=1):
        y, *after = mamba1_inner(piece, **arguments, **state)
        state = dict(zip(state, after, strict=True))
        parts.append(y)
    assert_same({"y": want, "conv": conv, "ssm": ssm}, {"y": torch.cat(parts, 1), "conv": after[0], "ssm": after[1]})


def test_a_mixer_whose_projections_are_of_another_kind_gives_the_same() -> None:
    """Hooks, subclasses and biases keep their say: the layers themselves are called then."""
    mixer, x = Mamba1Config(d_state=4).build(8, 1e-5).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    want = mixer(x)[0]
    assert is_plain_projection(mixer.x_proj)
    seen: list[int] = []
    handle = mixer.x_proj.register_forward_hook(lambda *_: seen.append(1))
    assert_same({"y": want}, {"y": mixer(x)[0]})
    assert seen == [1]
    handle.remove()
    assert not is_plain_projection(nn.Linear(3, 3))


def test_what_a_plain_projection_is_not() -> None:
    def linear() -> nn.Linear:
        return nn.Linear(3, 3, bias=False)

    assert is_plain_projection(linear())
    for method in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        layer = linear()
        getattr(layer, method)(lambda *_: None)
        assert not is_plain_projection(layer), method
    layer = linear()
    layer.register_full_backward_pre_hook(lambda *_: None)
    assert not is_plain_projection(layer)
    layer = linear()
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert not is_plain_projection(layer)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not is_plain_projection(linear())
    handle.remove()
    assert is_plain_projection(linear())


@pytest.mark.parametrize("config", [Mamba1Config(d_conv=1), Mamba2Config(d_state=8, headdim=8, d_conv=1)])
def test_a_convolution_of_one_tap_trains(config: Mamba1Config | Mamba2Config) -> None:
    torch.manual_seed(0)
    mixer = config.build(16, 1e-5).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    mixer(x)[0].square().sum().backward()
    state, ys = mixer.init_state(2), []
    for token in x.detach().unbind(1):
        y, state = mixer.step(token, state)
        ys.append(y)
    assert_same({"y": mixer(x)[0]}, {"y": torch.stack(ys, 1)}, 1e-9)
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("projected", (2, 9, 11)),
        ("conv_weight", (6,)),
        ("x_weight", (12, 6)),
        ("dt_weight", (6, 4)),
        ("A", (5, 5)),
        ("conv_state", (2, 2, 6)),
        ("ssm_state", (2, 6, 4)),
    ],
)
def test_shapes_that_do_not_belong_together(name: str, shape: tuple[int, ...]) -> None:
    arguments = inner_arguments(2, 9, 6, 5, 3, 4) | {name: torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match="mamba1_inner"):
        mamba1_inner(**arguments)
    fine = inner_arguments(2, 9, 6, 5, 3, 4)
    with pytest.raises(ValueError, match="dt_limit"):
        mamba1_inner(**fine, dt_limit=(0.5, 0.1))
