"""The time series commands from end to end, and what of them is in MLflow."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml

from domains.settings import flatten
from domains.timeseries import train as training
from domains.timeseries.config import EvaluateConfig, ForecastConfig, SourceConfig
from domains.timeseries.forecast_shard import load_for_job
from domains.timeseries.frame import forecast_columns
from domains.timeseries.store import SeriesStore
from domains.timeseries.trained import load_model
from pipelines.timeseries.report import CARD
from pipelines.timeseries.roots import EvaluateRoot, ForecastRoot, NewRows
from pipelines.tracking import linked_run_id
from tests.pipelines.conftest import SMALL, Cli
from tests.pipelines.records import artifacts, client, measured, recorded, runs

EVALUATE = ("baselines=[naive,ewma]", "device=cpu")
QUANTILES = [name for name in CARD.outputs if name.startswith("q")]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def whole(series_cli: Cli, series_workspace: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which everything was done once: the current folder of tests that only look at it."""
    if not any(shared.iterdir()):
        for name in ("panel.parquet", "mlflow.db"):
            (shared / name).write_bytes((series_workspace / name).read_bytes())
        monkeypatch.chdir(shared)
        where = f"tracking.uri=sqlite:///{shared}/mlflow.db"
        words = (
            ("prepare", *(word for word in SMALL if word.startswith(("data.path", "data.past", "data.f", "data.s")))),
            ("train", *SMALL, "run.dir=one", where),
            ("evaluate", "model=one", *EVALUATE, where),
            ("forecast", "model=one/model", "data.path=panel.parquet", "out=forecasts/", "state=states/", where),
        )
        done = [series_cli(*line) for line in words]
        assert [one.code for one in done] == [0, 0, 0, 0], [one.err for one in done]
        (shared / "told.json").write_text(json.dumps([[one.out, one.err] for one in done]))
    monkeypatch.chdir(shared)
    return shared


def told(folder: Path, command: int) -> list[str]:
    """What a command said on stdout, line by line."""
    return json.loads((folder / "told.json").read_text())[command][0].splitlines()


def test_every_command_says_what_it_made_and_what_comes_next(whole: Path) -> None:
    run_id = linked_run_id(whole / "one")
    prepared, trained, evaluated, forecast = (told(whole, i) for i in range(4))
    store = prepared[1].removeprefix("next: python -m pipelines.timeseries train data.store=")
    assert prepared[0].startswith(f"store: {store} (prepared; 4 series, 975 rows, 2013-03-04 to 2014-05-23")
    assert (whole / store / "meta.json").exists()
    assert trained[0].startswith("model: one/model (")
    assert trained[1] == f"MLflow run: {run_id} in sqlite:///mlflow.db"
    assert trained[2] == "next: python -m pipelines.timeseries evaluate model=one/model"
    assert evaluated[0].startswith("panel.parquet: 237 cut-offs of 3 of 4 series")
    assert f"evaluation: {Path('one/evaluation')}" in evaluated
    assert forecast[0] == "forecasts: forecasts (4 series, 975 new rows)"
    assert {path.name for path in whole.iterdir()} == {
        *("panel.parquet", "stores", "one", "forecasts", "states"),
        *("mlflow.db", "mlartifacts", "told.json"),
    }


def test_a_run_is_in_mlflow_whole(whole: Path) -> None:
    run_id = linked_run_id(whole / "one")
    (run,) = runs(whole)
    assert (run.info.run_id, run.info.status, run.info.run_name) == (run_id, "FINISHED", "one")
    assert client(whole).get_experiment(run.info.experiment_id).name == "timeseries"
    settings = flatten(yaml.safe_load((whole / "one" / "config.yaml").read_text()))
    assert {key: "null" if value is None else str(value) for key, value in settings.items()} == run.data.params
    metrics = json.loads((whole / "one" / "evaluation" / "metrics.json").read_text())
    assert {key: run.data.metrics[key] for key in metrics} == metrics
    found = {at: value for at, value in recorded(whole, run_id).items() if at[0] not in metrics}
    assert found == measured(whole / "one")
    assert {"train/loss", "train/steps_per_second", "validation/loss"} <= run.data.metrics.keys()


