"""What users get wrong: one clear line naming file, record and remedy, exit code 2, and nothing half-written."""

import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from domains.genomics import store
from tests.pipelines.conftest import TINY, Cli


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def write(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)


def truncated() -> bytes:
    whole = gzip.compress(Path("made.fa").read_bytes())
    return whole[: len(whole) // 2]


FILES = [
    ("empty.fa", b"", "empty.fa: the file is empty"),
    ("protein.fa", b">p\nMKVLAAGIVGLC\n", "protein.fa: record p: "),
    ("binary.fa", bytes(range(256)) * 8, "binary.fa: "),
    ("twice.fa", b">a\nACGT\n>b\nAC\n>a\nAC\n", "twice.fa: record a occurs twice"),
    ("bare.fa", b">a\nACGT\n>b\n>c\nAC\n", "bare.fa: record b has a header but no sequence"),
    ("text.fa", b"ACGT\n>a\nACGT\n", "text.fa: "),
]


@pytest.mark.parametrize(("name", "content", "told"), FILES, ids=[name for name, _, _ in FILES])
@pytest.mark.parametrize("word", ["prepare", "train"])
def test_a_bad_file_is_told_and_leaves_nothing(
    cli: Cli, workspace: Path, word: str, name: str, content: bytes, told: str
) -> None:
    write(name, content)
    before = everything(workspace)
    done = cli(word, f"data.fasta={name}")
    assert done.code == 2
    assert len(done.errors) == 1
    assert done.errors[0].startswith(f"error: {told}")
    assert everything(workspace) - before <= {workspace / "stores"}


def test_a_truncated_gzip_is_told(cli: Cli, workspace: Path) -> None:
    write("cut.fa.gz", truncated())
    done = cli("prepare", "data.fasta=cut.fa.gz")
    assert done.code == 2
    assert done.errors == ["error: cut.fa.gz: the gzip file is truncated; copy or download it again"]
    assert not list(workspace.glob("stores/*"))


def test_no_such_file(cli: Cli, workspace: Path) -> None:
    before = everything(workspace)
    done = cli("train", "data.fasta=nowhere.fa")
    assert (done.code, done.err) == (2, "error: nowhere.fa: no such file; check the path\n")
    assert everything(workspace) == before


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.window=2000", "made.fa: every contig is shorter than the window of 2,000"),
        ("data.test=[chr4]", "data.test: made.fa: has no contig 'chr4'; did you mean 'c4'?"),
        ("data.annotation=genes.gff3", "data.annotation=genes.gff3: is for task=classify or segment; choose one"),
        ("data.test=[c3]", "made.fa: contig c3 is in data.test and data.validation"),
        (
            "backbone.pattern=[mamba9]",
            "config: backbone: backbone.pattern names 'mamba9'; known mixers: mamba1, mamba2, attention, mlp",
        ),
        ("trainer.max_steps=0", "trainer.max_steps=0: must be at least 1"),
        ("trainer.threads=100000", "trainer.threads=100000: must be at most"),
        ("trainer.optimizer.betas=[2,3]", "trainer.optimizer.betas=[2.0, 3.0]: both must be"),
        ("data.workers=-1", "data.workers=-1: must be at least 0"),
        ("seed=99999999999999999999999", "seed=99999999999999999999999: must lie between"),
        ("data.store=nowhere", "nowhere: is no prepared genome"),
        (
            "tracking.uri=./mlruns",
            "./mlruns: MLflow no longer records into a folder; give tracking.uri=sqlite:///mlflow.db",
        ),
        ("tracking.uri=sqlite:///no/where/mlflow.db", "no/where: no such folder"),
        (
            "tracking.uri=sqlite:///made.fa",
            "made.fa: MLflow cannot record there ((sqlite3.DatabaseError) file is not a",
        ),
        ("resume=nowhere", "nowhere: is neither a run folder nor an MLflow run id"),
        ("resume=0123456789abcdef0123456789abcdef", "has no run 0123456789abcdef0123456789abcdef"),
    ],
)
def test_a_training_that_cannot_be_leaves_no_run(cli: Cli, workspace: Path, override: str, told: str) -> None:
    key = override.partition("=")[0]
    done = cli("train", *(word for word in TINY if not word.startswith(f"{key}=")), override)
    assert done.code == 2
    assert len(done.errors) == 1
    assert told in done.errors[0]
    assert not (workspace / "runs").exists()
    assert recorded_runs(workspace) == []


def recorded_runs(workspace: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_a_run_is_not_replaced_unasked(cli: Cli, workspace: Path, run_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in everything(run_folder)}
    done = cli("train", *TINY, f"run.dir={run_folder}")
    assert done.code == 2
    assert f"give resume={run_folder} to go on with it, run.overwrite=true to replace it" in done.err
    assert {path: path.stat().st_mtime_ns for path in everything(run_folder)} == before


def test_other_files_are_never_replaced(cli: Cli, workspace: Path) -> None:
    (workspace / "thesis").mkdir()
    (workspace / "thesis" / "chapter.tex").write_text("years of work")
    done = cli("train", *TINY, "run.dir=thesis", "run.overwrite=true")
    assert done.code == 2
    assert "thesis: the folder holds other files" in done.err
    assert (workspace / "thesis" / "chapter.tex").read_text() == "years of work"


@pytest.mark.parametrize("word", ["evaluate", "predict", "generate"])
def test_a_model_of_another_vocabulary(cli: Cli, workspace: Path, run_folder: Path, word: str) -> None:
    path = run_folder / "model" / "tokenizer.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table).replace('"A"', '"Q"'))
    extra = {"evaluate": [], "predict": ["data.fasta=made.fa", "out=scores"], "generate": ["out=sample.fa"]}[word]
    done = cli(word, f"model={run_folder / 'model'}", "device=cpu", *extra)
    assert done.code == 2
    assert len(done.errors) == 1
    assert "tokenizer.json" in done.errors[0]
    assert not (workspace / "scores").exists()
    assert not (workspace / "sample.fa").exists()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("nowhere", "nowhere: no such model folder; give the model/ folder of a finished run, or an MLflow run id"),
        ("stores", "stores: is no complete model folder"),
        ("0123456789abcdef0123456789abcdef", "has no run 0123456789abcdef0123456789abcdef"),
    ],
)
def test_a_model_that_is_not_there(cli: Cli, workspace: Path, model: str, told: str) -> None:
    (workspace / "stores").mkdir()
    done = cli("generate", f"model={model}", "out=sample.fa")
    assert done.code == 2
    assert len(done.errors) == 1
    assert told in done.errors[0]


