"""From the records of a VCF to rows of the table: where each allele lies, and what is wrong with those that do not."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from domains.errors import UserError
from domains.genomics.contig_names import suggest_contig
from domains.genomics.store import GenomeStore
from domains.genomics.variants.alleles import Reason, resolve, to_vcf
from domains.genomics.variants.haplotypes import Place
from domains.genomics.variants.table import Row
from domains.genomics.variants.vcf import Malformed, VcfReader, VcfRecord

_FEW = 20  # alleles by which an assembly cannot be told from another


class Alleles:
    """Alleles of records as rows of the table, and what they do to the genome.

    Args:
        store: the genome.
        vcf: the file that the records are from, for messages.
    """

    def __init__(self, store: GenomeStore, vcf: Path) -> None:
        self._store = store
        self._vcf = vcf
        self._lengths = {contig.name: contig.length for contig in store.contigs}
        self._at: tuple[str, int] = ("", 0)
        self._seen: set[tuple[str, str]] = set()  # alleles of the position last looked at
        self._count = 0

    def rows(self, record: VcfRecord | Malformed) -> list[Row]:
        """A row for each allele of the next record."""
        number = self._count
        self._count += 1
        if isinstance(record, Malformed):
            return [Row(number, record.line, None, None, None, None, None, reason=Reason.MALFORMED)]
        if self._at != (record.contig, record.position):
            self._at, self._seen = (record.contig, record.position), set()
        found = []
        for alt in record.alts:
            row = Row(number, record.line, record.contig, record.position, record.name, record.ref, alt)
            allele = record.ref.upper(), alt.upper()
            row.duplicate = allele in self._seen
            self._seen.add(allele)
            found.append(row)
        return found

    def place(self, row: Row) -> Place | None:
        """Where a row's allele changes what; puts kind, normal form or reason into the row."""
        if row.contig is None or row.position is None or row.ref is None or row.alt is None:
            return None
        length, read = self._lengths.get(row.contig), partial(self._store.tokens, row.contig)
        if length is None:
            row.reason = Reason.UNKNOWN_CONTIG
            return None
        edit = resolve(read, length, row.position, row.ref, row.alt)
        if isinstance(edit, Reason):
            row.reason = edit
            return None
        row.kind = edit.kind
        row.normal_position, row.normal_ref, row.normal_alt = to_vcf(read, edit)
        return Place(row.contig, read, length, edit)

    def refuse_other_names(self, reader: VcfReader, rows: Sequence[Row]) -> None:
        """A UserError when no contig that the file declares or begins with is one of the genome's."""
        names = [*dict.fromkeys(row.contig for row in rows if row.contig is not None)]
        if names and not any(name in self._lengths for name in (*names, *reader.contigs)):
            source = self._store.source_name
            hint = suggest_contig(names[0], self._lengths)
            raise UserError(
                f"{self._vcf}: {source} has no contig {names[0]!r}; {hint}; rename them in one of the two files"
            )

    def refuse_other_assembly(self, rows: Sequence[Row]) -> None:
        """A UserError when most alleles have another REF than the genome, or lie where it has ended."""
        differing = [row for row in rows if row.reason in (Reason.REF_MISMATCH, Reason.BEYOND_CONTIG)]
        agreeing = sum(row.kind is not None for row in rows)
        if len(differing) + agreeing < _FEW or len(differing) <= agreeing:
            return
        first = differing[0]
        raise UserError(
            f"{self._vcf}: REF is not what {self._store.source_name} has at {len(differing):,} of "
            f"{len(differing) + agreeing:,} alleles ({first.contig}:{first.position} {first.ref} is the first); "
            "give the assembly that the variants were called on"
        )
