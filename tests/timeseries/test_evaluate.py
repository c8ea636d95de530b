"""Walk-forward evaluation: which cut-offs, whose forecasts, what is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from domains.errors import UserError
from domains.timeseries.baselines import BASELINES, make_baselines
from domains.timeseries.calibration import Calibrator
from domains.timeseries.config import LEVELS, EvaluateConfig, ForecastConfig
from domains.timeseries.evaluate import CALIBRATED, MODEL, SHIPPED, Evaluation, evaluate, unit_of
from domains.timeseries.history import cumulated
from domains.timeseries.refit import Block, refitted
from domains.timeseries.splits import splits_from_dict
from domains.timeseries.store import SeriesStore, prepare_store
from domains.timeseries.stream import forecasts, walk_series
from domains.timeseries.train import train
from domains.timeseries.trained import load_model
from tests.timeseries.conftest import small_config
from tests.timeseries.jobs import forecasts_in
from tests.timeseries.jobs import run as job
from tests.timeseries.panels import panel, panel_config

CONFIG = EvaluateConfig(baselines=["naive", "ewma"])


def run(model: Path, store: SeriesStore, **changes: Any) -> Evaluation:
    return evaluate(model, store, replace(CONFIG, **changes), device="cpu", progress=False)


@pytest.fixture(scope="module")
def found(trained: Path, store: SeriesStore) -> Evaluation:
    return run(trained, store)


def test_everyone_is_scored_at_every_cutoff_of_the_test_part(
    trained: Path, store: SeriesStore, found: Evaluation
) -> None:
    splits = splits_from_dict(store, load_model(trained).splits, "here")
    histories = [store.history(i) for i in range(len(store))]
    rows = [splits.test_cutoffs(i, len(history)) for i, history in enumerate(histories)]
    count = sum(map(len, rows))
    assert found.outcomes.names == tuple(store.names)
    assert np.array_equal(found.outcomes.series, np.repeat(np.arange(4), [len(own) for own in rows]))
    stamps = np.concatenate([history.time[list(own)] for history, own in zip(histories, rows, strict=True)])
    assert np.array_equal(found.outcomes.time, stamps)
    assert set(found.found) == set(found.scores) == {MODEL, CALIBRATED, SHIPPED, "naive", "ewma"}
    for forecast in found.found.values():
        assert forecast.quantiles.shape == (count, 2, len(LEVELS))
        assert np.isfinite(forecast.quantiles).all()
        assert (forecast.variance > 0).all()
    assert found.note == f"{count} cut-offs of 4 series from 2015-03-01T00:00:00, 2 steps ahead"
    assert found.table().startswith(f"prices.parquet: {found.note}\n")


def test_the_model_is_carried_through_its_whole_history(trained: Path, store: SeriesStore, found: Evaluation) -> None:
    loaded = load_model(trained)
    splits = splits_from_dict(store, loaded.splits, "here")
    for i in (0, 3):
        cutoffs = np.array(splits.test_cutoffs(i, len(store.history(i))))
        said = walk_series(loaded.model, loaded.scaler, store, i, cutoffs, 4096)
        plain = forecasts(loaded.model, said, np.array(LEVELS))
        own = found.outcomes.series == i
        assert np.array_equal(found.found[MODEL].quantiles[own], plain.quantiles)
        assert np.array_equal(found.found[MODEL].variance[own], plain.variance)


def test_intervals_are_corrected_by_what_was_known(trained: Path, store: SeriesStore) -> None:
    """Of a single series, against windows that are pushed one outcome after the other."""
    loaded = load_model(trained)
    series, window = store.index("WTI"), 120
    found = run(trained, store, series=["WTI"], calibration_window=window)
    history = store.history(series)
    splits = splits_from_dict(store, loaded.splits, "here")
    cutoffs = np.array(splits.test_cutoffs(series, len(history)))
    begin = int(splits.train_ends[series])  # residuals of the training part would be too small
    assert begin > cutoffs[0] - window
    rows = np.arange(begin, cutoffs[-1] + 1)
    said = walk_series(loaded.model, loaded.scaler, store, series, rows, 4096)
    plain = forecasts(loaded.model, said, np.array(LEVELS)).quantiles
    x = cumulated(history.x, history.kind, rows, 2)
    windows = Calibrator(np.array(LEVELS), 2, window)
    wanted = []
    for i, row in enumerate(rows):
        for step in (1, 2):
            made = i - step  # of this many steps ago the outcome has just become known
            if made >= 0:
                windows.push(step, x[made : made + 1, step - 1], plain[made : made + 1, step - 1])
        if row >= cutoffs[0]:
            wanted.append(windows.apply(plain[i]))
    assert np.allclose(found.found[CALIBRATED].quantiles, np.stack(wanted), rtol=1e-9, atol=1e-12)
    assert not np.allclose(found.found[CALIBRATED].quantiles, found.found[MODEL].quantiles)


def test_forecasts_are_also_scored_as_the_batch_job_writes_them(
    prices: Path, trained: Path, store: SeriesStore, found: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the table of the training while there are too few outcomes since; else as the job run on the rows so far
    writes them, whichever series are scored, and however they are kept in files."""
    table = load_model(trained).calibration.apply(found.found[MODEL].quantiles)
    assert np.array_equal(found.found[SHIPPED].quantiles, table)  # four series: fewer than a thousand outcomes
    for place in ("evaluate", "trained"):
        monkeypatch.setattr(f"domains.timeseries.{place}.ENOUGH", 100)
    monkeypatch.setattr("domains.timeseries.evaluate.CALIBRATION_WINDOW", 80)
    day = np.datetime64("2015-06-08", "us")  # a Monday, with stamps ahead as the job guesses them
    rows = pl.read_parquet(prices).filter(pl.col("ds") <= day)
    for per_shard in (500, 2):
        monkeypatch.setattr(ForecastConfig, "series_per_shard", per_shard)
        here, alone = run(trained, store, baselines=["naive"]), run(trained, store, series=["WTI"], baselines=["naive"])
        own = here.outcomes.series == store.index("WTI")
        assert np.array_equal(here.found[SHIPPED].quantiles[own], alone.found[SHIPPED].quantiles)
        root = tmp_path / str(per_shard)
        job(trained, root, rows, series_per_shard=per_shard, calibration_window=80)
        assert len(list((root / "states").glob("shard-*"))) == (1 if per_shard == 500 else 2)
        written = forecasts_in(root / "out").filter(pl.col("cutoff").dt.replace_time_zone(None) == day)
        at = here.outcomes.time == day.astype(np.int64)
        assert at.sum() == 4
        levels = [f"q{level:g}" for level in LEVELS]
        expected = np.log(written.select(levels).to_numpy() / written["last"].to_numpy()[:, None])
        found_there = here.found[SHIPPED].quantiles[at].reshape(-1, len(LEVELS))
        spread = np.sqrt(here.found[MODEL].variance[at]).reshape(-1, 1)
        assert np.abs(found_there - expected).max() < 1e-4 * spread.max()  # one in float32, the other in float64
        assert np.abs(found_there - table[at].reshape(-1, len(LEVELS))).max() > 1e-2 * spread.max()


