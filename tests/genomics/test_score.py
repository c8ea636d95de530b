"""The job: from a VCF to a VCF and a table, in their order, whole or not at all."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pysam
import pysam.bcftools
import pytest

from domains.errors import UserError
from domains.genomics.config import ScoreConfig
from domains.genomics.model import load_model
from domains.genomics.tokens import decode, encode
from domains.genomics.variants import score as module
from domains.genomics.variants.alleles import Reason, resolve
from domains.genomics.variants.haplotypes import Place, make_windows
from domains.genomics.variants.likelihood import causal_log_probs, log_likelihood_ratios
from domains.genomics.variants.masked import masked_ratios
from domains.genomics.variants.score import score
from tests.genomics.genomes import make_store, random_bases

CONFIG = ScoreConfig(context=40, window=20)
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
HEADER = f"##fileformat=VCFv4.2\n{COLUMNS}\n"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 7)


def run(model, store, vcf, out, config=CONFIG):
    return score(model, store, vcf, out, config, device="cpu", progress=False)


def bases(store, contig, position, count=1):
    return decode(store.tokens(contig, position - 1, position - 1 + count))


def other(letter):
    return "ACGT".replace(letter.upper(), "")[0]


def make_vcf(path, records, header=HEADER):
    path.write_text(header + "".join(f"{c}\t{p}\t.\t{r}\t{a}\t.\t.\t.\n" for c, p, r, a in records))
    return path


@pytest.fixture(scope="module")
def records(tiny):
    """Forty SNVs, indels and what cannot be scored; sorted."""
    found = []
    for contig in ("c2", "c4", "c5"):
        for position in (1, 40, 222, 333, 1500):
            ref = bases(tiny, contig, position, 3)
            found.append((contig, position, ref[0].lower(), other(ref[0])))
            found.append((contig, position, ref, ref[0]))
            found.append((contig, position, ref[0], f"{ref[0]}GT,*,{other(ref[0])},<DEL>"))
    at = 900  # among those of c4
    c4 = bases(tiny, "c4", at)
    extra = [
        ("c4", 600, "N", "A"),
        ("c4", at, other(c4), c4),
        ("c4", at, c4, "N"),
        ("c4", at, c4, c4),
        ("c4", at, c4, "."),
    ]
    extra += [("c4", 3601, "A", "C"), ("mito", 5, "A", "C"), ("c4", at, c4, "G]c2:5]"), ("c4", at, c4, other(c4))]
    return found + extra + [extra[-1]]


@pytest.fixture(scope="module")
def vcf(records, tmp_path_factory):
    return make_vcf(tmp_path_factory.mktemp("vcf") / "in.vcf", records)


@pytest.fixture(scope="module")
def scored(tiny, tiny_model, vcf, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD", 7)
        return run(tiny_model, tiny, vcf, tmp_path_factory.mktemp("scored") / "out.vcf.gz")


def table(scores):
    """With None where there is nothing, for words; NaN for numbers."""
    frame = pq.read_table(scores.table).to_pandas()
    frame["reason"] = frame.reason.astype(object).where(frame.reason.notna(), None)
    return frame


def place_of(store, row):
    """Where a row's allele changes what."""
    length = store.contig(row.contig).length

    def read(start, stop):
        return store.tokens(row.contig, start, stop)

    return Place(row.contig, read, length, resolve(read, length, row.position, row.ref, row.alt))


def lines(path):
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_records_and_alleles_keep_their_order(records, scored):
    written = [tuple(line.split("\t")[i] for i in (0, 1, 3, 4)) for line in lines(scored.vcf)]
    assert written == [(c, str(p), r, a) for c, p, r, a in records]
    frame = table(scored)
    alleles = [(i, c, p, r, alt) for i, (c, p, r, a) in enumerate(records) for alt in a.split(",")]
    assert list(frame[["record", "contig", "position", "ref", "alt"]].itertuples(index=False, name=None)) == alleles
    assert (frame.line == frame.record + 3).all()


