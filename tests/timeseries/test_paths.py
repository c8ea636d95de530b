"""Sampled paths: a function of the seed, spread as the forecasts say, each step read like an observation."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from domains.timeseries import paths as module
from domains.timeseries.config import LEVELS
from domains.timeseries.data import read_rows
from domains.timeseries.forecast_shard import load_for_job
from domains.timeseries.paths import Stepper, path_seed, sample_paths
from domains.timeseries.store import SeriesStore
from domains.timeseries.stream import Carried, Stretch, forecasts, stream
from domains.timeseries.trained import load_model
from domains.timeseries.transforms import next_stamps
from tests.timeseries.jobs import HORIZON, contents, forecasts_in, make_model, make_rows, make_store, paths_in, run

COVARIATES: dict[str, Any] = {"past": ["past0"], "future": ["future0", "future1"], "static": ["static0"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model")


def panel() -> pl.DataFrame:
    parts = [make_rows(name, 200, i, 0.1) for i, name in enumerate(("a", "b", "c"))]
    return pl.concat([*parts, make_rows("young", 10, 9)])


def test_the_first_step_is_distributed_as_forecast(trained: Path, store: SeriesStore) -> None:
    loaded = load_model(trained)
    rows = read_rows(store, 0, 0, 300)
    paths = sample_paths(loaded, rows, 1, 4000, seed=3)
    whole = rows.extended(*next_stamps(rows.time, rows.offset, 2, loaded.scaler.weekends))
    start = Carried.start(loaded.model, loaded.scaler, 1)
    said, _ = stream(loaded.model, loaded.scaler, [Stretch(whole, 300, np.array([299]))], start, 64)
    quantiles = forecasts(loaded.model, said[0], np.array(LEVELS)).quantiles[0, 0]
    drawn = np.log(paths[:, 0] / rows.y[~np.isnan(rows.y)][-1])
    share = (drawn[:, None] <= quantiles).mean(axis=0)
    assert np.abs(share - np.array(LEVELS)).max() < 4 * 0.5 / np.sqrt(4000)


def test_a_seed_decides(trained: Path, store: SeriesStore) -> None:
    loaded, rows = load_model(trained), read_rows(store, 1, 0, 200)
    paths = sample_paths(loaded, rows, 2, 2, seed=1)
    assert paths.shape == (2, 2)
    assert (paths > 0).all()
    assert np.array_equal(paths, sample_paths(loaded, rows, 2, 2, seed=1))
    assert not np.array_equal(paths, sample_paths(loaded, rows, 2, 2, seed=2))


def test_a_stepper_takes_one_series_after_the_other(
    trained: Path, store: SeriesStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the step that a graph holds goes on from where each series stands, with the same numbers."""
    loaded, rows = load_model(trained), [read_rows(store, i, 0, 200) for i in range(2)]
    want = [sample_paths(loaded, part, 4, 3, seed=1) for part in rows]
    stepper = Stepper(loaded, 3)
    monkeypatch.setattr(module, "make_stepper", lambda *_: stepper)
    for part, paths in zip(rows, want, strict=True):
        assert np.array_equal(sample_paths(loaded, part, 4, 3, seed=1), paths)


