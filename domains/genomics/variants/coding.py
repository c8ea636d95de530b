"""Every single-base change of coding sequences, with what it does to the protein: variants whose effect is known.

A gene is read along its strand, its coding parts joined, so a codon may be split by an intron. Genes that cannot be
read whole are left out, with the reason counted. The start codon and the stop codon are not changed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from domains.genomics.annotation.labels import Transcript
from domains.genomics.store import GenomeStore
from domains.genomics.tokens import A, T, reverse_complement

SYNONYMOUS, MISSENSE, STOP_GAINED = 0, 1, 2
CHANGE = np.dtype(
    [
        ("contig", "<i4"),  # number among the genome's contigs
        ("position", "<i8"),  # 0-based
        ("ref", "u1"),  # tokens of the forward strand
        ("alt", "u1"),
        ("gene", "<i4"),  # number among the genes that were read
        ("strand", "i1"),  # of the gene: 1 or -1
        ("codon", "<i4"),  # from 0, the start codon
        ("place", "u1"),  # in the codon: 0, 1 or 2
        ("effect", "u1"),  # SYNONYMOUS, MISSENSE or STOP_GAINED
        ("context", "<i2"),  # the base before, the base, the one after and its substitute, as the gene reads: 0 to 255
    ]
)
_STOP = ord("*")
_BASES = "ACGT"


class CodingChanges(NamedTuple):
    """All changes of some genes.

    Attributes:
        changes: of dtype CHANGE, gene by gene, in the order of the gene's codons.
        genes: how many genes were read.
        dropped: reason to how many were not.
    """

    changes: np.ndarray
    genes: int
    dropped: dict[str, int]


def coding_changes(store: GenomeStore, transcripts: Iterable[Transcript]) -> CodingChanges:
    """The changes of all genes that begin with ATG, end with the only stop codon, and have no unknown base.

    Args:
        store: the genome.
        transcripts: see :func:`domains.genomics.annotation.labels.transcripts`.
    """
    numbers = {contig.name: i for i, contig in enumerate(store.contigs)}
    amino_acids = standard_code()
    found: list[np.ndarray] = []
    dropped: Counter[str] = Counter()
    for transcript in transcripts:
        positions = coding_positions(transcript)
        bases, before, after = _as_read(store, transcript, positions)
        reason = _unreadable(transcript, bases, amino_acids)
        if reason is None and bool((before > 3).any() | (after > 3).any()):
            reason = "unknown base beside it"
        if reason is not None:
            dropped[reason] += 1
            continue
        changes = _changes(bases, before, after, amino_acids)
        changes["contig"], changes["gene"] = numbers[transcript.contig], len(found)
        changes["strand"] = transcript.strand
        changes["position"] = positions[changes["codon"] * 3 + changes["place"]]
        if transcript.strand < 0:
            for name in ("ref", "alt"):
                changes[name] = A + T - changes[name]
        found.append(changes)
    return CodingChanges(np.concatenate(found or [np.zeros(0, CHANGE)]), len(found), dict(dropped))


def coding_positions(transcript: Transcript) -> np.ndarray:
    """Positions of the coding bases as the gene reads them, int64 (n,), 0-based."""
    positions = np.concatenate([np.arange(part.start, part.end) for part in transcript.coding])
    return positions if transcript.strand > 0 else positions[::-1]


def standard_code() -> np.ndarray:
    """Letters of amino acids, '*' a stop, by codon: uint8 (64,); A, C, G, T are 0 to 3, the first base counts most."""
    from Bio.Seq import translate  # late: machines that only train lack it

    codons = "".join(a + b + c for a in _BASES for b in _BASES for c in _BASES)
    return np.frombuffer(translate(codons).encode("ascii"), dtype=np.uint8)


def _as_read(
    store: GenomeStore, transcript: Transcript, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The coding bases, and those before and after each in the genome, as the gene reads: 0 to 3, more if unknown."""
    contig = store.contig(transcript.contig)
    first = int(positions.min())
    stretch = store.tokens(contig.name, max(0, first - 1), min(int(positions.max()) + 2, contig.length))
    left = np.zeros(1 if first == 0 else 0, np.uint8)
    right = np.zeros(1 if int(positions.max()) + 1 == contig.length else 0, np.uint8)
    padded = np.concatenate([left, stretch, right])  # one base on either side; 0 is no base
    index = positions - first + 1
    triples = np.stack([padded[index - 1], padded[index], padded[index + 1]], axis=1)
    if transcript.strand < 0:
        triples = reverse_complement(triples)
    before, bases, after = (triples - np.uint8(A)).T
    return bases, before, after


