"""score from the command line to MLflow."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.pipelines.conftest import Cli
from tests.pipelines.records import artifacts, client, runs

COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
WORDS = ("data.vcf=in.vcf.gz", "data.fasta=made.fa", "out=scored.vcf.gz", "device=cpu", "context=50", "window=20")


def genome() -> dict[str, str]:
    records = Path("made.fa").read_text().split(">")[1:]
    return dict(record.strip().split("\n") for record in records)


@pytest.fixture
def vcf(workspace: Path) -> Path:
    """In gzip, not in blocks: an SNV in either case, an insertion, a star, and a REF that is wrong."""
    c1 = genome()["c1"]
    other = "ACGT".replace(c1[99], "")
    lines = [
        "##fileformat=VCFv4.2",
        COLUMNS,
        f"c1\t100\trs1\t{c1[99].lower()}\t{other[0]},*\t.\t.\t.",
        f"c1\t200\t.\t{c1[199]}\t{c1[199]}GGG\t.\t.\t.",
        f"c1\t300\t.\t{'A' if c1[299] != 'A' else 'C'}\tG\t.\t.\t.",
    ]
    path = workspace / "in.vcf.gz"
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return path


def test_variants_are_scored_and_recorded_and_found_done(
    cli: Cli, vcf: Path, workspace: Path, run_folder: Path
) -> None:
    done = cli("score", f"model={run_folder}", *WORDS, "tracking.system_metrics=false")
    assert done.code == 0
    assert done.out.splitlines()[0] == (
        "scores: scored.vcf.gz (2 alleles of 3 records: 1 insertion, 1 snv; without a score: 1 ref_mismatch, 1 star)"
    )
    assert "note: 1 ref_mismatch, the first at line 5, c1:300" in done.err
    assert {path.name for path in workspace.iterdir() if path.name.startswith("scored")} == {
        "scored.vcf.gz",
        "scored.vcf.gz.tbi",
        "scored.vcf.gz.parts",
        "scored.parquet",
    }
    assert np.isfinite(pq.read_table("scored.parquet")["llr"].drop_null().to_numpy()).all()
    (run,) = runs(workspace)
    assert run.data.metrics["score/snv"] == 1
    assert run.data.metrics["score/unscored/star"] == 1
    assert "plots/scores_by_kind.png" in artifacts(workspace, run.info.run_id)
    assert client(workspace).get_run(run.info.run_id).info.status == "FINISHED"
    again = cli("score", f"model={run_folder}", *WORDS, "tracking=off")
    assert again.code == 0
    assert again.out.splitlines()[0].endswith("(done before)")


def test_scores_do_not_depend_on_the_strand_of_the_genome(
    cli: Cli, vcf: Path, workspace: Path, run_folder: Path
) -> None:
    turn = str.maketrans("ACGT", "TGCA")
    Path("turned.fa").write_text(
        "".join(f">{name}\n{bases.translate(turn)[::-1]}\n" for name, bases in genome().items())
    )
    c1 = genome()["c1"]
    alleles = [
        (100, c1[99], "ACGT".replace(c1[99], "")[1]),
        (700, c1[699:704], c1[699]),
        (900, c1[899], c1[899] + "TTA"),
    ]
    mirrored = []
    for position, ref, alt in alleles:
        one, other = (allele.translate(turn)[::-1] for allele in (ref, alt))
        mirrored.append((len(c1) - position + 2 - len(ref), one, other))
    for name, found in (("here", alleles), ("there", sorted(mirrored))):
        rows = "".join(f"c1\t{position}\t.\t{ref}\t{alt}\t.\t.\t.\n" for position, ref, alt in found)
        Path(f"{name}.vcf").write_text(f"{COLUMNS}\n{rows}")
    scores = []
    for name, fasta in (("here", "made.fa"), ("there", "turned.fa")):
        words = [f"data.vcf={name}.vcf", f"data.fasta={fasta}", f"out={name}-scored.vcf", *WORDS[3:], "tracking=off"]
        assert cli("score", f"model={run_folder}", *words).code == 0
        scores.append(pq.read_table(f"{name}-scored.parquet")["llr"].to_numpy())
    np.testing.assert_allclose(scores[0], scores[1][::-1], atol=1e-5)
    assert np.abs(scores[0]).max() > 1e-4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.vcf=nowhere.vcf"], "nowhere.vcf: no such file"),
        (["data.vcf=made.fa"], "made.fa: line 1 ('>c0') is no VCF"),
        (["data.vcf=twice.vcf.gz"], "twice.vcf.gz: is compressed twice; unpack it once"),
        (["data.vcf=chr.vcf"], "chr.vcf: made.fa has no contig 'chrc1'; this genome writes its names without 'chr'"),
        (["out=scored.bcf"], "scored.bcf: scores are written as VCF; give a name that ends in .vcf.gz or .vcf"),
        (["out=in.vcf.gz"], "in.vcf.gz: is the file that is scored"),
        (["window=0"], "window=0: must be at least 1"),
        (["out=no/where.vcf"], "no/where.vcf: there is no folder no"),
    ],
)
def test_what_cannot_be_scored_gets_one_line_and_leaves_nothing(
    cli: Cli, vcf: Path, workspace: Path, run_folder: Path, words: list[str], told: str
) -> None:
    Path("twice.vcf.gz").write_bytes(gzip.compress(vcf.read_bytes()))
    Path("chr.vcf").write_bytes(gzip.decompress(vcf.read_bytes()).replace(b"\nc1", b"\nchrc1"))
    before = set(workspace.rglob("*"))
    done = cli("score", f"model={run_folder}", *WORDS, *words)
    assert done.code == 2
    assert [line for line in done.errors if not line.startswith("note")][-1].startswith(f"error: {told}")
    assert {path for path in set(workspace.rglob("*")) - before if "stores" not in path.parts} == set()


def test_help_has_an_example(cli: Cli) -> None:
    done = cli("score", "--help")
    assert done.code == 0
    assert "score model=runs/demo/model data.vcf=in.vcf.gz data.fasta=ref.fa out=scored.vcf.gz" in done.out
