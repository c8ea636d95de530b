"""Annotation files in every format: coordinates to the base, names, compression, and what is wrong with them."""

import gzip
from pathlib import Path

import pysam
import pytest

from domains.errors import UserError
from domains.genomics.annotation.formats import parse_annotation
from domains.genomics.annotation.labels import CLASS_OF_STATE, CLASSES, label_bases, transcripts
from domains.genomics.annotation.table import FeatureTable, prepare_annotation, read_annotation
from domains.genomics.annotation.windows import label_windows
from domains.genomics.config import DataConfig
from domains.genomics.splits import Region, Splits
from tests.genomics.annotation.files import BED12, BY_FORMAT, GFF3, GTF
from tests.genomics.genomes import bare_store, make_store, random_bases


def written(folder: Path, text: str | bytes, name: str = "made.txt") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(folder: Path, text: str) -> FeatureTable:
    return read_annotation(written(folder, text))


@pytest.mark.parametrize("kind", BY_FORMAT)
def test_every_format_gives_the_same_genes_to_the_base(tmp_path: Path, kind: str) -> None:
    found = table(tmp_path, BY_FORMAT[kind])
    assert found.format == kind.removesuffix("12")
    genes = {(one.strand, *one.coding) for one in transcripts(found)}
    if kind == "BED":  # whose rows name no transcript: each is one of its own
        assert genes == {(1, (10, 25)), (1, (40, 55)), (-1, (60, 90))}
    else:
        assert genes == {(1, (10, 25), (40, 55)), (-1, (60, 90))}


def test_all_that_a_row_says_is_kept(tmp_path: Path) -> None:
    rows = list(table(tmp_path, GFF3).features())
    assert rows[3] == ("c", 40, 55, 1, "CDS", 0, "t1", 7)
    assert rows[4] == ("c", 60, 90, -1, "CDS", 0, "t2", 8)
    assert rows[0] == ("c", 10, 55, 1, "gene", -1, "g1", 4)
    assert table(tmp_path, GFF3).contigs == ["c", "bare"]  # the second has no features, and is spoken of


@pytest.mark.parametrize("packed", ["plain", "gzip", "bgzip"])
def test_compression_is_told_by_content(tmp_path: Path, packed: str) -> None:
    path = written(tmp_path, GFF3, "genes.gff3")
    if packed == "gzip":
        path.write_bytes(gzip.compress(GFF3.encode()))
    if packed == "bgzip":
        pysam.tabix_compress(str(path), str(tmp_path / "packed"))
        path = tmp_path / "packed"
    assert read_annotation(path).fingerprint == table(tmp_path, GFF3).fingerprint


def test_names_are_decoded_several_parents_get_a_row_each_and_fasta_behind_is_left(tmp_path: Path) -> None:
    text = "##gff-version 3\nc%3B1\tx\tCDS\t1\t3\t.\t+\t0\tID=p;Parent=a,b%2C1\n##FASTA\n>c;1\nACGT\n"
    rows = list(table(tmp_path, text).features())
    assert [(row.contig, row.parent) for row in rows] == [("c;1", "a"), ("c;1", "b,1")]


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    assert table(tmp_path, "\ufeff" + GFF3.replace("\n", "\r\n")).fingerprint == table(tmp_path, GFF3).fingerprint


def test_a_feature_across_the_origin_of_a_circular_contig_is_in_two_parts(tmp_path: Path) -> None:
    text = (
        "##gff-version 3\nc\tx\tregion\t1\t100\t.\t+\t.\tID=c;Is_circular=true\nc\tx\tCDS\t91\t112\t.\t+\t0\tParent=t\n"
    )
    rows = [row for row in table(tmp_path, text).features() if row.type == "CDS"]
    assert [(row.start, row.end) for row in rows] == [(90, 100), (0, 12)]


def test_blocks_of_bed12_are_exons_and_their_thick_parts_coding(tmp_path: Path) -> None:
    text = BED12.replace("\t10\t55\t0\t2", "\t12\t50\t0\t2")
    rows = [(row.type, row.start, row.end) for row in table(tmp_path, text).features() if row.parent == "t1"]
    assert rows == [("exon", 10, 25), ("CDS", 12, 25), ("exon", 40, 55), ("CDS", 40, 50)]


def test_bases_are_not_labelled_by_bed_that_names_no_transcript(tmp_path: Path) -> None:
    store = make_store(tmp_path / "genome", {"c": random_bases(100)})
    with pytest.raises(UserError, match=r"made.txt: which CDS belong to one transcript is not told.*give BED12"):
        label_bases(store, table(tmp_path, BY_FORMAT["BED"]))
    assert {row.parent for row in table(tmp_path, BY_FORMAT["BED"]).features()} == {""}
    classes = CLASS_OF_STATE[label_bases(store, table(tmp_path, BED12)).states]
    assert (classes == CLASSES.index("CDS")).sum() == 60
    assert (classes == CLASSES.index("intron")).sum() == 15


