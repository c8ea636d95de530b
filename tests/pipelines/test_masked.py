"""Masked models through the commands."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.pipelines.conftest import TINY, Cli

MASKED = (
    *(word for word in TINY if not word.startswith("tracking")),
    "task=mlm",
    "trainer.health_every=8",
    "run.dir=run",
)


@pytest.mark.parametrize("backbone", ["bimamba2", "bimamba2_rc"])
def test_trained_and_evaluated_beside_two_sided_models(cli: Cli, workspace: Path, backbone: str) -> None:
    done = cli("train", *MASKED, f"backbone={backbone}", "tracking.system_metrics=false")
    assert done.code == 0, done.err
    assert "bits per base on validation" in done.out
    done = cli("evaluate", "model=run/model", "max_order=2", "device=cpu", "max_bases=1000", "windows.halo=100")
    assert done.code == 0, done.err
    folder = workspace / "run" / "evaluation"
    table = (folder / "table.txt").read_text()
    assert done.out.startswith(table)
    assert "0.15 of the known ones hidden" in table
    assert ("one strand" in table) == (backbone == "bimamba2")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['test/bits_per_base']:.4f}" in table
    assert f"{metrics['test/two_sided_bits_per_base']:.4f}" in table
    assert {path.name for path in folder.glob("*.png")} == {"bits_per_base_by_contig.png", "accuracy_by_contig.png"}
    done = cli("generate", "model=run/model", "length=20", "out=sample.fa", "device=cpu")
    assert done.code == 2
    assert done.errors == [
        "error: run/model: is a masked model; this wants one that predicts the next base (task=causal)"
    ]
    assert not (workspace / "sample.fa").exists()


@pytest.mark.parametrize("kind", ["symmetric", "post-hoc", "causal"])
def test_a_genome_and_its_reverse_complement_get_the_same_scores(cli: Cli, workspace: Path, kind: str) -> None:
    """By construction; or, of models that are not symmetric, by the mean of both strands."""
    task = {"symmetric": ("task=mlm", "backbone=bimamba2_rc"), "post-hoc": ("task=mlm", "backbone=bimamba2")}
    both = f"both_strands={str(kind != 'symmetric').lower()}"
    words = [*TINY, *task.get(kind, ()), "trainer.optimizer.learning_rate=3e-2", "run.dir=run", "tracking=off"]
    done = cli("train", *(word for word in words if not word.startswith("tracking.")))
    assert done.code == 0, done.err
    contigs = (workspace / "made.fa").read_text().split(">")[1:]
    turned = []
    for contig in contigs:
        name, sequence = contig.split()
        turned.append(f">{name}\n{sequence[::-1].translate(str.maketrans('ACGT', 'TGCA'))}\n")
    (workspace / "turned.fa").write_text("".join(turned))
    found = []
    for fasta in ("made.fa", "turned.fa"):
        out = f"scores-{fasta}"
        done = cli(
            "predict", "model=run/model", f"data.fasta={fasta}", f"out={out}", both, "device=cpu", "tracking=off"
        )
        assert done.code == 0, done.err
        frame = pq.read_table(workspace / out / "c2.parquet").to_pandas()
        found.append(frame.log_likelihood.to_numpy())
    assert np.ptp(found[0]) > 0.1
    np.testing.assert_allclose(found[1][::-1], found[0], atol=2e-5)


def test_a_mistake_in_task_or_backbone_is_one_line(cli: Cli, workspace: Path) -> None:
    for words, told in (
        (("task=mlm",), "a masked model sees both sides: set backbone.bidirectional=true"),
        (("backbone=bimamba2",), "a causal model reads in one direction"),
        (("backbone=bimamba2_rc",), "backbone.reverse_complement=true: is for masked models of DNA alone"),
        (
            ("task=mlm", "backbone=bimamba2", "task.mask_fraction=15"),
            "task.mask_fraction=15.0: must lie between 0 and 1",
        ),
    ):
        done = cli("train", *TINY, *words, "run.dir=run", "tracking=off")
        assert done.code == 2
        assert len(done.errors) == 1
        assert told in done.errors[0]
        assert not (workspace / "run").exists()
