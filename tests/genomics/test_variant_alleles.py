"""Alleles against what a sequence with the change in it says, and against bcftools norm."""

import numpy as np
import pysam
import pysam.bcftools
import pytest

from domains.genomics.tokens import decode, encode, reverse_complement
from domains.genomics.variants.alleles import Edit, Reason, normalise, resolve, to_vcf
from tests.genomics.genomes import random_bases

CONTIG = encode("ACGTTTTTGCACACACAGGNACGGTCATCATCA")


def reader(tokens):
    return lambda start, stop: tokens[start:stop]


def changed(tokens, edit):
    start, deleted, inserted, _ = edit
    return np.concatenate([tokens[:start], np.frombuffer(inserted, np.uint8), tokens[start + deleted :]])


def repetitive(length, seed):
    """Bases in which indels have room to move: runs, and repeats of two and three."""
    random = np.random.default_rng(seed)
    pieces = [random_bases(int(random.integers(1, 4)), seed + i) * int(random.integers(1, 6)) for i in range(length)]
    return "".join(pieces)[:length]


def random_changes(tokens, count, seed):
    random = np.random.default_rng(seed)
    for _ in range(count):
        start = int(random.integers(1, len(tokens) - 8))
        ref = tokens[start : start + int(random.integers(1, 7))].tobytes()
        alt = encode(random_bases(int(random.integers(0, 6)), int(random.integers(1 << 30)))).tobytes()
        if random.random() < 0.4:  # a change of the number of repeats
            alt = ref + ref[-int(random.integers(1, 4)) :]
        if ref != alt:
            yield start, ref, alt


def test_an_edit_makes_the_same_sequence_as_the_allele_wherever_it_is_moved_and_can_be_moved_no_further():
    tokens = encode(repetitive(300, 0))
    moved = 0
    for start, ref, alt in random_changes(tokens, 300, 1):
        wanted = np.concatenate([tokens[:start], np.frombuffer(alt, np.uint8), tokens[start + len(ref) :]])
        edit = normalise(reader(tokens), len(tokens), start, ref, alt)
        assert np.array_equal(changed(tokens, edit), wanted)
        assert np.array_equal(changed(tokens, edit.rightmost), wanted)
        moved += edit.shift > 0
        shorter = min(len(tokens), len(wanted))
        for strand in (1, -1):  # where the sequences first differ, read from either end
            one, other = tokens[::strand][:shorter], wanted[::strand][:shorter]
            first = int(np.argmax(one != other)) if (one != other).any() else shorter
            last = edit.start + edit.deleted
            assert first == (edit.rightmost.start if strand > 0 else len(tokens) - last)
    assert moved > 50


def test_the_other_strand_has_the_same_edit_at_the_mirrored_place():
    tokens = encode(repetitive(300, 7))
    mirrored = reverse_complement(tokens)
    for start, ref, alt in random_changes(tokens, 100, 2):
        edit = normalise(reader(tokens), 300, start, ref, alt)
        turned = [reverse_complement(np.frombuffer(part, np.uint8)).tobytes() for part in (ref, alt)]
        other = normalise(reader(mirrored), 300, 300 - start - len(ref), *turned)
        assert (other.deleted, len(other.inserted), other.shift) == (edit.deleted, len(edit.inserted), edit.shift)
        assert other.start == 300 - edit.rightmost.start - edit.deleted


