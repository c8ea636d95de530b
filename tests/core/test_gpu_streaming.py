"""Streams on a GPU: chunks that come on a stream of their own, and a thousand streams in one pool."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mamba_core import State, StreamPool, prefetch, stream
from tests.core.helpers import DEVICE, small_lm

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def tokens(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 16, (1, length), generator=torch.Generator().manual_seed(seed))


def test_chunks_arrive_whole_while_the_gpu_is_busy() -> None:
    """Each is read from memory that the copy may still be writing to, unless the streams wait for each other."""
    chunks = [torch.full((1 << 22,), float(i)) for i in range(12)]
    weight = torch.randn(2048, 2048, device=DEVICE)
    for i, chunk in enumerate(prefetch(iter(chunks), DEVICE)):
        assert chunk.device.type == "cuda"
        for _ in range(5):
            weight = weight @ weight * 1e-3
        assert (chunk == i).all()


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_the_chunk_changes_nothing_and_a_state_goes_on_to_the_bit(mixer: str, tmp_path: Path) -> None:
    model, words = small_lm(mixer).to(DEVICE).eval(), tokens(20_000)
    with torch.no_grad():
        want, _ = model(words.to(DEVICE))
    for length in (1_000, 4_097):
        whole = list(stream(model, words.split(length, dim=1)))
        assert (torch.cat([y for y, _ in whole], dim=1) - want).abs().max() < 1e-5
        path = tmp_path / "state.safetensors"
        whole[1][1].save(path)
        rest = list(stream(model, words.split(length, dim=1)[2:], State.load(path)))
        for (y, state), (again, resumed) in zip(whole[2:], rest, strict=True):
            assert torch.equal(y, again)
            assert all(torch.equal(state[name], resumed[name]) for name in state)


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_a_thousand_streams_are_each_as_if_alone(mixer: str) -> None:
    """Blocks of unequal lengths, single tokens of all, single tokens of most."""
    model = small_lm(mixer).to(DEVICE).eval()
    pool = StreamPool(model, 1000)
    fed = {name: tokens(20 + name % 90, name)[0] for name in range(1000)}
    told: dict[int, list[Tensor]] = {name: [] for name in fed}
    for name in fed:
        pool.open(name)
    cuts = ((0, 10, 1), (10, 11, 1), (11, 12, 7), (12, 13, 1), (13, None, 1))
    for start, stop, left_out in cuts:
        names = [name for name in fed if left_out == 1 or name % left_out]
        for name, y in pool.feed({name: fed[name][start:stop] for name in names}).items():
            told[name].append(y)
        for name in fed.keys() - set(names):  # later, so that nothing is missing in the end
            told[name].append(pool.feed({name: fed[name][start:stop]})[name])
    with torch.no_grad():
        for name in range(0, 1000, 37):
            want, final = model(fed[name][None].to(DEVICE))
            assert (torch.cat(told[name]) - want[0]).abs().max() < 1e-5
            state = pool.state(name)
            assert max((state[key] - final[key]).abs().max().item() for key in final) < 1e-4
