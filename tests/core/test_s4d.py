"""The diagonal time-invariant state space against its definition, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mamba_core import BackboneConfig, S4DConfig
from mamba_core.mixers import S4D
from mamba_core.ops import decode
from mamba_core.ops.s4d import chunked, s4d
from tests.core.helpers import DEVICE, assert_same, documents, gradients, leaves, pack
from tests.core.steps import named, s4d_step_arguments


def inputs(length: int, channels: int = 3, pairs: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    poles = torch.stack([-normal(channels, pairs).exp(), 3 * normal(channels, pairs)], dim=-1)
    tensors = {
        "x": normal(2, length, channels),
        "dt": 0.1 * normal(channels).exp(),
        "A": poles,
        "C": normal(channels, pairs, 2),
        "D": normal(channels),
        "initial_state": normal(2, channels, pairs, 2),
    }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 300])
@pytest.mark.parametrize("packed", [False, True])
def test_chunked_equals_reference(length: int, packed: bool) -> None:
    arguments, seq_idx = inputs(length), pack(length) if packed else None
    assert_same(*[gradients(s4d, arguments, seq_idx=seq_idx, path=path) for path in ("reference", "chunked")])


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_every_chunk_size(chunk: int, packed: bool) -> None:
    arguments, seq_idx = inputs(61), pack(61) if packed else None
    want = gradients(s4d, arguments, seq_idx=seq_idx, path="reference")
    assert_same(want, gradients(chunked.s4d_chunked, arguments, seq_idx=seq_idx, chunk=chunk))


def test_padding_may_hold_anything_and_rows_may_be_padding_alone() -> None:
    arguments, seq_idx = inputs(40), pack(40)
    seq_idx[1] = -1
    want = gradients(s4d, arguments, seq_idx=seq_idx, path="reference")
    with torch.no_grad():
        arguments["x"][seq_idx < 0] = float("nan")
    got = gradients(s4d, arguments, seq_idx=seq_idx, path="chunked")
    assert_same(want, got)
    assert torch.equal(got["output 1"][1], arguments["initial_state"][1])


def test_a_spoilt_document_spoils_no_other() -> None:
    arguments = inputs(40)
    seq_idx = (torch.arange(40) >= 21).long().expand(2, -1)
    with torch.no_grad():
        arguments["x"][:, 20] = float("nan")
    y, final = s4d(**arguments, seq_idx=seq_idx)
    assert y[:, 21:].isfinite().all()
    assert final.isfinite().all()
    assert not y[:, 20].isfinite().any()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=5))
def test_any_split_equals_the_whole(lengths: list[int]) -> None:
    tensors = {name: tensor.detach() for name, tensor in inputs(sum(lengths)).items()}
    want, final = s4d(**tensors)
    state, parts = tensors.pop("initial_state"), []
    for piece in tensors.pop("x").split(lengths, dim=1):
        y, state = s4d(piece, **tensors, initial_state=state)
        parts.append(y)
    assert (torch.cat(parts, dim=1) - want).abs().max() < 1e-10
    assert (state - final).abs().max() < 1e-10


def test_opcheck() -> None:
    x, toeplitz = (torch.randn(2, *shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (5, 5)))
    number = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 2, 2], [0, 0, 1, 1, 1]])
    torch.library.opcheck(torch.ops.mamba_core.s4d_documents.default, (x, toeplitz, number))


def test_step_is_the_sequence_of_one_token_and_gelu() -> None:
    arguments = s4d_step_arguments(3, 6, 4)
    x, log_dt, A_log, A_imag, C, D, ssm, seq_idx = arguments.values()
    poles = torch.stack([-A_log.exp(), A_imag], dim=-1)
    y, after = s4d(x[:, None], log_dt.exp(), poles, C, D, ssm, path="reference")
    want = {"y": torch.nn.functional.gelu(y[:, 0]), "ssm": after, "seq_idx": seq_idx.clamp(min=0)}
    assert_same(want, named("s4d_step", decode.s4d_step(**arguments)))


def test_float32_and_bfloat16_inputs() -> None:
    exact = inputs(300)
    want = gradients(s4d, exact, path="reference")
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        low = {name: t.detach().to(dtype if name == "x" else torch.float32) for name, t in exact.items()}
        got = gradients(s4d, {name: tensor.requires_grad_() for name, tensor in low.items()})
        assert got["output 0"].dtype == dtype
        assert got["output 1"].dtype == torch.float32
        assert_same(want, got, tolerance)


@pytest.mark.parametrize("init", ["lin", "inv"])
def test_slow_poles_keep_their_phase_in_float32(init: str) -> None:
    """2,000 tokens, about the memory of the slowest channel, against float64; step against sequence as well."""
    torch.manual_seed(0)
    mixer = S4DConfig(init=init).build(8, 1e-5)
    x = torch.randn(1, 2000, 8)
    with torch.no_grad():
        y, state = mixer(x)
        exact, _ = mixer.double()(x.double())
        mixer.float()
        stepped = mixer.init_state(1)
        for t in range(2000):
            last = mixer.step_(x[:, t], stepped)
    assert (y - exact).abs().max() < 1e-5 * exact.abs().max()
    assert (last - y[:, -1]).abs().max() < 1e-4 * exact.abs().max()
    assert (stepped["ssm"] - state["ssm"]).abs().max() < 1e-4 * state["ssm"].abs().max()


def test_initialisation_follows_the_paper() -> None:
    torch.manual_seed(0)
    linear, inverse = (S4DConfig(d_state=64, init=init).build(16, 1e-5) for init in ("lin", "inv"))
    n = torch.arange(32)
    assert torch.allclose(linear.poles()[3], torch.stack([torch.full((32,), -0.5), torch.pi * n], dim=-1))
    assert torch.allclose(inverse.poles()[3, :, 1], 64 / torch.pi * (64 / (2 * n + 1) - 1))
    dt = linear.log_dt.exp()
    assert dt.min() >= 1e-3
    assert dt.max() <= 0.1
    assert dt.max() / dt.min() > 3


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (S4DConfig(d_state=0), "s4d.d_state"),
        (S4DConfig(d_state=5), "s4d.d_state"),
        (S4DConfig(init="legs"), "s4d.init"),
        (S4DConfig(dt_range=(0.0, 1.0)), "s4d.dt_range"),
    ],
)
def test_nonsense_sizes_are_named(config: S4DConfig, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BackboneConfig(pattern=["s4d"], s4d=config).build()


def test_it_cannot_lie_on_many_ranks_and_says_so() -> None:
    assert isinstance(S4DConfig().build(8, 1e-5), S4D)
    assert not BackboneConfig(pattern=["s4d"]).build().capabilities.splits


@pytest.mark.parametrize("name", ["dt", "A", "C", "D", "initial_state", "seq_idx"])
def test_shapes_are_checked(name: str) -> None:
    arguments = inputs(5) | {"seq_idx": torch.zeros(2, 5, dtype=torch.int64)}
    wrong = {"dt": arguments["dt"][:1], "A": arguments["A"][..., :1], "C": arguments["C"][:1], "D": arguments["D"][:1]}
    wrong |= {"initial_state": arguments["initial_state"][:1], "seq_idx": arguments["seq_idx"][:, :1]}
    with pytest.raises(ValueError, match=name):
        s4d(**arguments | {name: wrong[name]})


def test_nonsense_is_refused() -> None:
    arguments = inputs(5)
    with pytest.raises(ValueError, match="no token"):
        s4d(**arguments | {"x": arguments["x"][:, :0]})
    with pytest.raises(ValueError, match="unknown path"):
        s4d(**arguments, path="fast")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 130, 1000])
def test_on_a_gpu(length: int, packed: bool) -> None:
    seq_idx = documents(length, packed)
    exact = leaves({name: tensor.to(DEVICE) for name, tensor in inputs(length).items()})
    want = gradients(s4d, exact, seq_idx=seq_idx, path="reference")
    assert_same(want, gradients(s4d, exact, seq_idx=seq_idx))
    low = leaves({name: tensor.float() for name, tensor in exact.items()})
    assert_same(want, gradients(s4d, low, seq_idx=seq_idx), 1e-4)


@pytest.mark.gpu
def test_steps_on_a_gpu_keep_the_phase_of_slow_poles() -> None:
    torch.manual_seed(0)
    mixer = S4DConfig().build(64, 1e-5).cuda()
    x = torch.randn(2, 2000, 64, device=DEVICE)
    with torch.no_grad():
        y, state = mixer(x)
        stepped = mixer.init_state(2)
        for t in range(2000):
            last = mixer.step_(x[:, t], stepped)
    assert (last - y[:, -1]).abs().max() < 1e-4 * y.abs().max()
    assert (stepped["ssm"] - state["ssm"]).abs().max() < 1e-4 * state["ssm"].abs().max()
