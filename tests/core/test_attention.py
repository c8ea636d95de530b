"""Attention beside a softmax written out, its state, and the backbones that are made of it."""

import math

import pytest
import torch
from torch import Tensor

from mamba_core import AttentionConfig, BackboneConfig, CausalLM, GraphedStep, Mamba2Config, MLPConfig, State
from mamba_core.health import HealthProbe, gradient_norms
from mamba_core.mixers import MLP, Attention
from tests.core.helpers import pack

WINDOWS = [0, 1, 5, 8, 64]  # none; itself alone; several blocks; a divisor of the length; longer than the text
LENGTH = 40
PATTERNS = {"transformer": ["attention", "mlp"], "hybrid": ["mamba2", "attention", "mamba2"]}


def attention(window: int, kv_heads: int = 2, rotary: bool = True, headdim: int = 4) -> Attention:
    torch.manual_seed(0)
    return Attention(16, AttentionConfig(headdim, kv_heads, window, rotary, rotary_base=100.0)).double()


def inputs(length: int = LENGTH, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(batch, length, 16, dtype=torch.float64, generator=generator)


def written_out(mixer: Attention, x: Tensor, first: int = 0) -> Tensor:
    """One document (l, d_model), token by token, with rotations as products of complex numbers."""
    p, group = mixer.config.headdim, mixer.heads // mixer.kv_heads
    heads = (x @ mixer.in_proj.weight.T).unflatten(-1, (-1, p))
    q, k, v = heads.split([mixer.heads, mixer.kv_heads, mixer.kv_heads], dim=1)
    if mixer.config.rotary:
        rate = mixer.config.rotary_base ** (-torch.arange(0, p, 2, dtype=torch.float64) / p)
        turn = torch.exp(1j * (first + torch.arange(len(x)))[:, None, None] * rate)
        q, k = (torch.complex(*t.chunk(2, dim=-1)) * turn for t in (q, k))
        q, k = (torch.cat([t.real, t.imag], dim=-1) for t in (q, k))
    y = torch.zeros(len(x), mixer.heads, p, dtype=torch.float64)
    for t in range(len(x)):
        seen = slice(max(0, t + 1 - mixer.window) if mixer.window else 0, t + 1)
        for h in range(mixer.heads):
            weights = torch.softmax(k[seen, h // group] @ q[t, h] / math.sqrt(p), dim=0)
            y[t, h] = weights @ v[seen, h // group]
    return y.flatten(1) @ mixer.out_proj.weight.T


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("kv_heads", "rotary"), [(0, True), (2, True), (1, False)])
def test_attention_is_the_softmax_written_out(window: int, kv_heads: int, rotary: bool) -> None:
    mixer, x = attention(window, kv_heads, rotary), inputs()
    y, state = mixer(x)
    for row in range(2):
        assert (y[row] - written_out(mixer, x[row])).abs().max() < 1e-12
    assert state["position"].tolist() == [LENGTH, LENGTH]
    assert state["k"].shape == (2, window - 1 if window else LENGTH, mixer.kv_heads, 4)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("lengths", [[1] * LENGTH, [7, 1, 32], [39, 1], [20, 20]])
def test_any_split_equals_the_whole(window: int, lengths: list[int]) -> None:
    mixer, x = attention(window), inputs()
    want, final = mixer(x)
    state, parts = mixer.init_state(2), []
    for piece in x.split(lengths, dim=1):
        y, state = mixer.step(piece[:, 0], state) if piece.shape[1] == 1 else mixer(piece, state)
        parts.append(y.view(piece.shape))
    assert (torch.cat(parts, dim=1) - want).abs().max() < 1e-12
    assert all((state[name] - final[name]).abs().max() < 1e-12 for name in final if state[name].numel())


@pytest.mark.parametrize("window", [0, 1, 5, 64])
def test_packed_documents_and_padding_in_pieces(window: int) -> None:
    """Every document as if it were alone, wherever padding and the borders of calls fall."""
    mixer, x, index = attention(window), inputs(), pack(LENGTH)
    state, parts = mixer.init_state(2), []
    for piece, own in zip(x.split([11, 1, 28], dim=1), index.split([11, 1, 28], dim=1), strict=True):
        spoilt = piece.masked_fill((own < 0)[..., None], torch.nan)
        y, state = mixer(spoilt, state, seq_idx=own)
        parts.append(y)
    got = torch.cat(parts, dim=1)
    for row in range(2):
        for document in index[row].unique().tolist():
            here = index[row] == document
            want = written_out(mixer, x[row, here]) if document >= 0 else torch.zeros(int(here.sum()), 16)
            assert (got[row, here] - want).abs().max() < 1e-12
        last = index[row][index[row] >= 0][-1]
        _, after = mixer(x[row : row + 1, index[row] == last])
        n = min(after["k"].shape[1], int(after["position"]))
        for name in ("k", "v"):
            assert (
                state[name][row, state[name].shape[1] - n :] - after[name][0, after[name].shape[1] - n :]
            ).norm() < 1e-12
            assert (state[name][row, : state[name].shape[1] - n] == 0).all()
        assert state["position"][row] == after["position"]
        assert state["seq_idx"][row] == last


@pytest.mark.parametrize("window", [0, 6])
def test_gradients_in_segments_are_those_of_the_whole(window: int) -> None:
    """Of every weight, the input and the initial state; back through the states, segment after segment."""
    mixer, x, index = attention(window), inputs(), pack(LENGTH)
    index = index.clamp(min=0)  # documents that go over the borders
    _, before = mixer(inputs(9))
    start = {name: before[name].detach().requires_grad_() for name in ("k", "v")}
    rest = {"position": before["position"], "seq_idx": index[:, 0]}

    def gradients(lengths: list[int]) -> list[Tensor]:
        leaf, state, total = x.clone().requires_grad_(), State(start | rest), torch.zeros((), dtype=torch.float64)
        for piece, own in zip(leaf.split(lengths, dim=1), index.split(lengths, dim=1), strict=True):
            y, state = mixer(piece, state, seq_idx=own)
            total = total + y.square().sum()
        total = total + state["k"].sum() + state["v"].square().sum()
        return list(torch.autograd.grad(total, [leaf, *start.values(), *mixer.parameters()]))

    whole, cut = gradients([LENGTH]), gradients([3, 20, 1, 16])
    for a, b in zip(whole, cut, strict=True):
        assert a.norm() > 0
        assert (a - b).norm() <= 1e-9 * a.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("window", [0, 9])
def test_far_positions_cost_no_digits(dtype: torch.dtype, tolerance: float, window: int) -> None:
    """After 3 x 10^7 tokens, in pieces and at once, and as at the start: relative positions are all that counts."""
    mixer, x = attention(window, headdim=8).to(dtype), inputs(30).to(dtype)
    far = State({**mixer.init_state(2), "position": torch.tensor([30_000_000, 1_234_567])})
    if not window:  # as if all but the latest had been forgotten
        far = State({**far, "k": torch.zeros(2, 0, 2, 8, dtype=dtype), "v": torch.zeros(2, 0, 2, 8, dtype=dtype)})
        near = mixer.init_state(2)
    else:
        far = mixer(inputs(9).to(dtype), far)[1]
        near = mixer(inputs(9).to(dtype))[1]
    whole, _ = mixer(x, far)
    first, state = mixer(x[:, :13], far)
    second, _ = mixer(x[:, 13:], state)
    size = whole.abs().max()
    assert (torch.cat([first, second], dim=1) - whole).abs().max() < tolerance * size
    assert (mixer(x, near)[0] - whole).abs().max() < max(tolerance, 1e-8) * size
    assert torch.equal(state["position"], far["position"] + 13)


def test_flags_and_refusals_are_those_of_the_window() -> None:
    bounded, growing = attention(5), attention(0)
    assert bounded.capabilities.steps
    assert bounded.capabilities.constant_state
    assert not growing.capabilities.steps
    assert not growing.capabilities.constant_state
    with pytest.raises(ValueError, match=r"set attention\.window"):
        growing.step_(inputs()[:, 0], growing.init_state(2))
    for config, named in (
        (AttentionConfig(headdim=5), "headdim"),
        (AttentionConfig(headdim=6), "headdim"),
        (AttentionConfig(headdim=4, kv_heads=3), "kv_heads"),
        (AttentionConfig(headdim=4, window=-1), "window"),
        (AttentionConfig(headdim=4, rotary_base=1.0), "rotary_base"),
    ):
        with pytest.raises(ValueError, match=f"attention.{named}"):
            Attention(16, config)
    with pytest.raises(ValueError, match="none of these layers mixes tokens"):
        BackboneConfig(pattern=["mlp"]).build()
    with pytest.raises(ValueError, match=r"mlp\.expand"):
        MLP(16, MLPConfig(expand=0))


def backbone(kind: str, window: int, layers: int = 4) -> BackboneConfig:
    return BackboneConfig(
        d_model=16,
        n_layers=layers,
        pattern=PATTERNS[kind],
        mamba2=Mamba2Config(d_state=8, headdim=8),
        attention=AttentionConfig(headdim=8, window=window),
    )


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("window", [0, 6])
def test_backbones_carry_their_state_from_call_to_call(kind: str, window: int) -> None:
    torch.manual_seed(0)
    lm = CausalLM(16, backbone(kind, window)).double()
    words = torch.randint(0, 16, (2, LENGTH))
    want, _ = lm(words)
    state: State | None = None
    for start, piece in ((0, words[:, :17]), (17, words[:, 17:30])):
        got, state = lm(piece, state)
        assert (got - want[:, start : start + got.shape[1]]).abs().max() < 1e-12
    assert state is not None
    graphed = GraphedStep(lm, state.detach().clone())  # fixed storage or not: the same logits
    for t in range(30, LENGTH):
        logits, state = lm.step(words[:, t], state)
        assert (logits - want[:, t]).abs().max() < 1e-12
        assert torch.equal(graphed.step(words[:, t]), logits)
    assert all(torch.equal(graphed.state[name], state[name]) for name in state)
    assert lm.backbone.capabilities.constant_state == (window > 0)


def test_rows_of_unlike_lengths_stand_in_one_state() -> None:
    """What has grown to unlike lengths is filled up in front, where it counts for nothing."""
    torch.manual_seed(0)
    lm = CausalLM(16, backbone("hybrid", 0)).double()
    texts = [torch.randint(0, 16, (1, n)) for n in (5, 12)]
    behind = torch.randint(0, 16, (2, 6))
    states = [lm(text)[1] for text in texts]
    got, after = lm(behind, State.cat(states))
    for row, text in enumerate(texts):
        want, _ = lm(torch.cat([text, behind[row : row + 1]], dim=1))
        assert (got[row] - want[0, -6:]).abs().max() < 1e-12
    assert after["layers.1.k"].shape[1] == 18


@pytest.mark.parametrize("kind", PATTERNS)
def test_backbones_learn(kind: str) -> None:
    """Tokens that come back after a while, which no model of the last few can foretell."""
    torch.manual_seed(0)
    lm = CausalLM(8, backbone(kind, window=16))
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        words = torch.randint(0, 8, (16, 6)).repeat(1, 4)
        logits, _ = lm(words[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits[:, 6:].flatten(0, 1), words[:, 7:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 * math.log(8)
    assert losses[-1] < 0.5 * math.log(8)


def test_a_transformer_has_about_the_parameters_of_mamba2_and_its_branches_start_as_small() -> None:
    config = {"d_model": 256, "n_layers": 4, "mamba2": Mamba2Config(d_state=64)}
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in BackboneConfig(pattern=pattern, **config).build().parameters())  # type: ignore[arg-type]
            for name, pattern in (("mamba2", ["mamba2"]), ("transformer", ["attention", "mlp"]))
        }
    assert abs(sizes["transformer"] / sizes["mamba2"] - 1) < 0.1
    deep, flat = (BackboneConfig(pattern=["attention", "mlp"], n_layers=n).build() for n in (8, 2))
    for layer in (0, 1):
        ratio = deep.layers[layer].mixer.out_proj.weight.std() / flat.layers[layer].mixer.out_proj.weight.std()
        assert ratio.item() == pytest.approx(0.5, rel=0.1)


def test_health_has_numbers_of_the_layers_that_choose_time_steps() -> None:
    lm = CausalLM(16, backbone("hybrid", 6, layers=3))
    with HealthProbe(lm) as probe:
        logits, _ = lm(torch.randint(0, 16, (1, 20)))
    logits.sum().backward()
    layers = {name.split("/")[0] for name in probe.summary()}
    assert layers == {"layer00", "layer02"}
    assert gradient_norms(lm)["layer01/grad_norm"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_half_precision_keep_the_state_in_float32(dtype: torch.dtype) -> None:
    mixer, x = attention(5).float(), inputs().float()
    want, _ = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
        y, state = mixer.to(dtype)(x.to(dtype))
    assert state["k"].dtype == torch.float32
    assert y.dtype == torch.bfloat16
    assert (y - want).norm() < 3e-2 * want.norm()
