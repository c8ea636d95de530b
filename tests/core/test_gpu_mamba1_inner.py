"""Mamba-1's one operation on a GPU, against the operations that it is made of in float64."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mamba_core import Mamba1Config
from mamba_core.ops.mamba1_inner import mamba1_inner
from tests.core import helpers
from tests.core.helpers import assert_equal, assert_same, compare, documents, gradients, leaves, rounded
from tests.core.test_mamba1_inner import LIMITS, inner_arguments

pytestmark = pytest.mark.gpu


def inputs(length: int, dtype: torch.dtype = torch.float32, batch: int = 2, states: bool = True) -> dict[str, Tensor]:
    arguments = inner_arguments(batch, length, 256, 16, 16, 4, states=states)
    return rounded(arguments, dtype, ("projected", "x_weight", "dt_weight"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths(packed: bool, dtype: torch.dtype) -> None:
    """In bf16 four operations round one after the other; a dt that rounding carries across a limit has all of its
    gradient or none, in the chunked path too: 5 to 6 parts in 100 of those of dt_weight and dt_bias."""
    for index, length in enumerate((1, 63, 2049)):
        limit = LIMITS[index % 2]
        rounding = 2e-2 if limit == (0.0, math.inf) else 1e-1
        tolerance = 1e-3 if dtype == torch.float32 else rounding  # float32: products of matrices may use TF32
        options = {"dt_limit": limit, "tolerance": tolerance}
        compare(mamba1_inner, inputs(length, dtype), documents(length, packed), **options)


def test_without_states_and_gradients_of_them() -> None:
    low = leaves(inputs(300, torch.bfloat16, states=False))
    for out in mamba1_inner(**low, path="triton"):  # one result alone has a gradient
        grads = torch.autograd.grad(out.float().square().sum(), low["projected"], retain_graph=True)
        assert grads[0].isfinite().all()


def test_bits() -> None:
    """Two runs, and a backward that runs the forward again."""
    low, again = leaves(inputs(2049, torch.bfloat16)), partial(checkpoint, mamba1_inner, use_reentrant=False)
    want = gradients(mamba1_inner, low, path="triton")
    assert_equal(want, gradients(mamba1_inner, low, path="triton"))
    assert_equal(want, gradients(again, low, path="triton"))


def test_under_autocast_and_with_a_frozen_projection() -> None:
    """As the operations one by one, which a hook makes of it; weights stay in float32 and get such gradients."""
    torch.manual_seed(0)
    mixer, x = Mamba1Config().build(128, 1e-5).to(helpers.DEVICE), torch.randn(2, 300, 128, device=helpers.DEVICE)
    mixer.dt_proj.weight.requires_grad_(False)
    trained = [parameter for parameter in mixer.parameters() if parameter.requires_grad]

    def results() -> dict[str, Tensor]:
        with torch.autocast("cuda", torch.bfloat16):
            y = mixer(x)[0]
        grads = torch.autograd.grad(y.float().square().mean(), trained)
        return {"y": y} | {str(i): grad for i, grad in enumerate(grads)}

    got = results()
    assert all(got[str(i)].dtype == parameter.dtype for i, parameter in enumerate(trained))
    handle = mixer.x_proj.register_forward_hook(lambda *_: None)
    want = results()
    handle.remove()
    assert_same(want, got, 2e-2)
