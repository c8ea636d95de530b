import gzip
import io
import os
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO, bgzf
from Bio.Seq import Seq
from Bio.SeqIO.FastaIO import SimpleFastaParser
from Bio.SeqRecord import SeqRecord

import domains.genomics.io as genome_io
from domains.errors import UserError
from domains.genomics.io import Record, read_records, write_fasta
from tests.genomics.genomes import random_bases

TWO = b">chr1 first one\nACGTNN\nacgt\n>chr2\nGGCC\n"
TWO_RECORDS = [Record("chr1", b"ACGTNNacgt"), Record("chr2", b"GGCC")]


def read(path, content):
    path.write_bytes(content)
    return list(read_records(path))


def bgzip(content):
    packed = io.BytesIO()
    writer = bgzf.BgzfWriter(fileobj=packed)
    for start in range(0, len(content), 1000):
        writer.write(content[start : start + 1000])
        writer.flush()
    return packed.getvalue() + bgzf._bgzf_eof


def test_plain_gzip_and_bgzip_are_told_by_content_whatever_the_name(tmp_path):
    for content in (TWO, gzip.compress(TWO), gzip.compress(TWO[:20]) + gzip.compress(TWO[20:]), bgzip(TWO)):
        assert read(tmp_path / "genome.txt", content) == TWO_RECORDS


@pytest.mark.parametrize(
    "content",
    [
        TWO.replace(b"\n", b"\r\n"),
        TWO.replace(b"\n", b"\r"),
        TWO.rstrip(b"\n"),
        TWO.replace(b"\n", b"\n\n"),
        b"\n \n" + TWO,
        b"\xef\xbb\xbf" + TWO,
        TWO.replace(b"acgt", b"ac gt \t"),
    ],
    ids=["crlf", "cr", "no-last-newline", "blank-lines", "blank-start", "byte-order-mark", "blanks"],
)
def test_line_ends_and_blanks_do_not_matter(tmp_path, content):
    assert read(tmp_path / "a.fa", content) == TWO_RECORDS


def test_headers_may_hold_anything(tmp_path):
    content = ">chr1|x>y; Bäcker's > yeast\nACGT\n>é2\nA\n".encode()
    assert read(tmp_path / "a.fa", content) == [Record("chr1|x>y;", b"ACGT"), Record("é2", b"A")]


@pytest.mark.parametrize("buffer", [16, 61, 1 << 20])
@pytest.mark.parametrize("width", [1, 7, 60, 100_000])
def test_buffer_edges_agree_with_biopython_line_by_line(tmp_path, monkeypatch, buffer, width):
    monkeypatch.setattr(genome_io, "_BUFFER", buffer)
    path = tmp_path / "a.fa"
    lengths = np.random.default_rng(width).integers(1, 300, size=20)
    write_fasta(path, [(f"c{i} some > words", random_bases(n, i, "ACGTNacgtn")) for i, n in enumerate(lengths)], width)
    with path.open() as file:
        expected = [Record(title.split()[0], sequence.encode()) for title, sequence in SimpleFastaParser(file)]
    assert list(read_records(path)) == expected


def test_genbank_gives_versioned_names_and_no_repeat_mask(tmp_path):
    path = tmp_path / "a.gb"
    records = [
        SeqRecord(Seq(random_bases(150, i).lower()), id=f"NC_{i}.3", annotations={"molecule_type": "DNA"})
        for i in range(2)
    ]
    SeqIO.write(records, path, "genbank")
    expected = [Record(f"NC_{i}.3", random_bases(150, i).encode()) for i in range(2)]
    assert list(read_records(path)) == expected
    assert read(tmp_path / "b.gz", gzip.compress(path.read_bytes())) == expected


@pytest.mark.parametrize(
    ("header", "circular"),
    [
        ("a", False),
        ("circular=true", False),  # a name
        ("a [organism=E. coli] [topology=circular] [strain=K-12]", True),
        ("a [Topology = Circular]", True),
        ("a [topology=linear]", False),
        ("1 length=5386 depth=1.00x circular=true", True),
        ("1 circular=false", False),
        ("a noncircular=true", False),
        ("a plasmid p1, circular, complete sequence", False),  # words of a title decide nothing
    ],
)
def test_headers_say_which_sequences_are_circular(tmp_path, header, circular):
    (record,) = read(tmp_path / "a.fa", f">{header}\nACGT\n".encode())
    assert record.circular is circular


def test_genbank_says_which_sequences_are_circular(tmp_path):
    about = {"molecule_type": "DNA"}
    records = [
        SeqRecord(Seq("ACGT" * 30), id=f"NC_{i}.1", annotations=about | ({"topology": kind} if kind else {}))
        for i, kind in enumerate(["circular", "linear", ""])
    ]
    SeqIO.write(records, tmp_path / "a.gb", "genbank")
    assert [record.circular for record in read_records(tmp_path / "a.gb")] == [True, False, False]


