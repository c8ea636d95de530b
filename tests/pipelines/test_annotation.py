"""Models of annotation through the command line: train, evaluate, predict, resume, import, and their MLflow run."""

from pathlib import Path

import pandas as pd
import pytest

from domains.folder import read_json
from tests.genomics.annotation.genes import genes_genome
from tests.pipelines.conftest import Cli
from tests.pipelines.records import artifacts, runs

SIZES = (
    "data.test=[c4]",
    "data.validation=[c1]",
    "data.tokens_per_step=1024",
    "data.validation_tokens=2048",
    "backbone.d_model=16",
    "backbone.n_layers=1",
    "backbone.mamba2.d_state=8",
    "backbone.mamba2.headdim=8",
    "trainer.accelerator=cpu",
    "trainer.max_steps=2",
    "trainer.log_every=1",
    "trainer.validate_every=2",
    "trainer.checkpoint_every=2",
    "tracking.system_metrics=false",
)

CLASSIFY = ("task=classify", "data.window=60", "data.context=100", "data.negatives=balanced")
SEGMENT = ("task=segment", "data.window=256")


@pytest.fixture
def genome(workspace: Path) -> tuple[str, ...]:
    """Words that name a genome with genes in the current folder."""
    genes_genome(workspace)
    return "data.fasta=made.fa", "data.annotation=genes.gff3"


@pytest.mark.parametrize("task", [CLASSIFY, SEGMENT], ids=["classify", "segment"])
def test_training_and_evaluation_end_in_one_mlflow_run(
    cli: Cli, workspace: Path, genome: tuple[str, ...], task: tuple[str, ...]
) -> None:
    done = cli("train", *genome, *task, *SIZES, "run.dir=one")
    assert done.code == 0, done.err
    assert "nats a" in done.out
    done = cli("evaluate", "model=one", "device=cpu")
    assert done.code == 0, done.err
    metrics, details = (
        read_json(workspace / "one" / "evaluation" / f"{name}.json") for name in ("metrics", "evaluation")
    )
    assert done.out.startswith((workspace / "one" / "evaluation" / "table.txt").read_text())
    baseline = "5-mer logistic" if task is CLASSIFY else "Markov 3 codon HMM"
    assert baseline in done.out
    assert baseline in details["methods"]
    assert "generate" not in done.out
    (run,) = runs(workspace)
    assert {key: run.data.metrics[key] for key in metrics} == metrics
    plots = {f"plots/{name}.png" for name in ("roc", "precision_recall", "calibration", "contigs", "locus", "loss")}
    assert plots <= set(artifacts(workspace, run.info.run_id, "plots"))
    assert run.data.params["task.kind"] in task[0]


def test_a_model_folder_finds_its_genome_and_annotation_and_the_user_may_say_where_they_are(
    cli: Cli, workspace: Path, genome: tuple[str, ...]
) -> None:
    assert cli("train", *genome, *CLASSIFY, *SIZES, "run.dir=one").code == 0
    (workspace / "one" / "model").rename(workspace / "away")
    (workspace / "genes.gff3").rename(workspace / "elsewhere.gff3")
    (workspace / "made.fa").rename(workspace / "elsewhere.fa")
    shown = [
        cli("evaluate", "model=away", "tracking=off", *words) for words in ((), ("data.annotation=elsewhere.gff3",))
    ]
    assert [done.code for done in shown] == [0, 0], shown[0].err
    assert shown[0].out.splitlines()[:3] == shown[1].out.splitlines()[:3]
    (workspace / "other.gff3").write_text("c0\tx\tCDS\t1\t9\t.\t+\t0\tParent=t\n")
    done = cli("evaluate", "model=away", "tracking=off", "data.annotation=other.gff3")
    assert (done.code, len(done.errors)) == (2, 1)
    assert "is not the annotation that" in done.err


