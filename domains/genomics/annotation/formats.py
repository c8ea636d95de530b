"""Annotation files: GFF3, GTF, BED (3 to 12 columns) and GenBank, plain, gzip or bgzip, told apart by content.

GFF3, GTF and GenBank count bases from 1 and include the last; BED counts from 0 and excludes it. What is read counts as
BED does. (GFF3: the Sequence Ontology's specification 1.26; BED: the GA4GH specification 1.0.)
"""

import gzip
import io
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from domains.errors import UserError
from domains.genomics.io import check_readable, open_watched, unpacked

KINDS = "GFF3, GTF, BED or GenBank"
REGION = "region"  # type of a BED row whose name says none
_MANY_NAMES = 64  # names of BED rows that are fewer than these are types, such as the states of a segmentation
_STRANDS = {"+": 1, "-": -1, ".": 0, "?": 0}
_GTF_ATTRIBUTE = re.compile(r'\s*\w+ +("[^"]*"|[^\s";=]+)\s*(;|$)')
_TRANSCRIPT = re.compile(r'transcript_id +"?([^";]+)')
_GENE = re.compile(r'gene_id +"?([^";]+)')


class Feature(NamedTuple):
    """One row of an annotation."""

    contig: str
    start: int  # 0-based
    end: int  # excluded
    strand: int  # 1, -1, or 0 where the file says none
    type: str
    phase: int  # bases to the first whole codon, of CDS; -1 where the file says none
    parent: str  # what the row is part of, of CDS and exons their transcript; "" where the file says nothing
    record: int  # line of the file, in GenBank the number of the feature


class Contents(NamedTuple):
    """What an annotation file holds."""

    features: list[Feature]
    contigs: list[str]  # that the file speaks of, with features or without
    format: str  # GFF3 | GTF | BED | GenBank


def parse_annotation(path: Path | str, progress: bool = False) -> Contents:
    """Read an annotation file.

    A GFF3 row with several parents is given once for each. BED rows of 12 columns are transcripts: each block is an
    exon, and its part between thickStart and thickEnd CDS. Other BED rows have no parent, and their name as type where
    the file has fewer than 64 names; they are of type ``region`` where it has more or none. Of GenBank, each part of a
    joined location is a feature.

    Args:
        path: the file.
        progress: show a bar over the bytes of the file when reading takes longer than a second.

    Raises:
        UserError: the file cannot be read, is of no such format or truncated, or a row has a coordinate, a strand or a
            phase that makes no sense; the message names the line.
    """
    path = Path(path)
    check_readable(path, KINDS)
    with open_watched(path, progress) as file:
        try:
            contents = _parse(path, io.TextIOWrapper(unpacked(path, file), encoding="utf-8", errors="replace"))
        except EOFError:
            raise UserError(f"{path}: the gzip file is truncated; copy or download it again") from None
        except (gzip.BadGzipFile, zlib.error):
            raise UserError(f"{path}: the gzip file is damaged; copy or download it again") from None
    if not contents.features:
        raise UserError(f"{path}: holds no feature; give a {KINDS} file that does")
    return contents


def _parse(path: Path, text: io.TextIOWrapper) -> Contents:
    head: list[str] = []
    for line in text:
        head.append(line.removeprefix("\ufeff") if not head else line)
        if line.strip() and not line.startswith(("#", "track", "browser")):
            break
    rest = _chain(head, text)
    if not head or not (first := head[-1]).strip():
        raise UserError(f"{path}: holds no feature; give a {KINDS} file")
    if first.startswith("LOCUS "):
        return _parse_genbank(path, rest)
    if first.startswith(">"):
        raise UserError(f"{path}: is a FASTA file; give it as data.fasta, and its {KINDS} as data.annotation")
    if "\0" in first:
        raise UserError(f"{path}: is a binary file; give {KINDS} (plain, gzip or bgzip)")
    if any(line.startswith("##gff-version") for line in head) or (first.count("\t") == 8 and not _is_bed(first)):
        return _parse_gff(path, rest)
    if _is_bed(first):
        return _parse_bed(path, rest)
    raise UserError(
        f"{path}: line {len(head)} is neither GFF3, GTF, BED nor GenBank ({first.strip()[:40]!r}); "
        "columns are separated by tabs"
    )