def test_an_evaluation_arrives_in_the_run_of_its_model(whole: Path) -> None:
    folder = whole / "one" / "evaluation"
    table = (folder / "table.txt").read_text()
    assert "\n".join(told(whole, 2)).startswith(table.rstrip())
    details = json.loads((folder / "evaluation.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    for name, key in (("model", "model"), ("model, calibrated", "model_calibrated"), ("naive", "naive")):
        crps = details["methods"][name]["overall"]["crps"]
        assert metrics[f"test/{key}/crps"] == crps
        assert f"{crps:.4f}" in next(line for line in table.splitlines() if line.startswith(f"{name} "))
    assert "NaN" not in (folder / "evaluation.json").read_text()
    plots = {path.name for path in folder.glob("*.png")}
    assert plots >= {"fan_chart.png", "coverage.png", "pit.png", "crps_by_step.png", "crps_by_series.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    kept = set(artifacts(whole, linked_run_id(whole / "one") or ""))
    assert kept >= {f"plots/{name}" for name in plots} | {"plots/loss.png"}
    assert kept >= {f"evaluation/{name}" for name in ("table.txt", "evaluation.json", "metrics.json")}


def test_the_model_in_mlflow_is_the_model_folder(whole: Path) -> None:
    files = [path for path in whole.glob("mlartifacts/models/*/artifacts/**/*") if path.is_file()]
    assert {path.suffix for path in files} <= {".py", ".json", ".yaml", ".txt", ".safetensors", ""}
    for path in (whole / "one" / "model").iterdir():
        (kept,) = whole.glob(f"mlartifacts/models/*/artifacts/artifacts/model/{path.name}")
        assert kept.read_bytes() == path.read_bytes()
    assert not [line for line in json.loads((whole / "told.json").read_text())[1][1].splitlines() if "mlflow" in line]


@pytest.fixture
def pyfunc(whole: Path) -> Any:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{whole}/mlflow.db")
    return mlflow.pyfunc.load_model(f"runs:/{linked_run_id(whole / 'one')}/model")


def test_the_mlflow_model_says_what_the_batch_job_says(
    whole: Path, pyfunc: Any, series_cli: Cli, series_workspace: Path
) -> None:
    """On a Polars and on a pandas frame, in any order of rows; the forecasts by the package; those in the files, if the
    batch job corrects them by the validation part, too."""
    table = pl.read_parquet("panel.parquet")
    found = pyfunc.predict(table)
    assert list(found.columns) == list(CARD.outputs)
    assert str(found.dtypes["cutoff"]).startswith("datetime64")
    assert pyfunc.predict(table.to_pandas()).equals(found)
    shuffled = pyfunc.predict(table.sample(fraction=1.0, shuffle=True, seed=0)).sort_values(["series", "step"])
    assert np.allclose(shuffled[QUANTILES], found[QUANTILES], rtol=1e-6)
    stamps = table["ds"].cast(pl.Datetime("us")).to_physical().to_numpy()
    covariates = {name: table[name].to_numpy() for name in ("volume", "holiday", "size")}
    y = table["y"].fill_null(float("nan")).to_numpy()
    columns = forecast_columns(load_for_job("one/model", "cpu"), table["unique_id"].to_numpy(), stamps, y, covariates)
    places = [f"{key}={series_workspace / key}" for key in ("out", "state", "data.stores")]
    words = ("forecast", "model=one", "data.path=panel.parquet", "calibrate=validation", *places)
    assert series_cli(*words).code == 0
    batch = pl.concat([pl.read_parquet(path) for path in (series_workspace / "out").glob("cutoff=*/*.parquet")])
    batch = batch.sort("series", "step")
    assert list(found["series"]) == list(columns["series"]) == batch["series"].to_list()
    assert list(found["stamp"]) == list(pd.to_datetime(batch["stamp"].dt.replace_time_zone(None).to_numpy()))
    for name in ("last", "centre", "scale", *QUANTILES):
        assert np.allclose(found[name], columns[name], rtol=1e-6)
        assert np.allclose(found[name], batch[name].to_numpy(), rtol=1e-6)


def test_the_mlflow_model_tells_of_a_column_that_is_missing(whole: Path, pyfunc: Any) -> None:
    table = pl.read_parquet("panel.parquet")
    for column in ("y", "ds", "volume", "holiday", "size"):
        with pytest.raises(ValueError, match=f"the table has no column '{column}'; the model was trained with ds, y,"):
            pyfunc.predict(table.drop(column))
    one = pyfunc.predict(table.filter(pl.col("unique_id") == "A").drop("unique_id"))  # a table without names: a series
    assert list(one["step"]) == [1, 2]
    assert np.allclose(one["q0.5"], pyfunc.predict(table).query("series == 'A'")["q0.5"])


def test_the_mlflow_model_reads_the_clock_that_stamps_are_written_on(whole: Path, pyfunc: Any) -> None:
    """The model was trained without a zone: typed columns of a zone, and text with offsets, tell of the clock."""
    table = pl.read_parquet("panel.parquet").with_columns(pl.col("ds").cast(pl.Datetime("us")))
    tokyo = table.with_columns(pl.col("ds").dt.replace_time_zone("Asia/Tokyo"))
    found = pyfunc.predict(table)
    assert np.array_equal(pyfunc.predict(tokyo)[QUANTILES], found[QUANTILES])
    assert pyfunc.predict(tokyo.to_pandas()).equals(pyfunc.predict(tokyo))
    text = tokyo.with_columns(pl.col("ds").dt.to_string("%Y-%m-%dT%H:%M:%S%z"))
    assert pyfunc.predict(text.to_pandas()).equals(pyfunc.predict(tokyo))
    in_utc = pyfunc.predict(tokyo.with_columns(pl.col("ds").dt.convert_time_zone("UTC")))
    assert not np.allclose(in_utc[QUANTILES], found[QUANTILES], rtol=1e-9)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("y", float("inf"), r"column y, row 3 \(series 'A'\): inf cannot be used; leave it empty or take the row out"),
        ("y", "dear", r"column y, row 3 \(series 'A'\): 'dear' is no number; leave it empty or take the row out"),
        ("y", -1.0, r"column y, row 3 \(series 'A'\): -1.0 is not a positive price; take the row out"),
        ("volume", float("inf"), r"column volume, row 3 \(series 'A'\): inf cannot be used"),
        ("holiday", 1e308, r"column holiday, row 3 \(series 'A'\): 1e\+308 cannot be used"),
        ("size", "large", r"column size, row 3 \(series 'A'\): 'large' is no number"),
        ("size", 2.0, r"column size \(series 'A'\): changes, but is a static covariate"),
        ("ds", None, "column ds: row 3 is empty; take the row out"),
        ("unique_id", None, "column unique_id: row 3 is empty; take the row out"),
        ("ds", "yesterday noon", "column ds: holds what is no stamp"),
    ],
)
def test_the_mlflow_model_refuses_rows_that_say_nothing(
    whole: Path, pyfunc: Any, column: str, value: Any, message: str
) -> None:
    table = pl.read_parquet("panel.parquet").to_pandas()
    if isinstance(value, str):
        table[column] = table[column].astype(str if column == "ds" else object)
    table.loc[2, column] = value
    with pytest.raises(ValueError, match=message):
        pyfunc.predict(table)


FRESH = """
import mlflow.pyfunc, polars as pl, sys, warnings
warnings.simplefilter("error", UserWarning)
mlflow.set_tracking_uri(f"sqlite:///{sys.argv[1]}/mlflow.db")
model = mlflow.pyfunc.load_model(f"runs:/{sys.argv[2]}/model")
model.predict(pl.read_parquet(f"{sys.argv[1]}/panel.parquet")).to_parquet("found.parquet")
import domains
print(domains.__file__)
"""


def test_the_mlflow_model_loads_quietly_where_serpentine_is_not(whole: Path, pyfunc: Any, tmp_path: Path) -> None:
    quiet = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    run_id = linked_run_id(whole / "one")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(whole), str(run_id)],
        cwd=tmp_path,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not Path(done.stdout.splitlines()[-1]).is_relative_to(Path(__file__).parents[2])
    expected = pyfunc.predict(pl.read_parquet("panel.parquet"))
    found = pd.read_parquet(tmp_path / "found.parquet")
    assert np.allclose(found[QUANTILES], expected[QUANTILES], rtol=1e-6)