def test_genbank_without_its_sequence_is_refused(tmp_path):
    path = tmp_path / "a.gb"
    SeqIO.write([SeqRecord(Seq("ACGT" * 30), id="NC_1", annotations={"molecule_type": "DNA"})], path, "genbank")
    text = path.read_text()
    path.write_text(text[: text.index("ORIGIN")] + "ORIGIN\n//\n")
    with pytest.raises(UserError, match=r"a\.gb: record NC_1.* no sequence"):
        list(read_records(path))


def test_genbank_cut_short_is_refused(tmp_path):
    path = tmp_path / "a.gb"
    records = [SeqRecord(Seq("ACGT" * 300), id=f"NC_{i}", annotations={"molecule_type": "DNA"}) for i in range(2)]
    SeqIO.write(records, path, "genbank")
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(UserError, match=r"a\.gb: record 2 is broken GenBank"):
        list(read_records(path))


BAD = {
    "empty": (b"", "the file is empty"),
    "blank": (b"\n  \n", "holds no sequence"),
    "empty gzip": (gzip.compress(b""), "holds no sequence"),
    "protein": (b">p1 kinase\nMKVLEACGT\n", "record p1: 'L' at base 4 .*protein"),
    "protein later": (b">a\nACGT\n>p2\nACGTQ\n", "record p2: 'Q' at base 5 .*protein"),
    "alignment": (b">a\nAC--GT\n", "record a: '-' at base 3 .*gaps"),
    "digits": (b">a\n1 ACGT\n", "record a: '1' at base 1 "),
    "binary": (bytes(range(256)) * 20, "is a binary file"),
    "binary in gzip": (gzip.compress(bytes(range(256))), "is a binary file"),
    "binary without zeros": (b"\x01\x02\x03" * 100, "is a binary file"),
    "zip": (b"PK\x03\x04rest of it", "is a zip archive"),
    "gzip twice": (gzip.compress(gzip.compress(TWO)), "is compressed twice; unpack it once"),
    "bgzip in gzip": (gzip.compress(bgzip(TWO)), "is compressed twice"),
    "bzip2": (b"BZh91AY", "is a bzip2 archive"),
    "truncated gzip": (gzip.compress(TWO * 50)[:-12], "gzip file is truncated"),
    "damaged gzip": (gzip.compress(TWO)[:-6] + b"\0" * 6, "gzip file is damaged"),
    "bgzip cut between blocks": (bgzip(TWO * 50)[:-28], "bgzip file is truncated"),
    "no sequence": (b">a\nACGT\n>b\n>c\nACGT\n", "record b has a header but no sequence"),
    "no sequence at the end": (b">a\nACGT\n>b\n", "record b has a header but no sequence"),
    "no name": (b">a\nAC\n>\nACGT\n", "record 2 has a '>' without a name"),
    "twice": (b">a x\nACGT\n>a y\nGGGG\n", "record a occurs twice"),
    "text first": (b"my genome\n>a\nACGT\n", "text before the first '>' .'my genome'"),
    "no header": (b"ACGTACGT\n", "text before the first '>'"),
    "fastq": (b"@read1\nACGT\n+\nIIII\n", "looks like FASTQ"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_file_record_and_remedy(tmp_path, case):
    content, expected = BAD[case]
    with pytest.raises(UserError, match=expected) as caught:
        read(tmp_path / "bad.fa", content)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "bad.fa") + ": ")
    assert "\n" not in message
    assert ";" in message  # what is wrong; what to do


def test_truncated_gzip_tells_how_far_it_was_whole(tmp_path):
    content = b"".join(b">c%d\n%s\n" % (i, random_bases(100_000, i).encode()) for i in range(40))
    with pytest.raises(UserError, match=r"after [1-9]\d* whole records: the gzip file is truncated"):
        read(tmp_path / "a.fa.gz", gzip.compress(content, 1)[:-200_000])


def test_no_such_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"none\.fa: no such file"):
        list(read_records(tmp_path / "none.fa"))
    os.mkfifo(tmp_path / "pipe.fa")
    for special in (tmp_path / "pipe.fa", Path("/dev/null")):
        with pytest.raises(UserError, match="is a pipe or a device, not a file"):
            list(read_records(special))
    with pytest.raises(UserError, match="is a folder"):
        list(read_records(tmp_path))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read anything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "a.fa"
    path.write_bytes(TWO)
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        list(read_records(path))


def test_write_fasta_wraps_lines(tmp_path):
    path = tmp_path / "a.fa"
    write_fasta(path, [("x made by us", "ACGTACG"), ("y", b"AC")], width=3)
    assert path.read_text() == ">x made by us\nACG\nTAC\nG\n>y\nAC\n"


def test_write_fasta_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.fa"
    path.write_text("old")

    def records():
        yield "x", "ACGT"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_fasta(path, records())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_progress_bar_counts_the_bytes_of_the_file(tmp_path, monkeypatch):
    counted = []

    class Bar:
        def __init__(self, **told):
            self.total = told["total"]

        def update(self, count):
            counted.append(count)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            assert sum(counted) == self.total

    monkeypatch.setattr(genome_io, "tqdm", Bar)
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(TWO))
    assert len(list(read_records(path, progress=True))) == 2
    assert sum(counted) == path.stat().st_size