def test_baselines_are_fitted_before_the_test_part(trained: Path, store: SeriesStore, found: Evaluation) -> None:
    splits = splits_from_dict(store, load_model(trained).splits, "here")
    (naive,) = make_baselines(["naive"])
    histories = [store.history(i) for i in range(len(store))]
    naive.fit(histories, splits.validation_ends, 2)
    parts = [
        naive.forecast(i, history, np.array(splits.test_cutoffs(i, len(history))), 2, np.array(LEVELS)).quantiles
        for i, history in enumerate(histories)
    ]
    assert np.array_equal(found.found["naive"].quantiles, np.concatenate(parts))


def test_baselines_are_fitted_anew_at_the_start_of_each_block(
    trained: Path, store: SeriesStore, found: Evaluation
) -> None:
    """On all rows up to the first cut-off of the block, of every series; the model is carried on."""
    once, refitted = (run(trained, store, baselines=["ewma_clock"], refit_every=every) for every in (None, 30))
    assert refitted.note == f"{found.note}, baselines fitted anew every 30 cut-offs"
    assert np.array_equal(refitted.found[CALIBRATED].quantiles, found.found[CALIBRATED].quantiles)
    (ewma_clock,) = make_baselines(["ewma_clock"])
    histories = [store.history(i) for i in range(len(store))]
    stamps = np.unique(found.outcomes.time)
    first, end = stamps[30], stamps[60]
    ends = np.array([np.searchsorted(history.time, first, side="right") for history in histories])
    ewma_clock.fit(histories, ends, 2)
    for i, history in enumerate(histories):
        own = (found.outcomes.series == i) & (found.outcomes.time >= first) & (found.outcomes.time < end)
        rows = np.flatnonzero(np.isin(history.time, found.outcomes.time[own]))
        wanted = ewma_clock.forecast(i, history, rows, 2, np.array(LEVELS))
        assert np.array_equal(refitted.found["ewma_clock"].quantiles[own], wanted.quantiles)
    later = found.outcomes.time >= first
    assert np.array_equal(refitted.found["ewma_clock"].quantiles[~later], once.found["ewma_clock"].quantiles[~later])
    assert not np.allclose(refitted.found["ewma_clock"].quantiles[later], once.found["ewma_clock"].quantiles[later])


