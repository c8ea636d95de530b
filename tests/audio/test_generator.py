"""The generator: one function of (samples, state), however it is called."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from domains.audio.models.costs import flops_per_sample
from domains.audio.models.generator import Generator, GeneratorConfig
from domains.audio.models.pooling import Pooled
from domains.audio.models.sampling import Sampler, draw, read_prompt
from domains.audio.tokens import SILENCE
from mamba_core import BackboneConfig, GraphedStep, Mamba2Config, S4DConfig, State, StreamPool, stream
from mamba_core.segments import in_segments


def small(pool: tuple[int, ...] = (4, 2)) -> Generator:
    torch.manual_seed(0)
    config = GeneratorConfig(widths=[8, 12][: len(pool)], pool=list(pool), layers=2, s4d=S4DConfig(d_state=8))
    model = config.build(BackboneConfig(d_model=16, n_layers=1, mamba2=Mamba2Config(d_state=8, headdim=8)))
    with torch.no_grad():
        model.head.weight *= 50  # logits of size 1
    return model.double()


def levels(length: int, batch: int = 2) -> Tensor:
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(length))


def largest_difference(a: State, b: State) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


def without_numbers(state: State) -> State:
    return State({name: tensor for name, tensor in state.items() if "seq_idx" not in name})


@pytest.mark.parametrize("pool", [(4, 2), (3,)])
def test_step_repeated_equals_forward(pool: tuple[int, ...]) -> None:
    model, sound = small(pool), levels(37)
    want, final = model(sound)
    state, fixed = model.init_state(2), model.init_state(2)
    storage = {name: tensor.data_ptr() for name, tensor in fixed.items()}
    for t in range(37):
        logits, state = model.step(sound[:, t], state)
        assert (logits - want[:, t]).abs().max() < 1e-10
        assert torch.equal(model.step_(sound[:, t], fixed, t), logits)
        assert largest_difference(fixed, state) == 0
    assert largest_difference(state, final) < 1e-10
    assert {name: tensor.data_ptr() for name, tensor in fixed.items()} == storage


def test_float32_steps_stay_within_1e_4() -> None:
    model, sound = small().float(), levels(400)
    with torch.no_grad():
        want, _ = model(sound)
        state = model.init_state(2)
        for t in range(400):
            logits = model.step_(sound[:, t], state, t)
            assert (logits - want[:, t]).abs().max() < 1e-4


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5))
def test_any_split_equals_the_whole(lengths: list[int]) -> None:
    model, sound = small(), levels(sum(lengths))
    want, final = model(sound)
    state, parts = None, []
    for piece in sound.split(lengths, dim=1):
        logits, state = model(piece, state)
        parts.append(logits)
    assert state is not None
    assert (torch.cat(parts, dim=1) - want).abs().max() < 1e-10
    assert largest_difference(state, final) < 1e-10


def test_logits_know_their_own_sample_and_those_before_it() -> None:
    model, sound = small(), levels(32)
    want, _ = model(sound)
    for t in (0, 7, 8, 19):
        other = sound.clone()
        other[:, t] = (other[:, t] + 100) % 256
        got, _ = model(other)
        assert torch.equal(got[:, :t], want[:, :t])
        assert (got[:, t:] - want[:, t:]).abs().amax(dim=(0, 2)).min() > 0
        assert (model(sound[:, : t + 1])[0] - want[:, : t + 1]).abs().max() < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 21), min_size=1, max_size=6), st.data())
def test_packed_documents_equal_the_documents_alone(lengths: list[int], data: st.DataObject) -> None:
    """Padding anywhere, an index that comes back after another document, and the row read in two calls."""
    model = small()
    pieces = [levels(n, batch=1)[0] for n in lengths]
    packed = torch.cat(pieces)
    index = torch.cat([torch.full((n,), i % 2) for i, n in enumerate(lengths)])
    for at in data.draw(st.lists(st.integers(0, len(packed)), max_size=3)):
        packed = torch.cat([packed[:at], torch.tensor([77]), packed[at:]])
        index = torch.cat([index[:at], torch.tensor([-1]), index[at:]])
    cut = data.draw(st.integers(1, len(packed)))
    state, parts = None, []
    for rows, numbers in zip(packed[None].split(cut, 1), index[None].split(cut, 1), strict=True):
        logits, state = model(rows, state, seq_idx=numbers)
        parts.append(logits)
    alone = [model(piece[None]) for piece in pieces]
    got = torch.cat(parts, dim=1)[0, index >= 0]
    assert (got - torch.cat([logits[0] for logits, _ in alone])).abs().max() < 1e-10
    assert state is not None
    assert largest_difference(without_numbers(state), without_numbers(alone[-1][1])) < 1e-10
    logits, _ = model(levels(9, batch=1), state)
    assert (logits - model(levels(9, batch=1), alone[-1][1])[0]).abs().max() < 1e-10


def test_rows_may_stand_anywhere_in_their_blocks() -> None:
    model = small()
    first, second = levels(11, batch=1), levels(17, batch=1)
    states = [model(first)[1], model(second)[1]]
    sound = levels(20)
    logits, after = model(sound, State.cat(states))
    for row, state in enumerate(states):
        want, final = model(sound[row : row + 1], state)
        assert (logits[row] - want[0]).abs().max() < 1e-10
        assert largest_difference(after.rows([row]), final) < 1e-10
    stepped, _ = model.step(sound[:, 0], State.cat(states))
    assert (stepped - logits[:, 0]).abs().max() < 1e-10


def test_gradients_of_segments_equal_those_of_the_whole() -> None:
    model, sound = small(), levels(40)

    def loss(part: dict[str, Tensor], state: State | None) -> tuple[tuple[Tensor], State]:
        logits, state = model(part["sound"], state)
        return (logits.square().sum(),), state

    def gradients(length: int) -> list[Tensor]:
        model.zero_grad()
        (total,), _ = in_segments(loss, model.parameters(), {"sound": sound}, length=length)
        total.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    whole = gradients(40)
    assert len(whole) == len(list(model.parameters()))
    for length in (8, 15):
        for want, got in zip(whole, gradients(length), strict=True):
            assert (got - want).norm() <= 1e-9 * want.norm()


def test_it_streams_alone_and_in_a_pool() -> None:
    model = small()
    sounds = {name: levels(n, batch=1)[0] for name, n in (("a", 33), ("b", 20), ("c", 7))}
    want = {name: model(sound[None])[0][0] for name, sound in sounds.items()}
    streamed = torch.cat([y for y, _ in stream(model, sounds["a"][None].split(9, dim=1))], dim=1)
    assert (streamed[0] - want["a"]).abs().max() < 1e-10
    pool = StreamPool(model, slots=3, length=16)
    parts: dict[str, list[Tensor]] = {name: [] for name in sounds}
    for name in sounds:
        pool.open(name)
    for round_ in range(7):
        chunks = {n: s[round_ * 5 : round_ * 5 + 5] for n, s in sounds.items() if len(s) > round_ * 5}
        if round_ == 2:  # single samples
            for i in range(5):
                for name, y in pool.feed({n: c[i : i + 1] for n, c in chunks.items() if len(c) > i}).items():
                    parts[str(name)].append(y)
            continue
        for name, y in pool.feed(chunks).items():
            parts[str(name)].append(y)
    for name, expected in want.items():
        assert (torch.cat(parts[name]) - expected).abs().max() < 1e-10


def test_draw_inverts_the_distribution_function() -> None:
    p = torch.tensor([0.1, 0.6, 0.0, 0.3], dtype=torch.float64)
    logits = p.log().expand(5, -1)
    uniform = torch.tensor([0.0, 0.0999, 0.101, 0.71, 1 - 1e-16], dtype=torch.float64)
    assert draw(logits, uniform).tolist() == [0, 0, 1, 3, 3]
    assert draw(logits, uniform, top_p=0.6).tolist() == [1] * 5
    assert draw(logits, uniform, top_p=0.61).tolist() == [1, 1, 1, 3, 3]
    assert draw(logits, uniform, temperature=1e-3).tolist() == [1] * 5
    many = draw(logits[:1].expand(40_000, -1), torch.rand(40_000, dtype=torch.float64), temperature=2.0)
    root = p.sqrt() / p.sqrt().sum()
    assert (torch.bincount(many, minlength=4) / 40_000 - root).abs().max() < 0.01


@pytest.mark.parametrize("prompt", [0, 5, 15])
def test_sampling_is_step_by_step_and_seeded(prompt: int) -> None:
    model = small().eval()
    logits, state = read_prompt(model, levels(prompt))
    whole, _ = model(torch.cat([torch.full((2, 1), SILENCE), levels(prompt)], dim=1))
    assert (logits - whole[:, -1]).abs().max() < 1e-12
    sampler = Sampler(model, state.clone(), logits, temperature=0.9, top_p=0.95, seed=3)
    drawn = torch.cat([sampler.read(n) for n in (1, 13, 6)], dim=1)
    assert drawn.shape == (2, 20)
    again = Sampler(model, state.clone(), logits, temperature=0.9, top_p=0.95, seed=3).read(20)
    other = Sampler(model, state.clone(), logits, temperature=0.9, top_p=0.95, seed=4).read(20)
    assert torch.equal(again, drawn)
    assert not torch.equal(again, other)
    # Each level is one that the model, asked about all before it, may give.
    said, _ = model(drawn[:, :-1].long(), state)
    said = torch.cat([logits[:, None], said], dim=1)
    p, order = (said.double() / 0.9).softmax(-1).sort(descending=True)
    rank = (order == drawn[..., None]).double().argmax(-1)
    assert ((p.cumsum(-1) - p).gather(-1, rank[..., None]) < 0.95 + 1e-9).all()


def test_sampling_refuses_nonsense() -> None:
    model = small()
    logits, state = read_prompt(model, levels(4))
    with pytest.raises(ValueError, match="temperature"):
        Sampler(model, state, logits, temperature=0.0)
    with pytest.raises(ValueError, match="top_p"):
        Sampler(model, state, logits, top_p=0.0)
    _, other = read_prompt(model, levels(5))
    with pytest.raises(ValueError, match="equally many"):
        Sampler(model, State.cat([state.rows([0]), other.rows([0])]), logits)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="as many"):
        GeneratorConfig(widths=[8], pool=[4, 4]).build(BackboneConfig())
    with pytest.raises(ValueError, match="pool=1"):
        GeneratorConfig(widths=[8], pool=[1]).build(BackboneConfig())
    with pytest.raises(ValueError, match=r"generator\.layers"):
        GeneratorConfig(layers=0).build(BackboneConfig())


@pytest.mark.gpu
def test_a_captured_block_draws_what_single_steps_draw() -> None:
    model = small().float().cuda().eval()
    logits, state = read_prompt(model, levels(5).cuda())
    sampler = Sampler(model, state.clone(), logits, seed=1)
    drawn = sampler.read(50)
    assert sampler._graph is not None
    uniform = torch.Generator().manual_seed(1)
    position, stepped, out = 6, state.clone(), []
    while len(out) < 50:
        level = draw(logits, torch.rand(2, dtype=torch.float64, generator=uniform).cuda())
        logits = model.step_(level, stepped, position)
        position += 1
        out.append(level)
    assert torch.equal(torch.stack(out[:50], dim=1).byte().cpu(), drawn)
    graphed = GraphedStep(model, state.clone())
    want, _ = model.step(levels(1)[:, 0].cuda(), state)
    assert torch.equal(graphed.step(levels(1)[:, 0]), want)


def test_costs_count_each_stage_at_its_rate() -> None:
    model = small()
    stages = model.stages
    inner = stages.inner
    assert isinstance(inner, Pooled)

    def numbers(*parts: torch.nn.Module) -> int:
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    state = model.init_state(1)
    ssm = {name: tensor.numel() for name, tensor in state.items() if name.endswith("ssm")}
    at = {
        1: [model.head, stages.outer],
        4: [stages.down, stages.up, inner.outer],
        8: [inner.down, inner.up, inner.inner],
    }
    elements = {
        1: sum(n for name, n in ssm.items() if name.startswith("outer")),
        4: sum(n for name, n in ssm.items() if name.startswith("inner.outer")),
        8: sum(n for name, n in ssm.items() if name.startswith("inner.inner")),
    }
    assert sum(elements.values()) == sum(ssm.values())
    want = 3 * sum((2 * numbers(*parts) + 5 * elements[rate]) / rate for rate, parts in at.items())
    assert flops_per_sample(model) == pytest.approx(want)
