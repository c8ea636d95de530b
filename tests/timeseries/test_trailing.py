"""Calibration by the last outcomes: what is kept of them, and what forecasts follow, however a history is read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.errors import UserError
from domains.timeseries import trailing, trained
from domains.timeseries.calibration import Calibrator, quantiles_at, scores_of
from domains.timeseries.config import LEVELS
from domains.timeseries.data import WARM_UP
from domains.timeseries.forecast_shard import load_for_job
from domains.timeseries.history import cumulated
from domains.timeseries.states import MANIFEST, Shard, Stored
from domains.timeseries.store import SeriesStore
from domains.timeseries.stream import forecasts, walk_series
from domains.timeseries.trailing import Trailing, first_kept
from tests.timeseries.jobs import (
    HORIZON,
    assert_same_numbers,
    contents,
    forecasts_in,
    make_model,
    make_rows,
    make_store,
    run,
)

COVARIATES: dict[str, Any] = {"past": ["past0"], "future": ["future0", "future1"], "static": ["static0"]}
QUANTILES = [f"q{level:g}" for level in LEVELS]
LEVEL = np.array(LEVELS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many outcomes as small panels have."""
    monkeypatch.setattr(trained, "ENOUGH", 100)


def panel(**more: Any) -> pl.DataFrame:
    """Series that end together, irregular and with missing rows."""
    parts = [make_rows(name, 330, i, 0.1 * i, **more) for i, name in enumerate(("a", "b", "c"))]
    rows = pl.concat([*parts, make_rows("young", 90, 7, 0.1, start="2020-01-11", **more)])
    return rows.filter(pl.int_range(pl.len()) % 37 != 5)


def hours(rows: pl.DataFrame, start: int, stop: int) -> pl.DataFrame:
    first = pl.lit("2020-01-01").str.to_datetime("%Y-%m-%d", time_unit="us")
    return rows.filter((pl.col("ds") - first).dt.total_hours().is_between(start, stop, closed="left"))


def latest(found: pl.DataFrame) -> pl.DataFrame:
    return found.filter(pl.col("cutoff") == pl.col("cutoff").max().over("series"))


def kept_in(states: Path) -> dict[str, Trailing]:
    """What is kept of each series in a state folder."""
    found = {}
    for entry in json.loads((states / MANIFEST).read_text())["files"].values():
        stored = Stored(str(states / entry["name"]), entry["sha256"], entry["bytes"])
        shard = Shard.load(stored, torch.device("cpu"))
        assert shard.trailing is not None
        found |= {name: shard.trailing.rows([i]) for i, name in enumerate(shard.names)}
    return found