def test_the_model_is_trained_anew_at_the_start_of_each_block(
    prices: Path, trained: Path, store: SeriesStore, found: Evaluation, tmp_path: Path
) -> None:
    anew = run(trained, store, refit_every=60, refit_model=True)
    stamps = np.unique(found.outcomes.time)
    border = (stamps[60] + 1).astype("datetime64[us]")
    was = {name: np.datetime64(load_model(trained).splits[name], "us") for name in ("validation", "test")}
    config = small_config(prices)
    moved = {"test": str(border), "validation": str(was["validation"] + (border - was["test"]))}
    again = train(replace(config, data=replace(config.data, **moved)), tmp_path / "run", progress=False)
    loaded = load_model(again.model_dir)
    for i, history in enumerate(store.history(i) for i in range(len(store))):
        own = (found.outcomes.series == i) & (found.outcomes.time >= stamps[60])
        rows = np.flatnonzero(np.isin(history.time, found.outcomes.time[own]))
        said = walk_series(loaded.model, loaded.scaler, store, i, rows, 4096)
        wanted = forecasts(loaded.model, said, np.array(LEVELS))
        assert np.array_equal(anew.found[MODEL].quantiles[own], wanted.quantiles)
        assert np.array_equal(anew.found[SHIPPED].quantiles[own], loaded.calibration.apply(wanted.quantiles))
    before = found.outcomes.time < stamps[60]
    assert np.allclose(anew.found[MODEL].quantiles[before], found.found[MODEL].quantiles[before], rtol=1e-5)
    assert not np.allclose(anew.found[MODEL].quantiles[~before], found.found[MODEL].quantiles[~before])


def test_a_last_block_shorter_than_the_embargo_is_trained_for(trained: Path, store: SeriesStore) -> None:
    loaded = load_model(trained)
    splits = splits_from_dict(store, {**loaded.splits, "embargo": 6}, "")
    every = [store.history(i) for i in range(len(store))]
    stamps = np.unique(np.concatenate([one.time[len(one) - splits.horizon - 9 : -splits.horizon] for one in every]))
    blocks = [Block(int(stamps[0]), int(stamps[-3])), Block(int(stamps[-3]), int(stamps[-1]) + 1)]
    with refitted(loaded, store, splits, blocks, "cpu") as models:
        _, last = models
    assert last.splits["embargo"] == 2