def test_a_second_forecast_reads_new_rows_alone(series_cli: Cli, series_workspace: Path, whole: Path) -> None:
    table = pl.read_parquet("panel.parquet")
    complete = table.group_by("ds").agg(pl.col("y").is_null().any()).filter(~pl.col("y"))["ds"].sort()
    earlier = table.filter(pl.col("ds") <= complete[-5])  # all of them observed that day
    earlier.write_parquet(series_workspace / "earlier.parquet")
    places = [f"{key}={series_workspace / name}" for key, name in (("out", "daily"), ("state", "kept"))]
    words = ["forecast", "model=one", f"data.stores={series_workspace / 'stores'}", *places]
    first, second, third = (series_cli(*words, f"data.path={path}") for path in (
        series_workspace / "earlier.parquet", "panel.parquet", "panel.parquet"
    ))  # fmt: skip
    assert first.out.splitlines()[0].endswith(f"(4 series, {len(earlier)} new rows)")
    assert second.out.splitlines()[0].endswith(f"(4 series, {len(table) - len(earlier)} new rows)")
    assert f"{len(earlier)} rows that were absorbed before" in second.out
    assert "(0 series, 0 new rows)" in third.out
    assert "  nothing new, so nothing was forecast or written\n" in third.out
    asked = series_cli(*words, "data.path=panel.parquet", "paths=5", "calibrate=none")
    assert (
        "  nothing new, so nothing was forecast or written: paths=5 and calibrate=none will count when rows come (now: "
        "with new out and state folders)\n" in asked.out
    )
    assert "nothing new" not in first.out + second.out
    assert not (series_workspace / "daily" / "paths").exists()
    table.filter(pl.col("unique_id") != "B").write_parquet(series_workspace / "fewer.parquet")
    again = series_cli(
        *words, f"data.path={series_workspace / 'fewer.parquet'}", "reread=true", "calibration_window=50", "paths=2",
        "path_steps=3",
    )  # fmt: skip
    assert "  1 series of the earlier states are not in the table: forgotten (B)\n" in again.out
    assert "  2 paths of 3 steps of each, in paths/\n" in again.out
    drawn = pl.concat([pl.read_parquet(path) for path in series_workspace.glob("daily/paths/*/*.parquet")])
    assert len(drawn) == 3 * 2 * 3


