"""Nothing knows what comes later: other targets and past covariates behind a cut-off change nothing up to it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from domains.timeseries.config import EvaluateConfig
from domains.timeseries.evaluate import CALIBRATED, MODEL, Evaluation, evaluate
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.report import Outcomes, score
from domains.timeseries.scaler import Scaler
from domains.timeseries.splits import Splits, make_splits, splits_from_dict
from domains.timeseries.store import SeriesStore, prepare_store
from domains.timeseries.stream import walk_series
from domains.timeseries.train import train
from domains.timeseries.trained import LoadedModel, load_model
from tests.timeseries.panels import panel, panel_config

HORIZON = 2
BASELINES = ["naive", "seasonal_naive", "drift", "ewma", "ewma_clock", "garch", "fhs"]  # all but the slow ones


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("panel")


@pytest.fixture(scope="module")
def store(folder: Path) -> SeriesStore:
    panel().write_parquet(folder / "panel.parquet")
    return prepare_store(panel_config(folder / "panel.parquet").data, progress=False)


@pytest.fixture(scope="module")
def model_dir(folder: Path, store: SeriesStore) -> Path:
    """A model with weights that make much of everything it reads."""
    trained = train(panel_config(folder / "panel.parquet"), folder / "run", progress=False).model_dir
    model = Path(shutil.copytree(trained, folder / "model"))
    weights = load_file(model / "model.safetensors")
    torch.manual_seed(0)
    for name in ("out.weight", "direct.weight"):
        weights[name] = 0.3 * torch.randn_like(weights[name])
    save_file(weights, model / "model.safetensors")
    return model


@pytest.fixture(scope="module")
def loaded(model_dir: Path) -> LoadedModel:
    return load_model(model_dir)


@pytest.fixture(scope="module")
def splits(loaded: LoadedModel, store: SeriesStore) -> Splits:
    return splits_from_dict(store, loaded.splits, "here")


def altered(store: SeriesStore, since: int, seed: int = 0) -> SeriesStore:
    """The same series but for targets and past covariates of all rows from a stamp on: others, or missing."""
    other = SeriesStore.open(store.path)
    rng = np.random.default_rng(seed)
    later = np.asarray(store.time) >= since
    target, past = np.array(store.target), np.array(store.past)
    target[later] *= rng.uniform(0.5, 2.0, later.sum())
    target[later & (rng.random(len(later)) < 0.1)] = np.nan
    past[later] = rng.lognormal(size=past[later].shape)
    other.target, other.past = target, past
    return other


def stamp(store: SeriesStore, series: int, row: int) -> int:
    return int(store.time[store.series(series)][row])


@settings(max_examples=25, deadline=None)
@given(
    series=st.integers(0, 2), row=st.integers(20, 250), seed=st.integers(0, 99), chunk=st.sampled_from([7, 64, 4096])
)
def test_forecasts_up_to_a_cutoff(
    loaded: LoadedModel, store: SeriesStore, series: int, row: int, seed: int, chunk: int
) -> None:
    rows = np.arange(0, row + 5)
    other = altered(store, stamp(store, series, row + 1), seed)
    one, two = (walk_series(loaded.model, loaded.scaler, s, series, rows, chunk) for s in (store, other))
    known = slice(0, row + 1)
    assert torch.equal(one.raw[known], two.raw[known])
    assert np.array_equal(one.spread[known], two.spread[known])
    assert np.array_equal(one.ripe[known], two.ripe[known])
    assert not torch.equal(one.raw[row + 1 :], two.raw[row + 1 :])


@settings(max_examples=25, deadline=None)
@given(series=st.integers(0, 2), row=st.integers(20, 250), seed=st.integers(0, 99))
def test_of_the_schedule_only_the_steps_ahead_are_read(
    loaded: LoadedModel, store: SeriesStore, series: int, row: int, seed: int
) -> None:
    """Future covariates and stamps: those of the next rows may decide, up to the horizon; none behind that."""
    rng = np.random.default_rng(seed)
    part = store.series(series)
    later = slice(part.start + row + 1 + HORIZON, part.stop)
    other = altered(store, stamp(store, series, row + 1), seed)
    time, future = np.array(store.time), np.array(store.future)
    time[later] += np.cumsum(rng.integers(1, 5, later.stop - later.start)) * 86_400_000_000
    future[later] = rng.standard_normal(future[later].shape)
    other.time, other.future = time, future
    cutoffs = np.array([row - 1, row])
    one, two = (walk_series(loaded.model, loaded.scaler, s, series, cutoffs, 4096) for s in (store, other))
    assert torch.equal(one.raw, two.raw)
    assert np.array_equal(one.spread, two.spread)
    future[later.start - 1] = 1 - store.future[later.start - 1]  # of the last step ahead
    three = walk_series(loaded.model, loaded.scaler, other, series, cutoffs, 4096)
    assert torch.equal(one.raw[0], three.raw[0])
    assert torch.equal(one.raw[1, 0], three.raw[1, 0])
    assert not torch.equal(one.raw[1, 1], three.raw[1, 1])


@settings(max_examples=10, deadline=None)
@given(back=st.integers(0, 60), seed=st.integers(0, 99))
def test_the_scaler_knows_the_training_part_alone(store: SeriesStore, splits: Splits, back: int, seed: int) -> None:
    whole = Scaler.fit(store, splits).to_dict()
    assert Scaler.fit(altered(store, splits.validation, seed), splits).to_dict() == whole
    earlier = splits.validation - (back + 15) * 86_400_000_000
    assert Scaler.fit(altered(store, earlier, seed), splits).to_dict() != whole


def test_splits_know_stamps_alone(folder: Path, store: SeriesStore, splits: Splits) -> None:
    data = panel_config(folder / "panel.parquet").data
    for settings_of_split in (data, replace(data, test="0.2", validation="0.1")):
        one, two = (make_splits(s, settings_of_split) for s in (store, altered(store, 0)))
        assert one.to_dict() == two.to_dict()
        assert np.array_equal(one.train_ends, two.train_ends)
        assert np.array_equal(one.validation_ends, two.validation_ends)


@pytest.fixture(scope="module")
def evaluation(model_dir: Path, store: SeriesStore) -> Evaluation:
    return evaluate(model_dir, store, EvaluateConfig(baselines=BASELINES, refit_every=25), device="cpu", progress=False)


def some(found: Evaluation, which: np.ndarray) -> tuple[Outcomes, dict[str, Forecasts]]:
    """The cut-offs of an evaluation for which ``which`` holds."""
    names = ("series", "time", "later", "day", "x", "size", "last")
    arrays = {name: getattr(found.outcomes, name)[which] for name in names}
    forecasts = {
        name: Forecasts(one.levels, one.quantiles[which], one.mean[which], one.variance[which])
        for name, one in found.found.items()
    }
    return Outcomes(found.outcomes.names, **arrays), forecasts


@pytest.mark.parametrize(("row", "seed"), [(258, 0), (285, 1), (310, 2)])
def test_an_evaluation_up_to_a_day(
    model_dir: Path, store: SeriesStore, evaluation: Evaluation, row: int, seed: int
) -> None:
    """Model, corrected intervals and baselines, and the scores of all forecasts whose outcome was known by then."""
    day = stamp(store, 0, row)
    config = EvaluateConfig(baselines=BASELINES, refit_every=25)
    other = evaluate(model_dir, altered(store, day + 1, seed), config, device="cpu", progress=False)
    assert np.array_equal(evaluation.outcomes.time, other.outcomes.time)
    known = evaluation.outcomes.time <= day
    assert 0 < known.sum() < len(known)
    one, two = some(evaluation, known), some(other, known)
    for name in evaluation.found:
        for part in ("quantiles", "mean", "variance"):
            a, b = getattr(one[1][name], part), getattr(two[1][name], part)
            if name in BASELINES:  # sums of as many numbers as are not missing, in another order
                assert np.allclose(a, b, rtol=1e-9, atol=1e-12), name
            else:
                assert np.array_equal(a, b), name
    assert not np.array_equal(one[1][MODEL].quantiles, one[1][CALIBRATED].quantiles)
    for name in set(evaluation.found) - {"drift"}:  # whose parameters are all that it has, but for the level
        assert not np.allclose(evaluation.found[name].variance[~known], other.found[name].variance[~known]), name
    settled = (evaluation.outcomes.later <= day).all(axis=1)
    assert settled.sum() > 0
    tables = [score(*some(found, settled), found.factor, MODEL) for found in (evaluation, other)]
    for name, scores in tables[0].items():
        assert scores.overall == pytest.approx(tables[1][name].overall, rel=1e-8, nan_ok=True)
        assert scores.by_series == pytest.approx(tables[1][name].by_series, rel=1e-8, nan_ok=True)
