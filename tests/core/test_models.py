"""Mixers, backbone and language model: one function of (x, state), however it is called."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mamba_core import AttentionConfig, BackboneConfig, CausalLM, Mamba1Config, Mamba2Config, S4DConfig, State
from mamba_core.health import HealthProbe, gradient_norms

MIXERS = ["mamba1", "mamba2", "attention", "s4d"]
KEPT = {"mamba1": "ssm", "mamba2": "ssm", "attention": "k", "s4d": "ssm"}  # a tensor of the state that text fills


def config(mixer: str, layers: int = 2) -> BackboneConfig:
    return BackboneConfig(
        d_model=16,
        n_layers=layers,
        pattern=[mixer],
        mamba1=Mamba1Config(d_state=4),
        mamba2=Mamba2Config(d_state=8, headdim=8, groups=2),
        attention=AttentionConfig(headdim=8, kv_heads=1, window=7),
        s4d=S4DConfig(d_state=8),
    )


def model(mixer: str) -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(16, config(mixer)).double()


def tokens(length: int, batch: int = 2) -> Tensor:
    return torch.randint(0, 16, (batch, length), generator=torch.Generator().manual_seed(length))


def largest_difference(a: State, b: State) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("mixer", MIXERS)
def test_step_repeated_equals_forward(mixer: str) -> None:
    lm, words = model(mixer), tokens(20)
    want, final = lm(words)
    state, logits = lm.init_state(2), []
    for t in range(20):
        out, state = lm.step(words[:, t], state)
        logits.append(out)
    assert (torch.stack(logits, dim=1) - want).abs().max() < 1e-12
    assert largest_difference(state, final) < 1e-12


@pytest.mark.parametrize("mixer", MIXERS)
def test_step_in_place_equals_step_to_the_bit(mixer: str) -> None:
    lm, words = model(mixer).float(), tokens(5)
    state, fixed = lm.init_state(2), lm.init_state(2)
    storage = {name: tensor.data_ptr() for name, tensor in fixed.items()}
    with torch.no_grad():
        for t in range(5):
            want, state = lm.step(words[:, t], state)
            assert torch.equal(lm.step_(words[:, t], fixed), want)
    assert largest_difference(state, fixed) == 0
    assert {name: tensor.data_ptr() for name, tensor in fixed.items()} == storage


@pytest.mark.parametrize("mixer", MIXERS)
def test_layers_step_in_place_too(mixer: str) -> None:
    backbone = model(mixer).float().backbone
    x = torch.randn(2, 16)
    with torch.no_grad():
        for layer in (backbone, backbone.layers[0].mixer):
            state = layer.init_state(2)
            want, after = layer.step(x, state)
            assert torch.equal(layer.step_(x, state), want)
            assert largest_difference(state, after) == 0


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_bfloat16_model_steps_as_it_runs(mixer: str) -> None:
    lm, words = model(mixer).bfloat16(), tokens(6)
    with torch.no_grad():
        want, _ = lm(words)
        state, logits = lm.init_state(2), []
        for t in range(6):
            out, state = lm.step(words[:, t], state)
            logits.append(out)
    assert state[f"layers.0.{KEPT[mixer]}"].dtype == torch.float32
    assert (torch.stack(logits, dim=1) - want).float().norm() < 3e-2 * want.float().norm()


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(MIXERS), st.lists(st.integers(1, 40), min_size=2, max_size=4))
def test_any_split_equals_the_whole(mixer: str, lengths: list[int]) -> None:
    lm, words = model(mixer), tokens(sum(lengths))
    want, final = lm(words)
    state, parts = None, []
    for piece in words.split(lengths, dim=1):
        out, state = lm(piece, state)
        parts.append(out)
    assert state is not None
    assert (torch.cat(parts, dim=1) - want).abs().max() < 1e-10
    assert largest_difference(state, final) < 1e-10


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_flow_through_the_state(mixer: str) -> None:
    lm, words = model(mixer), tokens(50)

    def loss(pieces: list[Tensor]) -> list[Tensor]:
        lm.zero_grad()
        state, total = None, torch.zeros((), dtype=torch.float64)
        for piece in pieces:
            logits, state = lm(piece, state)
            total = total + logits.square().sum()
        total.backward()
        return [p.grad.clone() for p in lm.parameters() if p.grad is not None]

    whole, cut = loss([words]), loss(list(words.split([7, 30, 13], dim=1)))
    assert len(whole) == len(list(lm.parameters()))
    for a, b in zip(whole, cut, strict=True):
        assert (a - b).norm() <= 1e-9 * a.norm()


@pytest.mark.parametrize("mixer", MIXERS)
def test_packed_documents_equal_the_documents_alone(mixer: str) -> None:
    lm = model(mixer)
    documents = [tokens(n, batch=1) for n in (5, 1, 17, 30)]
    packed = torch.cat(documents, dim=1)
    seq_idx = torch.cat([torch.full((1, d.shape[1]), i) for i, d in enumerate(documents)], dim=1)
    together, state = lm(packed, seq_idx=seq_idx)
    alone = [lm(document) for document in documents]
    assert (together - torch.cat([logits for logits, _ in alone], dim=1)).abs().max() < 1e-10
    last = alone[-1][1]
    assert max((state[k] - last[k]).abs().max().item() for k in state if "seq_idx" not in k) < 1e-10
    assert all((state[k] == 3).all() for k in state if "seq_idx" in k)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_call_continues_its_document_and_clears_another(mixer: str) -> None:
    """Row 0 goes on with the document that its state ended in, row 1 starts a new one."""
    lm, words = model(mixer), tokens(30)
    index = torch.zeros(2, 30, dtype=torch.int64)
    _, state = lm(words[:, :12], seq_idx=index[:, :12])
    index[1, 12:] = 4
    second, state = lm(words[:, 12:], state, seq_idx=index[:, 12:])
    whole, _ = lm(words[:1])
    fresh, _ = lm(words[1:, 12:])
    assert (second[0] - whole[0, 12:]).abs().max() < 1e-10
    assert (second[1] - fresh[0]).abs().max() < 1e-10
    assert state["layers.0.seq_idx"].tolist() == [0, 4]


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_spoilt_document_ends_with_its_row(mixer: str) -> None:
    lm, words = model(mixer), tokens(8)
    _, state = lm(words, seq_idx=torch.zeros(2, 8, dtype=torch.int64))
    spoilt = state.map(lambda t: t.detach() * float("nan") if t.is_floating_point() else t)
    logits, _ = lm(words, spoilt, seq_idx=torch.ones(2, 8, dtype=torch.int64))
    assert (logits - lm(words)[0]).abs().max() < 1e-12


@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_changes_nothing(mixer: str) -> None:
    lm, words = model(mixer), tokens(20)
    index = torch.zeros(2, 20, dtype=torch.int64)
    index[0, 15:] = -1
    index[1, :4] = -1
    index[1, 9:12] = -1
    logits, state = lm(words, seq_idx=index)
    for row in range(2):
        kept = index[row] >= 0
        alone, final = lm(words[row : row + 1, kept])
        assert (logits[row, kept] - alone[0]).abs().max() < 1e-10
        assert max((state[k][row] - final[k][0]).abs().max().item() for k in state if "seq_idx" not in k) < 1e-10
    mixed, _ = lm.backbone.layers[0].mixer(torch.randn(2, 20, 16, dtype=torch.float64), seq_idx=index)
    assert (mixed[index < 0] == 0).all()
    nothing, after = lm(words, state, seq_idx=torch.full_like(index, -1))
    assert largest_difference(after, state) == 0
    assert nothing.isfinite().all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_compiles_as_one_graph(mixer: str) -> None:
    lm, words = model(mixer), tokens(33)
    index = torch.zeros(2, 33, dtype=torch.int64)
    index[:, 20:] = 1
    compiled = torch.compile(lm, fullgraph=True, backend="aot_eager")
    for seq_idx in (None, index):
        lm.zero_grad()
        want, _ = lm(words, seq_idx=seq_idx)
        want.square().sum().backward()
        grads = [p.grad.clone() for p in lm.parameters() if p.grad is not None]
        lm.zero_grad()
        got, _ = compiled(words, seq_idx=seq_idx)
        got.square().sum().backward()
        assert (got - want).abs().max() < 1e-12
        for parameter, grad in zip(lm.parameters(), grads, strict=True):
            assert parameter.grad is not None
            assert (parameter.grad - grad).norm() <= 1e-10 * grad.norm()


@pytest.mark.parametrize("mixer", MIXERS)
def test_autocast_keeps_the_recurrence_in_float32(mixer: str) -> None:
    lm, words = model(mixer).float(), tokens(40)
    want, _ = lm(words)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, state = lm(words)
        got.float().square().sum().backward()
    assert all(t.dtype == torch.float32 for t in state.values() if t.is_floating_point())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lm.parameters())
    assert (got - want).norm() < 3e-2 * want.norm()


def test_initialisation_follows_the_papers() -> None:
    torch.manual_seed(0)
    lm = CausalLM(16, BackboneConfig(d_model=256, n_layers=4, pattern=["mamba1", "mamba2"]))
    first, second = lm.backbone.layers[0].mixer, lm.backbone.layers[1].mixer
    assert torch.allclose(first.A_log.exp(), torch.arange(1.0, 17).expand(512, 16))
    assert ((second.A_log.exp() >= 1) & (second.A_log.exp() <= 16)).all()
    for mixer in (first, second):
        dt = torch.nn.functional.softplus(mixer.dt_bias)
        assert dt.min() >= 1e-3 * 0.99
        assert dt.max() <= 0.1 * 1.01
        assert dt.max() / dt.min() > 3
        assert (mixer.D == 1).all()
    bound = 1 / math.sqrt(512) / math.sqrt(4)
    assert 0.9 * bound < first.out_proj.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("backbone", "named"),
    [
        (BackboneConfig(d_model=0), "backbone.d_model"),
        (BackboneConfig(n_layers=0), "backbone.n_layers"),
        (BackboneConfig(norm_eps=-1.0), "backbone.norm_eps"),
        (BackboneConfig(mamba2=Mamba2Config(d_state=0)), "mamba2.d_state"),
        (BackboneConfig(mamba2=Mamba2Config(headdim=0)), "mamba2.headdim"),
        (BackboneConfig(mamba2=Mamba2Config(A_range=(-1.0, 2.0))), "mamba2.A_range"),
        (BackboneConfig(mamba2=Mamba2Config(dt_limit=(2.0, 1.0))), "dt_limit"),
        (BackboneConfig(pattern=["mamba1"], mamba1=Mamba1Config(d_conv=0)), "mamba1.d_conv"),
        (BackboneConfig(pattern=["mamba1"], mamba1=Mamba1Config(dt_range=(0.0, 1.0))), "mamba1.dt_range"),
    ],
)
def test_nonsense_sizes_are_named(backbone: BackboneConfig, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        backbone.build()


def test_bad_sizes_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="headdim"):
        CausalLM(16, BackboneConfig(d_model=40))
    with pytest.raises(ValueError, match="known mixers"):
        CausalLM(16, BackboneConfig(pattern=["mamba9"]))
    with pytest.raises(ValueError, match="empty"):
        CausalLM(16, BackboneConfig(pattern=[]))


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_health_probe(mixer: str) -> None:
    lm, words = model(mixer).float(), tokens(64)
    with HealthProbe(lm) as probe:
        logits, state = lm(words)
    logits.square().sum().backward()
    numbers = probe.summary() | gradient_norms(lm)
    assert numbers["layer01/state_max"] == pytest.approx(state["layers.1.ssm"].abs().max().item())
    assert 1e-4 < numbers["layer00/dt_p05"] <= numbers["layer00/dt_p50"] <= numbers["layer00/dt_p95"] < 1
    grads = [p.grad.norm() for p in lm.backbone.layers[0].mixer.parameters() if p.grad is not None]
    assert numbers["layer00/grad_norm"] == pytest.approx(torch.stack(grads).norm().item())
    lm(words)
    assert probe.summary() == {k: v for k, v in numbers.items() if "grad" not in k}  # hooks are gone


@pytest.mark.parametrize("mixer", MIXERS)
def test_state_is_one_type(mixer: str, tmp_path: Path) -> None:
    lm, kept = model(mixer).float(), f"layers.1.{KEPT[mixer]}"
    _, state = lm(tokens(9, batch=3))
    state.detach().save(tmp_path / "state.safetensors")
    loaded = State.load(tmp_path / "state.safetensors")
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert set(loaded) == set(state)
    two = state.rows([2, 0])
    assert two.batch == 2
    assert torch.equal(two[kept], state[kept][[2, 0]])
    back = State.cat([state.rows(slice(0, 1)), state.rows(slice(1, 3))])
    assert largest_difference(back, state) == 0
    assert not state.detach()[kept].requires_grad
    copy = state.detach().clone()
    copy[kept].zero_()
    assert state[kept].abs().max() > 0
    with pytest.raises(ValueError, match="batch"):
        State({"a": torch.zeros(2), "b": torch.zeros(3)})
