"""VCF in and out, and what users bring as VCF."""

import gzip
from pathlib import Path

import pysam
import pysam.bcftools
import pytest

from domains.errors import UserError
from domains.genomics.variants.vcf import (
    Field,
    Malformed,
    VcfOrder,
    VcfRecord,
    extended_header,
    index_vcf,
    open_vcf,
    with_values,
    write_vcf,
)

COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
HEADER = f"##fileformat=VCFv4.3\n##contig=<ID=c1,length=99>\n{COLUMNS}\n"
RECORD = "c1\t7\trs1\ta\tC,<DEL>\t30.10\tq10\tAF=0.10,0.20\n"
FIELDS = (Field("S", "Float", "a score"), Field("WHY", "String", "a reason"))


def read(path):
    with open_vcf(path) as reader:
        return reader, list(reader.records())


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture(params=["plain", "gzip", "bgzip", "bcf", "crlf"])
def any_kind(request, tmp_path):
    plain = write(tmp_path / "in.vcf", HEADER + RECORD)
    if request.param == "gzip":
        return write(tmp_path / "in.vcf.gz", gzip.compress(plain.read_bytes()))
    if request.param == "crlf":
        return write(tmp_path / "windows.vcf", plain.read_bytes().replace(b"\n", b"\r\n"))
    if request.param == "bgzip":
        pysam.tabix_compress(str(plain), str(tmp_path / "in.vcf.bgz"))
        return tmp_path / "in.vcf.bgz"
    if request.param == "bcf":
        header = HEADER.replace("##contig", '##FILTER=<ID=q10,Description="x">\n##contig')
        plain.write_text(
            header.replace("##contig", '##INFO=<ID=AF,Number=A,Type=Float,Description="x">\n##contig') + RECORD
        )
        pysam.bcftools.view("-Ob", "-o", str(tmp_path / "in.bcf"), str(plain), catch_stdout=False)
        return tmp_path / "in.bcf"
    return plain


def test_every_kind_of_file_gives_the_same_records(any_kind):
    reader, (record,) = read(any_kind)
    assert reader.contigs == ["c1"]
    assert reader.columns == COLUMNS.split("\t")
    assert isinstance(record, VcfRecord)
    assert record[2:] == ("c1", 7, "rs1", "a", ["C", "<DEL>"])


def test_lines_that_are_no_records_are_told_and_the_rest_is_read(tmp_path):
    bad = [
        "c1\tten\t.\tA\tC\t.\t.\t.",
        "c1\t-5\t.\tA\tC\t.\t.\t.",
        "c1\t5\t.\tA",
        "\t5\t.\tA\tC\t.\t.\t.",
        "c1 5 . A C . . .",
    ]
    bad += ["c1\t5\t.\t\tC\t.\t.\t.", "c1\t5\t.\tA\tC\t.\t.\t.\tGT\t0/1", "c1\t\u0665\t.\tA\tC\t.\t.\t."]
    _, records = read(write(tmp_path / "in.vcf", HEADER + RECORD + "\n\n" + "\n".join(bad) + "\n" + RECORD))
    assert [type(record) for record in records] == [VcfRecord, *[Malformed] * len(bad), VcfRecord]
    assert [record.line for record in records] == [4, *range(7, 7 + len(bad)), 7 + len(bad)]


WRONG = [
    ("empty.vcf", b"", "the file is empty; give a VCF or BCF file"),
    ("twice.vcf.gz", gzip.compress(gzip.compress(HEADER.encode())), "is compressed twice; unpack it once"),
    ("cut.vcf.gz", gzip.compress((HEADER + RECORD * 999).encode())[:-50], "the gzip file is truncated"),
    ("damaged.vcf.gz", gzip.compress(HEADER.encode())[:10] + b"\xff" * 99, "the gzip file is damaged"),
    ("headless.vcf", RECORD.encode(), "no #CHROM line before line 1; put one there: #CHROM POS ID REF ALT QUAL"),
    ("no_columns.vcf", HEADER.split("#CHROM")[0].encode() + RECORD.encode(), "no #CHROM line before line 3"),
    ("only_meta.vcf", b"##fileformat=VCFv4.2\n", "ends without a #CHROM line"),
    (
        "spaces.vcf",
        HEADER.replace("\t", " ").encode(),
        "line 3: must be #CHROM POS ID REF ALT QUAL FILTER INFO, set apart",
    ),
    ("genome.fa", b">c1\nACGT\n", "line 1 ('>c1') is no VCF; a VCF begins with ##fileformat=VCFv4.2"),
    ("cut.bcf", b"BCF\2\2" + b"\0" * 50, "cannot be read as BCF"),
]


@pytest.mark.parametrize(("name", "content", "told"), WRONG, ids=[name for name, _, _ in WRONG])
def test_a_file_that_is_no_vcf_gets_one_line(tmp_path, name, content, told):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {told}")
    assert "\n" not in str(error.value)


def test_a_bgzip_file_cut_between_blocks_is_told(tmp_path):
    pysam.tabix_compress(str(write(tmp_path / "a.vcf", HEADER + RECORD)), str(tmp_path / "a.vcf.gz"))
    cut = write(tmp_path / "b.vcf.gz", (tmp_path / "a.vcf.gz").read_bytes()[:-28])
    with pytest.raises(UserError, match="the bgzip file is truncated"):
        read(cut)


