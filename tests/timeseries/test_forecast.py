"""The batch job: what it forecasts, what it reads, and what it does with rows that come again."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.errors import UserError
from domains.timeseries import forecast as module
from domains.timeseries import forecast_shard, stream
from domains.timeseries import states as kept_states
from domains.timeseries.absorbed import OLD
from domains.timeseries.config import LEVELS, ForecastConfig
from domains.timeseries.forecast import forecast
from domains.timeseries.forecast_shard import UNRIPE, load_for_job
from domains.timeseries.states import StateFolder, open_states
from domains.timeseries.stream import forecasts, walk_series
from domains.timeseries.transforms import next_stamps
from tests.timeseries.jobs import (
    HORIZON,
    assert_same_numbers,
    contents,
    forecasts_in,
    make_model,
    make_rows,
    make_store,
    paths_in,
    run,
)

COVARIATES: dict[str, Any] = {"past": ["past0"], "future": ["future0", "future1"], "static": ["static0"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def rich_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("rich") / "model", **COVARIATES)


def panel(**more: Any) -> pl.DataFrame:
    """Series that start, stop and are missing at different times; c and d are unknown to the model."""
    parts = [
        make_rows("a", 400, 1, 0.1, **more),
        make_rows("b", 300, 2, **more),
        make_rows("c", 250, 3, 0.3, start="2020-01-08", **more),
        make_rows("d", 390, 4, 0.02, **more),
    ]
    return pl.concat(parts)


def between(rows: pl.DataFrame, start: int, stop: int) -> pl.DataFrame:
    """Rows of hours ``start`` to ``stop`` of 2020."""
    first = pl.lit("2020-01-01").str.to_datetime("%Y-%m-%d", time_unit="us")
    hours = (pl.col("ds") - first).dt.total_hours()
    return rows.filter((hours >= start) & (hours < stop))


def latest(found: pl.DataFrame) -> pl.DataFrame:
    """The forecasts at the last cut-off of each series."""
    return found.filter(pl.col("cutoff") == pl.col("cutoff").max().over("series"))


def test_forecasts_are_those_at_the_last_row(model: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path, panel())
    done = run(model, tmp_path, store)
    found = forecasts_in(tmp_path / "out")
    assert (done.series, done.rows, done.repeated, done.unseen, done.rejects) == (4, 1340, 0, 2, {})
    levels = [f"q{level:g}" for level in LEVELS]
    plain = ["series", "cutoff", "step", "stamp", "last", "centre", "scale"]
    assert found.columns == [*plain, *levels, "model"]
    loaded = load_for_job(str(model), "cpu")
    assert found["model"].unique().to_list() == [loaded.hash[:16]]
    for i, name in enumerate(store.names):
        history = store.history(i)
        last = len(history) - 1
        own = found.filter(pl.col("series") == name)
        stamps, _ = next_stamps(history.time, history.offset, HORIZON, False)
        assert own["cutoff"].cast(pl.Int64).to_list() == [history.time[last]] * HORIZON
        assert own["step"].to_list() == [1, 2, 3]
        assert own["stamp"].cast(pl.Int64).to_list() == stamps.tolist()
        observed = history.y[~np.isnan(history.y)][-1]
        assert own["last"].to_list() == [observed] * HORIZON
        assert (np.diff(own.select(levels).to_numpy(), axis=1) > 0).all()


def test_forecasts_within_a_history_are_those_of_an_evaluation(model: Path, tmp_path: Path) -> None:
    whole, part = make_rows("a", 400, 1, 0.1), make_rows("a", 400, 1, 0.1)[:350]
    run(model, tmp_path, part, calibrate="validation")
    found = forecasts_in(tmp_path / "out")
    store = make_store(tmp_path / "whole", whole)
    loaded = load_for_job(str(model), "cpu")
    said = walk_series(loaded.model, loaded.scaler, store, 0, np.array([349]), 2048)
    expected = forecasts(loaded.model, said, np.array(LEVELS))
    y = store.target[:350][~np.isnan(store.target[:350])][-1]
    # The job guesses the stamps ahead, an evaluation knows them: compared where the guess is right.
    assert found["stamp"].cast(pl.Int64).to_list() == store.time[350:353].tolist()
    quantiles = y * np.exp(loaded.calibration.apply(expected.quantiles[0]))
    np.testing.assert_allclose(found.select(f"q{level:g}" for level in LEVELS).to_numpy(), quantiles, rtol=1e-9)
    np.testing.assert_allclose(found["centre"].to_numpy(), y * np.exp(expected.mean[0]), rtol=1e-9)
    np.testing.assert_allclose(found["scale"].to_numpy(), np.sqrt(expected.variance[0]), rtol=1e-9)
    run(model, tmp_path / "plain", part, calibrate="none")
    uncorrected = forecasts_in(tmp_path / "plain" / "out")["q0.01"].to_numpy()
    np.testing.assert_allclose(uncorrected, y * np.exp(expected.quantiles[0, :, 0]), rtol=1e-9)
    assert contents(tmp_path / "plain" / "states").keys() == contents(tmp_path / "states").keys()


@given(st.lists(st.integers(1, 399), min_size=1, max_size=5, unique=True))
@settings(max_examples=6, deadline=None)
def test_any_cuts_give_what_the_whole_gives(
    model: Path, tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    rows, root = panel(), tmp_path_factory.mktemp("cuts")
    run(model, root / "whole", rows, calibrate="validation")
    read = 0
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 420], strict=True):
        part = between(rows, start, stop)
        if len(part):
            read += run(model, root / "parts", part, chunk=100, calibrate="validation").rows
    assert read == len(rows)
    assert_same_numbers(latest(forecasts_in(root / "parts" / "out")), forecasts_in(root / "whole" / "out"))


@pytest.mark.parametrize("kind", ["price", "level", "return"])
def test_each_kind_with_covariates_in_parts(kind: str, tmp_path: Path) -> None:
    rich = make_model(tmp_path / "model", kind=kind, **COVARIATES)
    rows = panel(past=1, future=2, static=1)
    if kind == "return":
        rows = rows.with_columns(pl.col("y") / 1e4 - 0.01)
    source = {"kind": kind, **COVARIATES}
    rows = rows.with_columns(pl.col("y").forward_fill().over("unique_id"))  # so that no row is schedule
    run(rich, tmp_path / "whole", rows, source)
    for start, stop in ((0, 150), (150, 153), (153, 290), (290, 420)):
        run(rich, tmp_path / "parts", between(rows, start, stop), source)
    whole = forecasts_in(tmp_path / "whole" / "out")
    assert_same_numbers(latest(forecasts_in(tmp_path / "parts" / "out")), whole)
    centre, scale, last = (whole[name].to_numpy() for name in ("centre", "scale", "last"))
    unit = {"price": last * scale, "level": scale, "return": scale}[kind]
    assert (np.abs(centre - (0 if kind == "return" else last)) < 2 * unit).all()


def test_every_forecast_on_the_way_is_that_of_its_own_history(model: Path, tmp_path: Path) -> None:
    rows = panel()
    for stop in (100, 101, 250):
        run(model, tmp_path / str(stop), between(rows, 0, stop))
        run(model, tmp_path / "parts", between(rows, {100: 0, 101: 100, 250: 101}[stop], stop))
        expected = forecasts_in(tmp_path / str(stop) / "out")
        found = forecasts_in(tmp_path / "parts" / "out")
        keys = expected.select("series", "cutoff").unique()
        assert_same_numbers(found.join(keys, on=["series", "cutoff"], how="semi"), expected)


def test_rows_before_1970_in_parts(model: Path, tmp_path: Path) -> None:
    rows = make_rows("a", 200, 1, start="1955-05-02")
    run(model, tmp_path / "whole", rows)
    run(model, tmp_path / "parts", rows[:195])
    run(model, tmp_path / "parts", rows[195:])
    assert_same_numbers(latest(forecasts_in(tmp_path / "parts" / "out")), forecasts_in(tmp_path / "whole" / "out"))


def test_a_history_longer_than_what_is_read_at_once(model: Path, tmp_path: Path) -> None:
    rows = panel()
    run(model, tmp_path / "whole", rows)
    run(model, tmp_path / "pieces", rows, rows_at_once=90, chunk=64)
    assert_same_numbers(forecasts_in(tmp_path / "pieces" / "out"), forecasts_in(tmp_path / "whole" / "out"))


def test_new_rows_alone_are_read(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    see = stream.see

    def counted(rows, kind, clock, before):
        seen.append(len(rows))
        return see(rows, kind, clock, before)

    monkeypatch.setattr(stream, "see", counted)
    rows = make_rows("a", 400, 1)
    run(model, tmp_path, rows[:395])
    assert seen == [395]
    done = run(model, tmp_path, rows)  # given whole
    assert seen == [395, 5]
    assert (done.rows, done.repeated) == (5, 395)
    assert run(model, tmp_path, rows).rows == 0
    assert seen == [395, 5]


def test_files_lie_by_the_date_of_the_cutoff(model: Path, tmp_path: Path) -> None:
    done = run(model, tmp_path, panel())
    dates = {path.parent.name for path in (tmp_path / "out").glob("cutoff=*/*")}
    assert dates == {"cutoff=2020-01-13", "cutoff=2020-01-17", "cutoff=2020-01-18"}
    assert sorted(done.files) == sorted(f"{date}/part-00000-00000001.parquet" for date in dates)
    for path in (tmp_path / "out").glob("cutoff=*/*"):
        assert pl.read_parquet(path)["cutoff"].dt.date().cast(pl.String).unique().to_list() == [path.parent.name[7:]]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {entry["run"] for entry in manifest["files"]} == {1}
    assert {entry["model"] for entry in manifest["files"]} == set(forecasts_in(tmp_path / "out")["model"])


def test_the_same_input_again_changes_no_byte(model: Path, tmp_path: Path) -> None:
    rows = pl.concat([panel(), make_rows("young", 10, 9)])
    for part in (rows[:1000], rows):
        first = run(model, tmp_path, part)
        before = contents(tmp_path / "out", tmp_path / "states")
        changed = [path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")]
        again = run(model, tmp_path, part)
        assert contents(tmp_path / "out", tmp_path / "states") == before
        assert [path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")] == changed
        assert (again.series, again.rows, again.files) == (0, 0, [])
        assert again.repeated == first.rows + first.repeated
        assert again.rejects == first.rejects


def test_a_long_second_input_can_come_again(model: Path, tmp_path: Path) -> None:
    rows = make_rows("a", 1500, 1)
    run(model, tmp_path, rows[:500])
    run(model, tmp_path, rows[490:])
    before = contents(tmp_path / "out", tmp_path / "states")
    done = run(model, tmp_path, rows[490:])
    assert (done.rows, done.repeated, done.rejects) == (0, 1010, {})
    assert contents(tmp_path / "out", tmp_path / "states") == before
    done = run(model, tmp_path, rows[600:])
    assert done.rejects == {f"{OLD} (a 644 rows up to 2020-02-21T19:00:00.000000, before the last 256)": 1}


def test_extracts_that_slide(model: Path, tmp_path: Path) -> None:
    rows = make_rows("a", 1500, 1)
    for root, kept in (("wide", 500), ("narrow", 256)):
        run(model, tmp_path / root, rows[:1000], compare_rows=kept)
    for stop in (1020, 1040, 1300):  # the last 300, 500 and 700 rows
        extract = rows[stop - {1020: 300, 1040: 500, 1300: 700}[stop] : stop]
        assert run(model, tmp_path / "wide", extract).rows == {1020: 20, 1040: 20, 1300: 260}[stop]
    (reason,) = run(model, tmp_path / "narrow", rows[520:1020]).rejects
    assert reason.startswith(OLD)
    assert "give the whole history, and compare_rows=" in reason
    assert run(model, tmp_path / "narrow", rows[:1020], compare_rows=500).rows == 20  # which it says, and which helps
    assert run(model, tmp_path / "narrow", rows[540:1040]).rows == 20
    assert run(model, tmp_path / "narrow", rows[540:1300]).rows == 260
    for root in ("wide", "narrow"):
        expected = run(model, tmp_path / "whole" / root, rows[:1300]).out
        assert_same_numbers(latest(forecasts_in(tmp_path / root / "out")), forecasts_in(expected))


@pytest.mark.parametrize("change", ["value", "filled", "emptied", "inserted", "covariate", "static"])
def test_a_series_whose_past_differs_is_refused_by_name(rich_model: Path, tmp_path: Path, change: str) -> None:
    rows = panel(past=1, future=2, static=1)
    rows = rows.filter(~((pl.col("unique_id") == "b") & (pl.col("ds") == pl.datetime(2020, 1, 10, 5))))
    run(rich_model, tmp_path, between(rows, 0, 280), COVARIATES)
    clean = contents(tmp_path / "states")
    at = (pl.col("unique_id") == "b") & (pl.col("ds") == pl.datetime(2020, 1, 10, 7))
    expression = {
        "value": pl.when(at).then(pl.col("y") + 1e-9).otherwise(pl.col("y")),
        "filled": pl.when(pl.col("unique_id") == "d").then(pl.col("y").fill_null(50.0)).otherwise(pl.col("y")),
        "emptied": pl.when(at).then(None).otherwise(pl.col("y")).alias("y"),
        "covariate": pl.when(at).then(0.0).otherwise(pl.col("past0")).alias("past0"),
        "static": pl.when(pl.col("unique_id") == "b").then(0.5).otherwise(pl.col("static0")).alias("static0"),
    }.get(change, pl.col("y"))
    changed = between(rows.with_columns(expression), 200, 400)
    if change == "inserted":
        extra = changed.filter(at).with_columns(pl.datetime(2020, 1, 10, 5).cast(pl.Datetime("us")).alias("ds"))
        changed = pl.concat([changed, extra])
    done = run(rich_model, tmp_path, changed, COVARIATES)
    (reason,) = done.rejects
    refused = "d" if change == "filled" else "b"
    assert f"({refused}" in reason
    table = pl.read_parquet(next((tmp_path / "out" / "rejects").glob("*")))
    assert table["series"].to_list() == [refused]
    assert done.series == 3
    after = latest(forecasts_in(tmp_path / "out"))
    assert after.filter(pl.col("series") == refused)["cutoff"].max() < after["cutoff"].max()
    assert contents(tmp_path / "states") != clean


def test_rows_of_a_refused_series_can_be_put_right(model: Path, tmp_path: Path) -> None:
    rows = panel()
    run(model, tmp_path / "whole", rows)
    run(model, tmp_path / "parts", between(rows, 0, 200))
    wrong = between(rows, 150, 420).with_columns(
        pl.when(pl.col("unique_id") == "a").then(pl.col("y") * 2).otherwise(pl.col("y"))
    )
    assert run(model, tmp_path / "parts", wrong).series == 3
    assert run(model, tmp_path / "parts", between(rows, 150, 420)).series == 1
    found, expected = (latest(forecasts_in(tmp_path / name / "out")) for name in ("parts", "whole"))
    own = pl.col("series") == "a"  # the others were calibrated without it
    assert_same_numbers(found.filter(own), expected.filter(own))
    plain = [name for name in expected.columns if not name.startswith("q")]
    assert_same_numbers(found.select(plain), expected.select(plain))


def test_rows_at_the_end_without_observation_are_schedule(rich_model: Path, tmp_path: Path) -> None:
    rows = make_rows("a", 300, 1, past=1, future=2, static=1)
    hidden = rows.with_columns(
        pl.when(pl.int_range(pl.len()) < 280).then(pl.col(name)).otherwise(None).alias(name) for name in ("y", "past0")
    )
    done = run(rich_model, tmp_path / "ahead", hidden, COVARIATES)
    assert done.rows == 280
    found = forecasts_in(tmp_path / "ahead" / "out")
    assert found["stamp"].dt.replace_time_zone(None).to_list() == rows["ds"][280:283].to_list()
    run(rich_model, tmp_path / "blind", rows[:280], COVARIATES)
    assert (found["q0.5"] != forecasts_in(tmp_path / "blind" / "out")["q0.5"]).all()
    for stop in (281, 282, 300):  # one row of the schedule after another comes true
        shown = rows.with_columns(pl.when(pl.int_range(pl.len()) < stop).then(pl.col("y")).alias("y"))
        run(rich_model, tmp_path / "ahead", shown[200:], COVARIATES)
    run(rich_model, tmp_path / "whole", rows, COVARIATES)
    # What had been said of the schedule before it came is of no consequence.
    assert_same_numbers(latest(forecasts_in(tmp_path / "ahead" / "out")), forecasts_in(tmp_path / "whole" / "out"))


def test_an_observation_that_vanishes_is_no_schedule(rich_model: Path, tmp_path: Path) -> None:
    rows = make_rows("a", 300, 1, past=1, future=2, static=1)
    run(rich_model, tmp_path, rows, COVARIATES)
    gone = rows.with_columns(pl.when(pl.int_range(pl.len()) < 299).then(pl.col("y")).alias("y"))
    (reason,) = run(rich_model, tmp_path, gone, COVARIATES).rejects
    assert reason == "a row differs from what was absorbed (a 2020-01-13T11:00:00.000000)"


def test_a_series_too_young_is_absorbed_and_forecast_when_ripe(model: Path, tmp_path: Path) -> None:
    old, young = make_rows("a", 100, 1), make_rows("young", 60, 2)
    done = run(model, tmp_path / "parts", pl.concat([old, young[:1]]), calibrate="validation")
    assert (done.series, done.rows, done.rejects) == (1, 101, {f"{UNRIPE} (young)": 1})
    run(model, tmp_path / "parts", young[1:16], calibrate="validation")
    assert set(forecasts_in(tmp_path / "parts" / "out")["series"]) == {"a"}
    assert run(model, tmp_path / "parts", young[16:], calibrate="validation").series == 1
    run(model, tmp_path / "whole", pl.concat([old, young]), calibrate="validation")
    assert_same_numbers(forecasts_in(tmp_path / "parts" / "out"), forecasts_in(tmp_path / "whole" / "out"))


def test_a_table_of_young_or_empty_series_alone(model: Path, tmp_path: Path) -> None:
    empty = make_rows("empty", 40, 1).with_columns(pl.lit(None, pl.Float64).alias("y"))
    done = run(model, tmp_path, pl.concat([empty, make_rows("young", 16, 2)]))  # the first row gives no increment
    assert (done.series, done.rows, done.files) == (0, 56, [])
    assert done.rejects == {f"{UNRIPE} (empty, young)": 2}
    assert forecasts_in(tmp_path / "out").is_empty()
    assert run(model, tmp_path, make_rows("young", 17, 2)).series == 1


def test_a_horizon_longer_than_the_rows(tmp_path: Path) -> None:
    far = make_model(tmp_path / "model", horizon=60)
    rows = make_rows("a", 18, 1, start="2020-01-02")
    run(far, tmp_path / "whole", rows)
    run(far, tmp_path / "parts", rows[:17])  # the fewest that are ripe
    run(far, tmp_path / "parts", rows[17:])
    found = forecasts_in(tmp_path / "whole" / "out")
    assert found["step"].to_list() == list(range(1, 61))
    assert found["stamp"][0] == rows["ds"][17].replace(tzinfo=UTC) + timedelta(hours=1)
    assert (found["stamp"].dt.weekday() <= 5).all()
    assert found["stamp"].is_sorted()
    assert_same_numbers(latest(forecasts_in(tmp_path / "parts" / "out")), found)


def test_another_model_needs_a_declared_reread(model: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    rows = panel()
    run(model, tmp_path, between(rows, 0, 200))
    before = contents(tmp_path / "out", tmp_path / "states")
    with pytest.raises(UserError, match=r"holds states of another model .* give reread=true with the whole history"):
        run(other, tmp_path, rows)
    assert contents(tmp_path / "out", tmp_path / "states") == before
    assert run(other, tmp_path, rows, reread=True).rows == len(rows)
    run(other, tmp_path / "alone", rows)
    found = forecasts_in(tmp_path / "out")
    expected = forecasts_in(tmp_path / "alone" / "out")
    version = expected["model"][0]
    assert_same_numbers(found.filter(pl.col("model") == version), expected)
    assert found["model"].n_unique() == 2
    assert run(other, tmp_path, rows, reread=True).rows == 0  # said again, it does nothing


def test_a_reread_says_which_series_it_forgets(model: Path, tmp_path: Path) -> None:
    other, rows = make_model(tmp_path / "other", seed=1), panel()
    run(model, tmp_path, between(rows, 0, 200), series_per_shard=1)
    some = rows.filter(~pl.col("unique_id").is_in(["b", "d"]))
    assert run(other, tmp_path, some, reread=True).forgotten == ["b", "d"]
    assert run(other, tmp_path, some, reread=True).forgotten == []
    assert run(other, tmp_path, rows).forgotten == []


def test_a_reread_by_the_same_model_replaces_what_it_says_again(model: Path, tmp_path: Path) -> None:
    """With another window the same cut-offs are forecast anew; each counts once, as the last run has it. What that run
    does not say again stays: earlier cut-offs, also those in a file with others, and series that the table lacks."""
    rows, few = panel(), {"calibration_window": 50, "series_per_shard": 2}
    run(model, tmp_path, between(rows, 0, 200), paths=2, series_per_shard=2)
    before = run(model, tmp_path, between(rows, 200, 280), paths=2)
    assert len(before.files) == 2
    old, old_paths = forecasts_in(tmp_path / "out"), paths_in(tmp_path / "out")
    gone_on = between(rows, 0, 281).filter((pl.col("unique_id") == "b") | (pl.col("ds") < pl.datetime(2020, 1, 12, 16)))
    table = gone_on.filter(pl.col("unique_id") != "d")  # b has a row more, d is not there
    done = run(model, tmp_path, table, reread=True, paths=2, **few)
    assert done.forgotten == ["d"]
    found, found_paths = forecasts_in(tmp_path / "out"), paths_in(tmp_path / "out")  # which look for what is twice
    keys = ["series", "cutoff"]
    run(model, tmp_path / "alone", table, paths=2, **few)
    fresh, fresh_paths = forecasts_in(tmp_path / "alone" / "out"), paths_in(tmp_path / "alone" / "out")
    for now, was, new in ((found, old, fresh), (found_paths, old_paths, fresh_paths)):
        again = new.select(keys).unique()
        assert len(was.join(again, on=keys, how="semi")) == len(was) // 4  # two of eight
        by = [name for name in ("series", "cutoff", "path", "step") if name in now.columns]
        assert now.equals(pl.concat([was.join(again, on=keys, how="anti"), new]).sort(by))
    # d comes back, as what it was forecast for then; nothing is there twice.
    assert run(model, tmp_path, between(rows, 0, 280), paths=2).series == 1
    assert len(forecasts_in(tmp_path / "out")) == len(found)
    assert len(paths_in(tmp_path / "out")) == len(found_paths)
    assert run(model, tmp_path, rows).series == 4
    forecasts_in(tmp_path / "out")


def test_a_reread_that_was_killed_replaces_too(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_states, "KEPT_RUNS", 2)
    rows = panel()
    for stop in (200, 210, 220, 420):
        run(model, tmp_path, between(rows, 0, stop))
    old = forecasts_in(tmp_path / "out")
    with monkeypatch.context() as patch:
        commit = StateFolder.commit
        patch.setattr(StateFolder, "commit", lambda *args: [commit(*args), 1 / 0])
        with pytest.raises(ZeroDivisionError):
            run(model, tmp_path, rows, calibration_window=50, reread=True)
    run(model, tmp_path, rows)
    found = forecasts_in(tmp_path / "out")
    assert len(found) == len(old)
    assert not found.equals(old)


def test_runs_that_the_states_let_go_stay_listed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_states, "KEPT_RUNS", 2)
    rows = make_rows("a", 120, 1)
    for stop in range(100, 108):
        run(model, tmp_path, rows[:stop], paths=2)
    manifest = json.loads((tmp_path / "states" / "manifest.json").read_text())
    assert [entry["generation"] for entry in manifest["runs"]] == [7, 8]
    assert len(forecasts_in(tmp_path / "out")) == 8 * HORIZON
    assert len(paths_in(tmp_path / "out")) == 8 * 2 * 20
    listed = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["run"] for entry in listed["files"]] == list(range(1, 9))
    # Older states, brought back, would make published forecasts vanish: refused, and nothing is touched.
    shutil.copytree(tmp_path / "states", tmp_path / "backup")
    run(model, tmp_path, rows[:110])
    shutil.rmtree(tmp_path / "states")
    (tmp_path / "backup").rename(tmp_path / "states")
    with pytest.raises(UserError, match=r"out: holds forecasts of run 9, but .*states is of run 8, an older copy"):
        run(model, tmp_path, rows[:108])
    assert forecasts_in(tmp_path / "out")["cutoff"].n_unique() == 9


def test_runs_whose_folder_does_not_list_them_are_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run dies between what makes it count and the manifest for readers; those after it write to other folders."""
    monkeypatch.setattr(kept_states, "KEPT_RUNS", 2)
    rows = make_rows("a", 120, 1)

    def job(stop: int, out: str) -> None:
        store = make_store(tmp_path / "tables", rows[:stop])
        forecast(model, store, tmp_path / out, tmp_path / "states", ForecastConfig(), device="cpu")

    job(100, "first")
    with monkeypatch.context() as patch:
        commit = StateFolder.commit
        patch.setattr(StateFolder, "commit", lambda *args: [commit(*args), 1 / 0])
        with pytest.raises(ZeroDivisionError):
            job(101, "first")
    for number in range(5):
        job(102 + number, f"out{number}")
    manifest = json.loads((tmp_path / "states" / "manifest.json").read_text())
    assert [entry["generation"] for entry in manifest["runs"]] == [2, 6, 7]
    job(107, "first")  # which is what mends its manifest
    assert len(forecasts_in(tmp_path / "first")) == 3 * HORIZON
    job(108, "out0")
    assert len(forecasts_in(tmp_path / "out0")) == 2 * HORIZON
    manifest = json.loads((tmp_path / "states" / "manifest.json").read_text())
    assert [entry["generation"] for entry in manifest["runs"]] == [8, 9]


