"""Decode steps on a GPU: the kernels against the reference in float64, and whole steps captured in a CUDA graph."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from mamba_core import CausalLM, GraphedStep, State
from mamba_core.ops import decode
from tests.core import helpers
from tests.core.helpers import TOLERANCE, assert_equal, assert_same, poisoned, small_lm
from tests.core.steps import (
    STEP_RESULTS,
    conv_step_arguments,
    mamba2_step_arguments,
    named,
    s4d_step_arguments,
    selective_scan_step_arguments,
)

pytestmark = pytest.mark.gpu

ACTIVATIONS = ("projected", "x", "dt", "B", "C", "z")
ARGUMENTS = {
    "conv_step": (conv_step_arguments, [(1792, 4), (70, 3), (33, 2), (5, 1)]),  # channels, width
    "selective_scan_step": (selective_scan_step_arguments, [(1536, 16), (70, 5), (33, 256)]),  # channels, d_state
    "s4d_step": (s4d_step_arguments, [(64, 32), (70, 5), (3, 128)]),  # channels, pairs
    "mamba2_step": (  # heads, headdim, groups, d_state, width
        mamba2_step_arguments,
        [(32, 64, 1, 128, 4), (4, 128, 2, 16, 3), (6, 33, 3, 100, 2), (2, 32, 1, 256, 1)],
    ),
}
LIMITS = ((0.0, math.inf), (0.2, 0.8))


def placed(arguments: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The arguments on the GPU, strides included: activations in ``dtype``, parameters and states in float32."""
    low = {}
    for name, t in arguments.items():
        to = dtype if name in ACTIVATIONS else torch.float32 if t.is_floating_point() else t.dtype
        low[name] = torch.empty_strided(t.shape, t.stride(), dtype=to, device=helpers.DEVICE).copy_(t)
    return low


def state_of(op: str, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: arguments[name].clone() for name in STEP_RESULTS[op] if name != "y"}


def check(op: str, low: dict[str, Tensor], **options: object) -> None:
    """Functional and in place, against float64 on the same numbers."""
    function = getattr(decode, op)
    exact = {name: t.double() if t.is_floating_point() else t for name, t in low.items()}
    want = named(op, function(**exact, path="reference", **options))
    before, given = state_of(op, low), state_of(op, low)
    with poisoned():
        got = named(op, function(**low, path="triton", **options))
        again = named(op, function(**low | given, path="triton", in_place=True, **options))
    activations = low["projected" if op == "mamba2_step" else "x"].dtype
    assert got["y"].dtype == activations
    assert_same(want, got, TOLERANCE[activations])
    assert_equal(got, again)
    assert all(again[name] is tensor for name, tensor in given.items())
    assert_equal(before, state_of(op, low))  # what was given stays


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", list(ARGUMENTS))
def test_steps(op: str, dtype: torch.dtype, batch: int) -> None:
    torch.manual_seed(0)
    make, sizes = ARGUMENTS[op]
    for index, size in enumerate(sizes):
        options = {} if op in ("conv_step", "s4d_step") else {"dt_limit": LIMITS[index % 2]}
        check(op, placed(make(batch, *size), dtype), **options)


@pytest.mark.parametrize("op", list(ARGUMENTS))
def test_any_layout_of_the_state(op: str) -> None:
    """Every other row of something larger: the rows between stay as they are."""
    torch.manual_seed(0)
    make, sizes = ARGUMENTS[op]
    low, function = placed(make(3, *sizes[0]), torch.float32), getattr(decode, op)
    want = named(op, function(**low, path="triton"))
    larger = {name: torch.cat([t, t]).zero_() for name, t in state_of(op, low).items()}
    every_other = {name: t[::2].copy_(low[name]) for name, t in larger.items()}
    assert_equal(want, named(op, function(**low | every_other, path="triton", in_place=True)))
    assert all((t[1::2] == 0).all() for t in larger.values())
    assert_equal({name: t for name, t in want.items() if name != "y"}, every_other)


