"""The main job from the command line to MLflow: train, stop, resume, sweep."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from domains.checkpoint import Terminated
from domains.errors import UserError
from domains.genomics import train as training
from domains.genomics.config import TrainConfig
from domains.runlog import read_metrics
from domains.settings import flatten
from pipelines.tracking import linked_run_id
from tests.pipelines.conftest import TINY, Cli
from tests.pipelines.records import artifacts, client, measured, recorded, runs


def test_a_run_is_in_mlflow_whole(cli: Cli, workspace: Path) -> None:
    done = cli("train", *TINY, "run.dir=runs/one")
    assert done.code == 0
    run_id = linked_run_id(Path("runs/one"))
    assert run_id
    found = client(workspace).get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "one"
    assert client(workspace).get_experiment(found.info.experiment_id).name == "genomics"
    settings = flatten(yaml.safe_load(Path("runs/one/config.yaml").read_text()))
    assert {key: "null" if value is None else str(value) for key, value in settings.items()} == found.data.params
    assert recorded(workspace, run_id) == measured(Path("runs/one"))
    assert {"train/loss", "train/bases_per_second", "validation/bits_per_base"} <= found.data.metrics.keys()
    assert any(key.startswith("health/") for key in found.data.metrics)
    assert set(artifacts(workspace, run_id)) == {
        "config.yaml",
        "data.json",
        "metrics.jsonl",
        "plots/loss.png",
        "run.json",
        "splits.json",
    }
    assert found.data.tags["serpentine.command"].startswith("python -m pipelines.genomics train data.fasta=made.fa")
    lines = done.out.splitlines()
    assert lines[0].startswith("model: runs/one/model (")
    assert lines[1] == f"MLflow run: {run_id} in sqlite:///mlflow.db"
    assert lines[2] == "next: python -m pipelines.genomics evaluate model=runs/one/model"
    assert lines[3].strip() == "mlflow ui --backend-store-uri sqlite:///mlflow.db"
    assert {path.name for path in workspace.iterdir()} == {"made.fa", "mlartifacts", "mlflow.db", "runs", "stores"}


def test_a_run_without_tracking_leaves_mlflow_alone(cli: Cli, workspace: Path) -> None:
    (workspace / "mlflow.db").unlink()
    done = cli("train", *TINY, "run.dir=one", "tracking.enabled=false")
    assert done.code == 0
    assert "MLflow" not in done.out
    assert {path.name for path in workspace.iterdir()} == {"made.fa", "one", "stores"}


def test_a_run_folder_is_named_by_the_time_and_never_taken_twice(cli: Cli, workspace: Path) -> None:
    for _ in range(2):
        assert cli("train", *TINY, "tracking=off", "trainer.max_steps=1").code == 0
    first, second = sorted((workspace / "runs").iterdir())
    assert first.name.startswith("genomics-")
    assert second.name.startswith("genomics-")


def test_overwriting_starts_a_run_of_its_own(cli: Cli, workspace: Path) -> None:
    words = [*TINY, "run.dir=one", "run.overwrite=true", "trainer.max_steps=2"]
    assert cli("train", *words).code == 0
    first = linked_run_id(Path("one"))
    assert cli("train", *words).code == 0
    assert linked_run_id(Path("one")) != first
    assert len(runs(workspace)) == 2


@pytest.mark.parametrize("by", ["folder", "run id"])
def test_a_killed_run_goes_on_as_the_same_mlflow_run(
    cli: Cli, workspace: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """As after kill -9: MLflow and metrics.jsonl know steps that the newest checkpoint does not."""
    assert cli("train", *TINY, "run.dir=whole").code == 0
    assert cli("train", *TINY, "run.dir=killed").code == 0
    run_id = linked_run_id(Path("killed"))
    assert run_id
    shutil.rmtree("killed/model")
    Path("killed/checkpoints/step-00000008.ckpt").unlink()
    client(workspace).delete_run(linked_run_id(Path("whole")))
    done = cli("train", f"resume={'killed' if by == 'folder' else run_id}")
    assert done.code == 0
    assert f"MLflow run: {run_id} in sqlite:///mlflow.db" in done.out
    assert [run.info.run_id for run in runs(workspace)] == [run_id]
    assert client(workspace).get_run(run_id).info.status == "FINISHED"
    found = recorded(workspace, run_id)
    assert all(len(values) == 1 for values in found.values())
    timed = ("train/bases_per_second", "train/share_of_peak")
    whole = measured(Path("whole"))
    assert {at: v for at, v in found.items() if at[0] not in timed} == {
        at: v for at, v in whole.items() if at[0] not in timed
    }


def test_resume_goes_on_where_it_was_recorded(cli: Cli, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("train", *TINY, "run.dir=one").code == 0
    (workspace / "elsewhere").mkdir()
    monkeypatch.chdir(workspace / "elsewhere")
    done = cli("train", "resume=../one", "data.fasta=../made.fa", "data.stores=../stores")
    assert done.code == 0
    assert len(runs(workspace)) == 1
    assert not (workspace / "elsewhere" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [(Terminated(3), 143, "KILLED"), (KeyboardInterrupt(), 130, "KILLED"), (UserError("x: bad"), 2, "FAILED")],
)
def test_how_a_run_ended_is_recorded(
    cli: Cli, workspace: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, status: str
) -> None:
    def interrupted(config: TrainConfig, run_dir: Path, *, callbacks: Any, **rest: Any) -> None:
        Path(run_dir).mkdir()
        Path(run_dir, "run.json").write_text('{"domain": "genomics"}')
        callbacks[0].on_fit_start(None, None)
        raise error

    monkeypatch.setattr(training, "train", interrupted)
    done = cli("train", *TINY, "run.dir=one")
    assert done.code == code
    assert done.err.count("\n") == 1
    assert ("go on with: python -m pipelines.genomics train resume=one" in done.err) == (code != 2)
    assert [run.info.status for run in runs(workspace)] == [status]


def test_sigterm_exits_with_143_and_a_checkpoint(workspace: Path) -> None:
    words = ["train", *TINY, "run.dir=one", "trainer.max_steps=1000000", "tracking=off"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.genomics", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr
    while not list(workspace.glob("one/checkpoints/step-*.ckpt")):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    last = err.splitlines()[-1]
    assert last.startswith("stopped by SIGTERM after step ")
    assert last.endswith("go on with: python -m pipelines.genomics train resume=one")
    step = int(last.removeprefix("stopped by SIGTERM after step ").partition(";")[0])
    assert (workspace / f"one/checkpoints/step-{step:08d}.ckpt").exists()


def test_a_run_that_ran_out_of_time_says_how_to_go_on(cli: Cli, workspace: Path) -> None:
    done = cli("train", *TINY, "run.dir=one", "trainer.max_minutes=1e-6", "tracking=off")
    assert done.code == 0
    assert "stopped by trainer.max_minutes=1e-06" in done.out
    assert "python -m pipelines.genomics train resume=one" in done.out
    assert cli("train", "resume=one", "trainer.max_minutes=null", "tracking=off").code == 0
    assert read_metrics("one/metrics.jsonl")[-1]["step"] == 8


def test_a_sweep_makes_a_run_for_each_value(cli: Cli, workspace: Path) -> None:
    done = cli("train", "--multirun", *TINY, "trainer.max_steps=2", "seed=3,4")
    assert done.code == 0
    found = sorted(run.data.params["seed"] for run in runs(workspace))
    assert found == ["3", "4"]
    assert len(list(workspace.glob("runs/multirun/*/*/model/model.safetensors"))) == 2


def test_a_sweep_stops_at_its_first_failure(cli: Cli, workspace: Path) -> None:
    done = cli("train", "-m", *TINY, "data.window=2000,64")
    assert done.code == 2
    assert len(done.errors) == 1
    assert not list(workspace.glob("runs/multirun/*/*/run.json"))


def test_a_training_whose_record_fails_at_the_end_is_not_lost(
    cli: Cli, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def away(*arguments: Any) -> None:
        raise MlflowException("server went away at https://me:secret@host")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", away)
        done = cli("train", *TINY, "run.dir=one", "trainer.max_steps=2")
    assert done.code == 0
    assert Path("one/model/model.safetensors").exists()
    (warning,) = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert "server went away" in warning
    assert "secret" not in warning
    assert warning.endswith("try again with: python -m pipelines.genomics import-run run=one")
    assert cli("import-run", "run=one").code == 0
    (run,) = runs(workspace)
    assert list(workspace.glob("mlartifacts/models/*"))
    assert recorded(workspace, run.info.run_id) == measured(Path("one"))


def test_settings_travel_to_a_machine_without_hydra(cli: Cli, workspace: Path) -> None:
    done = cli("train", *TINY, "run.export=train.yaml")
    assert done.code == 0
    assert done.out.startswith("settings: train.yaml\n")
    assert "import-run" in done.out
    assert not Path("runs").exists()
    assert training.main(["--config", "train.yaml", "--run-dir", "there", "--no-progress"]) == 0
    here = cli("train", *TINY, "run.dir=here", "tracking.enabled=false")
    assert here.code == 0
    there = Path("there/config.yaml").read_text()
    assert there == Path("here/config.yaml").read_text()
    assert Path("there/model/model.safetensors").read_bytes() == Path("here/model/model.safetensors").read_bytes()
    assert cli("train", *TINY, "run.export=train.yaml", "resume=there").code == 2
