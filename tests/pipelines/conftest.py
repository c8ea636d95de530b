"""The command line in-process, in a folder of its own, beside a tracking database made once for the session."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import Domain, main
from pipelines.genomics import GENOMICS
from pipelines.timeseries import TIMESERIES
from pipelines.tracking import set_environment
from tests.timeseries.panels import panel

set_environment()  # before anything imports mlflow

TINY = (
    "data.fasta=made.fa",
    "data.test=[c4]",
    "data.validation=[c3]",
    "data.window=64",
    "data.tokens_per_step=128",
    "data.validation_tokens=256",
    "backbone.d_model=16",
    "backbone.n_layers=1",
    "backbone.mamba2.d_state=8",
    "backbone.mamba2.headdim=8",
    "trainer.accelerator=cpu",
    "trainer.max_steps=8",
    "trainer.log_every=1",
    "trainer.validate_every=4",
    "trainer.checkpoint_every=4",
    "trainer.health_every=4",
    "tracking.system_metrics=false",
)

SMALL = (  # the same of time series
    "data.path=panel.parquet",
    "data.past=[volume]",
    "data.future=[holiday]",
    "data.static=[size]",
    "data.horizon=2",
    "data.test=2014-02-03",
    "data.validation=2013-11-04",
    "data.window=32",
    "data.tokens_per_step=128",
    "data.validation_tokens=512",
    *(word for word in TINY if word.split(".")[0] in ("backbone", "trainer", "tracking")),
)


@dataclass
class Finished:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines on stderr but for progress bars, which rewrite theirs."""
        return [line for line in self.err.splitlines() if line and "it/s]" not in line and "%|" not in line]


Cli = Callable[..., Finished]


def write_genome(path: Path) -> Path:
    """Five contigs of 1,500 random bases."""
    letters = np.random.default_rng(0).choice(list("ACGT"), (5, 1500))
    path.write_text("".join(f">c{i}\n{''.join(row)}\n" for i, row in enumerate(letters)))
    return path


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs; making one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").get_experiment_by_name("none")
    return path


@pytest.fixture
def workspace(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: a small genome and an empty database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path)
    write_genome(tmp_path / "made.fa")
    yield tmp_path
    import mlflow

    while mlflow.active_run():  # a test that failed half-way must not make others fail
        mlflow.end_run("FAILED")


def runner(domain: Domain, capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*words: str) -> Finished:
        capsys.readouterr()
        code = main(domain, words)
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a genomics command line in this process."""
    return runner(GENOMICS, capsys)


@pytest.fixture
def series_workspace(workspace: Path) -> Path:
    """The current folder: a small panel of series and an empty database."""
    panel().write_parquet(workspace / "panel.parquet")
    return workspace


@pytest.fixture
def series_cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a time series command line in this process."""
    return runner(TIMESERIES, capsys)


@pytest.fixture(scope="session")
def trained_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder made without MLflow, and its genome beside it."""
    folder = tmp_path_factory.mktemp("cluster")
    genome = write_genome(folder / "made.fa")
    words = [f"data.fasta={genome}" if word.startswith("data.fasta") else word for word in TINY]
    where = [f"data.stores={folder / 'stores'}", f"run.dir={folder / 'run'}", "tracking=off"]
    assert main(GENOMICS, ["train", *words, *where]) == 0
    return folder / "run"


@pytest.fixture
def run_folder(trained_elsewhere: Path, tmp_path: Path) -> Path:
    """A copy of a trained run, for tests that change it."""
    return Path(shutil.copytree(trained_elsewhere, tmp_path / "copied"))
