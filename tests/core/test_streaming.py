"""One stream in the memory of two chunks, saved and resumed; many streams beside each other, each as if alone."""

import gc
import os
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mamba_core import (
    AttentionConfig,
    BackboneConfig,
    CausalLM,
    Mamba1Config,
    Mamba2Config,
    State,
    StreamPool,
    prefetch,
    stream,
)

CONFIG = BackboneConfig(
    d_model=16,
    n_layers=3,
    pattern=["mamba2", "mamba1", "attention"],
    mamba1=Mamba1Config(d_state=4),
    mamba2=Mamba2Config(d_state=8, headdim=8, groups=2),
    attention=AttentionConfig(headdim=8, window=12),
)


def model(dtype: torch.dtype = torch.float32) -> CausalLM:
    torch.manual_seed(0)
    lm = CausalLM(16, CONFIG)
    torch.nn.init.normal_(lm.embedding.weight)  # so that what was read shows
    return lm.to(dtype).eval()


def tokens(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 16, (1, length), generator=torch.Generator().manual_seed(seed))


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_the_chunk_changes_nothing(chunk: int, dtype: torch.dtype, tolerance: float) -> None:
    lm, words = model(dtype), tokens(200 if chunk == 1 else 700)
    with torch.no_grad():
        want, final = lm(words)
    pieces = list(stream(lm, words.split(chunk, dim=1)))
    assert (torch.cat([y for y, _ in pieces], dim=1) - want).abs().max() < tolerance
    state = pieces[-1][1]
    assert max((state[name] - final[name]).abs().max().item() for name in final) < tolerance
    assert not pieces[0][0].requires_grad


RESUME = """
import sys, torch
from mamba_core import State, stream
from tests.core.test_streaming import model, tokens
torch.set_num_threads(1)
state, out = sys.argv[1:]
pieces = tokens(400).split(90, dim=1)[2:]
results = list(stream(model(), pieces, State.load(state)))
State({"y": torch.cat([y for y, _ in results], dim=1)}).save(out + "/y.safetensors")
results[-1][1].save(out + "/state.safetensors")
"""