def test_another_scaler_is_another_model(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path, make_rows("a", 100, 1))
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    scaler = json.loads((copy / "scaler.json").read_text())
    scaler["clock"]["hour_of_week"][3] *= 1.5
    (copy / "scaler.json").write_text(json.dumps(scaler))
    with pytest.raises(UserError, match="holds states of another model"):
        run(copy, tmp_path, make_rows("a", 110, 1))


def test_folders_can_be_moved_between_runs(model: Path, tmp_path: Path) -> None:
    rows = panel()
    run(model, tmp_path / "here", between(rows, 0, 200))
    (tmp_path / "here").rename(tmp_path / "there")
    run(model, tmp_path / "there", between(rows, 200, 420))
    assert len(forecasts_in(tmp_path / "there" / "out")) == 2 * 4 * HORIZON


def test_an_out_folder_for_each_run(model: Path, tmp_path: Path) -> None:
    rows = make_rows("a", 300, 1)
    for day, part in (("monday", rows[:200]), ("tuesday", rows[200:])):
        store = make_store(tmp_path / "tables", part)
        forecast(model, store, tmp_path / day, tmp_path / "states", ForecastConfig(), device="cpu")
    assert [len(forecasts_in(tmp_path / day)) for day in ("monday", "tuesday")] == [HORIZON, HORIZON]


