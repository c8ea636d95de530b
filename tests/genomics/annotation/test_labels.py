"""Labels of bases, counted by hand."""

import numpy as np
import pytest

from domains.genomics.annotation.formats import Contents, Feature
from domains.genomics.annotation.labels import (
    CLASS_OF_STATE,
    CLASSES,
    CODING,
    INTERGENIC,
    INTRON,
    NO_LABEL,
    SITES,
    UTR,
    label_bases,
    transcripts,
)
from domains.genomics.annotation.table import FeatureTable
from tests.genomics.genomes import make_store


def table(*rows, contigs=("c",)):
    features = [
        Feature("c", start, end, strand, kind, phase, parent, i)
        for i, (start, end, strand, kind, phase, parent) in enumerate(rows, 1)
    ]
    return FeatureTable.of(Contents(features, list(contigs), "GFF3"), "made.gff3")


def store(tmp_path, bases, **others):
    return make_store(tmp_path, {"c": bases, **others})


def sites(labels, name):
    return np.flatnonzero(labels.sites >> SITES.index(name) & 1).tolist()


def test_a_spliced_gene_on_the_forward_strand(tmp_path):
    bases = "CC" + "ATGC" + "GT" + "A" * 8 + "AG" + "CATAA" + "CC"  # ATG CCA TAA around an intron of 12
    labels = label_bases(store(tmp_path, bases), table((2, 6, 1, "CDS", 0, "t"), (18, 23, 1, "CDS", 2, "t")))
    expected = [INTERGENIC] * 2 + [CODING, CODING + 1, CODING + 2, CODING] + [INTRON] * 12
    expected += [CODING + 1, CODING + 2, CODING, CODING + 1, CODING + 2] + [INTERGENIC] * 2
    assert labels.states.tolist() == expected
    assert (sites(labels, "start"), sites(labels, "stop")) == ([2, 3, 4], [20, 21, 22])
    assert (sites(labels, "donor"), sites(labels, "acceptor")) == ([6, 7], [16, 17])
    assert labels.classes == CLASSES[:3]
    assert labels.broken == (0, 1)


def test_the_same_gene_on_the_reverse_strand_is_its_mirror(tmp_path):
    bases = "CC" + "ATGC" + "GT" + "A" * 8 + "AG" + "CATAA" + "CC"
    mirrored = bases[::-1].translate(str.maketrans("ACGT", "TGCA"))
    forward = label_bases(store(tmp_path / "a", bases), table((2, 6, 1, "CDS", 0, "t"), (18, 23, 1, "CDS", 2, "t")))
    reverse = label_bases(
        store(tmp_path / "b", mirrored), table((19, 23, -1, "CDS", 0, "t"), (2, 7, -1, "CDS", 2, "t"))
    )
    assert np.array_equal(CLASS_OF_STATE[reverse.states], CLASS_OF_STATE[forward.states][::-1])
    coding = CLASS_OF_STATE[forward.states] == CLASSES.index("CDS")
    assert np.array_equal(reverse.states[::-1][coding], forward.states[coding] + 3)
    assert np.array_equal(reverse.sites[::-1], forward.sites)
    # from the left the intron follows the second base of a codon, the one at which the reverse strand goes on
    assert set(reverse.states[7:19].tolist()) == {INTRON + 3 + 1}


def test_bases_before_the_first_whole_codon_and_a_stop_that_is_none(tmp_path):
    labels = label_bases(store(tmp_path, "A" * 20), table((4, 12, 1, "CDS", 2, "t")))
    assert labels.states[4:9].tolist() == [CODING + 1, CODING + 2, CODING, CODING + 1, CODING + 2]
    assert sites(labels, "start") == sites(labels, "stop") == []


def test_frames_go_by_lengths_where_phases_are_wrong(tmp_path):
    wrong = table((0, 4, 1, "CDS", 0, "t"), (30, 35, 1, "CDS", 0, "t"))
    labels = label_bases(store(tmp_path, "A" * 40), wrong)
    assert labels.broken == (1, 1)
    assert labels.states[30] == CODING + 1
    assert "1 of 1 spliced genes" in labels.note()


def test_gtf_counts_the_stop_codon_apart(tmp_path):
    bases = "A" * 10 + "ATGCCC" + "TAA" + "A" * 10
    labels = label_bases(store(tmp_path, bases), table((10, 16, 1, "CDS", 0, "t"), (16, 19, 1, "stop_codon", 0, "t")))
    assert (labels.states[10:19] - CODING).tolist() == [0, 1, 2] * 3
    assert sites(labels, "stop") == [16, 17, 18]


def test_exons_tell_untranslated_bases_and_introns_outside_the_coding_part(tmp_path):
    found = table(
        (0, 10, 1, "exon", -1, "t"), (30, 60, 1, "exon", -1, "t"), (40, 52, 1, "CDS", 0, "t")
    )  # fmt: skip
    labels = label_bases(store(tmp_path, "A" * 70), found)
    names = [CLASSES[i] for i in CLASS_OF_STATE[labels.states]]
    assert names == ["UTR"] * 10 + ["intron"] * 20 + ["UTR"] * 10 + ["CDS"] * 12 + ["UTR"] * 8 + ["intergenic"] * 10
    assert labels.classes == CLASSES
    assert labels.states[0] == UTR


def test_coding_wins_over_introns_and_short_gaps_and_silent_contigs_have_no_label(tmp_path):
    found = table(
        (0, 6, 1, "CDS", 0, "a"), (30, 36, 1, "CDS", 0, "a"), (12, 18, -1, "CDS", 0, "b"),
        (50, 56, 1, "CDS", 0, "d"), (58, 64, 1, "CDS", 0, "d"),
    )  # fmt: skip
    labels = label_bases(store(tmp_path, "A" * 70, other="ACGT"), found)
    assert set(labels.states[12:18].tolist()) == {CODING + 3, CODING + 4, CODING + 5}
    assert set(labels.states[[6, 11, 18, 29]].tolist()) == {INTRON + 2}
    assert labels.states[56:58].tolist() == [NO_LABEL] * 2
    assert labels.states[70:].tolist() == [NO_LABEL] * 4
    assert len(sites(labels, "donor")) == 2


def test_rows_without_a_parent_are_genes_of_their_own():
    found = list(transcripts(table((0, 6, 1, "CDS", 0, ""), (30, 36, 1, "CDS", 0, ""))))
    assert [one.coding for one in found] == [[(0, 6)], [(30, 36)]]


def test_an_annotation_without_coding_sequence_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"no feature of type 'CDS' \(task.kind=segment\); it has peak \(1\)"):
        label_bases(store(tmp_path, "A" * 40), table((0, 5, 1, "peak", -1, "")))