def test_another_process_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole = []
    for i, (y, state) in enumerate(stream(model(), tokens(400).split(90, dim=1))):
        whole.append(y)
        if i == 1:
            state.save(tmp_path / "cut.safetensors")
    subprocess.run(
        [sys.executable, "-c", RESUME, tmp_path / "cut.safetensors", tmp_path],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert torch.equal(State.load(tmp_path / "y.safetensors")["y"], torch.cat(whole[2:], dim=1))
    final = State.load(tmp_path / "state.safetensors")
    assert final.keys() == state.keys()
    assert all(torch.equal(final[name], state[name]) for name in state)


class Watched:
    """Chunks, and how many of them were alive whenever one was read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.alive: list[int] = []
        self.made: list[weakref.ref[Tensor]] = []

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(self.count):
            chunk = tokens(50, i)
            self.made.append(weakref.ref(chunk))
            self.alive.append(sum(ref() is not None for ref in self.made))
            yield chunk
            del chunk


def test_two_chunks_are_alive_at_most() -> None:
    chunks = Watched(20)
    for i, _ in enumerate(stream(model(), chunks)):
        assert len(chunks.made) <= i + 2
    assert len(chunks.alive) == 20
    assert max(chunks.alive) == 2
    assert threads() == 0


def test_the_next_chunk_is_read_while_one_is_worked_on() -> None:
    read = threading.Event()

    def chunks() -> Iterator[Tensor]:
        yield tokens(3)
        read.set()
        yield tokens(4)

    arriving = prefetch(chunks())
    assert next(arriving).shape == (1, 3)
    assert read.wait(10)  # nobody has asked for it yet
    assert [chunk.shape[1] for chunk in arriving] == [4]


def test_what_the_reader_raises_is_raised_in_its_place() -> None:
    def chunks() -> Iterator[Tensor]:
        yield tokens(3)
        raise OSError("unplugged")

    results = stream(model(), chunks())
    assert next(results)[0].shape == (1, 3, 16)
    with pytest.raises(OSError, match="unplugged"):
        next(results)
    assert list(results) == []
    assert threads() == 0


def test_closing_early_or_letting_go_ends_the_thread() -> None:
    for close in (True, False):
        chunks = Watched(1000)
        results = stream(model(), chunks)
        next(results)
        assert threads() == 1
        if close:
            results.close()
        del results
        gc.collect()
        assert threads() == 0
        assert len(chunks.made) <= 2


class Company:
    """A pool, and for each stream all that it was fed and gave."""

    def __init__(self, lm: CausalLM, slots: int, rows: int, length: int, seed: int) -> None:
        self.pool = StreamPool(lm, slots, rows=rows, length=length)
        self.random = random.Random(seed)
        self.fed: dict[int, list[Tensor]] = {}
        self.told: dict[int, list[Tensor]] = {}
        self.away: dict[int, State] = {}  # streams that are not in the pool at the moment

    def play(self, rounds: int) -> None:
        for turn in range(rounds):
            self.come_and_go()
            here = [name for name in self.fed if name in self.pool]
            longest = self.random.choice([1, 1, 3, 40])
            chunks = {
                name: tokens(self.random.randint(1, longest), 1000 * turn + name)[0]
                for name in self.random.sample(here, self.random.randint(0, len(here)))
            }
            told = self.pool.feed(chunks)
            assert list(told) == list(chunks)
            for name, chunk in chunks.items():
                self.fed[name].append(chunk)
                self.told[name].append(told[name])

    def come_and_go(self) -> None:
        here = [name for name in self.fed if name in self.pool]
        if here and self.random.random() < 0.4:  # one goes, for ever or for a while
            name = self.random.choice(here)
            if self.random.random() < 0.7:
                self.away[name] = self.pool.state(name)
            self.pool.close(name)
        while len(self.pool) < self.pool.slots and self.random.random() < 0.6:
            if self.away and self.random.random() < 0.5:
                name = self.random.choice(list(self.away))
                self.pool.open(name, self.away.pop(name))
            else:
                name = len(self.fed)
                self.fed[name], self.told[name] = [], []
                self.pool.open(name)


@pytest.mark.parametrize(("rows", "length"), [(256, 256), (2, 7), (1, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_a_stream_in_company_is_as_if_alone(rows: int, length: int, dtype: torch.dtype, tolerance: float) -> None:
    lm = model(dtype)
    company = Company(lm, 5, rows, length, seed=length)
    company.play(30)
    streams = [name for name, fed in company.fed.items() if fed]
    assert len(streams) >= 8
    assert max(len(company.fed[name]) for name in streams) > 5
    with torch.no_grad():
        for name in streams:
            want, final = lm(torch.cat(company.fed[name])[None])
            got = torch.cat(company.told[name])
            assert (got - want[0]).abs().max() < tolerance
            if name in company.pool:
                state = company.pool.state(name)
                assert max((state[n] - final[n]).abs().max().item() for n in final) < tolerance


@pytest.mark.parametrize("chunk", [1, 12])
def test_a_full_pool_is_read_in_place(chunk: int) -> None:
    """No row is copied on the way, and what is left out stays as it is."""
    lm = model()
    pool = StreamPool(lm, 4)
    for name in "abcd":
        pool.open(name)
    storage = {name: tensor.data_ptr() for name, tensor in pool._state.items()}
    with torch.no_grad():
        want, _ = lm(torch.cat([tokens(2 * chunk, seed) for seed in range(4)]))
    first = pool.feed({name: tokens(2 * chunk, seed)[0, :chunk] for seed, name in enumerate("abcd")})
    before = pool.state("d")
    second = pool.feed({name: tokens(2 * chunk, seed)[0, chunk:] for seed, name in enumerate("abc")})
    for row, name in enumerate("abc"):
        assert (torch.cat([first[name], second[name]]) - want[row]).abs().max() < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in pool.state("d").items())
    assert {name: tensor.data_ptr() for name, tensor in pool._state.items()} == storage


def test_a_stream_moves_by_way_of_a_file(tmp_path: Path) -> None:
    """To the bit, also of a state whose document is not the first: it goes on, padded or not."""
    lm = model()
    index = torch.full((1, 30), 3)
    with torch.no_grad():
        _, state = lm(tokens(30), seq_idx=index)
        want, _ = lm(tokens(20, 1), state, seq_idx=index[:, :20])
    state.save(tmp_path / "state.safetensors")
    pool = StreamPool(lm, 2)
    pool.open("beside")
    pool.open("moved", State.load(tmp_path / "state.safetensors"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in pool.state("moved").items())
    y = pool.feed({"moved": tokens(20, 1)[0], "beside": tokens(33, 2)[0]})["moved"]
    assert (y - want[0]).abs().max() < 1e-5


def test_a_backbone_streams_too() -> None:
    backbone = model(torch.float64).backbone
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    pool = StreamPool(backbone, 2)
    pool.open(0)
    pool.open(1)
    with torch.no_grad():
        want, _ = backbone(x)
    got = pool.feed({0: x[0], 1: x[1, :4]})
    assert (got[0] - want[0]).abs().max() < 1e-10
    assert (got[1] - want[1, :4]).abs().max() < 1e-10


def test_inference_mode_makes_no_difference() -> None:
    lm = model()
    with torch.inference_mode():
        pool = StreamPool(lm, 1)
        pool.open("a")
        pool.feed({"a": tokens(5)[0]})
    pool.feed({"a": tokens(5)[0]})
    assert pool.feed({}) == {}


def test_what_a_failed_call_leaves_unknown_is_not_gone_on_with() -> None:
    """Its streams are lost until they are opened anew; the others are as they were."""
    lm = model()
    pool = StreamPool(lm, 3, length=4)
    for name in ("a", "b"):
        pool.open(name)
        pool.feed({name: torch.arange(6)})
    before, saved = pool.state("b"), pool.state("a")
    wrong = torch.tensor([0, 1, 2, 3, 99])  # outside the vocabulary, in the second call of the model
    with pytest.raises(IndexError):
        pool.feed({"a": wrong})
    for use in (lambda: pool.feed({"a": torch.arange(2)}), lambda: pool.state("a")):
        with pytest.raises(ValueError, match="stream 'a': reading it failed; close it"):
            use()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pool.state("b").items())
    pool.close("a")
    pool.open("a", saved)
    alone = StreamPool(lm, 1)
    alone.open("a", saved)
    more = {"a": torch.arange(3)}
    torch.testing.assert_close(pool.feed(more)["a"], alone.feed(more)["a"])


def test_an_empty_chunk_is_told() -> None:
    with pytest.raises(ValueError, match="stream: a chunk is empty"):
        list(stream(model(), [torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64)]))


def test_mistakes_are_told_by_name() -> None:
    lm = model()
    pool = StreamPool(lm, 2)
    pool.open("a")
    pool.open("b")
    before = pool.state("a")
    for mistake, message in (
        (lambda: pool.open("a"), "stream 'a' is open already"),
        (lambda: pool.open("c"), "no slot for stream 'c': all 2 are taken"),
        (lambda: pool.close("c"), "stream 'c' is not open"),
        (lambda: pool.state("c"), "stream 'c' is not open"),
        (lambda: pool.feed({"a": tokens(3)[0], "c": tokens(3)[0]}), "stream 'c' is not open"),
        (lambda: pool.feed({"a": tokens(3)[0], "b": tokens(3)[0, :0]}), "stream 'b': its chunk is empty"),
        (lambda: StreamPool(lm, 0), "slots=0"),
        (lambda: StreamPool(lm, 1, length=0), "length=0"),
    ):
        with pytest.raises(ValueError, match=message):
            mistake()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pool.state("a").items())
    growing = CausalLM(16, replace(CONFIG, attention=AttentionConfig(headdim=8)))
    with pytest.raises(ValueError, match="Attention has no state of a fixed size"):
        StreamPool(growing, 2)
    pool.close("b")
    assert "b" not in pool
    for state in (lm.init_state(2), model(torch.float64).init_state(1), lm.backbone.layers[0].mixer.init_state(1)):
        with pytest.raises(ValueError, match=r"stream 'b': the state is not one row of this model's: .*(conv|ssm)"):
            pool.open("b", state)
    pool.open("b")
    assert len(pool) == 2
