"""VCF in and out: records in their order, with values added to INFO and nothing else changed.

Lines are kept as they came. htslib would write numbers anew and ends the process at a record whose tags the header does
not declare, so that pysam does here what does not depend on the record: BCF, blocks of bgzip, and tabix indexes.
"""

import gzip
import io
import re
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from domains.errors import UserError
from domains.genomics.io import check_readable, open_watched, unpacked

_BCF_MAGIC = b"BCF\2"
_FIXED = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
_INFO = 7
_CONTIG = re.compile(r"##contig=<(?:.*,)?ID=([^,>]+)")
_LARGEST_TBI = 1 << 29  # positions; beyond them an index of the CSI kind is needed
_NEITHER_TEXT = "surrogateescape"  # so that bytes which are no UTF-8 come out as they came in


class VcfRecord(NamedTuple):
    """One line of a VCF, and what matters of it here."""

    line: int  # number in the file, from 1
    columns: list[str]
    contig: str
    position: int  # POS, 1-based; 0 is allowed: before the first base
    name: str  # ID
    ref: str
    alts: list[str]


class Malformed(NamedTuple):
    """A line that is no record."""

    line: int
    text: str


class VcfReader:
    """A VCF or BCF file, open: its header, then its records. Made by :func:`open_vcf`.

    Attributes:
        path: the file.
        header: the lines that begin with ``##``, without line ends.
        columns: of the line that begins with ``#CHROM``.
    """

    def __init__(self, path: Path, lines: Iterator[str]) -> None:
        self.path = path
        self.header: list[str] = []
        self.columns: list[str] = []
        self._lines = lines
        self._read = 0
        self._read_header()

    @property
    def contigs(self) -> list[str]:
        """Contigs that the header declares."""
        return [match[1] for line in self.header if (match := _CONTIG.match(line))]

    def records(self) -> Iterator[VcfRecord | Malformed]:
        """All lines behind the header but blank ones; once."""
        for line in self._lines:
            self._read += 1
            if line:
                yield self._parse(line)

    def _parse(self, line: str) -> VcfRecord | Malformed:
        columns = line.split("\t")
        if len(columns) != len(self.columns):
            return Malformed(self._read, line)
        contig, position, name, ref, alt = columns[:5]
        if not (contig and ref and position.isascii() and position.isdigit()):
            return Malformed(self._read, line)
        return VcfRecord(self._read, columns, contig, int(position), name, ref, alt.split(","))

    def _read_header(self) -> None:
        for line in self._lines:
            self._read += 1
            if line.startswith("##"):
                self.header.append(line)
            elif line.startswith("#CHROM"):
                self.columns = line.split("\t")
                break
            elif line:
                raise UserError(f"{self.path}: {_no_columns(line, self._read)}")
        if not self.columns:
            raise UserError(f"{self.path}: ends without a #CHROM line; give a VCF file")
        if tuple(self.columns[: len(_FIXED)]) != _FIXED:
            raise UserError(f"{self.path}: line {self._read}: must be {' '.join(_FIXED)}, set apart by tabs")


def _no_columns(line: str, number: int) -> str:
    if not line.startswith("#") and line.count("\t") < len(_FIXED) - 1:
        return f"line {number} ({line[:20]!r}) is no VCF; a VCF begins with ##fileformat=VCFv4.2"
    return f"no #CHROM line before line {number}; put one there: {' '.join(_FIXED)}, set apart by tabs"


@contextmanager
def open_vcf(path: Path | str, progress: bool = False) -> Iterator[VcfReader]:
    """Open a VCF (plain, gzip, bgzip) or BCF file, told by content.

    Raises:
        UserError: it cannot be read, is compressed twice, truncated, damaged, or has no header; while records are read
            too.
    """
    path = Path(path)
    check_readable(path, "VCF or BCF")
    with open_watched(path, progress) as file:
        try:
            content = unpacked(path, file)
            if content.peek(4).startswith(_BCF_MAGIC):
                with closing(_bcf_lines(path)) as lines:
                    yield VcfReader(path, lines)
            else:
                yield VcfReader(path, _text_lines(content))
        except EOFError:
            raise UserError(f"{path}: the gzip file is truncated; copy or download it again") from None
        except (gzip.BadGzipFile, zlib.error):
            raise UserError(f"{path}: the gzip file is damaged; copy or download it again") from None


def _text_lines(file: io.BufferedReader) -> Iterator[str]:
    for number, line in enumerate(file):
        text = line.decode("utf-8", _NEITHER_TEXT).rstrip("\r\n")
        yield text if number else text.removeprefix("\ufeff")


