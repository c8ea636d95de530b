"""What a batch job over a genome does at a time: a contig, a block of one, or many small contigs together.

Parts follow from the genome and the settings alone, so any process finds the same ones: shards of a job, actors of
Ray, and a run that goes on where another was killed.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from domains.files import file_stem
from domains.genomics.store import Contig, GenomeStore

FEW = 1000  # contigs; up to so many, each has files of its own
GROUP = 1 << 24  # bases; beyond, contigs shorter than this share files of about so many

Reader = Callable[[int, int], np.ndarray]  # (start, stop) -> uint8 tokens (stop - start,)


@dataclass(frozen=True)
class Part:
    """A run of neighbouring bases, written into files of its own.

    Attributes:
        name: the contig, ``contig:start-stop`` (0-based, half-open) of a block, or ``contigs 1-5000`` by number.
        stem: of its files' names.
        contigs: which of the store's.
        start, stop: positions of ``store.raw``.
    """

    name: str
    stem: str
    contigs: range
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Bases."""
        return self.stop - self.start


class Piece(NamedTuple):
    """A stretch of one contig, 0-based and half-open, and how much around it is read to warm up.

    ``lead`` bases before it are read on the forward strand, ``trail`` bases behind it on the reverse strand; of a
    circular contig they may be those of its other end.
    """

    contig: Contig
    start: int
    stop: int
    lead: int
    trail: int

    @property
    def length(self) -> int:
        """Bases, without those around."""
        return self.stop - self.start


def plan_parts(store: GenomeStore, block: int | None = None, least: int = 1) -> list[Part]:
    """The parts of a genome, in its order.

    Each contig is a part; in a genome of more than FEW, runs of contigs shorter than GROUP are, so that a million
    contigs do not become a million files. With ``block``, contigs longer than that are cut at its multiples, but not
    less than ``least`` bases before their end.
    """
    small = min(GROUP, block or GROUP) if len(store.contigs) > FEW else 0
    parts: list[Part] = []
    run: list[int] = []  # small contigs that share files
    size = 0
    for number, contig in enumerate(store.contigs):
        if contig.length < small:
            run.append(number)
            size += contig.length
            if size < GROUP:
                continue
        if run:
            parts.append(_group(store, run))
            run, size = [], 0
        if contig.length >= small:
            parts += _blocks(contig, number, block or contig.length, least)
    if run:
        parts.append(_group(store, run))
    return _apart(parts)


def pieces(store: GenomeStore, part: Part, warmup: int = 0) -> Iterator[Piece]:
    """What a part is of each of its contigs, in their order.

    Args:
        warmup: bases to read before a stretch, as far as its contig has them; a circular one has them all round.
    """
    for number in part.contigs:
        contig = store.contigs[number]
        start = max(part.start - contig.offset, 0)
        stop = min(part.stop - contig.offset, contig.length)
        around = contig.length if contig.circular else 0
        yield Piece(
            contig,
            start,
            stop,
            lead=min(warmup, around or start),
            trail=min(warmup, around or contig.length - stop),
        )


def reader(store: GenomeStore, piece: Piece) -> Reader:
    """Reads a piece and what is around it: position 0 is its start, those before and behind it go round the contig."""
    contig = piece.contig

    def read(start: int, stop: int) -> np.ndarray:
        first, last = piece.start + start, piece.start + stop
        stretches = []
        while first < last:
            at = first % contig.length
            count = min(last - first, contig.length - at)
            stretches.append(store.tokens(contig.name, at, at + count))
            first += count
        return stretches[0] if len(stretches) == 1 else np.concatenate([*stretches, np.zeros(0, np.uint8)])

    return read


def unit_of(parts: list[Part], store: GenomeStore) -> str:
    """What the parts are: ``contig``, or ``part`` where contigs are cut or share files."""
    return "contig" if [part.name for part in parts] == store.names else "part"


def _blocks(contig: Contig, number: int, block: int, least: int) -> list[Part]:
    stem = file_stem(contig.name)
    found = []
    borders = [*range(0, max(contig.length - least + 1, 1), block), contig.length]
    for start, stop in pairwise(borders):
        whole = len(borders) == 2
        found.append(
            Part(
                name=contig.name if whole else f"{contig.name}:{start}-{stop}",
                stem=stem if whole else f"{stem}.{start:010d}-{stop:010d}",
                contigs=range(number, number + 1),
                start=contig.offset + start,
                stop=contig.offset + stop,
            )
        )
    return found


def _group(store: GenomeStore, run: list[int]) -> Part:
    first, last = store.contigs[run[0]], store.contigs[run[-1]]
    return Part(
        name=f"contigs {run[0] + 1}-{run[-1] + 1}",  # no contig has a blank in its name
        stem=f"contigs-{run[0] + 1:07d}-{run[-1] + 1:07d}",
        contigs=range(run[0], run[-1] + 1),
        start=first.offset,
        stop=last.offset + last.length,
    )


def _apart(parts: list[Part]) -> list[Part]:
    """The same parts, those whose files some file systems would take for each other's with a hash in the name."""
    seen: set[str] = set()
    found = []
    for part in parts:
        if part.stem.casefold() in seen:
            part = Part(part.name, f"{part.stem}-{_hash(part.name)}", part.contigs, part.start, part.stop)
        seen.add(part.stem.casefold())
        found.append(part)
    return found


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]
