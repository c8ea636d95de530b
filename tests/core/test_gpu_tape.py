"""Remembered launches on a GPU: the second call of a kind, with other numbers elsewhere, is the function to the bit."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mamba_core import Mamba1Config, Mamba2Config
from mamba_core.blocks import Block
from mamba_core.ops import tape
from tests.core import helpers
from tests.core.helpers import assert_equal, assert_same, gradients
from tests.core.interpret_tape import CASES

pytestmark = pytest.mark.gpu


@pytest.fixture
def without() -> Iterator[None]:
    """No function remembers anything."""
    most, tape.MOST_SCRATCH = tape.MOST_SCRATCH, -1
    yield
    tape.MOST_SCRATCH = most


def placed(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to(helpers.DEVICE).requires_grad_() for name, t in arguments.items()}


@pytest.mark.parametrize("name", list(CASES))
def test_the_second_call(name: str) -> None:
    function, make, taped, options = CASES[name]
    torch.manual_seed(0)
    first, other = placed(make()), placed(make())
    for one in taped:
        one.tapes.clear()
    want = gradients(function, other, path="triton", **options)
    for one in taped:
        assert len(one.tapes) == 1
        assert None not in one.tapes.values()
        one.tapes.clear()
    gradients(function, first, path="triton", **options)
    torch.empty(2**26, device=helpers.DEVICE).fill_(torch.nan)  # what is written nowhere is NaN
    got = gradients(function, other, path="triton", **options)
    assert all(len(one.tapes) == 1 for one in taped)
    assert_equal(want, got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixer", [Mamba1Config(), Mamba2Config()])
def test_layers_are_near_float64(mixer: Mamba1Config | Mamba2Config, dtype: torch.dtype) -> None:
    """Three calls: the first is watched, the second played, the third in another stream."""
    torch.manual_seed(0)
    layer = mixer.build(128, 1e-5)
    x, grad = torch.randn(2, 300, 128), torch.randn(2, 300, 128)
    parameters = dict(layer.named_parameters())

    def results(layer: torch.nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
        x = x.detach().requires_grad_()
        y = layer(x)[0]
        found = torch.autograd.grad(y, [x, *layer.parameters()], grad)
        return {"y": y.detach(), "x": found[0], **dict(zip(parameters, found[1:], strict=True))}

    low = layer.to(helpers.DEVICE, dtype)
    for name, parameter in low.named_parameters():
        if name in ("A_log", "D", "dt_bias"):
            parameter.data = parameter.data.float()
    x, grad = x.to(helpers.DEVICE, dtype), grad.to(helpers.DEVICE, dtype)
    got = [results(low, x, grad) for _ in range(2)]
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        got.append(results(low, x, grad))
        torch.cuda.current_stream().synchronize()
    assert_equal(got[0], got[1])
    assert_equal(got[0], got[2])
    exact = mixer.build(128, 1e-5).to(helpers.DEVICE).double()
    exact.load_state_dict(low.state_dict())
    want = results(exact, x.double(), grad.double())
    assert_same(want, got[0], 1e-4 if dtype == torch.float32 else 4e-2)


@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_steps(dtype: torch.dtype, pdl: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norm, mixer and residual in kernels of their own, against float64; functional and in place."""
    from mamba_core.ops.decode import triton

    monkeypatch.setattr(triton, "PDL", pdl)
    torch.manual_seed(0)
    for batch, width, config in (
        (1, 1024, Mamba2Config()),
        (3, 136, Mamba2Config(d_state=40, headdim=17, d_conv=3)),
        (8, 512, Mamba2Config()),
    ):
        block = Block(width, config.build(width, 1e-5), 1e-5).to(helpers.DEVICE, dtype)
        exact = Block(width, config.build(width, 1e-5), 1e-5).to(helpers.DEVICE).double()
        exact.load_state_dict(block.state_dict())
        state, fixed, want_state = (b.mixer.init_state(batch, helpers.DEVICE) for b in (block, block, exact))
        with torch.no_grad():
            for _ in range(4):
                x = torch.randn(batch, width, device=helpers.DEVICE, dtype=dtype)
                want, want_state = exact.step(x.double(), want_state)
                got, state = block.step(x, state)
                assert torch.equal(block.step_(x, fixed, chained=True), got)
                assert_same({"y": want}, {"y": got}, 1e-5 if dtype == torch.float32 else 1e-2)
        assert_equal(state, fixed)
        assert_same(want_state, state, 1e-5 if dtype == torch.float32 else 1e-2)


def test_steps_of_one_layer_with_nothing_between_them() -> None:
    """The state of a token is there when the next one reads it, though kernels start early."""
    torch.manual_seed(0)
    config = Mamba2Config()
    block = Block(256, config.build(256, 1e-5), 1e-5).to(helpers.DEVICE)
    xs = torch.randn(500, 1, 256, device=helpers.DEVICE)
    state, fixed = (block.mixer.init_state(1, helpers.DEVICE) for _ in range(2))
    want = []
    with torch.no_grad():
        for x in xs:
            torch.cuda.synchronize()
            y, state = block.step(x, state)
            want.append(y)
        got = [block.step_(x, fixed) for x in xs.unbind()]
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    assert_equal(state, fixed)
