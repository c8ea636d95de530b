"""Reading histories: in parts, in chunks, many at once, step by step; the numbers are those of reading each at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.timeseries import stream as module
from domains.timeseries.forecast_shard import load_for_job
from domains.timeseries.stream import Carried, Said, Stretch, forecasts, joined, stream
from domains.timeseries.trained import LoadedModel, load_model
from domains.timeseries.transforms import Rows
from tests.timeseries.jobs import HORIZON, make_model

HOUR = 3_600_000_000
LEVELS = np.array([0.01, 0.5, 0.99])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_model(tmp_path_factory.mktemp("model") / "model", past=["p"], future=["f"], static=["s"])
    return load_for_job(str(folder), "cpu")


def make_rows(count: int, seed: int) -> Rows:
    """``count`` rows and a horizon more, some of them missing."""
    rng = np.random.default_rng(seed)
    n = count + HORIZON
    y = 100 * np.exp(np.cumsum(0.01 * rng.standard_normal(n)))
    y[rng.random(n) < 0.1] = np.nan
    past, future = (rng.standard_normal((n, 1)).astype(np.float32) for _ in range(2))
    past[rng.random(n) < 0.1] = np.nan
    time = 1_577_836_800_000_000 + HOUR * np.cumsum(rng.integers(1, 4, n))
    return Rows(time, np.full(n, 3600, np.int32), y, past, future, np.array([seed % 3], np.float32))


def stretch(rows: Rows, start: int, stop: int, every: int = 1) -> Stretch:
    """Rows ``start`` to ``stop``, with forecasts wanted at every row that ``every`` divides, and at the last."""
    wanted = np.unique(np.append(np.arange(-start % every, stop - start, every), stop - start - 1))
    return Stretch(rows.part(slice(start, stop + HORIZON)), stop - start, wanted)


def in_parts(loaded: LoadedModel, rows: Rows, cuts: list[int], chunk: int = 2048) -> tuple[Said, Carried]:
    carried = Carried.start(loaded.model, loaded.scaler, 1)
    said = []
    for start, stop in zip([0, *cuts], cuts, strict=False):
        found, carried = stream(loaded.model, loaded.scaler, [stretch(rows, start, stop)], carried, chunk)
        said += found
    return joined(said), carried


def assert_same(found: tuple[Said, Carried], expected: tuple[Said, Carried]) -> None:
    torch.testing.assert_close(found[0].raw, expected[0].raw, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found[0].spread, expected[0].spread, rtol=1e-12)
    assert np.array_equal(found[0].ripe, expected[0].ripe)
    for one, other in zip(found[1].running, expected[1].running, strict=True):
        np.testing.assert_allclose(one.to_array(), other.to_array(), rtol=1e-12)
    for name, tensor in expected[1].state.items():
        torch.testing.assert_close(found[1].state[name], tensor, rtol=1e-9, atol=1e-12)


@given(st.lists(st.integers(1, 299), max_size=8, unique=True), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_any_parts_give_what_the_whole_gives(loaded: LoadedModel, cuts: list[int], seed: int) -> None:
    rows = make_rows(300, seed)
    assert_same(in_parts(loaded, rows, [*sorted(cuts), 300]), in_parts(loaded, rows, [300]))


@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
def test_the_chunk_changes_nothing(loaded: LoadedModel, chunk: int) -> None:
    rows = make_rows(300, 1)
    assert_same(in_parts(loaded, rows, [300], chunk), in_parts(loaded, rows, [300]))


def test_short_stretches_are_read_row_by_row(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(216, 2)
    expected = in_parts(loaded, rows, [216])
    calls: list[int] = []
    monkeypatch.setattr(loaded.model, "read", lambda *a, **k: pytest.fail("a chunk"))
    step = module._one_step

    def counted(model, block, state):
        calls.append(block.shape[1])
        return step(model, block, state)

    monkeypatch.setattr(module, "_one_step", counted)
    found = in_parts(loaded, rows, [*range(16, 216, 16), 216])
    assert calls == [1] * 216
    assert_same(found, expected)


@pytest.mark.parametrize("lengths", [[300, 5, 64, 64, 129, 1] * 7, [3, 1, 16, 2], [40] * 20])
def test_many_series_at_once_give_what_each_gives_alone(loaded: LoadedModel, lengths: list[int]) -> None:
    every = [make_rows(length + 20, seed) for seed, length in enumerate(lengths)]
    first = [stretch(rows, 0, 20) for rows in every]
    start = Carried.start(loaded.model, loaded.scaler, len(every))
    _, before = stream(loaded.model, loaded.scaler, first, start, 2048)
    second = [stretch(rows, 20, 20 + length, 7) for rows, length in zip(every, lengths, strict=True)]
    said, after = stream(loaded.model, loaded.scaler, second, before, 2048)
    for i, one in enumerate(second):
        alone = Carried((before.running[i],), before.state.rows([i]))
        (expected,), carried = stream(loaded.model, loaded.scaler, [one], alone, 2048)
        assert len(expected.raw) == len(one.cutoffs)
        assert_same(
            (said[i], Carried((after.running[i],), after.state.rows([i]))),
            (expected, carried),
        )


def test_what_lies_ahead_of_a_cutoff_is_its_schedule_alone(loaded: LoadedModel) -> None:
    rows = make_rows(200, 3)
    cut = 120
    y, past = rows.y.copy(), rows.past.copy()
    y[cut + 1 :] = 1e6
    past[cut + 1 :] = 99.0
    blind = Rows(rows.time, rows.offset, y, past, rows.future, rows.static)
    known, unknown = (in_parts(loaded, each, [cut + 1])[0].raw[-1] for each in (rows, blind))
    assert torch.equal(known, unknown)
    later = Rows(rows.time + HOUR * (np.arange(len(y)) > cut), rows.offset, y, past, rows.future, rows.static)
    assert not torch.equal(in_parts(loaded, later, [cut + 1])[0].raw[-1], known)


def test_without_cutoffs_there_is_nothing_to_say(loaded: LoadedModel) -> None:
    rows = make_rows(50, 4)
    silent = Stretch(rows, 50, np.zeros(0, np.int64))
    (said,), carried = stream(loaded.model, loaded.scaler, [silent], Carried.start(loaded.model, loaded.scaler, 1), 64)
    assert said.raw.shape[:2] == said.spread.shape == (0, HORIZON)
    assert carried.running[0].time == rows.time[49]


def test_joined_forecasts_are_those_of_each(loaded: LoadedModel) -> None:
    said = [in_parts(loaded, make_rows(40 + i, i), [40 + i])[0] for i in range(3)]
    together = forecasts(loaded.model, joined(said), LEVELS)
    alone = [forecasts(loaded.model, one, LEVELS) for one in said]
    for name in ("quantiles", "mean", "variance"):
        assert np.array_equal(getattr(together, name), np.concatenate([getattr(one, name) for one in alone]))
    assert joined(said).ripe.tolist() == [ripe for one in said for ripe in one.ripe]


def test_float32_forecasts_are_near_those_of_the_job(loaded: LoadedModel) -> None:
    rows = make_rows(300, 5)
    exact = forecasts(loaded.model, in_parts(loaded, rows, [300])[0], LEVELS)
    single = load_model(Path(loaded.path))
    rough = forecasts(single.model, in_parts(single, rows, [300])[0], LEVELS)
    assert not np.array_equal(rough.quantiles, exact.quantiles)
    np.testing.assert_allclose(rough.quantiles, exact.quantiles, rtol=1e-3, atol=1e-4 * np.sqrt(exact.variance).max())