def test_each_allele_has_the_score_that_its_windows_give_it_alone(tiny, tiny_model, scored):
    model = load_model(tiny_model).model
    frame = table(scored)
    found = frame[frame.llr.notna()]
    assert set(found.kind) == {"snv", "deletion", "insertion"}
    for row in found.itertuples():
        windows = make_windows([place_of(tiny, row)], 40, 20)
        (strands,) = windows.ratios(causal_log_probs(model, windows))
        np.testing.assert_allclose([row.llr_forward, row.llr_reverse], strands, atol=1e-5)
        assert row.llr == pytest.approx(strands.mean(), abs=1e-5)
        assert bases(tiny, row.contig, int(row.normal_position), len(row.normal_ref)) == row.normal_ref
    assert found.llr.std() > 0.5


def test_a_masked_model_scores_by_masked_probability(tiny, masked_models, records, tmp_path):
    done = run(masked_models[True], tiny, make_vcf(tmp_path / "in.vcf", records[:12]), tmp_path / "out.vcf")
    assert 'Method="masked"' in done.vcf.read_text()
    found = table(done)
    found = found[found.llr.notna()]
    places = [place_of(tiny, row) for row in found.itertuples()]
    wanted = masked_ratios(load_model(masked_models[True]).masked, places, 40, 20)
    np.testing.assert_allclose(found[["llr_forward", "llr_reverse"]], wanted, atol=1e-5)
    assert len(found) == 12 + 4


def test_the_vcf_says_what_the_table_says(scored):
    frame = table(scored)
    with pysam.VariantFile(str(scored.vcf)) as file:
        for number, record in enumerate(file):
            rows = frame[frame.record == number]
            if "SERP_LLR" in record.info:
                wanted = [np.nan if value is None else value for value in record.info["SERP_LLR"]]
                np.testing.assert_allclose(rows.llr, wanted, rtol=1e-5)
                mean = (rows.llr_forward + rows.llr_reverse) / 2
                np.testing.assert_allclose(rows.llr, mean, rtol=1e-4)
            else:
                assert rows.llr.isna().all()
            if "SERP_WHY" in record.info:
                assert [reason or "." for reason in rows.reason] == list(record.info["SERP_WHY"])
        assert file.header.info["SERP_LLR"].number == "A"


def test_counts_reasons_and_notes(records, scored):
    assert scored.records == len(records)
    assert scored.scored == {"snv": 32, "deletion": 14, "insertion": 15}
    assert scored.unscored == {
        "star": 15,
        "symbolic": 15,
        "unknown_ref": 1,
        "ref_mismatch": 1,
        "unknown_alt": 1,
        "same_as_ref": 1,
        "no_alt": 1,
        "beyond_contig": 1,
        "unknown_contig": 1,
        "breakend": 1,
        "no_flank": 1,  # the first bases of a contig: on the other strand nothing is left behind them
    }
    assert scored.duplicates == 16
    told = "\n".join(scored.notes)
    assert "1 ref_mismatch, the first at line 49, c4:900" in told
    assert "made.fa has no contig 'mito'" in told
    assert "in.vcf is not sorted (line 48), so there is no index; bcftools sort" in told
    assert scored.index is None
    frame = table(scored)
    assert set(frame.reason.dropna()) <= {str(reason) for reason in Reason}
    assert ((frame.llr.isna()) == frame.reason.notna()).all()


def test_a_sorted_file_gets_an_index_and_another_name_no_blocks(tiny, tiny_model, records, tmp_path):
    vcf = make_vcf(tmp_path / "in.vcf", records[:20])
    done = run(tiny_model, tiny, vcf, tmp_path / "out.vcf.gz")
    assert done.index == tmp_path / "out.vcf.gz.tbi"
    with pysam.VariantFile(str(done.vcf)) as file:
        assert len(list(file.fetch("c4", 0, 100))) == len([r for r in records[:20] if r[0] == "c4" and r[1] <= 100])
    plain = run(tiny_model, tiny, vcf, tmp_path / "plain.vcf")
    assert plain.index is None
    assert lines(plain.vcf) == lines(done.vcf)
    assert {path.name for path in tmp_path.iterdir()} == {
        "in.vcf",
        "out.vcf.gz",
        "out.vcf.gz.tbi",
        "out.parquet",
        "out.vcf.gz.parts",
        "plain.vcf",
        "plain.parquet",
        "plain.vcf.parts",
    }
    with pytest.raises(UserError, match=r"out.parquet: is there already"):  # the table of out.vcf.gz
        run(tiny_model, tiny, vcf, tmp_path / "out.vcf")