@pytest.mark.parametrize("kind", ["price", "level", "return"])
def test_each_step_is_read_like_an_observation(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of the next step is what a history with the drawn steps in it says."""
    loaded = load_for_job(str(make_model(tmp_path / "model", kind=kind, **COVARIATES)), "cpu")
    store = make_store(tmp_path, make_rows("a", 120, 1, 0.1, past=1, future=2, static=1), kind=kind, **COVARIATES)
    rows = read_rows(store, 0, 0, 100)
    said, distribution = [], loaded.model.distribution
    monkeypatch.setattr(loaded.model, "distribution", lambda raw: said.append(raw.clone()) or distribution(raw))
    paths = sample_paths(loaded, rows, 5, 3, seed=1)
    assert len(said) == 5
    generator = torch.Generator().manual_seed(1)
    last = np.full(3, rows.y[~np.isnan(rows.y)][-1])
    ahead = next_stamps(rows.time, rows.offset, 5 + HORIZON, loaded.scaler.weekends)
    for step in range(5):
        drawn = distribution(said[step]).sample(generator).numpy()
        for path in range(3):
            history = rows.extended(*ahead)
            history.y[100 : 100 + step] = paths[path, :step]
            stretch = Stretch(history, 100 + step, np.array([99 + step]))
            start = Carried.start(loaded.model, loaded.scaler, 1)
            (expected,), _ = stream(loaded.model, loaded.scaler, [stretch], start, 64)
            np.testing.assert_allclose(said[step][path], expected.raw[0, 0], rtol=1e-9, atol=1e-11)
            x = drawn[path] * expected.spread[0, 0]
            y = {"price": last[path] * np.exp(x), "level": last[path] + x, "return": x}[kind]
            np.testing.assert_allclose(paths[path, step], y, rtol=1e-9, atol=1e-12)
        last = paths[:, step]


def test_the_batch_job_draws_from_what_it_carries(model: Path, tmp_path: Path) -> None:
    rows = panel()
    run(model, tmp_path, rows, paths=3, path_steps=5, seed=7)
    found = paths_in(tmp_path / "out")
    assert found.columns == ["series", "cutoff", "path", "step", "stamp", "value", "model"]
    forecast = forecasts_in(tmp_path / "out")
    assert len(found) == 3 * 3 * 5  # young is not ripe
    store, loaded = make_store(tmp_path / "tables", rows), load_for_job(str(model), "cpu")
    for name in ("a", "b", "c"):
        own, i = found.filter(pl.col("series") == name), store.index(name)
        part = store.series(i)
        history = read_rows(store, i, 0, part.stop - part.start)
        seed = path_seed(7, name, int(history.time[-1]))
        expected = sample_paths(loaded, history, 5, 3, seed=seed)
        np.testing.assert_allclose(own["value"].to_numpy().reshape(3, 5), expected, rtol=1e-9)
        stamps, _ = next_stamps(history.time, history.offset, 5, loaded.scaler.weekends)
        assert own["stamp"].cast(pl.Int64).to_list() == stamps.tolist() * 3
        assert own["cutoff"].cast(pl.Int64).unique().to_list() == [history.time[-1]]
        assert own["step"].to_list() == [1, 2, 3, 4, 5] * 3
        ahead = forecast.filter(pl.col("series") == name)["stamp"].to_list()
        assert own["stamp"].to_list()[: len(ahead)] == ahead


def test_parts_shards_and_batches_change_no_path(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = panel()
    run(model, tmp_path / "whole", rows, paths=4, path_steps=6)
    whole = paths_in(tmp_path / "whole" / "out")
    run(model, tmp_path / "shards", rows, paths=4, path_steps=6, series_per_shard=1, rows_at_once=100, calibrate="none")
    monkeypatch.setattr(module, "_ROWS", 1)  # a file for each series
    run(model, tmp_path / "parts", rows.filter(pl.col("ds") < pl.datetime(2020, 1, 5)), paths=1)
    run(model, tmp_path / "parts", rows, paths=4, path_steps=6)
    parts = paths_in(tmp_path / "parts" / "out")
    assert len(list((tmp_path / "parts" / "out").glob("paths/*/part-00000-00000002-*"))) == 3
    parts = parts.filter(pl.col("cutoff") == pl.col("cutoff").max().over("series"))
    for found in (paths_in(tmp_path / "shards" / "out"), parts):
        np.testing.assert_allclose(found["value"].to_numpy(), whole["value"].to_numpy(), rtol=1e-9)
        assert found.drop("value").equals(whole.drop("value"))
    values = whole["value"].to_numpy().reshape(3, 4, 6)
    assert len(np.unique(values / values[:, :, :1])) > 3 * 4 * 5  # no two paths are alike


def test_paths_are_there_once_and_stay(model: Path, tmp_path: Path) -> None:
    rows = panel()
    done = run(model, tmp_path, rows, paths=2)
    assert len(done.paths) == 1
    before = contents(tmp_path / "out", tmp_path / "states")
    assert run(model, tmp_path, rows, paths=2).paths == []
    assert contents(tmp_path / "out", tmp_path / "states") == before
    stray = tmp_path / "out" / "paths" / "cutoff=2020-01-09" / "part-00000-00000009-0000.parquet"
    stray.write_bytes(b"left by a killed run")
    more = pl.concat([rows, make_rows("late", 60, 5)])
    assert run(model, tmp_path, more).paths == []  # none unless asked for
    assert len(paths_in(tmp_path / "out")) == 2 * 3 * 20


def test_a_series_that_has_shown_nothing_is_refused(trained: Path, store: SeriesStore) -> None:
    with pytest.raises(ValueError, match="too few increments"):
        sample_paths(load_model(trained), read_rows(store, 0, 0, 5), 2, 2)
