"""Forecasts of a table in memory: those of the batch job."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from domains.errors import UserError
from domains.timeseries.frame import forecast_columns
from domains.timeseries.trained import LoadedModel, load_model
from tests.timeseries.jobs import HORIZON, forecasts_in, make_model, make_rows, make_store, run

COVARIATES: dict[str, Any] = {"past": ["past0"], "future": ["future0"], "static": ["static0"]}


def ask(loaded: LoadedModel, rows: pl.DataFrame) -> pl.DataFrame:
    """The forecasts of a table, as a table."""
    time = rows["ds"].dt.epoch("us").to_numpy()
    covariates = {name: rows[name].to_numpy() for name in rows.columns if name[-1].isdigit()}
    y = rows["y"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    found = forecast_columns(loaded, rows["unique_id"].to_numpy(), time, y, covariates)
    return pl.DataFrame({name: values.tolist() for name, values in found.items()})


def assert_those_of_the_job(loaded: LoadedModel, rows: pl.DataFrame, root: Path, source: dict[str, Any]) -> None:
    run(loaded.path, root, rows, source, calibrate="validation")
    job = forecasts_in(root / "out").with_columns(pl.col("cutoff", "stamp").dt.epoch("us")).drop("model")
    found = ask(loaded, rows).sort("series", "step")
    assert found.columns == job.columns
    for name in ("series", "cutoff", "step", "stamp", "last"):
        assert found[name].to_list() == job[name].to_list()
    size = (
        job["last"].to_numpy() * job["scale"].to_numpy() if loaded.scaler.kind == "price" else job["scale"].to_numpy()
    )
    for name in job.columns[5:]:  # this one in float32
        error = np.abs(found[name].to_numpy() - job[name].to_numpy())
        assert (error < 1e-4 * (job["scale"].to_numpy() if name == "scale" else size)).all(), name


@pytest.mark.parametrize("kind", ["price", "level", "return"])
def test_forecasts_are_those_of_the_batch_job(kind: str, tmp_path: Path) -> None:
    loaded = load_model(make_model(tmp_path / "model", kind=kind, **COVARIATES))
    more = {"past": 1, "future": 1, "static": 1}
    rows = pl.concat(
        [make_rows("a", 300, 1, 0.1, **more), make_rows("b", 5000, 2, **more), make_rows("c", 90, 3, **more)]
    )
    if kind == "return":
        rows = rows.with_columns(pl.col("y") / 1e4 - 0.01)
    last = pl.int_range(pl.len()).over("unique_id") >= pl.len().over("unique_id") - 2
    rows = rows.with_columns(pl.when(~last).then(pl.col("y")).alias("y"))  # two rows of schedule
    assert_those_of_the_job(loaded, rows, tmp_path, {"kind": kind, **COVARIATES})


def test_the_clock_is_that_of_the_training(tmp_path: Path) -> None:
    zone = "America/New_York"
    loaded = load_model(make_model(tmp_path / "model", zone=zone))
    rows = make_rows("a", 500, 1, start="2020-03-01")  # daylight saving begins within
    assert_those_of_the_job(loaded, rows, tmp_path, {"zone": zone})
    elsewhere = load_model(make_model(tmp_path / "utc"))
    assert (ask(loaded, rows)["q0.5"] != ask(elsewhere, rows)["q0.5"]).all()


def test_the_order_of_rows_does_not_matter_that_of_series_does(tmp_path: Path) -> None:
    loaded = load_model(make_model(tmp_path / "model"))
    rows = pl.concat([make_rows("z", 120, 1), make_rows("a", 110, 2), make_rows("m", 100, 3)])
    found = ask(loaded, rows)
    assert found["series"].to_list() == ["z"] * HORIZON + ["a"] * HORIZON + ["m"] * HORIZON
    assert found["step"].to_list() == [1, 2, 3] * 3
    shuffled = pl.concat([rows[:1], rows[1:].sample(fraction=1.0, shuffle=True, seed=0)])
    again = ask(loaded, shuffled)
    assert again["series"][0] == "z"
    assert again.sort("series", "step").equals(found.sort("series", "step"))


def test_young_series_have_no_numbers_and_empty_tables_no_rows(tmp_path: Path) -> None:
    loaded = load_model(make_model(tmp_path / "model"))
    found = ask(loaded, pl.concat([make_rows("a", 16, 1), make_rows("b", 17, 2)]))
    numbers = found.select("centre", "scale", "q0.01", "q0.5", "q0.99").to_numpy()
    assert np.isnan(numbers[:HORIZON]).all()
    assert np.isfinite(numbers[HORIZON:]).all()
    empty = forecast_columns(loaded, np.zeros(0, object), np.zeros(0, np.int64), np.zeros(0))
    assert set(empty) == set(found.columns)
    assert all(len(values) == 0 for values in empty.values())


def test_tables_that_cannot_be_forecast(tmp_path: Path) -> None:
    loaded = load_model(make_model(tmp_path / "model", **COVARIATES))
    plain = load_model(make_model(tmp_path / "plain"))
    rows = make_rows("a", 50, 1)
    with pytest.raises(UserError, match="the table has no column 'past0', a covariate of the model"):
        ask(loaded, rows)
    with pytest.raises(UserError, match="series 'a': two rows have the same stamp; keep one of them"):
        ask(plain, pl.concat([rows, rows[3:4]]))
    with pytest.raises(UserError, match=r"column y, row 8 \(series 'a'\): 0.0 is not a positive price; take the row"):
        ask(plain, rows.with_columns(pl.when(pl.int_range(pl.len()) == 7).then(0.0).otherwise(pl.col("y")).alias("y")))


@pytest.mark.parametrize("kind", ["level", "return"])
def test_numbers_whose_squares_are_none(kind: str, tmp_path: Path) -> None:
    """The batch job keeps their rows aside, with the reason; a table in memory is refused."""
    loaded = load_model(make_model(tmp_path / "model", kind=kind))
    rows = make_rows("a", 60, 1)
    large = rows.with_columns(pl.when(pl.int_range(pl.len()) == 7).then(-1e200).otherwise(pl.col("y")).alias("y"))
    with pytest.raises(UserError, match=r"column y, row 8 \(series 'a'\): -1e\+200 cannot be used; leave it empty"):
        ask(loaded, large)
    store = make_store(tmp_path, large, kind=kind)
    assert store.rejects == {"y is too large": 1}
    run(loaded.path, tmp_path, store)
    assert forecasts_in(tmp_path / "out").select("q0.5").to_series().is_finite().all()


def test_empty_values_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    loaded = load_model(make_model(tmp_path / "model", **COVARIATES))
    rows = make_rows("a", 50, 1, 0.2, past=1, future=1, static=1)
    gaps = pl.int_range(pl.len()) % 7 == 3
    rows = rows.with_columns(
        pl.when(gaps).then(None).otherwise(pl.col(name)).alias(name) for name in ("past0", "static0")
    )
    found = ask(loaded, rows)
    written = {name: rows[name].cast(pl.String).fill_null("n/a").to_numpy() for name in ("past0", "future0", "static0")}
    y = [value if value is None else str(value) for value in rows["y"].to_list()]
    names, time = rows["unique_id"].to_numpy(), rows["ds"].dt.epoch("us").to_numpy()
    again = forecast_columns(loaded, names, time, np.array(y, dtype=object), written)
    assert found["q0.05"].is_finite().all()
    assert found["q0.05"].to_list() == again["q0.05"].tolist()