def walked(model: Path, store: SeriesStore, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantiles (n, h, q) of an evaluation at every row, their outcomes (n, h), whether the series was ripe (n,)."""
    loaded = load_for_job(str(model), "cpu")
    i = store.index(name)
    history = store.history(i)
    said = walk_series(loaded.model, loaded.scaler, store, i, np.arange(len(history)), 2048)
    x = cumulated(history.x, history.kind, np.arange(len(history)), HORIZON)
    return forecasts(loaded.model, said, LEVEL).quantiles, x, said.ripe


def calibrator_of(model: Path, store: SeriesStore, names: list[str], window: int, per_series: int) -> Calibrator:
    """Of all outcomes of the last ``per_series`` of each of some series."""
    calibrator = Calibrator(LEVEL, HORIZON, window)
    for name in names:
        quantiles, x, ripe = walked(model, store, name)
        for step in range(HORIZON):
            known = np.flatnonzero(ripe & ~np.isnan(x[:, step]))[-per_series:]
            calibrator.push(step + 1, x[known, step], quantiles[known, step])
    return calibrator


def last_raw(model: Path, store: SeriesStore, root: Path, name: str) -> tuple[np.ndarray, float]:
    """Uncorrected increments forecast behind the last row (h, q), and the last observation."""
    run(model, root, store, calibrate="none")
    own = forecasts_in(root / "out").filter(pl.col("series") == name)
    last = own["last"][0]
    return np.log(own.select(QUANTILES).to_numpy() / last), last


@pytest.mark.parametrize("window", [120, 10_000])
def test_levels_are_those_of_the_last_outcomes_of_an_evaluation(model: Path, tmp_path: Path, window: int) -> None:
    store = make_store(tmp_path, make_rows("a", 400, 1, 0.2))
    run(model, tmp_path / "job", store, calibration_window=window)
    raw, last = last_raw(model, store, tmp_path / "raw", "a")
    calibrator = calibrator_of(model, store, ["a"], window, window)
    expected = last * np.exp(quantiles_at(raw, LEVEL, calibrator.adjusted_scores()))
    found = forecasts_in(tmp_path / "job" / "out").select(QUANTILES).to_numpy()
    assert np.abs(found / (last * np.exp(raw)) - 1).max() > 1e-3  # it was corrected
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_series_of_a_shard_are_pooled_each_with_its_own_window(model: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path, panel())
    run(model, tmp_path / "job", store, calibration_window=80)
    calibrator = calibrator_of(model, store, ["a", "b", "c", "young"], 320, 80)
    assert (np.isnan(calibrator.state).sum(axis=1) > 0).all()  # young has not shown as many
    for name in ("a", "young"):
        raw, last = last_raw(model, store, tmp_path / name, name)
        expected = last * np.exp(quantiles_at(raw, LEVEL, calibrator.adjusted_scores()))
        own = forecasts_in(tmp_path / "job" / "out").filter(pl.col("series") == name)
        np.testing.assert_allclose(own.select(QUANTILES).to_numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("per_shard", [500, 2])
@given(cuts=st.lists(st.integers(1, 329), min_size=1, max_size=4, unique=True))
@settings(max_examples=8, deadline=None)
def test_any_cuts_keep_and_forecast_what_the_whole_does(
    model: Path, tmp_path_factory: pytest.TempPathFactory, per_shard: int, cuts: list[int]
) -> None:
    rows, root = panel(), tmp_path_factory.mktemp("cuts")
    config = {"calibration_window": 70, "series_per_shard": per_shard}
    run(model, root / "whole", rows, **config)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 400], strict=True):
        run(model, root / "parts", hours(rows, start, stop), **config, chunk=100)
    one, many = (kept_in(root / name / "states") for name in ("whole", "parts"))
    for name, kept in one.items():
        for field, values in kept.to_arrays().items():
            np.testing.assert_allclose(many[name].to_arrays()[field], values, rtol=1e-6, atol=1e-9, err_msg=field)
    last = hours(rows, max(cuts), 400)["unique_id"].unique().to_list()
    expected = forecasts_in(root / "whole" / "out").filter(pl.col("series").is_in(last))
    found = latest(forecasts_in(root / "parts" / "out")).filter(pl.col("series").is_in(last))
    assert_same_numbers(found, expected)


def test_known_covariates_are_those_that_came_whatever_the_schedule_said(tmp_path: Path) -> None:
    rich = make_model(tmp_path / "model", **COVARIATES)
    rows = panel(past=1, future=2, static=1).with_columns(pl.col("y").forward_fill().over("unique_id"))
    run(rich, tmp_path / "whole", rows, COVARIATES, calibration_window=70)
    for stop in (200, 203, 400):  # each with the next rows as schedule, of other covariates than come
        wrong = pl.when(pl.lit(stop < 400)).then(0.5).otherwise(pl.col("future1"))
        ahead = hours(rows, stop, stop + 2).with_columns(pl.lit(None, pl.Float64).alias("y"), wrong.alias("future1"))
        run(rich, tmp_path / "parts", pl.concat([hours(rows, 0, stop), ahead]), COVARIATES, calibration_window=70)
    found, expected = (latest(forecasts_in(tmp_path / name / "out")) for name in ("parts", "whole"))
    assert_same_numbers(found, expected)


def test_the_window_slides(model: Path, tmp_path: Path) -> None:
    """The last outcomes and no others decide, and each step ahead has its own."""
    rows = make_rows("a", 300, 1, 0.1)
    store = make_store(tmp_path / "table", rows)
    quantiles, x, ripe = walked(model, store, "a")
    for stop in (40, 41, 200, 300):
        run(model, tmp_path, rows[:stop], calibration_window=50)
        (kept,) = kept_in(tmp_path / "states").values()
        for step in range(HORIZON):
            known = ripe & ~np.isnan(x[:, step]) & (np.arange(300) + step + 1 < stop)
            expected = scores_of(x[known, step], quantiles[known, step], LEVEL)[-50:]
            found = kept.scores[0, step]
            assert np.isnan(found[: 50 - len(expected)]).all()
            np.testing.assert_allclose(found[50 - len(expected) :], expected, rtol=1e-5, atol=1e-6)
    assert kept.scores.dtype == np.float32


def test_batches_and_pieces_change_no_number(model: Path, tmp_path: Path) -> None:
    rows = pl.concat([panel(), make_rows("long", 300, 9, 0.2)])
    run(model, tmp_path / "once", rows)
    for most in (40, 100, 320):  # series alone, in pieces or not
        run(model, tmp_path / str(most), rows, rows_at_once=most, chunk=64)
        found, expected = (forecasts_in(tmp_path / name / "out") for name in (str(most), "once"))
        for name in QUANTILES:
            np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=1e-8)


def test_the_table_of_the_training_counts_while_there_are_few_outcomes(model: Path, tmp_path: Path) -> None:
    for rows, few in ((WARM_UP + 100, True), (WARM_UP + 101, False)):  # the first row has no increment
        root = tmp_path / str(rows)
        run(model, root / "trailing", make_rows("a", rows, 1))
        run(model, root / "validation", make_rows("a", rows, 1), calibrate="validation")
        found, frozen = (forecasts_in(root / name / "out") for name in ("trailing", "validation"))
        same = [(found[name] == frozen[name]).to_list() for name in QUANTILES]
        assert all(all(steps[1:]) for steps in same)  # two and three steps ahead, fewer still
        assert all(steps[0] for steps in same) == few


def test_what_is_kept_does_not_depend_on_what_is_made_of_it(model: Path, tmp_path: Path) -> None:
    """A run may correct or not: those after it find what they need."""
    rows = panel()
    for how in ("trailing", "validation", "none"):
        run(model, tmp_path / how, hours(rows, 0, 200), calibrate=how)
        run(model, tmp_path / how, hours(rows, 200, 400))
    one = {how: kept_in(tmp_path / how / "states") for how in ("trailing", "validation", "none")}
    for how in ("validation", "none"):
        for name, kept in one[how].items():
            assert np.array_equal(kept.scores, one["trailing"][name].scores, equal_nan=True)
        assert_same_numbers(*(latest(forecasts_in(tmp_path / each / "out")) for each in (how, "trailing")))


def test_series_that_are_refused_or_absent_count_with_what_they_had(model: Path, tmp_path: Path) -> None:
    rows = panel()
    second = hours(rows, 200, 400)
    wrong = pl.when(pl.col("unique_id") == "a").then(pl.col("y") * 2).otherwise(pl.col("y"))
    tables = {
        "refused": hours(rows, 190, 400).with_columns(wrong),
        "absent": second.filter(pl.col("unique_id") != "a"),
    }
    for name, table in tables.items():
        run(model, tmp_path / name, hours(rows, 0, 200))
        assert run(model, tmp_path / name, table).series == 3
    run(model, tmp_path / "never", hours(rows, 0, 200).filter(pl.col("unique_id") != "a"))
    run(model, tmp_path / "never", tables["absent"])
    found = {name: latest(forecasts_in(tmp_path / name / "out")).filter(pl.col("series") == "b") for name in tables}
    assert found["refused"].equals(found["absent"])
    never = latest(forecasts_in(tmp_path / "never" / "out")).filter(pl.col("series") == "b")
    assert (found["absent"]["q0.05"] != never["q0.05"]).all()


def test_the_head_is_asked_at_the_last_rows_alone(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, score = [], trailing.score

    def counted(model: Any, scaler: Any, rows: Any, came: np.ndarray, *more: Any) -> np.ndarray:
        looked.append((len(rows.x), len(came)))
        return score(model, scaler, rows, came, *more)

    monkeypatch.setattr(trailing, "score", counted)
    rows = make_rows("a", 2000, 1)
    run(model, tmp_path, rows[:1990], calibration_window=50)
    run(model, tmp_path, rows[1990:1991], calibration_window=50)
    run(model, tmp_path, rows[1991:], calibration_window=50)
    assert looked == [(50 + HORIZON, 50), (1 + HORIZON, 1), (9 + HORIZON, 9)]


def test_rows_from_which_on_forecasts_count() -> None:
    y = np.ones(100)
    assert first_kept(y, 10, 3) == 87
    assert first_kept(y, 98, 3) == first_kept(y, 500, 3) == 0
    y[80:] = np.nan
    assert first_kept(y, 10, 3) == 67
    assert first_kept(np.full(100, np.nan), 10, 3) == 97  # rows to come may come true of these
    assert first_kept(y[80:82], 10, 3) == 0


def test_another_window_needs_a_declared_reread(model: Path, tmp_path: Path) -> None:
    rows = panel()
    run(model, tmp_path, hours(rows, 0, 200))
    before = contents(tmp_path / "out", tmp_path / "states")
    with pytest.raises(
        UserError, match=r"states: keeps 250 outcomes of each series; leave out calibration_window, or give reread"
    ):
        run(model, tmp_path, rows, calibration_window=40)
    assert contents(tmp_path / "out", tmp_path / "states") == before
    assert run(model, tmp_path, rows, calibration_window=40, reread=True).rows == len(rows)
    assert {kept.scores.shape[2] for kept in kept_in(tmp_path / "states").values()} == {40}
    run(model, tmp_path / "alone", rows, calibration_window=40)
    assert_same_numbers(latest(forecasts_in(tmp_path / "out")), forecasts_in(tmp_path / "alone" / "out"))


def test_states_know_their_window(model: Path, tmp_path: Path) -> None:
    """It is told once: later runs take it from there, a reread after a new model too."""
    rows = panel()
    run(model, tmp_path / "parts", hours(rows, 0, 200), calibration_window=40)
    run(model, tmp_path / "parts", hours(rows, 200, 400))
    run(model, tmp_path / "whole", rows, calibration_window=40)
    assert_same_numbers(*(latest(forecasts_in(tmp_path / name / "out")) for name in ("parts", "whole")))
    other = make_model(tmp_path / "other", seed=1)
    assert run(other, tmp_path / "parts", rows, reread=True).rows == len(rows)
    assert {kept.scores.shape[2] for kept in kept_in(tmp_path / "parts" / "states").values()} == {40}
    run(model, tmp_path / "new", hours(rows, 0, 200))
    assert {kept.scores.shape[2] for kept in kept_in(tmp_path / "new" / "states").values()} == {250}


def test_what_was_said_of_the_training_part_does_not_count(tmp_path: Path) -> None:
    """In the first window of a job whose history reaches back into it, and whatever the cuts."""
    rows, border = panel(), "2020-01-09T12:00:00"  # row 204
    trained_on = make_model(tmp_path / "model", trained_until=border)
    everywhere = make_model(tmp_path / "everywhere")
    store = make_store(tmp_path / "all", rows)
    run(trained_on, tmp_path / "whole", store, calibration_window=200)
    run(everywhere, tmp_path / "free", store, calibration_window=200)
    kept, free = (kept_in(tmp_path / name / "states") for name in ("whole", "free"))
    since = np.datetime64(border, "us").astype(np.int64)
    for name, own in kept.items():
        history = store.history(store.index(name))
        for step in range(HORIZON):
            came = np.flatnonzero(~np.isnan(history.x))[-200:]
            made = came - step - 1
            counts = (made >= 0) & (history.time[np.maximum(made, 0)] >= since)
            scores, before = own.scores[0, step][-len(came) :], free[name].scores[0, step][-len(came) :]
            assert np.isnan(scores[~counts]).all()
            assert np.array_equal(scores[counts], before[counts], equal_nan=True)
            assert 0 < counts.sum() < len(came) + (name == "young")
    for start, stop in ((0, 150), (150, 210), (210, 400)):
        run(trained_on, tmp_path / "parts", hours(rows, start, stop), calibration_window=200)
    found, expected = (latest(forecasts_in(tmp_path / name / "out")) for name in ("parts", "whole"))
    assert_same_numbers(found, expected)
    assert (expected["q0.05"] != forecasts_in(tmp_path / "free" / "out")["q0.05"]).any()