def _unreadable(transcript: Transcript, bases: np.ndarray, amino_acids: np.ndarray) -> str | None:
    """Why a gene is left out; None when it is not."""
    if (bases > 3).any():
        return "unknown base"
    if transcript.phase or len(bases) % 3 or len(bases) < 9:
        return "no whole codons"
    if bases[:3].tolist() != [_BASES.index(base) for base in "ATG"]:
        return "no start codon"
    stops = np.flatnonzero(amino_acids[_codons(bases)] == _STOP)
    if stops.tolist() != [len(bases) // 3 - 1]:
        return "stop codon inside" if len(stops) else "no stop codon"
    return None


def _codons(bases: np.ndarray) -> np.ndarray:
    return bases.reshape(-1, 3).astype(np.int64) @ np.array([16, 4, 1])


def _changes(bases: np.ndarray, before: np.ndarray, after: np.ndarray, amino_acids: np.ndarray) -> np.ndarray:
    """The three changes of each base between the first codon and the last; alleles as the gene reads."""
    at = np.repeat(np.arange(3, len(bases) - 3), 3)
    alt = (bases[at] + np.tile(np.array([1, 2, 3]), len(at) // 3)) % 4
    codon, place = at // 3, at % 3
    whole = _codons(bases)[codon]
    changed = whole + (alt.astype(np.int64) - bases[at]) * 4 ** (2 - place)
    old, new = amino_acids[whole], amino_acids[changed]
    found = np.zeros(len(at), dtype=CHANGE)
    found["ref"], found["alt"] = bases[at] + np.uint8(A), alt + np.uint8(A)
    found["codon"], found["place"] = codon, place
    found["effect"] = np.where(old == new, SYNONYMOUS, np.where(new == _STOP, STOP_GAINED, MISSENSE))
    found["context"] = ((before[at].astype(np.int64) * 4 + bases[at]) * 4 + after[at]) * 4 + alt
    return found


def draw_changes(changes: np.ndarray, per_gene: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the changes to score: a fair share of each gene's, and their like.

    Of each gene up to ``per_gene`` stop-gained changes and as many synonymous ones by chance; then, for each context in
    which stop-gained changes were drawn, as many synonymous ones of the same context, from whichever gene.

    Returns:
        rising int64 (n,), without repetition; and bool (n,), which of them were drawn by chance.
    """
    drawn = [part for gene in _of_each(changes["gene"]) for part in _pair(changes, gene, per_gene, random)]
    by_chance = np.concatenate(drawn or [np.zeros(0, np.int64)])
    stops = by_chance[changes["effect"][by_chance] == STOP_GAINED]
    synonymous = np.flatnonzero(changes["effect"] == SYNONYMOUS)
    like = [by_chance]
    for context, count in zip(*np.unique(changes["context"][stops], return_counts=True), strict=True):
        pool = synonymous[changes["context"][synonymous] == context]
        like.append(random.choice(pool, min(int(count), len(pool)), replace=False))
    numbers = np.unique(np.concatenate(like))
    return numbers, np.isin(numbers, by_chance)


def _of_each(gene: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of the changes of each gene, which lie together."""
    borders = np.flatnonzero(np.diff(gene)) + 1
    return iter(np.split(np.arange(len(gene)), borders)) if len(gene) else iter(())


def _pair(
    changes: np.ndarray, gene: np.ndarray, per_gene: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    stops, synonymous = (gene[changes["effect"][gene] == effect] for effect in (STOP_GAINED, SYNONYMOUS))
    count = min(per_gene, len(stops), len(synonymous))
    return random.choice(stops, count, replace=False), random.choice(synonymous, count, replace=False)