def _chain(head: list[str], text: Iterable[str]) -> Iterator[str]:
    yield from head
    yield from text


def _is_bed(line: str) -> bool:
    columns = line.split()
    return len(columns) >= 3 and columns[1].isdigit() and columns[2].isdigit()


# GFF3 and GTF


def _parse_gff(path: Path, lines: Iterator[str]) -> Contents:
    features: list[Feature] = []
    contigs: dict[str, None] = {}
    circular: dict[str, int] = {}
    gtf = None
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            if line.startswith("##FASTA"):
                break
            if line.startswith("##sequence-region") and len(words := line.split()) > 1:
                contigs[unquote(words[1])] = None
            continue
        if line.startswith(">"):
            break
        if not line.strip():
            continue
        columns = line.rstrip("\r\n").split("\t")
        if len(columns) != 9:
            raise UserError(
                f"{path}: line {number} has {len(columns)} columns, not 9 separated by tabs ({line.strip()[:40]!r})"
            )
        if gtf is None:
            gtf = bool(_GTF_ATTRIBUTE.match(columns[8]))
        if "Is_circular=true" in columns[8]:
            circular[unquote(columns[0])] = int(columns[4]) if columns[4].isdigit() else 0
        features += _gff_features(path, number, columns, gtf)
        contigs[features[-1].contig] = None
    features = _unwind(features, circular) if circular else features
    return Contents(features, list(contigs), "GTF" if gtf else "GFF3")


def _gff_features(path: Path, number: int, columns: list[str], gtf: bool) -> Iterator[Feature]:
    contig, _, kind, first, last, _, strand, phase, attributes = columns
    if not (first.isdigit() and last.isdigit()):
        raise UserError(f"{path}: line {number}: start {first!r} and end {last!r} must be whole numbers")
    start, end = int(first) - 1, int(last)
    _check_span(path, number, start, end, "start, counted from 1")
    if strand not in _STRANDS:
        raise UserError(f"{path}: line {number}: strand {strand!r} must be +, -, . or ?")
    if phase not in ("0", "1", "2", "."):
        raise UserError(f"{path}: line {number}: phase {phase!r} of {kind} must be 0, 1, 2 or .")
    of_codon = int(phase) if phase != "." else -1
    if gtf:
        found = _TRANSCRIPT.search(attributes) or _GENE.search(attributes)
        parents = [found[1] if found else ""]
    else:
        contig, kind = unquote(contig), unquote(kind)
        parents = _gff3_parents(attributes)
    for parent in parents:
        yield Feature(contig, start, end, _STRANDS[strand], kind, of_codon, parent, number)


def _gff3_parents(attributes: str) -> list[str]:
    """The parents that a row names; without one, its ID: so CDS rows that share an ID are one CDS."""
    own = ""
    for attribute in attributes.split(";"):
        key, _, value = attribute.strip().partition("=")
        if key == "Parent":
            return [unquote(parent) for parent in value.split(",")]
        if key == "ID":
            own = unquote(value)
    return [own]


def _unwind(features: list[Feature], circular: dict[str, int]) -> list[Feature]:
    """Features that cross the origin of a circular contig, whose end lies beyond it, in two parts."""
    whole = []
    for feature in features:
        length = circular.get(feature.contig, 0)
        if feature.start < length < feature.end:
            parts = [feature._replace(end=length), feature._replace(start=0, end=feature.end - length, phase=-1)]
            whole += parts if feature.strand >= 0 else [part._replace(phase=-1) for part in parts]
        else:
            whole.append(feature)
    return whole


# BED