@pytest.mark.parametrize("op", list(ARGUMENTS))
def test_opcheck_and_compile(op: str) -> None:
    torch.manual_seed(0)
    make, sizes = ARGUMENTS[op]
    low, function = placed(make(3, *sizes[0]), torch.float32), getattr(decode, op)
    state = state_of(op, low)
    rest = [t for name, t in low.items() if name not in state]
    numbers = {"selective_scan_step": LIMITS[0], "mamba2_step": (1e-5, *LIMITS[0])}.get(op, ())
    operator = getattr(torch.ops.mamba_core, f"{op}_triton").default
    torch.library.opcheck(operator, (*rest, *numbers, *state.values()))
    compiled = torch.compile(function, fullgraph=True)
    assert_equal(*(named(op, f(**low, path="triton")) for f in (function, compiled)))


def model(mixer: str, dtype: torch.dtype = torch.float32) -> CausalLM:
    return small_lm(mixer).to(helpers.DEVICE, dtype).eval()


def tokens(length: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, 16, (batch, length), generator=generator).to(helpers.DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_a_step_in_place_equals_a_step_to_the_bit(mixer: str, dtype: torch.dtype) -> None:
    lm = model(mixer, dtype)
    for batch in (1, 64):
        words = tokens(12, batch)
        state, fixed = lm.init_state(batch), lm.init_state(batch)
        storage = {name: tensor.data_ptr() for name, tensor in fixed.items()}
        assert all(t.dtype == torch.float32 for name, t in fixed.items() if "seq_idx" not in name)
        with torch.no_grad():
            for t in range(12):
                want, state = lm.step(words[:, t], state)
                assert torch.equal(lm.step_(words[:, t], fixed), want)
        assert_equal(state, fixed)
        assert storage == {name: tensor.data_ptr() for name, tensor in fixed.items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_the_captured_step_is_the_step(mixer: str, precision: str) -> None:
    """After a prefill, over 12 tokens; near the logits of one call on the whole."""
    low = precision != "float32"
    lm, words = model(mixer, torch.bfloat16 if precision == "bfloat16" else torch.float32), tokens(20)
    autocast = torch.autocast(helpers.DEVICE, dtype=torch.bfloat16) if precision == "autocast" else nullcontext()
    with torch.inference_mode(), autocast:
        whole, _ = lm(words)
        _, state = lm(words[:, :8])
        fixed, storage = state.clone(), {name: tensor.data_ptr() for name, tensor in state.items()}
        graphed, parts = GraphedStep(lm, state), []
        assert_equal(fixed, graphed.state)  # making it changed nothing
        for t in range(8, 20):
            want = lm.step_(words[:, t], fixed)
            got = graphed.step(words[:, t])
            assert torch.equal(got, want)
            parts.append(got.clone())
        assert_equal(fixed, state)
        assert storage == {name: tensor.data_ptr() for name, tensor in graphed.state.items()}
        assert_same({"logits": whole[:, 8:]}, {"logits": torch.stack(parts, dim=1)}, 3e-2 if low else 1e-5)


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_a_captured_step_goes_on_from_another_state(mixer: str) -> None:
    """And outside of the mode that it was made in."""
    lm, words = model(mixer), tokens(4)
    with torch.inference_mode():
        graphed = GraphedStep(lm, lm.init_state(3))
        first = [graphed.step(words[:, t]).clone() for t in range(4)]
        graphed.state.copy_(lm.init_state(3))
    assert all(torch.equal(graphed.step(words[:, t].cpu()), first[t]) for t in range(4))


def test_rows_of_a_larger_state_advance_where_they_lie() -> None:
    lm, words = model("mamba2"), tokens(3)
    with torch.no_grad():
        larger, state = lm.init_state(6), lm.init_state(3)
        graphed = GraphedStep(lm, State({name: tensor[::2] for name, tensor in larger.items()}))
        for t in range(3):
            want, state = lm.step(words[:, t], state)
            assert torch.equal(graphed.step(words[:, t]), want)
    assert_equal(state, {name: tensor[::2] for name, tensor in larger.items()})
