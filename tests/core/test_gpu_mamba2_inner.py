"""The fused operator of Mamba-2 on a GPU, against its three operations in float64."""

import gc
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mamba_core.ops.causal_conv1d import triton_backward as conv_gradients
from mamba_core.ops.mamba2_inner import mamba2_inner
from tests.core import helpers
from tests.core.helpers import assert_equal, assert_same, compare, documents, gradients, leaves, rounded
from tests.core.test_mamba2_inner import LIMITS, inner_arguments

pytestmark = pytest.mark.gpu


def inputs(length: int, dtype: torch.dtype = torch.float32, batch: int = 2, groups: int = 1) -> dict[str, Tensor]:
    return rounded(inner_arguments(batch, length, 8, 64, groups, 128, 4), dtype, ("projected",))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths(packed: bool, dtype: torch.dtype) -> None:
    """In bf16 three operations round one after the other."""
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for length in (1, 63, 257, 4097):
        compare(mamba2_inner, inputs(length, dtype), documents(length, packed), tolerance=tolerance)


def test_long() -> None:
    compare(mamba2_inner, inputs(65537, torch.bfloat16, batch=1), documents(65537, True, 1), tolerance=2e-2)


def test_groups_and_limits() -> None:
    low = inputs(300, torch.bfloat16, groups=2)
    compare(mamba2_inner, low, groups=2, dt_limit=LIMITS[1], tolerance=2e-2)


def test_without_states_and_gradients_of_them() -> None:
    low = leaves({name: t for name, t in inputs(300, torch.bfloat16).items() if "state" not in name})
    y, conv, ssm = mamba2_inner(**low, path="triton")
    for out in (y, conv, ssm):  # one result alone has a gradient
        grads = torch.autograd.grad(out.float().square().sum(), low["projected"], retain_graph=True)
        assert grads[0].isfinite().all()


def test_gradients_in_place_are_those_apart() -> None:
    """The convolution writes over what programs beside it still read."""
    x, gy = (torch.randn(1, 65537, 288, device=helpers.DEVICE) for _ in range(2))
    weight, bias, tail = (torch.randn(s, device=helpers.DEVICE) for s in ((288, 4), (288,), (1, 3, 288)))
    for seq_idx in (None, documents(65537, True, 1)):
        tensors = (x, weight, bias, tail, seq_idx, True)
        want = conv_gradients.backward(gy, tail, *tensors)
        for _ in range(5):
            over = gy.clone()
            got = conv_gradients.backward(over, tail, *tensors, dx=over)
            assert all(torch.equal(one, other) for one, other in zip(want, got, strict=True))


def test_bits() -> None:
    """Two runs, and a backward that runs the forward again."""
    low, again = leaves(inputs(4097, torch.bfloat16)), partial(checkpoint, mamba2_inner, use_reentrant=False)
    want = gradients(mamba2_inner, low, path="triton")
    assert_equal(want, gradients(mamba2_inner, low, path="triton"))
    assert_equal(want, gradients(again, low, path="triton"))


def test_opcheck() -> None:
    low = leaves(inputs(70))
    for seq_idx in (None, documents(70, True)):
        for log in (False, True):
            options = (seq_idx, 1, 1e-5, 0.0, float("inf"), log)
            torch.library.opcheck(torch.ops.mamba_core.mamba2_inner.default, (*low.values(), *options))


def test_compiles_whole() -> None:
    low = leaves(inputs(70))
    compiled = torch.compile(mamba2_inner, fullgraph=True)
    for seq_idx in (None, documents(70, True)):
        want, got = (gradients(f, low, seq_idx=seq_idx, path="triton") for f in (mamba2_inner, compiled))
        assert_same(want, got, 1e-5)


def test_memory() -> None:
    """A layer of d_model 1024 in bf16 keeps to the memory that the README promises, at an eighth of its length."""
    low = leaves(rounded(inner_arguments(1, 8192, 32, 64, 1, 128, 4, states=False), torch.bfloat16, ("projected",)))
    y = mamba2_inner(**low, path="triton")[0]
    grad = torch.randn_like(y)
    del y
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(mamba2_inner(**low, path="triton")[0], list(low.values()), grad)
    wide = low["projected"].numel() * 2
    assert torch.cuda.max_memory_allocated() - before < 4 * wide + 2**28