def test_a_run_from_a_machine_without_hydra_is_imported(series_cli: Cli, series_workspace: Path) -> None:
    assert series_cli("train", *SMALL, "run.export=train.yaml").out.startswith("settings: train.yaml\n")
    assert training.main(["--config", "train.yaml", "--run-dir", "there", "--no-progress"]) == 0
    assert runs(series_workspace) == []
    assert series_cli("evaluate", "model=there", *EVALUATE, "tracking=off").code == 0
    for _ in range(2):
        done = series_cli("import-run", "run=there")
        assert done.code == 0
        (run,) = runs(series_workspace)
        assert run.info.run_id == linked_run_id(Path("there"))
        assert run.info.status == "FINISHED"
        kept = set(artifacts(series_workspace, run.info.run_id))
        assert {"evaluation/table.txt", "plots/loss.png", "plots/fan_chart.png", "config.yaml"} <= kept
        assert "test/naive/crps" in run.data.metrics
        assert len(list(series_workspace.glob("mlartifacts/models/*"))) == 1
    here = series_cli("train", *SMALL, "run.dir=here", "tracking=off")
    assert here.code == 0
    for name in ("model.safetensors", "scaler.json", "calibration.json", "config.yaml"):
        assert Path("there/model", name).read_bytes() == Path("here/model", name).read_bytes()


def test_several_targets_are_as_many_series(series_cli: Cli, series_workspace: Path) -> None:
    """One is said with or without brackets. The MLflow model takes each of them in its turn."""
    for words in ("data.target=y", "data.target=[y]", "data.target=[y,volume]"):
        done = series_cli("prepare", "data.path=panel.parquet", words)
        assert done.code == 0, done.err
        assert (" 8 series, " if "volume" in words else " 4 series, ") in done.out
    words = [word for word in SMALL if not word.startswith(("data.past", "tracking"))]
    done = series_cli("train", *words, "data.target=[y,volume]", "run.dir=two", "tracking.system_metrics=false")
    assert done.code == 0, done.err
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{series_workspace}/mlflow.db")
    model = mlflow.pyfunc.load_model(f"runs:/{linked_run_id(Path('two'))}/model")
    found = model.predict(pl.read_parquet("panel.parquet"))
    names = [f"{name}/{target}" for target in ("y", "volume") for name in "ABCD"]
    assert list(found["series"][::2]) == names
    words = ("forecast", "model=two", "data.path=panel.parquet", "out=out", "state=state", "calibrate=validation")
    assert series_cli(*words).code == 0
    batch = pl.concat([pl.read_parquet(path) for path in Path("out").glob("cutoff=*/*.parquet")]).sort("series", "step")
    expected = found.sort_values(["series", "step"])
    assert batch["series"].to_list() == list(expected["series"])
    assert np.allclose(batch["q0.5"], expected["q0.5"], rtol=1e-6)


@pytest.mark.parametrize(
    "path", ["part/*.parquet", "'part/*.parquet'", '"part/*.parquet"', "part/", "part", "part/?.parquet"]
)
def test_a_glob_may_be_quoted_or_not(series_cli: Cli, series_workspace: Path, path: str) -> None:
    Path("part").mkdir()
    table = pl.read_parquet("panel.parquet")
    for name in "ABCD":
        table.filter(pl.col("unique_id") == name).write_parquet(f"part/{name}.parquet")
    done = series_cli("prepare", f"data.path={path}")
    assert done.code == 0, done.err
    assert "4 series, 975 rows" in done.out
    assert done.out.startswith("store: stores/part-")


