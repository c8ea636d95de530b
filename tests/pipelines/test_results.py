"""What becomes of a trained model: served, evaluated, used, imported from elsewhere."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from domains.genomics import train as training
from domains.genomics.config import EvaluateConfig, PredictConfig, TrainConfig
from domains.genomics.model import load_model
from domains.genomics.stream import score_sequence
from domains.genomics.tokens import encode
from domains.settings import from_dict
from pipelines.genomics.roots import EvaluateRoot, GenerateRoot, PredictRoot
from pipelines.tracking import linked_run_id
from tests.pipelines.conftest import TINY, Cli
from tests.pipelines.records import artifacts, measured, recorded, runs


def test_the_mlflow_model_loads_without_pickle_and_scores(cli: Cli, workspace: Path) -> None:
    assert cli("train", *TINY, "run.dir=one").code == 0
    run_id = linked_run_id(Path("one"))
    files = [path for path in workspace.glob("mlartifacts/models/*/artifacts/**/*") if path.is_file()]
    assert {path.suffix for path in files} <= {".py", ".json", ".yaml", ".txt", ".safetensors", ""}
    assert not [path for path in files if path.suffix == "" and path.name != "MLmodel"]
    for name in ("model.safetensors", "config.yaml", "tokenizer.json", "data.json", "metrics.json"):
        (kept,) = workspace.glob(f"mlartifacts/models/*/artifacts/artifacts/model/{name}")
        assert kept.read_bytes() == Path("one/model", name).read_bytes()

    code = f"""