def _parse_bed(path: Path, lines: Iterator[str]) -> Contents:
    features: list[Feature] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        columns = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        if len(columns) < 3 or not (columns[1].isdigit() and columns[2].isdigit()):
            raise UserError(
                f"{path}: line {number}: a BED row begins with contig, start and end ({line.strip()[:40]!r})"
            )
        start, end = int(columns[1]), int(columns[2])
        _check_span(path, number, start, end, "start, counted from 0")
        strand = columns[5] if len(columns) > 5 else "."
        if strand not in _STRANDS:
            raise UserError(f"{path}: line {number}: strand {strand!r} must be +, - or .")
        name = columns[3] if len(columns) > 3 and columns[3] != "." else ""
        row = Feature(columns[0], start, end, _STRANDS[strand], name, -1, "", number)
        features += _blocks(path, row, columns) if len(columns) >= 12 else [row]
    names = {feature.type for feature in features}
    if len(names) >= _MANY_NAMES or "" in names:
        features = [feature._replace(type=REGION) for feature in features]
    return Contents(features, list(dict.fromkeys(feature.contig for feature in features)), "BED")


def _blocks(path: Path, row: Feature, columns: list[str]) -> Iterator[Feature]:
    """Exons and CDS of a BED row of 12 columns."""
    try:
        thick_start, thick_end, count = int(columns[6]), int(columns[7]), int(columns[9])
        sizes, offsets = ([int(text) for text in columns[i].split(",") if text] for i in (10, 11))
        if not count == len(sizes) == len(offsets):
            raise ValueError
    except ValueError:
        raise UserError(
            f"{path}: line {row.record}: columns 7 to 12 must be thickStart, thickEnd, itemRgb, blockCount, "
            "blockSizes and blockStarts"
        ) from None
    name = row.type or f"{row.contig}:{row.start}-{row.end}"
    for size, offset in zip(sizes, offsets, strict=True):
        start, end = row.start + offset, row.start + offset + size
        if end > row.end:
            raise UserError(f"{path}: line {row.record}: a block ends at {end:,}, behind its row")
        yield row._replace(start=start, end=end, type="exon", parent=name)
        if max(start, thick_start) < min(end, thick_end):
            yield row._replace(start=max(start, thick_start), end=min(end, thick_end), type="CDS", parent=name)


def _check_span(path: Path, number: int, start: int, end: int, what: str) -> None:
    if start < 0 or end <= start:
        raise UserError(f"{path}: line {number}: the feature holds no base ({what}, must lie before its end)")


# GenBank


def _parse_genbank(path: Path, lines: Iterator[str]) -> Contents:
    from Bio import BiopythonParserWarning, SeqIO  # late: machines that only train lack biopython

    features: list[Feature] = []
    contigs: list[str] = []
    number = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiopythonParserWarning)
        try:
            for record in SeqIO.parse(_Lines(lines), "genbank"):
                contigs.append(record.id or record.name)
                for feature in record.features:
                    number += 1
                    if feature.location is None:
                        raise UserError(
                            f"{path}: {contigs[-1]}: the location of feature {number} ({feature.type}) cannot be read"
                        )
                    if feature.type != "source":
                        features += _genbank_parts(contigs[-1], feature, number)
        except UserError:
            raise
        except ValueError as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{path}: record {len(contigs) + 1} is broken GenBank ({reason})") from None
    return Contents(features, contigs, "GenBank")


def _genbank_parts(contig: str, feature: Any, number: int) -> Iterator[Feature]:
    """The parts of a location, in the order of transcription; ``codon_start`` is the phase of the first, plus one."""
    names = (feature.qualifiers.get(key, [""])[0] for key in ("transcript_id", "protein_id", "locus_tag", "gene"))
    parent = next((name for name in names if name), "") or f"{contig} feature {number}"
    phase = int(feature.qualifiers.get("codon_start", ["1"])[0]) - 1 if feature.type == "CDS" else -1
    for part in feature.location.parts:
        if part.ref is None:  # a part on another record is none of this contig's
            yield Feature(contig, int(part.start), int(part.end), part.strand or 0, feature.type, phase, parent, number)
            phase = (phase - (int(part.end) - int(part.start))) % 3 if phase >= 0 else -1


class _Lines(io.TextIOBase):
    """An iterator of lines as the file that Biopython's parser wants."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> str:
        return "" if size == 0 else "".join(self._lines)

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        return next(self._lines, "")