def _bcf_lines(path: Path) -> Generator[str, None, None]:
    """The lines of the VCF that a BCF file stands for."""
    import pysam  # late: machines that only train lack it

    try:
        with pysam.VariantFile(str(path)) as file:
            yield from str(file.header).splitlines()
            for record in file:
                yield str(record).rstrip("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as BCF ({error}); copy or download it again") from None


@dataclass
class VcfOrder:
    """Whether records come as an index needs them: each contig in one piece, positions never falling.

    Attributes:
        broken_at: line of the first record that does not; None while all do.
        contigs: of the records, in the order in which they came.
        last: the largest position.
    """

    broken_at: int | None = None
    contigs: dict[str, None] = field(default_factory=dict)
    last: int = 0
    _at: tuple[str, int] = ("", 0)

    def add(self, record: VcfRecord) -> None:
        """Look at the next record."""
        contig, position = self._at
        falls = record.contig in self.contigs if record.contig != contig else record.position < position
        if falls and self.broken_at is None:
            self.broken_at = record.line
        self._at = record.contig, record.position
        self.contigs[record.contig] = None
        self.last = max(self.last, record.position)


class Field(NamedTuple):
    """A key of INFO with a value for each alternative allele."""

    key: str
    kind: str  # Float | String
    description: str

    def declaration(self) -> str:
        """Its line of the header."""
        return f'##INFO=<ID={self.key},Number=A,Type={self.kind},Description="{self.description}">'


def extended_header(
    reader: VcfReader, fields: Sequence[Field], origin: Mapping[str, object], contigs: Mapping[str, int | None]
) -> list[str]:
    """The header of a VCF with values added.

    Args:
        reader: the file they are added to. Earlier declarations of the same keys are replaced, and a missing
            ``##fileformat`` is put in.
        fields: that are declared.
        origin: what they were made of and with, told in one line.
        contigs: name to length of those that occur; what the header lacks of them is declared.
    """
    ours = [f"##INFO=<ID={field.key}," for field in fields] + ["##serpentine="]
    kept = [line for line in reader.header if not line.startswith(tuple(ours))]
    if not kept or not kept[0].startswith("##fileformat="):
        kept.insert(0, "##fileformat=VCFv4.2")
    known = set(reader.contigs)
    for name, length in contigs.items():
        if name not in known:
            kept.append(f"##contig=<ID={name}>" if length is None else f"##contig=<ID={name},length={length}>")
    told = ",".join(f"{key}={_quoted(value)}" for key, value in origin.items())
    return [*kept, *(entry.declaration() for entry in fields), f"##serpentine=<{told}>", "\t".join(reader.columns)]


def _quoted(value: object) -> str:
    if isinstance(value, int | float):
        return str(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def with_values(record: VcfRecord, fields: Sequence[Field], values: Mapping[str, Sequence[str | float | None]]) -> str:
    """The line of a record with a value of each alternative allele added to INFO; None is written as '.'.

    Keys of which all values are None are left out, and what the record has of ``fields`` already is replaced.
    """
    keys = {field.key for field in fields}
    kept = [part for part in record.columns[_INFO].split(";") if part not in (".", "") and _key(part) not in keys]
    added = [
        f"{key}={','.join(map(_shown, numbers))}"
        for key, numbers in values.items()
        if any(number is not None for number in numbers)
    ]
    columns = list(record.columns)
    columns[_INFO] = ";".join(kept + added) or "."
    return "\t".join(columns)


def _key(part: str) -> str:
    return part.partition("=")[0]


def _shown(value: str | float | None) -> str:
    if value is None:
        return "."
    return value if isinstance(value, str) else f"{value:.6g}"


def write_vcf(path: Path, header: Sequence[str], lines: Iterator[str]) -> None:
    """Write a VCF; in blocks of bgzip where its name ends in .gz. Not atomic."""
    target: Any
    if path.suffix == ".gz":
        import pysam

        target = pysam.BGZFile(str(path), "wb", None)
    else:
        target = path.open("wb")
    with closing(target):
        for line in chain(header, lines):
            target.write(f"{line}\n".encode("utf-8", _NEITHER_TEXT))


def index_vcf(path: Path, last: int) -> Path:
    """Write the index of a sorted, bgzipped VCF beside it: tabix, or CSI where a position is too large for that.

    Args:
        path: the file.
        last: the largest position.

    Raises:
        UserError: htslib refuses.
    """
    import pysam

    large = last >= _LARGEST_TBI
    before = pysam.set_verbosity(0)  # htslib would warn of records before a contig's first base, which VCF allows
    try:
        pysam.tabix_index(str(path), preset="vcf", force=True, csi=large)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be indexed ({error})") from None
    finally:
        pysam.set_verbosity(before)
    return path.with_name(path.name + (".csi" if large else ".tbi"))