def test_looking_for_a_run_makes_no_database(cli: Cli, workspace: Path) -> None:
    (workspace / "mlflow.db").unlink()
    before = everything(workspace)
    assert "sqlite:///mlflow.db: has no run" in cli("evaluate", f"model={'0' * 32}").err
    assert everything(workspace) == before


@pytest.mark.parametrize(
    ("word", "out", "told"),
    [
        ("generate", "no/such/sample.fa", "no/such/sample.fa: there is no folder no/such"),
        ("generate", "made.fa/sample.fa", "made.fa/sample.fa: there is no folder made.fa"),
        ("generate", "copied", "copied: is a folder; give the name of the file"),
        ("predict", "made.fa", "made.fa: is a file; choose a folder"),
        ("predict", "copied", "copied: holds other files"),
        ("evaluate", "made.fa", "made.fa: is a file; choose a folder"),
        ("evaluate", "/proc/x", "/proc/x: cannot be written"),
        ("evaluate", "made.fa/x", "made.fa/x: cannot be written"),
        ("predict", "/proc/x/y", "/proc/x/y: cannot be written"),
        ("generate", "/proc/sample.fa", "/proc/sample.fa: cannot be written"),
    ],
)
def test_a_place_for_results_that_cannot_be(
    cli: Cli, workspace: Path, run_folder: Path, word: str, out: str, told: str
) -> None:
    before = everything(workspace)
    extra = ["data.fasta=made.fa"] if word == "predict" else []
    done = cli(word, f"model={run_folder}", f"out={out}", "device=cpu", *extra)
    assert done.code == 2
    assert len(done.errors) == 1
    assert done.errors[0].startswith(f"error: {told}")
    assert {path for path in everything(workspace) - before if "stores" not in path.parts} == set()


def test_evaluation_wants_the_genome_of_the_training(cli: Cli, workspace: Path, run_folder: Path) -> None:
    Path("other.fa").write_text(Path("made.fa").read_text().replace("ACG", "ACT"))
    done = cli("evaluate", f"model={run_folder}", "data.fasta=other.fa", "device=cpu")
    assert done.code == 2
    assert "other.fa: is not the genome that" in done.errors[-1]


def test_a_genome_that_moved_is_asked_for(cli: Cli, workspace: Path, run_folder: Path) -> None:
    path = run_folder / "config.yaml"
    values = yaml.safe_load(path.read_text())
    values["data"]["fasta"] = "gone.fa"
    path.write_text(yaml.safe_dump(values))
    done = cli("evaluate", f"model={run_folder}", "device=cpu")
    assert "scoring" not in done.err
    assert done.code == 2
    assert done.errors[-1].startswith("error: gone.fa: no such file")
    assert "say where it is now with data.fasta=<file>" in done.errors[-1]


def test_a_full_disk_in_prepare_leaves_nothing(cli: Cli, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.np, "save", full)
    done = cli("prepare", "data.fasta=made.fa")
    assert done.code == 2
    assert len(done.errors) == 1
    assert "No space left on device" in done.errors[0]
    assert not list(workspace.glob("stores/*"))


LIMITED = """
import resource, sys
from pipelines.cli import main
from pipelines.genomics import GENOMICS
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # Python ignores SIGXFSZ, so that writing fails instead
sys.exit(main(GENOMICS, ["prepare", "data.fasta=large.fa"]))
"""


def test_a_file_that_may_not_grow_in_prepare_leaves_nothing(workspace: Path) -> None:
    write("large.fa", b">a\n" + b"ACGTTGCA" * 125_000 + b"\n")
    before = everything(workspace)
    path = {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], env=os.environ | path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: stores: cannot keep the genome of large.fa (File too large); "
        "make room or give another folder as data.stores\n"
    )
    assert everything(workspace) - before == {workspace / "stores"}


@pytest.mark.parametrize("override", ["trainer.max_steps=9", "data.window=32", "backbone=mamba1", "run.overwrite=true"])
def test_a_resumed_run_keeps_its_settings(cli: Cli, workspace: Path, run_folder: Path, override: str) -> None:
    done = cli("train", f"resume={run_folder}", override)
    assert done.code == 2
    assert f"leave out {override.partition('=')[0]} " in done.err


def test_import_run_wants_a_run_folder_of_this_domain(cli: Cli, workspace: Path, run_folder: Path) -> None:
    assert "is no run folder" in cli("import-run", f"run={workspace}").err
    assert "leave it out" in cli("import-run", f"run={run_folder}", "tracking.enabled=false").err
    info = json.loads((run_folder / "run.json").read_text())
    (run_folder / "run.json").write_text(json.dumps(info | {"domain": "audio"}))
    done = cli("import-run", f"run={run_folder}")
    assert done.code == 2
    assert "is a run of 'audio'; give it to python -m pipelines.audio import-run" in done.err