@pytest.mark.parametrize("chunk", [1, 50, 100_000])
def test_the_chunk_changes_nothing_but_rounding(
    trained: Path, store: SeriesStore, found: Evaluation, chunk: int
) -> None:
    some = {"series": ["SP500"], "max_cutoffs": 8}
    one, other = run(trained, store, **some), run(trained, store, chunk=chunk, **some)
    assert np.allclose(one.found[CALIBRATED].quantiles, other.found[CALIBRATED].quantiles, atol=1e-6)


def test_stride_and_the_number_of_cutoffs(trained: Path, store: SeriesStore, found: Evaluation) -> None:
    for stride in (3, 10):
        strided = run(trained, store, stride=stride, calibrate=False)
        every = np.concatenate([np.flatnonzero(found.outcomes.series == i)[::stride] for i in range(4)])
        assert np.array_equal(strided.outcomes.time, found.outcomes.time[every])
        for name in (MODEL, "naive"):
            assert np.allclose(strided.found[name].quantiles, found.found[name].quantiles[every])
    last = run(trained, store, max_cutoffs=5)
    every = np.concatenate([np.flatnonzero(found.outcomes.series == i)[-5:] for i in range(4)])
    assert np.array_equal(last.outcomes.time, found.outcomes.time[every])
    assert np.allclose(last.found[CALIBRATED].quantiles, found.found[CALIBRATED].quantiles[every], rtol=1e-3)
    assert last.note.startswith("20 cut-offs of 4 series")


def test_corrections_are_left_out_when_not_wanted(trained: Path, store: SeriesStore) -> None:
    assert set(run(trained, store, calibrate=False, max_cutoffs=3).found) == {MODEL, "naive", "ewma"}


