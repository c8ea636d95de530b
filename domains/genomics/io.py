"""Sequence files: FASTA (plain, gzip, bgzip) and GenBank in, FASTA out."""

import gzip
import io
import re
import stat
import string
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from domains.errors import UserError
from domains.files import atomic_file
from domains.genomics.tokens import describe_foreign, find_foreign

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")  # SAM specification, 4.1.2
_PACKED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_TEXT = bytes([*b"\t\n\r\f", *range(32, 127), *range(128, 256)])  # headers may be UTF-8
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CIRCULAR = re.compile(r"\[\s*topology\s*=\s*circular\s*\]|(?<!\S)circular=(true|yes)(?!\S)", re.IGNORECASE)


class Record(NamedTuple):
    """One sequence of a file: IUPAC nucleotide codes, lower case kept where the file has a repeat mask."""

    name: str
    sequence: bytes
    circular: bool = False  # whether the file says that the last base is followed by the first


def read_records(path: Path | str, progress: bool = False) -> Iterator[Record]:
    """Read the sequences of a FASTA or GenBank file one after another; compression and format are told by content.

    Names are the first words of FASTA headers, and accession.version in GenBank. The memory is about four times the
    largest record. GenBank knows no repeat mask, so its sequences come in upper case. Circular are GenBank records of
    circular topology, and FASTA records whose header says ``[topology=circular]`` (NCBI's modifier) or
    ``circular=true`` (as assemblers write it).

    Args:
        path: the file.
        progress: show a bar over the bytes of the file when reading takes longer than a second.

    Raises:
        UserError: the file cannot be read, is no nucleotide FASTA or GenBank, is truncated, or a record has no name,
            no sequence, a name that came before, or a letter that is no nucleotide code.
    """
    path = Path(path)
    check_readable(path)
    seen: set[str] = set()
    with open_watched(path, progress) as file:
        try:
            for record in _parse(path, file):
                _check_record(path, record, len(seen) + 1)
                if record.name in seen:
                    raise UserError(f"{path}: record {record.name} occurs twice; rename or remove one of them")
                seen.add(record.name)
                yield record
        except EOFError:
            raise UserError(f"{path}: {_after(seen)}the gzip file is truncated; copy or download it again") from None
        except (gzip.BadGzipFile, zlib.error):
            raise UserError(f"{path}: {_after(seen)}the gzip file is damaged; copy or download it again") from None