def test_folders_may_be_named_from_elsewhere(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the current folder, which is another one each time."""
    monkeypatch.setattr(kept_states, "KEPT_RUNS", 2)
    rows = make_rows("a", 120, 1)
    (tmp_path / "desk").mkdir()
    (tmp_path / "home" / "out").mkdir(parents=True)  # of that name too
    for number, (place, out, states) in enumerate(
        [("desk", "out", "states"), ("home", "../desk/other", "../desk/states")] * 3
    ):
        monkeypatch.chdir(tmp_path / place)
        store = make_store(tmp_path / "tables", rows[: 100 + number])
        forecast(model, store, out, states, ForecastConfig(), device="cpu")
    assert len(forecasts_in(tmp_path / "desk" / "out")) == 3 * HORIZON
    assert len(forecasts_in(tmp_path / "desk" / "other")) == 3 * HORIZON
    manifest = json.loads((tmp_path / "desk" / "states" / "manifest.json").read_text())
    assert [entry["generation"] for entry in manifest["runs"]] == [5, 6]  # those before are listed where they lie
    assert {entry["folder"] for entry in manifest["runs"]} == {
        str(tmp_path / "desk" / name) for name in ("out", "other")
    }
    with pytest.raises(UserError, match=r"desk/out: holds forecasts of another state folder"):
        forecast(model, store, "../desk/out", "states", ForecastConfig(), device="cpu")
    with pytest.raises(UserError, match=r"is to hold forecasts and states; choose two folders"):
        forecast(model, store, "../home/new", "new", ForecastConfig(), device="cpu")


def test_folders_that_do_not_belong_together_are_refused(model: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path, make_rows("a", 100, 1))
    run(model, tmp_path, store)
    for folder in ("files", "deep"):
        (tmp_path / folder).mkdir()
    (tmp_path / "files" / "notes.txt").write_text("x")
    (tmp_path / "a_file").write_text("x")
    before = contents(tmp_path / "out", tmp_path / "states", tmp_path / "files")
    for out, states, message in (
        ("out", "new", "out: holds forecasts of another state folder; choose another out folder"),
        ("files", "states", "files: holds other files; choose a new out folder"),
        ("a_file", "states", "a_file: is a file; choose a folder for the forecasts"),
        ("same", "same", "same: is to hold forecasts and states; choose two folders"),
        ("states", "new", "states: holds other files; choose a new out folder"),
        ("deep", "out", "manifest.json: is damaged"),
    ):
        with pytest.raises(UserError, match=message) as told:
            forecast(model, store, tmp_path / out, tmp_path / states, ForecastConfig(), device="cpu")
        assert "\n" not in str(told.value)
    assert contents(tmp_path / "out", tmp_path / "states", tmp_path / "files") == before


def test_two_jobs_at_once(model: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path, make_rows("a", 100, 1))
    other = tmp_path / "other"
    with (
        open_states(tmp_path / "states", "m", 1, ForecastConfig()),
        pytest.raises(UserError, match=r"states: another forecast job is at work there; wait for it"),
    ):
        run(model, tmp_path, store)
    inside = []

    def second(*args):
        for out, states in ((tmp_path / "out", other), (other, tmp_path / "states")):
            with pytest.raises(UserError, match="another forecast job is at work there; wait for it") as told:
                forecast(model, store, out, states, ForecastConfig(), device="cpu")
            inside.append(str(told.value))
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_run", second)
        run(model, tmp_path, store)
    assert len(inside) == 2
    assert run(model, tmp_path, store).series == 1


def test_a_damaged_state_is_told_and_nothing_is_changed(model: Path, tmp_path: Path) -> None:
    rows = make_rows("a", 120, 1)
    run(model, tmp_path, rows[:100])
    path = next((tmp_path / "states").glob("shard-*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + b"\xff" + whole[201:])
    before = contents(tmp_path / "out", tmp_path / "states")
    with pytest.raises(UserError, match=r"shard-00000.00000001.safetensors: cannot be read .*; restore it, or give"):
        run(model, tmp_path, rows)
    assert contents(tmp_path / "out", tmp_path / "states") == before
    path.write_bytes(whole)
    assert run(model, tmp_path, rows).rows == 20


def test_a_first_run_that_failed_decides_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast_shard.Shard, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match=r"out: cannot be written \(No space left\); put that right and run again"):
        run(model, tmp_path, make_rows("a", 100, 1))
    monkeypatch.undo()
    rows = panel()
    run(model, tmp_path, rows, series_per_shard=1)
    run(model, tmp_path / "alone", rows, series_per_shard=1)
    assert contents(tmp_path / "states").keys() == contents(tmp_path / "alone" / "states").keys()
    assert_same_numbers(forecasts_in(tmp_path / "out"), forecasts_in(tmp_path / "alone" / "out"))


def test_a_run_that_died_at_any_moment_is_made_good_by_the_next(model: Path, tmp_path: Path) -> None:
    rows = pl.concat([panel(), make_rows("young", 10, 9), make_rows("e", 380, 5)])
    rows = rows.filter(~((pl.col("unique_id") == "b") & (pl.col("ds") == pl.datetime(2020, 1, 10, 5))))
    second = between(rows, 150, 420).with_columns(  # e is refused
        pl.when(pl.col("unique_id") == "e").then(pl.col("y") + 1).otherwise(pl.col("y"))
    )
    stores = [make_store(tmp_path / name, part) for name, part in (("1", between(rows, 0, 200)), ("2", second))]
    command = [sys.executable, "-m", "tests.timeseries.killed", str(model), *(str(store.path) for store in stores)]
    subprocess.run([*command, str(tmp_path)], check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for run_number in (1, 2):
        expected = contents_of_work(tmp_path / f"expected-{run_number}")
        moments = sorted(tmp_path.glob(f"{run_number}-*"))
        # Renames of two state files, two files of forecasts and two of paths or more, of rejects, the commit and the
        # manifest for readers; in the first run of both manifests at the start, in the second removals of old state
        # files.
        assert len(moments) >= 2 + 2 + 2 + 3 + 2 + 1
        for folder in moments:
            found = contents_of_work(folder)
            assert found.keys() == expected.keys(), folder
            assert [name for name in found if found[name] != expected[name]] == [], folder
            forecasts_in(folder / "out")
    assert "states/shard-00002.00000002.safetensors" in expected
    assert sorted(name[:16] for name in expected if "rejects" in name) == ["out/rejects/0000", "out/rejects/0000"]


def contents_of_work(folder: Path) -> dict[str, bytes]:
    return contents(folder / "out", folder / "states")


def test_shards_and_threads_change_no_number(model: Path, tmp_path: Path) -> None:
    rows = pl.concat([make_rows(f"s{i}", 50 + i, i, 0.05) for i in range(30)])
    run(model, tmp_path / "one", rows, calibrate="validation")
    run(model, tmp_path / "many", rows, series_per_shard=4, calibrate="validation")
    assert len(list((tmp_path / "many" / "states").glob("shard-*"))) == 8
    assert_same_numbers(forecasts_in(tmp_path / "many" / "out"), forecasts_in(tmp_path / "one" / "out"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"engine": "spark"}, "engine=spark: must be one of local, ray"),
        ({"series_per_shard": 0}, "series_per_shard=0: must be at least 1"),
        ({"rows_at_once": 0}, "rows_at_once=0: must be at least 1"),
        ({"chunk": 0}, "chunk=0: must be at least 1"),
        ({"workers": 0}, "workers=0: must be at least 1"),
        ({"paths": -1}, "paths=-1: must be at least 0"),
        ({"path_steps": 0}, "path_steps=0: must be at least 1"),
        ({"seed": 2**63}, "seed=9223372036854775808: must lie between"),
        ({"compare_rows": 63}, "compare_rows=63: must be at least 64"),
        ({"calibrate": "yes"}, "calibrate=yes: must be one of trailing, validation, none"),
        ({"calibration_window": 0}, "calibration_window=0: must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(model: Path, tmp_path: Path, config: dict[str, Any], message: str) -> None:
    store = make_store(tmp_path, make_rows("a", 100, 1))
    with pytest.raises(UserError, match=message):
        forecast(model, store, tmp_path / "out", tmp_path / "states", replace(ForecastConfig(), **config))
    assert not (tmp_path / "states").exists()


def test_a_table_without_the_columns_of_the_model(model: Path, rich_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.past is \[\], but .*model was trained with \['past0'\]"):
        run(rich_model, tmp_path, make_rows("a", 100, 1))
    with pytest.raises(UserError, match=r"data.kind is level, but .* was trained with price"):
        run(model, tmp_path, make_rows("a", 100, 1), {"kind": "level"})
    assert not (tmp_path / "states").exists()


def test_ray_without_ray(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"engine=ray needs Ray, which is not installed; pip install '.\[ray\]'"):
        run(model, tmp_path, make_rows("a", 100, 1), engine="ray")


def test_ray_writes_the_bytes_of_the_local_engine(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    rows = pl.concat([panel(), make_rows("young", 10, 9)])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for part in (between(rows, 0, 200), rows):
            done = [
                run(model, tmp_path / engine, part, engine=engine, series_per_shard=2, paths=2)
                for engine in ("local", "ray")
            ]
            assert replace(done[0], out=done[1].out) == done[1]
            local, other = (
                contents(tmp_path / engine / "out", tmp_path / engine / "states") for engine in ("local", "ray")
            )
            assert local.keys() == other.keys()
            for name in local:
                assert local[name].replace(b"/local/", b"/ray/") == other[name], name
        path = next((tmp_path / "ray" / "states").glob("shard-*"))
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match=f"{path.name}: cannot be read"):
            run(model, tmp_path / "ray", rows, engine="ray")
    finally:
        ray.shutdown()