def test_fine_tuning_and_what_a_finished_run_may_be_told(cli: Cli, workspace: Path, genome: tuple[str, ...]) -> None:
    assert cli("train", genome[0], *SIZES, "data.window=64", "run.dir=language", "tracking=off").code == 0
    words = ("task.pretrained=language/model", "task.freeze=true", "tracking=off")
    done = cli("train", *genome, *CLASSIFY, *SIZES, *words, "run.dir=tuned")
    assert done.code == 0, done.err
    assert "backbone from language (causal, made.fa), frozen" in done.err
    done = cli("train", "resume=tuned", "task.pretrained=language/model", "tracking=off")
    assert done.code == 0, done.err
    done = cli("train", "resume=tuned", "data.positive=exon", "tracking=off")
    assert (done.code, len(done.errors)) == (2, 1)


def test_a_run_that_was_trained_elsewhere_is_recorded_and_its_model_answers(
    cli: Cli, workspace: Path, genome: tuple[str, ...]
) -> None:
    assert cli("train", *genome, *SEGMENT, *SIZES, "run.dir=one", "tracking=off").code == 0
    done = cli("import-run", "run=one")
    assert done.code == 0, done.err
    (run,) = runs(workspace)
    assert "plots/loss.png" in set(artifacts(workspace, run.info.run_id, "plots"))
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{workspace}/mlflow.db")
    said = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model").predict(pd.DataFrame({"sequence": ["ACGT" * 9]}))
    assert len(said["CDS"][0]) == 36
    assert sum(said[name][0][7] for name in ("intergenic", "CDS", "intron")) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data.positive=exon",), "no feature of type 'exon' (data.positive); it has CDS"),
        (("data.annotation=nowhere.gff3",), "nowhere.gff3: no such file"),
        (("data.annotation=made.fa",), "is a FASTA file"),
        (("data.annotation=''",), "data.annotation is missing"),
        (("data.annotation=chr.gff3",), "did you mean 'c0'"),
        (("data.annotation=long.gff3",), "a feature ends at 99,999"),
        (("task.pretrained=nowhere",), "nowhere: no such model folder"),
    ],
)
def test_mistakes_are_one_line(
    cli: Cli, workspace: Path, genome: tuple[str, ...], words: tuple[str, ...], said: str
) -> None:
    rows = (workspace / "genes.gff3").read_text()
    (workspace / "chr.gff3").write_text(rows.replace("\nc", "\nchrc"))
    (workspace / "long.gff3").write_text(rows + "c2\tx\tCDS\t1\t99999\t.\t+\t0\tParent=t\n")
    done = cli("train", *genome, *CLASSIFY, *SIZES, "run.dir=one", *words)
    assert (done.code, len(done.errors)) == (2, 1)
    assert said in done.err
    assert not (workspace / "one").exists()


def test_predict_annotates_a_genome_and_other_commands_say_what_they_want(
    cli: Cli, workspace: Path, genome: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("train", *genome, *SEGMENT, *SIZES, "run.dir=one", "tracking=off").code == 0
    done = cli("predict", "model=one", "data.fasta=made.fa", "out=annotated")
    assert done.code == 0, done.err
    assert done.out.startswith("annotation: annotated (5 contigs; intergenic, CDS, intron, start, stop, ")
    assert "next: open the bedGraph files of annotated in a genome browser" in done.out
    assert (workspace / "annotated" / "c3.CDS.bedgraph.gz").exists()
    more = cli("predict", "model=one", "data.fasta=made.fa", "out=annotated", "tracks=[bigwig]")
    assert "0 contigs, 5 done before" in more.out
    assert "next: open the bigWig files of annotated" in more.out
    for task, told in (("1", "shard 1 of 2: 2 contigs; 3 left to other shards"), ("0", "shard 0 of 2: 3 contigs; ")):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        words = ("out=parts", "shards=2", "tracks=[bedgraph,bigwig]", "device=cpu")
        assert told in cli("predict", "model=one", "data.fasta=made.fa", *words).out
    for path in (workspace / "annotated").iterdir():
        assert path.read_bytes() == (workspace / "parts" / path.name).read_bytes()
    done = cli("predict", "model=one", "data.fasta=made.fa", "out=cut", "block=9")
    assert (done.code, done.errors) == (2, ["error: block=9: must be at least 256, the window of this model"])
    done = cli("generate", "model=one", "out=sample.fa")
    assert (done.code, len(done.errors)) == (2, 1)
    assert "is a model of task=segment" in done.err
