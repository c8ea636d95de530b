"""Decode steps: the operations against the scans on one token, and the captured step's face on a CPU."""

import math

import pytest
import torch
from torch import Tensor

from mamba_core import BackboneConfig, CausalLM, GraphedStep, Mamba1Config, Mamba2Config, State
from mamba_core.ops import decode
from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.gated_rms_norm import gated_rms_norm
from mamba_core.ops.selective_scan import selective_scan
from mamba_core.ops.ssd import ssd
from tests.core.helpers import assert_same
from tests.core.steps import conv_step_arguments, mamba2_step_arguments, named, selective_scan_step_arguments

LIMITS = [(0.0, math.inf), (0.2, 0.8)]


def model(mixer: str) -> CausalLM:
    torch.manual_seed(0)
    config = BackboneConfig(
        d_model=16,
        n_layers=2,
        pattern=["mamba1", "mamba2"] if mixer == "both" else [mixer],
        mamba1=Mamba1Config(d_state=4),
        mamba2=Mamba2Config(d_state=8, headdim=8, groups=2),
    )
    return CausalLM(16, config).eval()


def tokens(length: int, batch: int = 3) -> Tensor:
    return torch.randint(0, 16, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("width", [1, 2, 4])
def test_conv_step_is_the_convolution_of_one_token(width: int) -> None:
    arguments = conv_step_arguments(3, 10, width)
    x, weight, bias, tail = arguments.values()
    y, after = causal_conv1d(x[:, None], weight, bias, tail, path="reference")
    assert_same({"y": y[:, 0], "tail": after}, named("conv_step", decode.conv_step(**arguments)))


@pytest.mark.parametrize("limit", LIMITS)
def test_selective_scan_step_is_the_scan_of_one_token(limit: tuple[float, float]) -> None:
    arguments = selective_scan_step_arguments(3, 10, 5)
    x, dt, B, C, z, A_log, D, dt_bias, ssm, seq_idx = arguments.values()
    y, after = selective_scan(
        x[:, None],
        dt[:, None],
        -A_log.exp(),
        B[:, None, None],
        C[:, None, None],
        D,
        z[:, None],
        dt_bias,
        ssm,
        dt_limit=limit,
        path="reference",
    )
    got = named("selective_scan_step", decode.selective_scan_step(**arguments, dt_limit=limit))
    assert_same({"y": y[:, 0], "ssm": after, "seq_idx": seq_idx.clamp(min=0)}, got)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_step_is_its_operations_on_one_token(groups: int, limit: tuple[float, float]) -> None:
    h, p, n = 4, 3, 5
    arguments = mamba2_step_arguments(3, h, p, groups, n, 3)
    a = arguments
    z, xBC, dt = a["projected"].split([h * p, h * p + 2 * groups * n, h], dim=-1)
    xBC, conv = causal_conv1d(xBC[:, None], a["conv_weight"], a["conv_bias"], a["conv"], path="reference")
    x, B, C = xBC.split([h * p, groups * n, groups * n], dim=-1)
    y, after = ssd(
        x.unflatten(-1, (h, p)),
        dt[:, None],
        -a["A_log"].exp(),
        B.unflatten(-1, (groups, n)),
        C.unflatten(-1, (groups, n)),
        D=a["D"],
        dt_bias=a["dt_bias"],
        initial_state=a["ssm"],
        dt_limit=limit,
        path="reference",
    )
    y = gated_rms_norm(y[:, 0].flatten(-2), z, a["norm_weight"], 1e-5, h * p // groups, path="reference")
    got = named("mamba2_step", decode.mamba2_step(**arguments, dt_limit=limit))
    assert_same({"y": y, "conv": conv, "ssm": after, "seq_idx": a["seq_idx"].clamp(min=0)}, got)


@pytest.mark.parametrize(
    ("op", "arguments", "changes", "message"),
    [
        (decode.conv_step, conv_step_arguments(2, 4, 3), {"tail": torch.zeros(2, 3, 4)}, "tail must be"),
        (decode.mamba2_step, mamba2_step_arguments(2, 4, 3, 1, 5, 4), {"conv_weight": torch.zeros(13, 4)}, "groups"),
        (decode.mamba2_step, mamba2_step_arguments(2, 4, 3, 1, 5, 4), {"seq_idx": torch.zeros(2)}, "integers"),
        (decode.selective_scan_step, selective_scan_step_arguments(2, 4, 3), {"dt_limit": (2.0, 1.0)}, "dt_limit"),
        (decode.selective_scan_step, selective_scan_step_arguments(2, 4, 3), {"path": "quick"}, "unknown path"),
    ],
)
def test_what_does_not_fit_is_named(op, arguments, changes, message):  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        op(**arguments | changes)


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_gradients_flow_through_steps(mixer: str) -> None:
    """As through one call on the whole sequence."""
    lm, words = model(mixer).double(), tokens(7)

    def gradients_of(stepping: bool) -> list[Tensor]:
        lm.zero_grad()
        if stepping:
            state, total = lm.init_state(3), torch.zeros((), dtype=torch.float64)
            for t in range(7):
                logits, state = lm.step(words[:, t], state)
                total = total + logits.square().sum()
        else:
            total = lm(words)[0].square().sum()
        total.backward()
        return [p.grad.clone() for p in lm.parameters() if p.grad is not None]

    whole, stepped = gradients_of(False), gradients_of(True)
    assert len(whole) == len(list(lm.parameters()))
    for a, b in zip(whole, stepped, strict=True):
        assert (a - b).norm() <= 1e-9 * a.norm()


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_autocast_keeps_a_step_in_float32(mixer: str) -> None:
    """Projections round, the recurrence does not."""
    lm = model(mixer)
    block = lm.backbone.layers[0].mixer
    x, state = torch.randn(3, 16), block.init_state(3).map(lambda t: torch.rand_like(t) if t.is_floating_point() else t)
    with torch.no_grad():
        _, want = block.step(x, state)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, got = block.step(x, state)
            whole, _ = block(x[:, None], state)
    assert y.dtype == torch.bfloat16
    assert got["ssm"].dtype == torch.float32
    assert (y.float() - whole[:, 0].float()).norm() < 2e-2 * whole.float().norm()
    assert (got["ssm"] - want["ssm"]).norm() < 1e-2 * want["ssm"].norm()


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2", "both"])
def test_the_captured_step_is_the_step(mixer: str) -> None:
    lm, words = model(mixer), tokens(12)
    with torch.inference_mode():
        whole, _ = lm(words)
        _, state = lm(words[:, :5])
        start = state.clone()
        graphed = GraphedStep(lm, state)
        assert all(torch.equal(graphed.state[name], start[name]) for name in start)
        for t in range(5, 12):
            want, start = lm.step(words[:, t], start)
            got = graphed.step(words[:, t])
            assert torch.equal(got, want)
            assert (got - whole[:, t]).abs().max() < 1e-5
    assert all(torch.equal(state[name], start[name]) for name in start)  # the very tensors that it was given


def test_a_captured_step_goes_on_from_another_state() -> None:
    lm, words = model("both"), tokens(4)
    graphed = GraphedStep(lm, lm.init_state(3))
    first = [graphed.step(words[:, t]).clone() for t in range(4)]
    graphed.state.copy_(lm.init_state(3))
    assert all(torch.equal(graphed.step(words[:, t]), first[t]) for t in range(4))


def test_a_captured_step_wants_no_graph_and_another_batch_another_step() -> None:
    lm = model("both")
    _, state = lm(tokens(5))
    graphed = GraphedStep(lm, state)  # a state that hangs on a graph
    assert not graphed.step(tokens(1)[:, 0]).requires_grad
    for wrong in (torch.zeros(2, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"made for 3 rows.*got tokens"):
            graphed.step(wrong)


def test_a_captured_step_keeps_the_precision_that_it_was_made_in() -> None:
    lm, words = model("mamba2"), tokens(1)[:, 0]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        want, _ = lm.step(words, lm.init_state(3))
        graphed = GraphedStep(lm, lm.init_state(3))
    got = graphed.step(words)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_steps_in_place_take_any_layout_of_the_state(mixer: str) -> None:
    """Every other row of a larger state: the rows between stay as they are."""
    lm, words = model(mixer), tokens(3)
    with torch.no_grad():
        large = lm.init_state(6)
        every_other = State({name: tensor[::2] for name, tensor in large.items()})
        state = lm.init_state(3)
        for t in range(3):
            want, state = lm.step(words[:, t], state)
            assert torch.equal(lm.step_(words[:, t], every_other), want)
    assert all(torch.equal(large[name][::2], state[name]) for name in state)
    assert all((large[name][1::2] == (-1 if "seq_idx" in name else 0)).all() for name in state)