def test_windows_are_labelled_by_bed_that_names_no_transcript(tmp_path: Path) -> None:
    store = make_store(tmp_path / "genome", {name: random_bases(100) for name in "cde"})
    found = table(tmp_path, "".join(BY_FORMAT["BED"].replace("c\t", f"{name}\t") for name in "cde"))
    splits = Splits(*([Region(name, 0, 100)] for name in "cde"), note="made")
    windows = label_windows(store, found, splits, DataConfig(window=10, negatives="all")).train
    assert windows.starts[windows.labels == 1].tolist() == [10, 20, 40, 50, 60, 70, 80]


def test_names_of_bed_rows_are_types_while_they_are_few(tmp_path: Path) -> None:
    few = "c\t0\t5\tstrong\nc\t5\t9\tweak\nc\t9\t12\tstrong\n"
    assert table(tmp_path, few).counts() == {"strong": 2, "weak": 1}
    many = "".join(f"c\t{i}\t{i + 1}\tpeak{i}\n" for i in range(80))
    assert table(tmp_path, many).counts() == {"region": 80}
    assert table(tmp_path, "c\t0\t5\n").counts() == {"region": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("\n\n", "holds no feature"),
        ("##gff-version 3\n# nothing\n", "holds no feature"),
        (">c\nACGT\n", "FASTA"),
        ("hello world\n", "line 1 is neither"),
        (b"\x00\x01\x02", "binary"),
        (GFF3.replace("\t11\t25\t", "\t0\t25\t"), "line 6.*no base"),
        (GFF3.replace("\t11\t25\t", "\t26\t25\t"), "line 6.*no base"),
        (GFF3.replace("\t11\t25\t", "\televen\t25\t"), "line 6.*whole numbers"),
        (GFF3.replace("\t+\t0\tID=p1", "\t+\t3\tID=p1", 1), "line 6: phase '3' of CDS"),
        (GFF3.replace("\t+\t0\tID=p1", "\t*\t0\tID=p1", 1), "line 6: strand"),
        (GFF3.replace("CDS\t41", "CDS 41"), "line 7 has 8 columns"),
        ("c\t5\t5\tx\n", "line 1.*no base"),
        ("c\t5\t9\tx\nc\tfive\t9\tx\n", "line 2.*BED"),
        (BED12.replace("15,15,", "15,"), "line 1.*blockSizes"),
        (BED12.replace("0,30,", "0,31,"), "line 1.*behind its row"),
        (gzip.compress(GFF3.encode())[:-9], "truncated"),
        (gzip.compress(gzip.compress(GFF3.encode())), "is compressed twice; unpack it once"),
        (BY_FORMAT["GenBank"].replace("join(11..25", "join(11.25"), "location of feature 2 .CDS. cannot be read"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_its_place(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        parse_annotation(written(tmp_path, text))
    assert "made.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_prepared_annotation_is_found_again_and_reads_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, GTF, "genes.gtf")
    made = prepare_annotation(path, tmp_path / "stores", progress=False)
    again = prepare_annotation(path.rename(tmp_path / "moved.gtf"), tmp_path / "stores", progress=False)
    opened = prepare_annotation(made.path, tmp_path / "elsewhere")
    assert (made.reused, again.reused) == (False, True)
    assert made.fingerprint == again.fingerprint == opened.fingerprint == table(tmp_path, GTF).fingerprint
    assert list(opened.features()) == list(made.features())
    (made.path / "features.npy").unlink()
    with pytest.raises(UserError, match="no prepared annotation"):
        FeatureTable.open(made.path)


def test_a_damaged_store_is_no_annotation(tmp_path: Path) -> None:
    made = prepare_annotation(written(tmp_path, GTF), tmp_path / "stores", progress=False)
    data = bytearray((made.path / "features.npy").read_bytes())
    data[-30] ^= 1
    (made.path / "features.npy").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        FeatureTable.open(made.path)


def test_an_annotation_must_be_of_the_genome(tmp_path: Path) -> None:
    found = table(tmp_path, GFF3)
    assert found.check_genome(bare_store({"c": 100, "bare": 50})) == []
    assert found.check_genome(bare_store({"c": 90, "other": 50})) == ["bare"]
    with pytest.raises(UserError, match=r"line 8.*ends at 90, but c has 89 bases"):
        found.check_genome(bare_store({"c": 89, "bare": 50}))
    with pytest.raises(UserError, match="did you mean 'chrc'"):
        found.check_genome(bare_store({"chrc": 100}))


def test_a_type_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no feature of type 'exon' \(data.positive\); it has CDS \(3\), gene \(1\)"):
        table(tmp_path, GFF3).check_type("exon", "data.positive")


def test_genbank_names_its_contig_as_the_genome_does(tmp_path: Path) -> None:
    store = make_store(tmp_path / "genome", {"c": random_bases(100)})
    assert table(tmp_path, BY_FORMAT["GenBank"]).check_genome(store) == []