def test_bcftools_splits_records_and_each_allele_keeps_its_score(tiny, tiny_model, records, tmp_path):
    vcf = make_vcf(tmp_path / "in.vcf", records[2:3])
    done = run(tiny_model, tiny, vcf, tmp_path / "out.vcf.gz")
    split = pysam.bcftools.norm("-m", "-any", str(done.vcf)).splitlines()
    told = [line.split("\t") for line in split if not line.startswith("#")]
    frame = table(done)
    assert [columns[4] for columns in told] == list(frame.alt)
    for columns, row in zip(told, frame.itertuples(), strict=True):
        assert (f"SERP_LLR={row.llr:.6g}" in columns[7]) == (row.reason is None)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_that_broke_goes_on_where_it_was(tiny, tiny_model, vcf, scored, tmp_path, monkeypatch):
    calls = []

    def breaking(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return log_likelihood_ratios(*args)

    monkeypatch.setattr(module, "log_likelihood_ratios", breaking)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tiny, vcf, tmp_path / "out.vcf.gz")
    assert {path.name for path in tmp_path.iterdir()} == {"out.vcf.gz.parts"}
    done = run(tiny_model, tiny, vcf, tmp_path / "out.vcf.gz")
    assert len(calls) == 4 + 5  # of eight shards three were done
    assert done.vcf.read_bytes() == scored.vcf.read_bytes()
    assert done.table.read_bytes() == scored.table.read_bytes()
    assert (done.scored, done.unscored, done.duplicates) == (scored.scored, scored.unscored, scored.duplicates)
    before = contents(tmp_path)
    assert run(tiny_model, tiny, vcf, tmp_path / "out.vcf.gz", replace(CONFIG, chunk=77)).reused
    assert (contents(tmp_path), len(calls)) == (before, 9)
    done.vcf.write_bytes(b"edited")
    with pytest.raises(UserError, match=r"out\.vcf\.gz: was changed since it was scored; choose another out"):
        run(tiny_model, tiny, vcf, tmp_path / "out.vcf.gz")
    assert done.vcf.read_bytes() == b"edited"
    done.vcf.unlink()
    assert not run(tiny_model, tiny, vcf, tmp_path / "out.vcf.gz").reused
    assert contents(tmp_path) == before


def test_results_of_something_else_are_refused_and_kept(tiny, tiny_model, vcf, scored, records, tmp_path):
    before = contents(scored.vcf.parent)
    other_vcf = make_vcf(tmp_path / "other.vcf", records[:3])
    for changed, message in (
        ({"vcf": other_vcf}, "holds scores with another vcf"),
        ({"config": replace(CONFIG, window=21)}, "holds scores with window=20"),
        ({"store": make_store(tmp_path, {"c2": random_bases(2000)})}, "holds scores with another genome"),
    ):
        given = {"model": tiny_model, "store": tiny, "vcf": vcf, "out": scored.vcf} | changed
        with pytest.raises(UserError, match=message):
            run(**given)
    assert contents(scored.vcf.parent) == before


def test_a_header_alone_gives_a_header_alone(tiny, tiny_model, tmp_path):
    done = run(tiny_model, tiny, make_vcf(tmp_path / "in.vcf", []), tmp_path / "out.vcf.gz")
    assert (done.records, done.scored, done.unscored) == (0, {}, {})
    assert lines(done.vcf) == []
    assert pq.read_table(done.table).num_rows == 0


def test_a_line_that_is_no_record_is_left_out_and_stands_in_the_table(tiny, tiny_model, records, tmp_path):
    vcf = make_vcf(tmp_path / "in.vcf", [records[0], ("c2", "ten", "A", "C"), records[1]])
    done = run(tiny_model, tiny, vcf, tmp_path / "out.vcf")
    assert len(lines(done.vcf)) == 2
    frame = table(done)
    assert list(frame.reason.notna()) == [False, True, False]
    assert (frame.reason[1], frame.line[1]) == ("malformed", 4)
    assert "1 malformed, the first at line 4" in done.notes


