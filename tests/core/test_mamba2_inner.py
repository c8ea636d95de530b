"""Mamba-2 between its projections: one function on every path, and what it refuses. Its kernels: test_triton.py."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_core.ops.mamba2_inner import mamba2_inner
from tests.core.helpers import assert_same, gradients, pack

LIMITS = [(0.0, math.inf), (0.2, 0.8)]


def inner_arguments(
    batch: int, length: int, heads: int, headdim: int, groups: int, d_state: int, width: int, states: bool = True
) -> dict[str, Tensor]:
    """Random float64 arguments of mamba2_inner, all with gradients. The seed as in ``ssd_inputs``."""
    generator = torch.Generator().manual_seed(7)
    inner = heads * headdim
    channels = inner + 2 * groups * d_state
    shapes = {
        "projected": (batch, length, inner + channels + heads),
        "conv_weight": (channels, width),
        "conv_bias": (channels,),
        "A": (heads,),
        "D": (heads,),
        "dt_bias": (heads,),
        "norm_weight": (inner,),
    }
    if states:
        shapes |= {"conv_state": (batch, width - 1, channels), "ssm_state": (batch, heads, headdim, d_state)}
    tensors = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("limit", LIMITS)
def test_chunked_is_the_reference(packed: bool, limit: tuple[float, float], states: bool) -> None:
    arguments = inner_arguments(2, 70, 4, 3, 2, 5, 4, states=states)
    options: dict[str, Any] = {"groups": 2, "dt_limit": limit, "seq_idx": pack(70) if packed else None}
    want, got = (gradients(mamba2_inner, arguments, path=path, **options) for path in ("reference", "chunked"))
    assert_same(want, got)


def test_splits_change_nothing() -> None:
    arguments = inner_arguments(2, 90, 2, 4, 1, 6, 4)
    want, conv, ssm = mamba2_inner(**arguments)
    state = {name: arguments.pop(name) for name in ("conv_state", "ssm_state")}
    projected, parts = arguments.pop("projected"), []
    for piece in projected.split([1, 2, 50, 37], dim=1):
        y, *after = mamba2_inner(piece, **arguments, **state)
        state = dict(zip(state, after, strict=True))
        parts.append(y)
    assert_same({"y": want, "conv": conv, "ssm": ssm}, {"y": torch.cat(parts, 1), "conv": after[0], "ssm": after[1]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projected": torch.zeros(2, 3)}, "projected must be"),
        ({"projected": torch.zeros(2, 3, 5)}, "projected must be"),
        ({"projected": torch.zeros(2, 0, 38)}, "no token"),
        ({"groups": 3}, "do not go together"),
        ({"conv_weight": torch.zeros(13, 4)}, "do not go together"),
        ({"conv_state": torch.zeros(2, 4, 22)}, "conv_state must be"),
        ({"ssm_state": torch.zeros(2, 4, 5, 3)}, "ssm_state must be"),
        ({"dt_limit": (2.0, 1.0)}, "dt_limit"),
        ({"path": "quick"}, "unknown path"),
        ({"path": "triton"}, "cannot run here"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    arguments = {name: t.detach().float() for name, t in inner_arguments(2, 3, 4, 3, 1, 5, 4).items()}
    with pytest.raises(ValueError, match=message):
        mamba2_inner(**arguments | changes)