def test_a_csv_of_a_single_series_with_names_of_its_own(series_cli: Cli, series_workspace: Path) -> None:
    table = pl.read_parquet("panel.parquet").filter(pl.col("unique_id") == "A").select(day="ds", close="y")
    table.write_csv("share.csv")
    words = [word for word in SMALL if not word.startswith(("data.past", "data.f", "data.st", "data.path"))]
    columns = ["data.path=share.csv", "data.time=day", "data.target=close", "data.kind=level"]
    done = series_cli("train", *words, *columns, "run.dir=one", "tracking=off", "head.kind=quantiles")
    assert done.code == 0, done.err
    done = series_cli("evaluate", "model=one", "baselines=[naive]", "tracking=off", "device=cpu", "unit=10")
    assert done.code == 0, done.err
    assert "scores in changes times 10;" in done.out
    done = series_cli("forecast", "model=one", "data.path=share.csv", "out=out", "state=state")
    assert done.code == 0, done.err


def test_an_evaluation_of_a_single_cutoff(series_cli: Cli, series_workspace: Path, whole: Path) -> None:
    """Where it is asked for; with a baseline that says nothing, and too few outcomes for most numbers."""
    out = series_workspace / "elsewhere"
    words = ["evaluate", "model=one/model", f"out={out}", "tracking=off", "series=[A]", "max_cutoffs=1", "device=cpu"]
    done = series_cli(*words, "baselines=[naive,auto_ets]", "max_statistical=0", "calibrate=false")
    assert done.code == 0, done.err
    assert done.out.startswith("panel.parquet: 1 cut-off of 1 of 4 series")
    assert "auto_ets: of 0% of the outcomes alone" in done.out
    assert {path.name for path in out.iterdir()} == {
        *("table.txt", "evaluation.json", "metrics.json", "fan_chart.png", "coverage.png", "pit.png"),
        "crps_by_step.png",
    }
    assert json.loads((out / "evaluation.json").read_text())["methods"]["auto_ets"]["overall"]["crps"] is None


def test_the_store_of_the_training_is_enough(
    series_cli: Cli, series_workspace: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model folder that was sent somewhere, with the prepared series beside it but not the table."""
    shutil.copytree(whole / "one" / "model", series_workspace / "received")
    store = SeriesStore.open(told(whole, 0)[1].partition("data.store=")[2]).path
    shutil.copytree(whole / store, series_workspace / store)
    monkeypatch.chdir(series_workspace)
    Path("panel.parquet").unlink()
    words = ["evaluate", "model=received", *EVALUATE, "tracking=off"]
    assert series_cli(*words).code == 0
    shutil.move(store, "kept")
    assert series_cli(*words, "data.store=kept").code == 0
    done = series_cli(*words)
    assert done.code == 2
    assert done.errors[-1].startswith("error: panel.parquet: no such file")
    assert "say where it is now with data.path=<file>" in done.errors[-1]


def test_who_trains_on_a_store_can_forecast_a_table(series_cli: Cli, series_workspace: Path) -> None:
    """As prepare proposes: the store knows kind and columns, which the settings of the training do not name."""
    names = {"unique_id": "ticker", "ds": "day", "y": "close"}
    pl.read_parquet("panel.parquet").rename(names).write_parquet("other.parquet")
    columns = ("data.id=ticker", "data.time=day", "data.target=close", "data.past=[volume]", "data.kind=level")
    assert series_cli("prepare", "data.path=other.parquet", *columns).code == 0
    (store,) = Path("stores").iterdir()
    words = [word for word in SMALL if not word.startswith(("data.past", "data.f", "data.st", "data.path"))]
    assert series_cli("train", *words, f"data.store={store}", "run.dir=one", "tracking=off").code == 0
    done = series_cli("forecast", "model=one", "data.path=other.parquet", "out=out", "state=state")
    assert done.code == 0, done.err
    assert "4 series, 975 new rows" in done.out
    assert SeriesStore.open(store).kind == load_model("one/model").config.data.kind == "level"


def test_commands_take_the_defaults_of_the_domain() -> None:
    for root, config in ((EvaluateRoot(), EvaluateConfig()), (ForecastRoot(), ForecastConfig())):
        assert {key: getattr(root, key) for key in vars(config)} == vars(config)
    assert set(vars(NewRows())) <= set(vars(SourceConfig()))