def test_other_names_and_another_assembly_are_told_before_anything_is_written(
    tiny, tiny_model, records, tmp_path, monkeypatch
):
    renamed = make_vcf(tmp_path / "chr.vcf", [(f"chr{c}", p, r, a) for c, p, r, a in records[:9]])
    with pytest.raises(
        UserError, match=r"chr.vcf: made.fa has no contig 'chrc2'; this genome writes its names without 'chr'"
    ):
        run(tiny_model, tiny, renamed, tmp_path / "out.vcf.gz")
    snvs = [("c2", p, bases(tiny, "c2", p), other(bases(tiny, "c2", p))) for p in range(100, 130)]
    shifted = make_vcf(tmp_path / "old.vcf", [(c, p + 3, r, a) for c, p, r, a in snvs])
    monkeypatch.setattr(module, "SHARD", 100)
    with pytest.raises(
        UserError, match=r"old.vcf: REF is not what made.fa has at \d+ of 30 alleles \(c2:1\d\d . is the first\)"
    ):
        run(tiny_model, tiny, shifted, tmp_path / "out.vcf.gz")
    end = tiny.contig("c2").length  # a contig that is shorter here is another assembly too
    beyond = make_vcf(tmp_path / "longer.vcf", [*snvs[:10], *[("c2", end + 100 + i, "A", "C") for i in range(20)]])
    with pytest.raises(UserError, match=r"longer.vcf: REF is not what made.fa has at 20 of 30 alleles"):
        run(tiny_model, tiny, beyond, tmp_path / "out.vcf.gz")
    assert {path.suffix for path in tmp_path.iterdir()} == {".vcf"}


def test_requests_that_make_no_sense(tiny, tiny_model, vcf, tmp_path, tmp_path_factory):
    foreign = tmp_path_factory.mktemp("foreign") / "mine.vcf"
    for name in ("mine.vcf", "other.parquet", "third.vcf.gz.tbi"):
        foreign.with_name(name).write_text("mine")
    for given, message in (
        ({"out": tmp_path / "out.bcf"}, "give a name that ends in .vcf.gz or .vcf"),
        ({"out": vcf}, "is the file that is scored"),
        ({"out": foreign}, "mine.vcf: is there already, and is not of this out"),
        ({"out": foreign.with_name("other.vcf.gz")}, "other.parquet: is there already, and is not of this out"),
        ({"out": foreign.with_name("third.vcf.gz")}, "third.vcf.gz.tbi: is there already"),
        ({"config": ScoreConfig(window=0)}, "window=0: must be at least 1"),
        ({"config": ScoreConfig(context=-1)}, "context=-1: must be at least 0"),
        ({"vcf": tmp_path / "no.vcf"}, "no such file"),
        ({"vcf": tmp_path}, "is a folder; give the VCF or BCF file in it"),
    ):
        with pytest.raises(UserError, match=message):
            run(**{"model": tiny_model, "store": tiny, "vcf": vcf, "out": tmp_path / "out.vcf.gz"} | given)
    assert list(tmp_path.iterdir()) == []


def test_the_files_say_what_they_were_made_of(tiny, tiny_model, scored):
    loaded = load_model(tiny_model)
    origin = json.loads(pq.read_schema(scored.table).metadata[b"serpentine"])
    assert origin == {
        "model": loaded.hash,
        "genome": tiny.fingerprint,
        "source": "made.fa",
        "method": "causal",
        "context": 40,
        "window": 20,
        "strands": "both",
    }
    text = gzip.decompress(scored.vcf.read_bytes()).decode()
    assert f'##serpentine=<ID="score",Model="{loaded.hash}",Genome="{tiny.fingerprint}",' in text
    assert "##contig=<ID=c2,length=2800>\n##contig=<ID=c4,length=3600>\n" in text


def test_larger_files_have_larger_shards(vcf, monkeypatch):
    assert module._shard_size(vcf) == 7
    monkeypatch.setattr(module, "_LARGE", vcf.stat().st_size // 3)
    assert module._shard_size(vcf) == 7 * 4


def test_blocks_of_alleles_change_nothing(tiny, tiny_model, vcf, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 3)
    done = run(tiny_model, tiny, vcf, tmp_path / "out.vcf.gz")
    np.testing.assert_allclose(table(done).llr, table(scored).llr, atol=1e-5)


def test_a_deletion_to_the_end_of_a_contig_has_no_score(tiny_model, tmp_path):
    store = make_store(tmp_path, {"a": random_bases(50) + "GC"})
    done = run(tiny_model, store, make_vcf(tmp_path / "in.vcf", [("a", 51, "GC", "G")]), tmp_path / "out.vcf")
    assert done.unscored == {"no_flank": 1}
    assert encode("GC").size == 2