def check_readable(path: Path, kinds: str = "FASTA or GenBank") -> None:
    """Make sure that ``path`` is a file that can be opened and holds something, or raise a UserError.

    Args:
        path: the file.
        kinds: the formats that it may have, for messages.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path}: is a folder; give the {kinds} file in it")
        if not stat.S_ISREG(mode):  # it is read twice, and opening a pipe may wait for ever
            raise UserError(f"{path}: is a pipe or a device, not a file; write what comes from it to a file first")
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{path}: the file is empty; give a {kinds} file")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def write_fasta(path: Path | str, records: Iterable[tuple[str, bytes | str]], width: int = 60) -> None:
    """Write (header, sequence) pairs as FASTA, ``width`` letters a line; the file appears whole or not at all."""
    with atomic_file(path) as file:
        for header, sequence in records:
            letters = sequence.encode("ascii") if isinstance(sequence, str) else sequence
            file.write(b">" + header.encode("utf-8") + b"\n")
            for start in range(0, len(letters), width):
                file.write(letters[start : start + width] + b"\n")


def _parse(path: Path, file: io.BufferedReader) -> Iterator[Record]:
    file = unpacked(path, file)
    start = _first_text(path, file)
    if start.startswith(b">"):
        return _parse_fasta(file)
    if start.startswith(b"LOCUS "):
        return _parse_genbank(path, file)
    if start.startswith(b"@"):
        raise UserError(f"{path}: looks like FASTQ reads; give an assembled genome as FASTA")
    shown = start.split(b"\n")[0][:20].decode("latin-1").strip()
    raise UserError(f"{path}: text before the first '>' ({shown!r}); a FASTA file starts with a '>name' line")


def unpacked(path: Path, file: io.BufferedReader) -> io.BufferedReader:
    """What a file holds, whether it is plain, gzip or bgzip; told by content.

    Raises:
        UserError: it is compressed twice, or a bgzip file without its end marker. What gzip itself finds comes as its
            own errors, when read.
    """
    head = file.peek(64)
    if not head.startswith(_GZIP_MAGIC):
        return file
    if head[3] & 4 and head[12:14] == b"BC":  # bgzip: a file cut between two of its blocks is still valid gzip
        _check_bgzip_end(path)
    content: io.BufferedReader = io.BufferedReader(gzip.GzipFile(fileobj=file), _BUFFER)
    if content.peek(2).startswith(_GZIP_MAGIC):
        raise UserError(f"{path}: is compressed twice; unpack it once (gunzip) and give what comes out")
    return content


def _first_text(path: Path, file: io.BufferedReader) -> bytes:
    """Move to the first byte that is not blank and return some of what follows, without moving further."""
    if file.peek(3).startswith(_BYTE_ORDER_MARK):
        file.read(3)
    while (head := file.peek(_BUFFER)) and not head.strip():
        file.read(len(head))
    if not head:
        raise UserError(f"{path}: holds no sequence; give a FASTA or GenBank file")
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise UserError(f"{path}: is a {name} archive; unpack it, or pack it with gzip or bgzip")
    if head[:4096].translate(None, _TEXT):
        raise UserError(f"{path}: is a binary file; give FASTA (plain, gzip, bgzip) or GenBank")
    file.read(len(head) - len(head.lstrip()))
    return head.lstrip()


def _parse_fasta(file: io.BufferedReader) -> Iterator[Record]:
    from Bio.SeqIO.FastaIO import SimpleFastaParser  # late: machines that only train lack biopython

    for title, sequence in SimpleFastaParser(_long_lines(file)):
        words = title.encode("latin-1").decode("utf-8", "replace").split(maxsplit=1)
        circular = len(words) > 1 and _CIRCULAR.search(words[1]) is not None
        yield Record(words[0] if words else "", sequence.encode("latin-1"), circular)


def _long_lines(file: io.BufferedReader) -> Iterator[str]:
    """Lines of a FASTA file, the sequence lines of a megabyte joined into one.

    The parser costs about 150 ns and 110 bytes a line, so a few long lines are three times as fast as many short ones,
    and need half the memory. Line ends may be those of any system.
    """
    while block := file.read(_BUFFER):
        block = (block + file.readline()).replace(b"\r", b"\n")  # whole lines: a '>' always follows a line end
        sequence, *records = (b"\n" + block).split(b"\n>")
        yield from _joined(sequence)
        for record in records:
            title, _, sequence = record.partition(b"\n")
            yield ">" + title.decode("latin-1")
            yield from _joined(sequence)


def _joined(lines: bytes) -> Iterator[str]:
    if letters := lines.translate(None, string.whitespace.encode()):
        yield letters.decode("latin-1")  # a byte a character, and no byte is refused here


def _parse_genbank(path: Path, file: io.BufferedReader) -> Iterator[Record]:
    from Bio import BiopythonParserWarning, SeqIO
    from Bio.Seq import UndefinedSequenceError

    records = SeqIO.parse(io.TextIOWrapper(file, encoding="latin-1"), "genbank")
    number = 0
    while True:
        number += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", BiopythonParserWarning)
                for cut_short in ("Premature end", "Expected sequence length"):  # the parser would return what there is
                    warnings.filterwarnings("error", cut_short, BiopythonParserWarning)
                record = next(records)
            yield Record(record.id or record.name, bytes(record.seq).upper(), _is_circular(record))
        except StopIteration:
            return
        except UndefinedSequenceError:
            yield Record(record.id or record.name, b"")
        except (ValueError, BiopythonParserWarning) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"{path}: record {number} is broken GenBank ({reason}); copy or download it again"
            ) from None


def _is_circular(record: Any) -> bool:
    return record.annotations.get("topology") == "circular"


def _check_record(path: Path, record: Record, number: int) -> None:
    name, sequence, _ = record
    if not name:
        raise UserError(f"{path}: record {number} has a '>' without a name; write one after it")
    if not sequence:
        raise UserError(f"{path}: record {name} has a header but no sequence; add the sequence or remove the header")
    if foreign := find_foreign(sequence):
        raise UserError(f"{path}: record {name}: {describe_foreign(*foreign)}")


def _check_bgzip_end(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_BGZIP_END)))
        if file.read() != _BGZIP_END:
            raise UserError(f"{path}: the bgzip file is truncated (no end marker); copy or download it again")


def _after(seen: set[str]) -> str:
    return f"after {len(seen)} whole records: " if seen else ""


class _Counting(io.RawIOBase):
    """A file being read, that reports how many bytes each read brought."""

    def __init__(self, raw: io.FileIO, report: Callable[[int], object]) -> None:
        self._raw = raw
        self._report = report

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        count = self._raw.readinto(buffer) or 0
        self._report(count)
        return count


@contextmanager
def open_watched(path: Path, progress: bool) -> Iterator[io.BufferedReader]:
    """Open a file for reading bytes, with a bar over them that shows itself when reading takes over a second."""
    size = path.stat().st_size
    bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, delay=1, leave=False, disable=not progress)
    with bar, path.open("rb", buffering=0) as raw:
        yield io.BufferedReader(_Counting(raw, bar.update), _BUFFER)