import json, mlflow, pandas as pd
mlflow.set_tracking_uri("sqlite:///{workspace}/mlflow.db")
model = mlflow.pyfunc.load_model("runs:/{run_id}/model")
scores = model.predict(pd.DataFrame({{"sequence": ["ACGTNNACGT" * 20, "acgu", "N"]}}, index=[5, 6, 7]))
import domains
print(json.dumps([scores.to_dict("list"), list(scores.index), domains.__file__]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=workspace)
    scores, index, source = json.loads(done.stdout.splitlines()[-1])
    assert "site-packages" not in source  # the code that travels with the model, not what is installed here
    assert not Path(source).is_relative_to(Path(training.__file__).parents[2])
    assert index == [5, 6, 7]
    assert scores["bases"] == [160, 4, 0]
    expected = score_sequence(load_model("one/model").model, encode("ACGTNNACGT" * 20))
    assert scores["log_likelihood"][0] == pytest.approx(float(np.nansum(expected)), rel=1e-5)
    assert scores["bits_per_base"][0] == pytest.approx(float(-np.nanmean(expected) / np.log(2)), rel=1e-5)
    assert scores["log_likelihood"][2] == 0
    assert np.isnan(scores["bits_per_base"][2])


@pytest.mark.parametrize("by", ["folder", "model folder", "run id", "run id, folder gone"])
def test_evaluation_prints_keeps_and_records_the_same_numbers(cli: Cli, workspace: Path, by: str) -> None:
    assert cli("train", *TINY, "run.dir=one", "trainer.max_steps=4").code == 0
    run_id = linked_run_id(Path("one"))
    assert run_id
    folder = workspace / "one" / "evaluation"
    if by == "run id, folder gone":
        shutil.move("one", "hidden")
        folder = workspace / "runs" / run_id / "evaluation"
    model = {"folder": "one", "model folder": "one/model"}.get(by, run_id)
    done = cli("evaluate", f"model={model}", "max_order=2", "device=cpu", "max_bases=1000")
    assert done.code == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    details = json.loads((folder / "evaluation.json").read_text())
    table = (folder / "table.txt").read_text()
    assert done.out.startswith(table)
    assert "c4:0-1000" in table
    assert f"{metrics['test/bits_per_base']:.4f}" in table
    assert f"{metrics['test/markov_bits_per_base']:.4f}" in table
    assert details["rows"][0]["model"] == metrics["test/bits_per_base"]
    (run,) = runs(workspace)
    assert run.info.run_id == run_id
    assert run.info.status == "FINISHED"
    assert {key: run.data.metrics[key] for key in metrics} == metrics
    assert not list(folder.glob(".*"))
    assert {
        "evaluation/table.txt",
        "evaluation/evaluation.json",
        "plots/bits_per_base_by_contig.png",
    } <= set(artifacts(workspace, run_id))


@pytest.mark.parametrize("how", ["run folder", "stores"])
def test_evaluation_finds_the_genome_of_the_training_again(cli: Cli, workspace: Path, how: str) -> None:
    genome = shutil.move("made.fa", workspace / "private.fa")
    told = [word for word in TINY if not word.startswith("data.fasta=")]
    stores = "elsewhere" if how == "run folder" else "stores"
    assert cli("train", *told, f"data.fasta={genome}", f"data.stores={stores}", "run.dir=one", "tracking=off").code == 0
    assert str(workspace) in Path("one/config.yaml").read_text()
    assert str(workspace) not in Path("one/model/config.yaml").read_text()
    if how == "stores":
        shutil.move("one/model", "received")
        Path(genome).unlink()
    model = "one/model" if how == "run folder" else "received"
    words = ["evaluate", f"model={model}", "max_order=1", "device=cpu", "tracking=off"]
    assert cli(*words).code == 0
    shutil.rmtree(stores)
    if how == "stores":
        done = cli(*words)
        assert done.code == 2
        assert done.errors[-1].startswith("error: private.fa: no such file")
        assert "say where it is now with data.fasta=<file>" in done.errors[-1]


def test_the_bundled_genome_needs_no_run_folder(cli: Cli, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = Path(shutil.move("made.fa", workspace / "bundled.fa"))
    monkeypatch.setattr(training, "sample_genome", lambda: bundled)  # as small as the others
    assert cli("train", *(word for word in TINY if not word.startswith("data.fasta=")), "run.dir=one").code == 0
    run_id = linked_run_id(Path("one"))
    shutil.rmtree("one")
    shutil.rmtree("stores")
    done = cli("evaluate", f"model={run_id}", "max_order=1", "device=cpu")
    assert done.code == 0
    assert "both strands of bundled.fa" in done.out


def test_a_model_without_a_run_gets_one_for_its_evaluation(cli: Cli, workspace: Path, run_folder: Path) -> None:
    model = shutil.move(run_folder / "model", workspace / "received")
    notes = workspace / "received-evaluation" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    for _ in range(2):
        assert cli("evaluate", "model=received", "max_order=1", "device=cpu", "data.fasta=made.fa").code == 0
    assert notes.read_text() == "mine"
    assert (workspace / "received-evaluation" / "table.txt").exists()
    assert sorted(path.name for path in Path(model).iterdir()) == [
        "config.yaml",
        "data.json",
        "metrics.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    (run,) = runs(workspace)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model": "received"}
    assert "test/bits_per_base" in run.data.metrics


def test_predict_and_generate_as_the_issue_writes_them(cli: Cli, workspace: Path, run_folder: Path) -> None:
    shutil.copy("made.fa", "other.fa")
    done = cli("predict", f"model={run_folder / 'model'}", "data.fasta=other.fa", "out=scores/")
    assert done.code == 0
    assert done.out.startswith("scores: scores (5 contigs; ")
    assert len(list(workspace.glob("scores/*.parquet"))) == 5
    again = cli("predict", f"model={run_folder / 'model'}", "data.fasta=other.fa", "out=scores/")
    assert "0 contigs, 5 done before" in again.out
    more = cli("predict", f"model={run_folder / 'model'}", "data.fasta=other.fa", "out=scores/", "tracks=[bigwig]")
    assert more.out.splitlines()[1].startswith("next: open scores.bw of scores in a genome browser")
    assert Path("scores/scores.bw").exists()
    words = ["generate", f"model={run_folder / 'model'}", "prompt=ATGGCG", "length=200", "out=sample.fa"]
    assert cli(*words).code == 0
    header, *lines = Path("sample.fa").read_text().splitlines()
    assert header.startswith(">")
    assert "".join(lines).startswith("ATGGCG")
    assert len("".join(lines)) == 206


def test_predict_in_the_tasks_of_a_slurm_array(
    cli: Cli, workspace: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("other.fa").write_text(f">ring [topology=circular]\n{'ACGGT' * 90}\n>line\n{'ACTGT' * 70}\n")
    words = ["predict", f"model={run_folder / 'model'}", "data.fasta=other.fa", "device=cpu"]
    done = cli(*words, "out=parts", "shards=2")
    assert (done.code, done.errors) == (
        2,
        [
            "error: shards=2: which of them is this process? give shard=<0 to 1>, or "
            "run it as a SLURM array (sbatch --array=0-1), which sets SLURM_ARRAY_TASK_ID"
        ],
    )
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    done = cli(*words, "out=parts", "shards=2")
    assert done.out.startswith("scores: parts (shard 0 of 2: 1 contig; 1 left to other shards; ")
    assert "the same line without shards= does what is left" in done.out
    assert done.errors == [
        "note: other.fa: circular contigs (ring) are read as linear ones; with warmup=65536 the "
        "bases before their start are those of their end"
    ]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert "open the bedGraph files of parts" in cli(*words, "out=parts", "shards=2").out
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert cli(*words, "out=whole").code == 0
    assert {path.name for path in Path("parts").iterdir()} == {path.name for path in Path("whole").iterdir()}
    for path in Path("parts").iterdir():
        assert path.read_bytes() == Path("whole", path.name).read_bytes()


def test_embed_windows_and_regions(cli: Cli, workspace: Path, run_folder: Path) -> None:
    words = ["embed", f"model={run_folder / 'model'}", "data.fasta=made.fa", "device=cpu"]
    done = cli(*words, "out=vectors", "window=500")
    assert done.code == 0
    assert done.out.startswith(
        "embeddings: vectors (15 rows of 16 numbers)\nnext: read the Parquet files of vectors with polars"
    )
    frame = pd.read_parquet("vectors/c3.parquet")
    assert frame[["start", "end"]].to_numpy().tolist() == [[0, 500], [500, 1000], [1000, 1500]]
    assert "5 parts done before" in cli(*words, "out=vectors", "window=500").out
    Path("genes.gff3").write_text("##gff-version 3\nc2\t.\tgene\t11\t20\t.\t-\t.\tID=g\n")
    assert cli(*words, "out=genes", "per=region", "data.regions=genes.gff3").code == 0
    (row,) = pd.concat(map(pd.read_parquet, Path("genes").glob("*.parquet"))).itertuples()
    assert (row.contig, row.start, row.end, row.line, row.strand) == ("c2", 10, 20, 2, "-")
    done = cli(*words, "out=more", "per=region")
    assert done.errors == ["error: per=region and data.regions: give data.regions=<BED, GFF3 or GTF file>"]


def test_import_run_records_a_run_from_elsewhere_once(cli: Cli, workspace: Path, run_folder: Path) -> None:
    for _ in range(2):
        done = cli("import-run", f"run={run_folder}")
        assert done.code == 0
        (run,) = runs(workspace)
        assert run.info.run_id == linked_run_id(run_folder)
        assert run.info.status == "FINISHED"
        assert recorded(workspace, run.info.run_id) == measured(run_folder)
        assert len(list(workspace.glob("mlartifacts/models/*"))) == 1
    assert from_dict(TrainConfig, yaml.safe_load((run_folder / "config.yaml").read_text())).data.window == 64
    assert run.data.params["data.window"] == "64"
    info = json.loads((run_folder / "run.json").read_text())
    assert run.info.start_time == pd.Timestamp(info["started"]).timestamp() * 1000
    assert run.info.end_time == pd.Timestamp(info["ended"]).timestamp() * 1000
    assert "config.yaml" in set(artifacts(workspace, run.info.run_id))
    assert cli("evaluate", f"model={run.info.run_id}", "max_order=1", "device=cpu").code == 0


def test_import_run_brings_the_evaluation_along(cli: Cli, workspace: Path, run_folder: Path) -> None:
    assert cli("evaluate", f"model={run_folder}", "max_order=1", "device=cpu", "tracking=off").code == 0
    assert runs(workspace) == []
    assert cli("import-run", f"run={run_folder}").code == 0
    (run,) = runs(workspace)
    assert "test/bits_per_base" in run.data.metrics
    assert "evaluation/table.txt" in set(artifacts(workspace, run.info.run_id))


def test_commands_take_the_defaults_of_the_domain() -> None:
    assert EvaluateRoot().chunk == EvaluateConfig().chunk
    assert PredictRoot().chunk == PredictConfig().chunk
    assert GenerateRoot().temperature == 1.0
