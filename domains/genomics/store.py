"""A genome on disk: one byte a base, memory-mapped, found again by the content of its source.

A store is a folder of three files. ``bases.bin`` holds the contigs one after another, a byte a base: the token in the
low four bits, and bit 7 set where the source has lower case. ``n_runs.npy`` holds the runs of N, int64 (runs, 2),
half-open, in positions of ``bases.bin``. ``meta.json`` holds hashes, and names, lengths and counts column by column: a
genome may have a million contigs.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from domains.errors import UserError
from domains.files import sweep_partials
from domains.genomics.contig_names import suggest_contig
from domains.genomics.io import Record, check_readable, open_watched, read_records
from domains.genomics.tokens import LETTER_TO_TOKEN, C, G, N
from domains.store_folder import META, build_store, find_by_key, store_key
from domains.words import counted

_BLOCK = 1 << 22  # bases worked on at a time
_SUFFIXES = {".gz", ".bgz", ".fa", ".fasta", ".fna", ".ffn", ".fas", ".fsa", ".gb", ".gbk", ".gbff", ".genbank"}

FORMAT = 2  # raise it when the same source would give other bytes
_READ = (1, FORMAT)  # format 1 has a table a contig, and does not know circular ones
TOKEN_BITS = 0x0F
LOWER_BIT = 0x80
LETTER_TO_BYTE = bytes(
    token | (LOWER_BIT if chr(letter).islower() else 0) for letter, token in enumerate(LETTER_TO_TOKEN)
)


class Contig(NamedTuple):
    """One sequence of a genome. Counts are of bases; ``lower`` leaves N out."""

    name: str
    offset: int  # of the first base in bases.bin
    length: int
    n: int  # unknown bases
    lower: int  # known bases in lower case
    gc: int  # G and C
    circular: bool = False  # its last base is followed by its first; only what the file says


class GenomeStore:
    """A prepared genome, open for reading at any position. Made by :func:`prepare_store`.

    Positions are 0-based and half-open. Opening reads the table alone; bases come from a memory map, so a store of any
    size costs no memory, and copies sent to worker processes send the path.

    Attributes:
        path: the folder.
        contigs: in the order of the source.
        raw: uint8 (total,), read-only: all contigs one after another, as bases.bin describes them.
        fingerprint: sha256 over names, lengths and tokens: equal for equal genomes, whatever their file, compression,
            line width or case.
        source_name, source_sha256: of the file that it was made from.
        reused: whether prepare_store found it rather than made it.
    """

    def __init__(self, path: Path, meta: dict[str, Any], raw: np.ndarray, runs: np.ndarray) -> None:
        self.path = path
        self.raw = raw
        self.contigs = _contigs(meta["contigs"])
        self.fingerprint: str = meta["fingerprint"]
        self.source_name: str = meta["source"]["name"]
        self.source_sha256: str = meta["source"]["sha256"]
        self.reused = False
        self._runs = runs
        self._by_name = {contig.name: contig for contig in self.contigs}

    @classmethod
    def open(cls, path: Path | str) -> "GenomeStore":
        """Open the store in folder ``path``.

        Raises:
            UserError: it is missing, no store, of another format version, or damaged.
        """
        path = Path(path)
        try:
            meta = json.loads((path / META).read_text(encoding="utf-8"))
            if meta["format"] not in _READ:
                raise UserError(
                    f"{path}: is a store of format {meta['format']}, not {FORMAT}; prepare the genome again"
                )
            raw = np.asarray(np.memmap(path / "bases.bin", dtype=np.uint8, mode="r"))
            runs = np.load(path / "n_runs.npy", allow_pickle=False)
            store = cls(path, meta, raw, runs)
        except FileNotFoundError as error:
            missing = Path(str(error.filename)).name
            raise UserError(f"{path}: is no prepared genome ({missing} is missing); run prepare on its FASTA") from None
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}); delete the folder and prepare the genome again"
            ) from None
        if raw.size != store.total:
            raise UserError(f"{path}: bases.bin is cut short; delete the folder and prepare the genome again")
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return GenomeStore.open, (self.path,)  # worker processes map the file themselves

    @property
    def names(self) -> list[str]:
        return [contig.name for contig in self.contigs]

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each contig begins in ``raw``, int64 (contigs,)."""
        return np.array([contig.offset for contig in self.contigs], dtype=np.int64)

    @property
    def total(self) -> int:
        """Bases of all contigs, N included."""
        last = self.contigs[-1]
        return last.offset + last.length

    @property
    def has_soft_mask(self) -> bool:
        """Whether lower case tells something: a genome all in lower case has no repeat mask."""
        known = self.total - sum(contig.n for contig in self.contigs)
        return 0 < sum(contig.lower for contig in self.contigs) < known

    def contig(self, name: str) -> Contig:
        """The contig of that name; a UserError names the nearest ones when there is none."""
        if found := self._by_name.get(name):
            return found
        raise UserError(f"{self.source_name}: has no contig {name!r}; {suggest_contig(name, self._by_name)}")

    def tokens(self, contig: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens of a stretch of a contig, uint8 (stop - start,), a copy."""
        return self._read(contig, start, stop) & np.uint8(TOKEN_BITS)

    def soft_mask(self, contig: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Where a stretch of a contig is repeat-masked, bool (stop - start,); all False in a genome without a mask."""
        return (self._read(contig, start, stop) >= LOWER_BIT) & self.has_soft_mask

    def n_runs(self, contig: str) -> np.ndarray:
        """Runs of N in a contig, int64 (runs, 2): half-open intervals in order."""
        found = self.contig(contig)
        first, last = np.searchsorted(self._runs[:, 0], [found.offset, found.offset + found.length])
        return self._runs[first:last] - found.offset

    def all_n(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Whether the stretches of ``length`` bases from these positions of ``raw`` hold nothing but N, bool."""
        if not len(self._runs):
            return np.zeros(len(starts), dtype=bool)
        run = np.searchsorted(self._runs[:, 0], starts, side="right") - 1
        return (run >= 0) & (self._runs[run, 1] >= starts + length)

    def summary(self) -> str:
        """One line about the genome, for people."""
        unknown = sum(contig.n for contig in self.contigs)
        known = max(self.total - unknown, 1)
        gc, lower = (sum(getattr(contig, kind) for contig in self.contigs) / known for kind in ("gc", "lower"))
        mask = f"{lower:.1%} repeat-masked" if self.has_soft_mask else "no repeat mask"
        contigs = counted(len(self.contigs), "contig")
        circular = sum(contig.circular for contig in self.contigs)
        rings = f", {circular:,} circular" if circular else ""
        return f"{contigs}{rings}, {counted(self.total, 'base')}, {gc:.1%} GC, {unknown / self.total:.2%} N, {mask}"

    def _read(self, contig: str, start: int, stop: int | None) -> np.ndarray:
        found = self.contig(contig)
        stop = found.length if stop is None else stop
        if not 0 <= start <= stop <= found.length:
            raise UserError(
                f"{self.source_name}: {contig}:{start}-{stop} lies outside the contig; it has {found.length:,} bases"
            )
        return self.raw[found.offset + start : found.offset + stop]


def _contigs(table: Mapping[str, list[Any]] | list[dict[str, Any]]) -> list[Contig]:
    if isinstance(table, list):  # format 1
        return [Contig(**contig) for contig in table]
    columns = [table[name] for name in Contig._fields]
    return [Contig(*row) for row in zip(*columns, strict=True)]


def prepare_store(source: Path | str, root: Path | str, progress: bool = True) -> GenomeStore:
    """Turn a FASTA or GenBank file into a store in folder ``root``, or find the one made from the same bytes before.

    The store is ``root/<stem>-<12 hex of the content>``; it appears whole or not at all (see domains.store_folder).
    What killed processes left in ``root`` is removed first. The memory is that of reading the largest record.

    Raises:
        UserError: the source cannot be read (see :func:`domains.genomics.io.read_records`), or ``root`` cannot be
            written, for want of space for instance.
    """
    source, root = Path(source), Path(root)
    check_readable(source)
    sweep_partials(root)
    with open_watched(source, progress) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    key = store_key(FORMAT, sha256)
    if found := find_by_key(root, key):
        store = GenomeStore.open(found)
        store.reused = True
        return store

    def write(folder: Path) -> None:
        _write(folder, source, sha256, progress)

    return GenomeStore.open(build_store(root, _stem(source), key, write, f"the genome of {source.name}"))


def _stem(source: Path) -> str:
    name = source.name
    while Path(name).suffix.lower() in _SUFFIXES and Path(name).stem:
        name = Path(name).stem
    return name


def _write(folder: Path, source: Path, sha256: str, progress: bool) -> None:
    contigs: list[Contig] = []
    runs = [np.zeros((0, 2), np.int64)]
    fingerprint = hashlib.sha256()
    with (folder / "bases.bin").open("wb") as file:
        for record in read_records(source, progress):
            fingerprint.update(f">{record.name}\n{len(record.sequence)}\n".encode())
            contig, n_runs = _write_record(record, file, fingerprint)
            contigs.append(contig)
            if contig.n:
                runs.append(n_runs + contig.offset)
    np.save(folder / "n_runs.npy", np.concatenate(runs), allow_pickle=False)
    meta = {
        "format": FORMAT,
        "source": {"name": source.name, "sha256": sha256},
        "fingerprint": fingerprint.hexdigest(),
        "contigs": dict(zip(Contig._fields, map(list, zip(*contigs, strict=True)), strict=True)),
    }
    (folder / META).write_text(json.dumps(meta) + "\n", encoding="utf-8")


def _write_record(record: Record, file: BinaryIO, fingerprint: "hashlib._Hash") -> tuple[Contig, np.ndarray]:
    """Append one contig to bases.bin; its table entry, and its runs of N in its own positions."""
    offset = file.tell()
    n = lower = gc = 0
    edges: list[np.ndarray] = []  # where N begins and ends, in turn
    inside = False
    for start in range(0, len(record.sequence), _BLOCK):
        stored = np.frombuffer(record.sequence[start : start + _BLOCK].translate(LETTER_TO_BYTE), dtype=np.uint8)
        file.write(stored.data)
        tokens = stored & np.uint8(TOKEN_BITS)
        fingerprint.update(tokens.data)
        gc += int(np.count_nonzero((tokens == C) | (tokens == G)))
        lower += int(np.count_nonzero(stored & np.uint8(LOWER_BIT)))
        is_n = tokens == N
        if unknown := int(np.count_nonzero(is_n)):
            n += unknown
            lower -= int(np.count_nonzero(stored == N | LOWER_BIT))
        if unknown or inside:
            if is_n[0] != inside:
                edges.append(np.array([start]))
            edges.append(np.flatnonzero(is_n[1:] != is_n[:-1]) + (start + 1))
            inside = bool(is_n[-1])
    if inside:
        edges.append(np.array([len(record.sequence)]))
    contig = Contig(record.name, offset, len(record.sequence), n, lower, gc, record.circular)
    return contig, np.concatenate(edges or [np.zeros(0)]).astype(np.int64).reshape(-1, 2)
