"""Addresses of MLflow, and what a recorder keeps of a run."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from domains.errors import UserError
from pipelines.config import TrackingConfig
from pipelines.recorder import MlflowRecorder, Recorder, recorder
from pipelines.tracking import for_people, linked_run_id, tracking_uri, without_password, write_link


@pytest.fixture(autouse=True)
def here(workspace: Path) -> Path:
    return workspace


def make(name: str = "run", **options: Any) -> MlflowRecorder:
    Path(name).mkdir(exist_ok=True)
    return MlflowRecorder(tracking_uri(TrackingConfig()), "tests", name, Path(name), **options)


def client(folder: Path | None = None) -> Any:
    from mlflow import MlflowClient

    # An absolute address: MlflowClient remembers databases by what they were called first.
    return MlflowClient(f"sqlite:///{(folder or Path.cwd()) / 'mlflow.db'}")


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client().get_metric_history(run_id, key)]


def test_the_address_is_the_one_given_then_the_environments_then_the_runs_then_this_folders(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "run").mkdir()
    assert tracking_uri(TrackingConfig(), here / "run") == f"sqlite:///{here}/mlflow.db"
    write_link(here / "run", "1" * 32, "http://linked")
    assert tracking_uri(TrackingConfig(), here / "run") == "http://linked"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert tracking_uri(TrackingConfig(), here / "run") == "http://environment"
    assert tracking_uri(TrackingConfig(uri="https://given"), here / "run") == "https://given"


def test_a_database_keeps_its_address_when_the_folder_changes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "sub").mkdir()
    before = tracking_uri(TrackingConfig(uri="sqlite:///mlflow.db"))
    monkeypatch.chdir(here / "sub")
    assert before == f"sqlite:///{here}/mlflow.db"
    assert for_people(before) == before
    monkeypatch.chdir(here)
    assert for_people(before) == "sqlite:///mlflow.db"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "/tmp/mlruns", "file:///tmp/mlruns"])
def test_folders_are_refused_as_mlflow_refuses_them(uri: str) -> None:
    with pytest.raises(UserError, match="no longer records into a folder"):
        tracking_uri(TrackingConfig(uri=uri))


def test_passwords_are_not_written_down(here: Path) -> None:
    write_link(here, "1" * 32, "https://me:secret@host:5000/path")
    assert json.loads((here / "mlflow.json").read_text())["tracking_uri"] == "https://host:5000/path"
    assert without_password("https://host/a@b") == "https://host/a@b"


def test_a_run_gets_settings_tags_and_metrics() -> None:
    run = make()
    run.begin({"data": {"window": 64, "test": ["a", "b"]}, "seed": 0, "none": None}, {"serpentine.domain": "tests"})
    run.metrics({"train/loss": 1.5, "x": math.nan}, step=1, seconds=1000.0)
    run.metrics({"train/loss": 1.25}, step=2, seconds=1001.5)
    run.end("FINISHED")
    found = client().get_run(run.run_id)
    assert found.data.params == {"data.window": "64", "data.test": "['a', 'b']", "seed": "0", "none": "null"}
    assert found.data.tags["serpentine.domain"] == "tests"
    assert found.data.tags["serpentine.run_dir"] == str(Path("run").absolute())
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert history(run.run_id, "train/loss") == [(1, 1.5), (2, 1.25)]
    assert [metric.timestamp for metric in client().get_metric_history(run.run_id, "train/loss")] == [1000000, 1001500]
    assert linked_run_id(Path("run")) == run.run_id


def test_metrics_return_at_once() -> None:
    run = make()
    run.begin({}, {})
    started = time.perf_counter()
    for step in range(100):
        run.metrics({"a": float(step), "b": 1.0}, step, 1.0)
    assert time.perf_counter() - started < 0.5  # written in line, 100 transactions take seconds
    run.end("FINISHED")
    assert history(run.run_id, "a") == [(step, float(step)) for step in range(100)]


def test_a_continued_run_is_the_same_run_and_no_step_stands_twice() -> None:
    first = make()
    first.begin({"seed": 0}, {})
    for step in (1, 2, 3):
        first.metrics({"loss": float(step)}, step, 1.0)
    first.end("KILLED")
    second = make()
    second.begin({"seed": 1}, {})
    assert client().get_run(second.run_id).info.status == "RUNNING"
    for step in (2, 3, 4):  # steps 2 and 3 are done again from a checkpoint
        second.metrics({"loss": float(step), "new": 1.0}, step, 2.0)
    second.end("FINISHED")
    assert second.run_id == first.run_id
    assert history(first.run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert history(first.run_id, "new") == [(2, 1.0), (3, 1.0), (4, 1.0)]
    assert client().get_run(first.run_id).data.params == {"seed": "0"}


def test_a_run_folder_whose_record_is_gone_gets_a_new_one() -> None:
    first = make()
    first.begin({}, {})
    first.end("FINISHED")
    client().delete_run(first.run_id)
    second = make()
    second.begin({}, {})
    second.end("FINISHED")
    assert second.run_id != first.run_id
    assert linked_run_id(Path("run")) == second.run_id


def test_catching_up_sends_what_is_missing_once() -> None:
    run = make()
    run.begin({}, {}, started=5.0)
    run.metrics({"a": 1.0}, 1, 10.0)
    rows: list[dict[str, Any]] = [
        {"step": 1, "time": 10.0, "a": 1.0, "b": 2.0},
        {"step": 2, "time": 11.0, "a": 1.5, "b": None},
    ]
    run.catch_up(rows)
    run.catch_up(rows)
    run.end("FINISHED", seconds=60.0)
    assert history(run.run_id, "a") == [(1, 1.0), (2, 1.5)]
    assert history(run.run_id, "b") == [(1, 2.0)]
    info = client().get_run(run.run_id).info
    assert (info.start_time, info.end_time) == (5000, 60000)


def test_results_are_added_to_a_closed_run_and_the_latest_stands(here: Path) -> None:
    run = make()
    run.begin({}, {})
    run.end("FINISHED")
    ended = client().get_run(run.run_id).info.end_time
    later = make("elsewhere")
    assert later.attach(run.run_id)
    later.results({"test/bits": 2.0})
    later.results({"test/bits": 1.5})
    (here / "table.txt").write_text("1.5")
    later.files([here / "table.txt", here / "not-there.txt"], "evaluation")
    found = client().get_run(run.run_id)
    assert found.data.metrics["test/bits"] == 1.5
    assert (found.info.status, found.info.end_time) == ("FINISHED", ended)
    assert [artifact.path for artifact in client().list_artifacts(run.run_id, "evaluation")] == ["evaluation/table.txt"]
    assert not make("elsewhere").attach("0" * 32)


def test_artifacts_stand_beside_the_database_wherever_the_command_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make()
    (here / "far").mkdir()
    monkeypatch.chdir(here / "far")
    (here / "far" / "run").mkdir()
    run.begin({}, {})
    run.end("FINISHED")
    assert client(here).get_run(run.run_id).info.artifact_uri.startswith((here / "mlartifacts").as_uri())
    assert not (here / "far" / "mlruns").exists()


def test_system_metrics_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    run = make(system_metrics=True)
    run.begin({}, {})
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not _system(run.run_id):
        time.sleep(0.1)
    run.end("FINISHED")
    assert any("cpu" in key for key in _system(run.run_id))


def _system(run_id: str) -> list[str]:
    return [key for key in client().get_run(run_id).data.metrics if key.startswith("system/")]


def test_a_server_out_of_reach_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = MlflowRecorder("http://me:secret@127.0.0.1:9", "tests", "run", Path("run"))
    with pytest.raises(
        UserError, match=r"^http://127\.0\.0\.1:9: MLflow cannot record there .*tracking\.uri"
    ) as caught:
        away.check()
    assert "secret" not in str(caught.value)


def test_a_deleted_experiment_is_told(here: Path) -> None:
    run = make()
    run.begin({}, {})
    run.end("FINISHED")
    client().delete_experiment(client().get_run(run.run_id).info.experiment_id)
    with pytest.raises(UserError, match="experiment 'tests' is deleted"):
        make("other").check()


def test_without_tracking_nothing_is_kept(here: Path) -> None:
    before = sorted(here.rglob("*"))
    silent = recorder(TrackingConfig(enabled=False), "tests", here / "run", continues=False)
    assert type(silent) is Recorder
    silent.check()
    silent.begin({}, {})
    silent.metrics({"a": 1.0}, 1, 1.0)
    silent.end("FINISHED")
    assert (silent.where, silent.look) == ((), ())
    assert sorted(here.rglob("*")) == before
