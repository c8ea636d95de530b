"""From features to labels of bases: coding, intron, intergenic, and where genes begin, end and are spliced.

A base of an annotated contig has one state. Coding bases are told by strand and position in their codon, introns by
strand and by the codon position of the base to their left; the classes of :data:`CLASSES` are groups of states. Where
transcripts overlap, coding wins over untranslated, that over intron, and the transcript that comes first over a later
one. Gaps of fewer than 10 bases within a transcript are corrections of the reading frame rather than introns: their
bases have no label, nor have those of contigs that the annotation does not speak of.

Reading frames are counted from the lengths of a transcript's parts. The phase column decides only where counting
begins: in files of the field it is often wrong behind the first part.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from domains.errors import UserError
from domains.genomics.annotation.table import FeatureTable
from domains.genomics.store import TOKEN_BITS, GenomeStore
from domains.genomics.tokens import A, G, T, reverse_complement

MIN_INTRON = 10  # bases

INTERGENIC, UTR, NO_LABEL = 0, 13, 255
CODING = 1  # + codon position, + 3 on the reverse strand
INTRON = 7  # + codon position of the base to the left, + 3 on the reverse strand
STATES = 14

CLASSES = ("intergenic", "CDS", "intron", "UTR")
CLASS_OF_STATE = np.full(256, NO_LABEL, dtype=np.uint8)
CLASS_OF_STATE[:STATES] = [0, *[1] * 6, *[2] * 6, 3]

SITES = ("start", "stop", "donor", "acceptor")  # bit i of a base's sites: it is one of such a site's bases
_STOPS = {(T, A, A), (T, A, G), (T, G, A)}


class Part(NamedTuple):
    """A stretch of a contig, 0-based and half-open."""

    start: int
    end: int


@dataclass(frozen=True)
class Transcript:
    """What is known of one transcript.

    Attributes:
        contig: its name. strand: 1 or -1.
        coding: its coding parts in the order of the contig, the stop codon among them.
        exons: all that is transcribed and kept, in that order; the coding parts where the file names no exons.
        phase: bases before the first whole codon, from the end where transcription begins.
        fits: whether the phases of the parts behind the first are those that the lengths make.
    """

    contig: str
    strand: int
    coding: list[Part]
    exons: list[Part]
    phase: int
    fits: bool

    def introns(self) -> list[Part]:
        """The gaps between exons, short ones left out."""
        pairs = zip(self.exons[:-1], self.exons[1:], strict=True)
        return [Part(a.end, b.start) for a, b in pairs if b.start - a.end >= MIN_INTRON]


@dataclass(frozen=True)
class BaseLabels:
    """Labels of all bases of a genome, by their positions in ``store.raw``.

    Attributes:
        states: uint8 (total,), as this module counts them; NO_LABEL where nothing is known.
        sites: uint8 (total,), a bit for each of SITES.
        classes: the first three of CLASSES, and UTR where the annotation has such bases.
        broken: transcripts whose phases do not fit their lengths, and how many have several coding parts.
    """

    states: np.ndarray
    sites: np.ndarray
    classes: tuple[str, ...]
    broken: tuple[int, int]

    def note(self) -> str:
        """One line for people."""
        counts = np.bincount(CLASS_OF_STATE[self.states], minlength=256)
        known = max(int(counts[: len(CLASSES)].sum()), 1)
        shares = ", ".join(f"{name} {counts[CLASSES.index(name)] / known:.1%}" for name in self.classes)
        line = f"bases with a label: {known:,} ({shares})"
        wrong, spliced = self.broken
        if wrong:
            line += f"; phases of {wrong:,} of {spliced:,} spliced genes do not fit their lengths: frames go by lengths"
        return line


def label_bases(store: GenomeStore, table: FeatureTable) -> BaseLabels:
    """The labels of every base; two bytes a base of memory.

    Raises:
        UserError: the annotation has no CDS, does not tell its transcripts, or does not fit the genome (see
            FeatureTable.check_genome).
    """
    table.check_type("CDS", "task.kind=segment")
    _check_transcripts(table)
    table.check_genome(store)
    offsets = {contig.name: contig.offset for contig in store.contigs}
    named = set(table.contigs)
    states = np.full(store.total, NO_LABEL, dtype=np.uint8)
    sites = np.zeros(store.total, dtype=np.uint8)
    for contig in store.contigs:
        if contig.name in named:
            states[contig.offset : contig.offset + contig.length] = INTERGENIC
    found = [transcript for transcript in transcripts(table) if transcript.contig in offsets]
    for paint in (_paint_introns, _paint_untranslated, _paint_coding):  # what is painted later wins
        for transcript in reversed(found):
            paint(states, offsets[transcript.contig], transcript)
    for transcript in found:
        _mark_sites(store.raw, sites, offsets[transcript.contig], transcript)
    spliced = [transcript for transcript in found if len(transcript.coding) > 1]
    return BaseLabels(
        states,
        sites,
        CLASSES if (states == UTR).any() else CLASSES[:3],
        (sum(not transcript.fits for transcript in spliced), len(spliced)),
    )


def _check_transcripts(table: FeatureTable) -> None:
    """A UserError when CDS come from BED rows of fewer than 12 columns, which name no transcript."""
    if table.format == "BED" and any(not table.parents[row["parent"]] for row in table.select("CDS")):
        raise UserError(
            f"{table.source}: which CDS belong to one transcript is not told by BED of fewer than 12 columns; for "
            "task=segment give BED12, GFF3 or GTF"
        )


def transcripts(table: FeatureTable) -> Iterator[Transcript]:
    """The transcripts with coding parts, in the order in which the file names them.

    Coding parts are of type CDS, and GTF's start_codon and stop_codon: there no CDS holds the latter. A CDS without
    parent and ID is a transcript of its own.
    """
    exons: dict[_Key, list[Part]] = {}
    for row in table.select("exon").tolist():
        exons.setdefault(_key(row, table), []).append(Part(row[1], row[2]))
    coding: dict[_Key, list[tuple[Part, int]]] = {}
    codons = [i for i, name in enumerate(table.types) if name != "CDS"]
    for row in table.select("CDS", "start_codon", "stop_codon").tolist():
        phase = _NOT_CDS if row[4] in codons else row[5]
        coding.setdefault(_key(row, table), []).append((Part(row[1], row[2]), phase))
    for key, rows in coding.items():
        contig, _, strand = key
        parts = _merged([part for part, _ in rows])
        cds = sorted((row for row in rows if row[1] != _NOT_CDS), reverse=strand < 0)
        yield Transcript(
            contig=table.contigs[contig],
            strand=-1 if strand < 0 else 1,
            coding=parts,
            exons=_merged([*exons.get(key, []), *parts]),
            phase=max(cds[0][1], 0) if cds else 0,
            fits=_phases_fit(cds),
        )


_Key = tuple[int, int, int]  # contig, parent, strand
_NOT_CDS = -2  # in place of a phase


def _key(row: tuple[int, ...], table: FeatureTable) -> _Key:
    contig, _, _, strand, _, _, parent, record = row
    return contig, parent if table.parents[parent] else -1 - record, strand


def _merged(parts: list[Part]) -> list[Part]:
    """The parts in order, those that overlap or touch joined."""
    whole: list[Part] = []
    for part in sorted(parts):
        if whole and part.start <= whole[-1].end:
            whole[-1] = Part(whole[-1].start, max(whole[-1].end, part.end))
        else:
            whole.append(part)
    return whole


def _phases_fit(cds: list[tuple[Part, int]]) -> bool:
    """Whether the phases of parts, in the order of transcription, are those that the lengths before them make."""
    expected = max(cds[0][1], 0) if cds else 0
    for part, phase in cds:
        if phase not in (-1, expected):
            return False
        expected = (expected - (part.end - part.start)) % 3
    return True


def _paint_introns(states: np.ndarray, offset: int, transcript: Transcript) -> None:
    """Introns get the codon position of the coding base to their left; those outside the coding parts get 0."""
    left = _positions_left(transcript)
    gaps = zip(transcript.exons[:-1], transcript.exons[1:], strict=True)
    for before, after in gaps:
        long = after.start - before.end >= MIN_INTRON
        state = INTRON + left(before.end) + (3 if transcript.strand < 0 else 0) if long else NO_LABEL
        states[offset + before.end : offset + after.start] = state


def _paint_untranslated(states: np.ndarray, offset: int, transcript: Transcript) -> None:
    for part in transcript.exons:
        states[offset + part.start : offset + part.end] = UTR


def _paint_coding(states: np.ndarray, offset: int, transcript: Transcript) -> None:
    read = 0
    for part in _in_order(transcript):
        length = part.end - part.start
        codon = (np.arange(read, read + length) - transcript.phase) % 3
        if transcript.strand < 0:
            codon = codon[::-1] + 3
        states[offset + part.start : offset + part.end] = CODING + codon
        read += length


def _in_order(transcript: Transcript) -> list[Part]:
    """Coding parts in the order of transcription."""
    return transcript.coding if transcript.strand > 0 else transcript.coding[::-1]


def _positions_left(transcript: Transcript) -> Callable[[int], int]:
    """The codon position of the last coding base before a place of the contig."""
    ends, counts, total = [], [], 0
    for part in transcript.coding:
        total += part.end - part.start
        ends.append(part.end)
        counts.append(total)

    def left(place: int) -> int:
        read = counts[bisect_right(ends, place) - 1] if place >= ends[0] else 0
        index = read - 1 if transcript.strand > 0 else total - read  # of that base, in the order of transcription
        return (index - transcript.phase) % 3 if 0 < read < total else 0

    return left


def _mark_sites(raw: np.ndarray, sites: np.ndarray, offset: int, transcript: Transcript) -> None:
    """Start codons where the first codon is whole, stop codons where the sequence has one, two bases of each splice."""
    bases = np.concatenate([np.arange(part.start, part.end) for part in transcript.coding]) + offset
    bases = bases if transcript.strand > 0 else bases[::-1]
    if transcript.phase == 0:
        sites[bases[:3]] |= 1 << SITES.index("start")
    last = np.sort(bases[-3:])
    codon = raw[last] & np.uint8(TOKEN_BITS)
    if tuple((codon if transcript.strand > 0 else reverse_complement(codon)).tolist()) in _STOPS:
        sites[last] |= 1 << SITES.index("stop")
    left, right = ("donor", "acceptor") if transcript.strand > 0 else ("acceptor", "donor")
    for intron in transcript.introns():
        sites[offset + intron.start : offset + intron.start + 2] |= 1 << SITES.index(left)
        sites[offset + intron.end - 2 : offset + intron.end] |= 1 << SITES.index(right)
