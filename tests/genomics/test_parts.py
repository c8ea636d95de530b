"""What a batch job does at a time: contigs, blocks of them, or many small ones together."""

import numpy as np
import pytest

from domains.genomics import parts as module
from domains.genomics.parts import Part, file_stem, pieces, plan_parts, reader
from domains.genomics.store import Contig
from tests.genomics.genomes import bare_store, make_store, random_bases


def facts(store, block=None):
    return [(part.name, part.stem, list(part.contigs), part.start, part.stop) for part in plan_parts(store, block)]


def test_each_contig_is_a_part():
    assert facts(bare_store({"b": 10, "a/x": 30})) == [("b", "b", [0], 0, 10), ("a/x", "a%2Fx", [1], 10, 40)]


def test_long_contigs_are_cut_where_that_is_asked_for():
    assert facts(bare_store({"a": 10, "b": 25}), block=10) == [
        ("a", "a", [0], 0, 10),
        ("b:0-10", "b.0000000000-0000000010", [1], 10, 20),
        ("b:10-20", "b.0000000010-0000000020", [1], 20, 30),
        ("b:20-25", "b.0000000020-0000000025", [1], 30, 35),
    ]


def test_a_last_block_has_the_length_that_is_asked_for():
    def names(least):
        return [part.name for part in plan_parts(bare_store({"a": 10, "b": 25}), 10, least)]

    assert names(5) == ["a", "b:0-10", "b:10-20", "b:20-25"]
    assert names(6) == ["a", "b:0-10", "b:10-25"]
    assert names(16) == ["a", "b"]
    assert names(99) == ["a", "b"]


def test_many_small_contigs_share_files(monkeypatch):
    monkeypatch.setattr(module, "FEW", 3)
    monkeypatch.setattr(module, "GROUP", 20)
    lengths = {"a": 5, "b": 6, "c": 30, "d": 7, "e": 8, "f": 9, "g": 1}
    assert facts(bare_store(lengths)) == [
        ("contigs 1-2", "contigs-0000001-0000002", [0, 1], 0, 11),
        ("c", "c", [2], 11, 41),
        ("contigs 4-6", "contigs-0000004-0000006", [3, 4, 5], 41, 65),
        ("contigs 7-7", "contigs-0000007-0000007", [6], 65, 66),
    ]
    assert [name for name, *_ in facts(bare_store(lengths), block=8)] == [
        "contigs 1-2",
        *(f"c:{start}-{stop}" for start, stop in ((0, 8), (8, 16), (16, 24), (24, 30))),
        "contigs 4-4",
        "e",
        "f:0-8",
        "f:8-9",
        "contigs 7-7",
    ]


@pytest.mark.parametrize("block", [None, 700])
def test_parts_tile_the_genome(monkeypatch, block):
    monkeypatch.setattr(module, "FEW", 3)
    monkeypatch.setattr(module, "GROUP", 1000)
    lengths = np.random.default_rng(0).integers(1, 2000, 100)
    store = bare_store({f"c{i}": int(length) for i, length in enumerate(lengths)})
    found = plan_parts(store, block)
    assert [part.start for part in found] == [0, *(part.stop for part in found[:-1])]
    assert found[-1].stop == store.total
    assert len({part.name for part in found}) == len({part.stem for part in found}) == len(found)
    for part in found:
        assert sum(piece.length for piece in pieces(store, part)) == part.length


def test_names_that_a_file_system_may_take_for_each_other_stay_apart():
    stems = [stem for _, stem, *_ in facts(bare_store({"chr1": 5, "CHR1": 5, "Chr1": 5}))]
    assert stems[0] == "chr1"
    assert len({stem.casefold() for stem in stems}) == 3


@pytest.mark.parametrize(
    ("contig", "stem"),
    [
        ("chr1", "chr1"),
        ("gi|123|ref/NC_1.2", "gi%7C123%7Cref%2FNC_1.2"),
        ("..", "%2E."),
        ("HLA-A*01:01", "HLA-A%2A01%3A01"),
    ],
)
def test_contig_names_become_file_names(contig, stem):
    assert file_stem(contig) == stem


def test_long_contig_names_stay_apart():
    stems = {file_stem("x" * 300 + end) for end in "ab"}
    assert len(stems) == 2
    assert max(map(len, stems)) < 130


def test_what_is_read_around_a_piece_ends_with_its_contig_or_goes_round_it(tmp_path):
    sequence = random_bases(50, 1)
    store = make_store(tmp_path, {"x": "A" * 30, "line": sequence, "ring [topology=circular]": sequence, "y": "C" * 30})
    blocks = {part.name: part for part in plan_parts(store, 20)}

    def around(name, warmup):
        (piece,) = pieces(store, blocks[name], warmup)
        return piece.start, piece.stop, piece.lead, piece.trail

    assert around("line:0-20", 15) == (0, 20, 0, 15)
    assert around("line:20-40", 15) == (20, 40, 15, 10)
    assert around("line:40-50", 15) == (40, 50, 15, 0)
    assert around("ring:0-20", 15) == (0, 20, 15, 15)
    assert around("ring:20-40", 400) == (20, 40, 50, 50)  # once round is all that there is
    tokens = store.tokens("ring")
    for name in ("ring:0-20", "ring:20-40", "ring:40-50"):
        (piece,) = pieces(store, blocks[name], 45)
        found = reader(store, piece)(-piece.lead, piece.length + piece.trail)
        expected = tokens[np.arange(piece.start - 45, piece.stop + 45) % 50]
        assert found.tolist() == expected.tolist()
        assert reader(store, piece)(3, 3).tolist() == []


def test_a_part_of_many_contigs_is_read_piece_by_piece(tmp_path):
    store = make_store(tmp_path, {"a": "ACGT", "b": "GG", "c": "TTT"})
    part = Part("contigs 2-3", "", range(1, 3), 4, 9)
    found = list(pieces(store, part, warmup=10))
    assert found == [(Contig("b", 4, 2, 0, 0, 2), 0, 2, 0, 0), (Contig("c", 6, 3, 0, 0, 0), 0, 3, 0, 0)]
    assert [reader(store, piece)(0, piece.length).tolist() for piece in found] == [[9, 9], [10, 10, 10]]