def test_values_go_into_info_and_nothing_else_changes(tmp_path):
    _, (record,) = read(write(tmp_path / "in.vcf", HEADER + RECORD))
    line = with_values(record, FIELDS, {"S": [-1.23456789, None], "WHY": [None, "star"]})
    assert line == RECORD.strip() + ";S=-1.23457,.;WHY=.,star"
    assert (
        with_values(record, FIELDS, {"S": [None, None], "WHY": ["a", "b"]}).endswith(";AF=0.10,0.20;WHY=a,b") is False
    )
    assert with_values(record, FIELDS, {"S": [None, None]}) == RECORD.strip()
    bare = record._replace(columns=[*record.columns[:7], "."])
    assert with_values(bare, FIELDS, {"S": [2.0, 0.5]}).split("\t")[7] == "S=2,0.5"
    assert with_values(bare, FIELDS, {}).split("\t")[7] == "."


def test_a_file_that_was_scored_before_gets_new_values(tmp_path):
    first = HEADER.replace("##contig", f"{FIELDS[0].declaration()}\n##serpentine=<ID=score>\n##contig")
    old = "c1\t7\t.\tA\tC\t.\t.\tDB;S=9;DP=3\n"
    reader, (record,) = read(write(tmp_path / "in.vcf", first + old))
    assert with_values(record, FIELDS, {"S": [1.0]}).endswith("\tDB;DP=3;S=1")
    header = extended_header(reader, FIELDS, {"ID": "score"}, {})
    assert sum(line.startswith("##INFO=<ID=S,") for line in header) == 1
    assert sum(line.startswith("##serpentine=") for line in header) == 1


def test_the_header_declares_what_is_added_and_what_was_missing(tmp_path):
    reader, _ = read(write(tmp_path / "in.vcf", f"{COLUMNS}\tFORMAT\ts1\n"))
    header = extended_header(reader, FIELDS, {"ID": "score", "Window": 3, "Source": 'a "b".fa'}, {"c1": 99, "c2": None})
    assert header == [
        "##fileformat=VCFv4.2",
        "##contig=<ID=c1,length=99>",
        "##contig=<ID=c2>",
        '##INFO=<ID=S,Number=A,Type=Float,Description="a score">',
        '##INFO=<ID=WHY,Number=A,Type=String,Description="a reason">',
        '##serpentine=<ID="score",Window=3,Source="a \\"b\\".fa">',
        f"{COLUMNS}\tFORMAT\ts1",
    ]


@pytest.mark.parametrize(("position", "ending"), [(7, ".tbi"), (1 << 30, ".csi")])
def test_what_is_written_is_read_by_htslib_at_any_place(tmp_path, position, ending):
    reader, (record,) = read(write(tmp_path / "in.vcf", HEADER + RECORD))
    header = extended_header(reader, FIELDS, {"ID": "score"}, {"c1": 99})
    header.insert(1, '##FILTER=<ID=q10,Description="x">')
    header.insert(1, '##INFO=<ID=AF,Number=A,Type=Float,Description="x">')
    rows = [with_values(record, FIELDS, {"S": [0.25, None], "WHY": [None, "symbolic"]})]
    rows.append(rows[0].replace("\t7\t", f"\t{position + 50}\t"))
    write_vcf(tmp_path / "out.vcf.gz", header, iter(rows))
    index = index_vcf(tmp_path / "out.vcf.gz", position + 50)
    assert index == tmp_path / f"out.vcf.gz{ending}"
    assert index.exists()
    with pysam.VariantFile(str(tmp_path / "out.vcf.gz"), index_filename=str(index)) as file:
        assert [record.pos for record in file.fetch("c1", position + 40, position + 60)] == [position + 50]
        (found,) = file.fetch("c1", 0, 10)
        assert found.info["S"] == (0.25, None)
        assert found.info["WHY"] == (".", "symbolic")


def test_bytes_that_are_no_utf8_come_through(tmp_path):
    content = (HEADER + "c1\t7\tcaf").encode() + b"\xe9\tA\tC\t.\t.\tDB\n"
    reader, (record,) = read(write(tmp_path / "in.vcf", content))
    write_vcf(tmp_path / "out.vcf", [*reader.header, COLUMNS], iter([with_values(record, FIELDS, {})]))
    assert (tmp_path / "out.vcf").read_bytes() == content


def order(*places):
    found = VcfOrder()
    for line, (contig, position) in enumerate(places, 1):
        found.add(VcfRecord(line, [], contig, position, ".", "A", ["C"]))
    return found


def test_order():
    assert order().broken_at is None
    assert order(("c2", 5), ("c2", 5), ("c2", 9), ("c1", 1)).broken_at is None
    assert order(("c2", 5), ("c2", 4), ("c2", 3)).broken_at == 2
    assert order(("c2", 5), ("c1", 1), ("c2", 9)).broken_at == 3
    assert order(("c2", 5), ("c1", 17)).last == 17
    assert list(order(("c2", 5), ("c1", 17)).contigs) == ["c2", "c1"]
