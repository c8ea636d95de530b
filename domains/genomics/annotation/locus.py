"""A stretch of a contig to look at: what a model says along it, over the genes that are there."""

import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from domains.errors import UserError
from domains.genomics.annotation.labels import transcripts
from domains.genomics.annotation.table import FeatureTable
from domains.genomics.splits import Region
from domains.genomics.store import GenomeStore

LENGTH = 30_000  # bases that are shown unless the user says otherwise
_POINTS = 3_000  # of a track


class Gene(NamedTuple):
    """A box and its parts, 0-based and half-open, on the contig."""

    strand: int
    parts: list[tuple[int, int]]


@dataclass(frozen=True)
class Locus:
    """Tracks over genes.

    Attributes:
        contig, start, end: where, 0-based and half-open.
        positions: of the tracks' points. tracks: name to probabilities there.
        genes: what is annotated there: transcripts, or features of the type that is told apart.
    """

    contig: str
    start: int
    end: int
    positions: list[int]
    tracks: dict[str, list[float]]
    genes: list[Gene]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"genes": [gene._asdict() for gene in self.genes]}


def find_locus(text: str, store: GenomeStore, regions: list[Region]) -> Region:
    """The stretch that ``contig:start-end`` names; without one, the middle of the first of the regions.

    Raises:
        UserError: it is no such stretch, or not one of the genome's.
    """
    if not text:
        region = regions[0]
        length = min(LENGTH, region.length)
        start = region.start + (region.length - length) // 2
        return Region(region.contig, start, start + length)
    found = re.fullmatch(r"(.+):([\d,]+)-([\d,]+)", text)
    if found is None:
        raise UserError(f"locus={text}: write contig:start-end, as in chr20:100000-130000")
    start, end = (int(number.replace(",", "")) for number in found.groups()[1:])
    contig = store.contig(found[1])
    if not 0 <= start < end <= contig.length:
        raise UserError(f"locus={text}: lies outside the contig; {contig.name} has {contig.length:,} bases")
    return Region(contig.name, start, end)


def genes_in(table: FeatureTable, where: Region, positive: str | None = None) -> list[Gene]:
    """Transcripts with coding parts that touch the stretch, or without them the features of type ``positive``."""
    if positive in (None, "CDS"):
        found = [
            Gene(one.strand, [(part.start, part.end) for part in one.coding])
            for one in transcripts(table)
            if one.contig == where.contig
        ]
    else:
        contig = table.contigs.index(where.contig) if where.contig in table.contigs else -1
        rows = table.select(positive or "").tolist()
        found = [Gene(row[3], [(row[1], row[2])]) for row in rows if row[0] == contig]
    return [gene for gene in found if gene.parts[0][0] < where.stop and gene.parts[-1][1] > where.start]


def step_of(where: Region) -> int:
    """Bases between the points of a track."""
    return max(1, where.length // _POINTS)