def test_left_normalised_forms_are_those_of_bcftools(tmp_path):
    tokens = encode(repetitive(1200, 3))
    letters = decode(tokens)
    (tmp_path / "ref.fa").write_text(f">c\n{letters}\n")
    lines = ["##fileformat=VCFv4.2", "##contig=<ID=c,length=1200>", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    ours = {}
    for i, (start, ref, alt) in enumerate(random_changes(tokens, 300, 4)):
        before = letters[start - 1]  # VCF wants no empty allele
        alleles = [before + decode(np.frombuffer(part, np.uint8)) for part in (ref, alt)]
        lines.append(f"c\t{start}\tv{i}\t{alleles[0]}\t{alleles[1]}\t.\t.\t.")
        edit = resolve(reader(tokens), len(tokens), start, *alleles)
        ours[f"v{i}"] = to_vcf(reader(tokens), edit)
    (tmp_path / "in.vcf").write_text("\n".join(lines) + "\n")
    files = {name: str(tmp_path / name) for name in ("ref.fa", "in.vcf", "out.vcf")}
    pysam.bcftools.norm("-f", files["ref.fa"], "-o", files["out.vcf"], files["in.vcf"], catch_stdout=False)
    with pysam.VariantFile(str(tmp_path / "out.vcf")) as file:
        theirs = {record.id: (record.pos, record.ref, record.alts[0]) for record in file}
    assert len(theirs) == len(ours) > 250
    assert ours == theirs


@pytest.mark.parametrize(
    ("ref", "alt", "wanted"),
    [
        ("A", "*", Reason.STAR),
        ("A", "<DEL>", Reason.SYMBOLIC),
        ("A", "<*>", Reason.SYMBOLIC),
        ("A", "A[c:9[", Reason.BREAKEND),
        ("A", "]c:9]A", Reason.BREAKEND),
        ("A", ".A", Reason.BREAKEND),
        ("A", ".", Reason.NO_ALT),
        ("A", "A", Reason.SAME_AS_REF),
        ("a", "A", Reason.SAME_AS_REF),
        ("G", "A", Reason.REF_MISMATCH),
        ("AG", "A", Reason.REF_MISMATCH),
        ("R", "A", Reason.UNKNOWN_REF),
        ("N", "A", Reason.UNKNOWN_REF),
        ("A", "N", Reason.UNKNOWN_ALT),
        ("A", "R", Reason.UNKNOWN_ALT),
        ("A", "?", Reason.UNKNOWN_ALT),
        ("acg", "t", Edit(0, 3, encode("T").tobytes(), 0)),
        ("A", "C", Edit(0, 1, encode("C").tobytes(), 0)),
    ],
)
def test_what_an_allele_is(ref, alt, wanted):
    assert resolve(reader(CONTIG), len(CONTIG), 1, ref, alt) == wanted


def test_positions_beyond_the_contig_and_unknown_bases_of_the_genome():
    def at(position, ref):
        return resolve(reader(CONTIG), len(CONTIG), position, ref, "T")

    assert at(0, "A") is Reason.BEYOND_CONTIG
    assert at(len(CONTIG) + 1, "A") is Reason.BEYOND_CONTIG
    assert at(len(CONTIG), "AC") is Reason.BEYOND_CONTIG
    assert at(20, "A") is Reason.UNKNOWN_REF  # the genome has N there
    assert at(20, "N") is Reason.UNKNOWN_REF
    assert at(19, "GNA") is Reason.UNKNOWN_REF


@pytest.mark.parametrize(
    ("position", "ref", "alt", "kind", "vcf"),
    [
        (1, "A", "G", "snv", (1, "A", "G")),
        (1, "ACG", "TCA", "mnv", (1, "ACG", "TCA")),
        (2, "CGT", "CG", "deletion", (3, "GT", "G")),  # the first of five T
        (8, "T", "TT", "insertion", (3, "G", "GT")),
        (13, "ACA", "A", "deletion", (9, "GCA", "G")),  # CA out of a repeat
        (12, "C", "CAC", "insertion", (9, "G", "GCA")),
        (2, "CGT", "CAAA", "delins", (3, "GT", "AAA")),
        (1, "AC", "C", "deletion", (1, "AC", "C")),  # nothing stands before the first base
        (1, "A", "TTA", "insertion", (1, "A", "TTA")),
        (31, "TCA", "T", "deletion", (31, "TCA", "T")),
        (22, "CGG", "CG", "deletion", (22, "CG", "C")),
    ],
)
def test_kinds_and_normal_forms_by_hand(position, ref, alt, kind, vcf):
    edit = resolve(reader(CONTIG), len(CONTIG), position, ref, alt)
    assert isinstance(edit, Edit)
    assert edit.kind == kind
    assert to_vcf(reader(CONTIG), edit) == vcf


def test_an_indel_moves_through_a_repeat_of_any_length_up_to_the_ends_of_the_contig():
    tokens = encode("CA" * 1000)
    edit = normalise(reader(tokens), 2000, 1000, encode("CA").tobytes(), b"")
    assert edit == Edit(0, 2, b"", 1998)
    edit = normalise(reader(tokens), 2000, 1001, b"", encode("AC").tobytes())
    assert edit == Edit(0, 0, encode("CA").tobytes(), 2000)
    assert to_vcf(reader(tokens), edit) == (1, "C", "CAC")