def test_all_baselines_unless_some_are_named(trained: Path, store: SeriesStore) -> None:
    """The two that take long, on one series: of the others they say nothing, and the table says so."""
    found = run(trained, store, baselines=[], max_statistical=1, max_cutoffs=4)
    assert set(found.found) == {MODEL, CALIBRATED, SHIPPED, *BASELINES}
    assert found.scores["auto_arima"].covered == pytest.approx(0.25, abs=0.05)
    assert "auto_ets: of 25% of the outcomes alone" in found.table()
    assert all(found.scores[name].covered == 1 for name in set(found.found) - {"auto_arima", "auto_ets"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": ["niave"]}, r"^baselines: there is none named 'niave'; choose among naive, .*auto_ets$"),
        ({"stride": 0}, r"^stride=0: must be at least 1"),
        ({"chunk": 0}, r"^chunk=0: must be at least 1"),
        ({"calibration_window": 0}, r"^calibration_window=0: must be at least 1"),
        ({"max_statistical": -1}, r"^max_statistical=-1: must be at least 0"),
        ({"refit_every": 0}, r"^refit_every=0: must be at least 1"),
        ({"refit_model": True}, r"^refit_model=true: say after how many cut-offs, with refit_every"),
        ({"max_cutoffs": 0}, r"^max_cutoffs=0: must be at least 1"),
        ({"unit": 0.0}, r"^unit=0\.0: must be more than 0"),
        ({"unit": float("inf")}, r"^unit=inf: must be more than 0, and finite"),
        ({"series": ["SP5O0"]}, r"^prices\.parquet: has no series 'SP5O0'; did you mean 'SP500'\?"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(
    trained: Path, store: SeriesStore, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(trained, store, **changes)


def test_other_series_are_refused(trained: Path, prices: Path, tmp_path: Path) -> None:
    pl.read_parquet(prices).with_columns(pl.col("y") * 2).write_parquet(tmp_path / "doubled.parquet")
    source = replace(load_model(trained).config.data, path=str(tmp_path / "doubled.parquet"), stores=str(tmp_path))
    with pytest.raises(UserError, match=r"^doubled\.parquet: does not hold the series that .*\(prices\.parquet\)"):
        run(trained, prepare_store(source, progress=False))


def test_the_unit_of_the_table(trained: Path, store: SeriesStore, found: Evaluation) -> None:
    """Per cent for prices; the forecasts stay in units of the increments."""
    assert (found.factor, found.unit) == (100.0, "log returns in per cent")
    points = run(trained, store, unit=1e4, max_cutoffs=5)
    per_cent = run(trained, store, max_cutoffs=5)
    assert points.unit == "log returns in basis points"
    assert points.scores["naive"].overall["crps"] == pytest.approx(100 * per_cent.scores["naive"].overall["crps"])
    assert np.array_equal(points.found["naive"].quantiles, per_cent.found["naive"].quantiles)
    assert unit_of("level", EvaluateConfig()) == (1.0, "changes")
    assert unit_of("return", EvaluateConfig(unit=1000.0)) == (1000.0, "returns times 1000")


def test_numbers_are_there_for_trackers_and_as_json(found: Evaluation) -> None:
    metrics = found.metrics()
    assert metrics["test/model/crps"] == found.scores[MODEL].overall["crps"]
    assert metrics["test/model_calibrated/crps"] == found.scores[CALIBRATED].overall["crps"]
    assert metrics["test/naive/var_5_hits"] == found.scores["naive"].overall["var_5_hits"]
    assert all(np.isfinite(value) for value in metrics.values())
    table = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert table["methods"]["naive"]["overall"]["crps"] == metrics["test/naive/crps"]
    assert (table["source"], table["unit"], table["factor"]) == ("prices.parquet", found.unit, 100.0)
    assert table["model_sha256"] == found.model
    assert table["note"] == found.note


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SeriesStore]:
    """A model of the panel, one of whose series ends before the test part, and one of which begins within it."""
    folder = tmp_path_factory.mktemp("ragged")
    ended = (pl.col("unique_id") != "B") | (pl.col("ds") < pl.lit("2014-01-20").str.to_date())
    panel().filter(ended).write_parquet(folder / "panel.parquet")
    config = panel_config(folder / "panel.parquet")
    return train(config, folder / "run", progress=False).model_dir, prepare_store(config.data, progress=False)


def test_series_without_rows_before_or_in_the_test_part_are_left_out(ragged: tuple[Path, SeriesStore]) -> None:
    """B has nothing to be scored on, and D nothing that baselines could be fitted on."""
    found = run(*ragged)
    assert found.outcomes.names == ("A", "C")
    assert " of 2 of 4 series from " in found.table().splitlines()[0]
    assert list(found.scores["naive"].by_series) == ["A", "C"]
    for name in ("B", "D"):
        with pytest.raises(UserError, match=r"none of the series asked for has rows in the test part and 16 obs"):
            run(*ragged, series=[name])


def test_missing_outcomes_are_not_scored(ragged: tuple[Path, SeriesStore]) -> None:
    found = run(*ragged)
    missing = np.isnan(found.outcomes.x)
    assert missing.any()
    assert np.isfinite(found.found[MODEL].quantiles[missing]).all()  # they are forecast all the same
    assert np.isfinite(found.scores[MODEL].overall["crps"])
    assert found.scores[MODEL].covered == 1.0


@pytest.mark.parametrize("kind", ["level", "return"])
def test_other_kinds_are_walked_the_same_way(tmp_path: Path, kind: str) -> None:
    moves = panel().with_columns(pl.col("y").log().diff().over("unique_id")) if kind == "return" else panel()
    moves.write_parquet(tmp_path / "panel.parquet")
    config = panel_config(tmp_path / "panel.parquet", data={"kind": kind})
    model = train(config, tmp_path / "run", progress=False).model_dir
    found = run(model, prepare_store(config.data, progress=False), series=["A"], baselines=["naive", "drift"])
    assert found.factor == 1.0
    assert found.scores[MODEL].overall["mase"] < 1.5
    assert 0.5 < found.scores[MODEL].overall["coverage_80"] <= 1
