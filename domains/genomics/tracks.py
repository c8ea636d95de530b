"""A bigWig track of a whole genome: what genome browsers read over a network, a stretch and a zoom level at a time."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from domains.errors import UserError
from domains.genomics.parts import Part
from domains.genomics.store import Contig, GenomeStore

MOST_CONTIGS = 20_000  # each takes the writer several milliseconds, however short it is
_BYTES = 10  # of the finished file for each value; 6.6 measured on values without pattern, zoom levels included
_BLOCK = 1 << 17  # values at a time


class Table(NamedTuple):
    """Where the scores of a part are."""

    part: Part
    path: Path  # Parquet, a row for each base of the part


def write_bigwig(
    path: Path, store: GenomeStore, tables: Sequence[Table], scratch: Path, column: str = "log_likelihood"
) -> int:
    """Write a value for each base that has one, as bigWig; the file appears whole or not at all.

    Values are float32, not rounded. Contigs stand in the order of their names' bytes, whatever the genome's: readers
    look names up in a tree that is sorted so (UCSC's format; bedGraphToBigWig wants the same). Contigs without a value
    are not in it.

    Args:
        path: the file.
        store: the genome.
        tables: all its parts.
        scratch: a folder on the same disk, for what is not finished.
        column: of the tables; null where a base has no value.

    Returns:
        how many bases have a value; without any, no file is written, for bigWig knows no empty ones.

    Raises:
        UserError: there is no room for it.
    """
    with tempfile.TemporaryFile(dir=scratch) as file:
        values, known = _gather(file.fileno(), store, tables, column)
        if not known:
            return 0
        _check_room(path, known)
        contigs = sorted(store.contigs, key=lambda contig: contig.name.encode())
        rows = _Rows(values, contigs)
        temporary = scratch / path.name  # the writer opens the file itself, and wants its ending
        try:
            _write(temporary, contigs, rows)
            _check_written(temporary, known)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return known


def check_bigwig(store: GenomeStore) -> None:
    """Make sure that a genome can have a bigWig track."""
    if len(store.contigs) > MOST_CONTIGS:
        raise UserError(
            f"{store.source_name}: has {len(store.contigs):,} contigs, and a bigWig file takes at most "
            f"{MOST_CONTIGS:,}; give tracks=[bedgraph]"
        )


class _Rows:
    """(contig, start, end, value) of each base with a value, and what went wrong on the way."""

    def __init__(self, values: np.ndarray, contigs: Sequence[Contig]) -> None:
        self._values = values
        self._contigs = contigs
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[tuple[str, int, int, float]]:
        try:
            for name, offset, length, *_ in self._contigs:
                for start in range(0, length, _BLOCK):
                    block = self._values[offset + start : offset + min(start + _BLOCK, length)]
                    at = np.flatnonzero(~np.isnan(block))
                    first = (at + start).tolist()
                    last = (at + (start + 1)).tolist()
                    yield from zip([name] * len(at), first, last, block[at].tolist(), strict=True)
        except GeneratorExit:  # the writer has what it wants
            raise
        except BaseException as error:
            self.error = error
            raise


def _write(path: Path, contigs: Sequence[Contig], rows: _Rows) -> None:
    """The writer swallows what its values raise, and ends in a panic where the disk does."""
    import pybigtools  # late: machines that only train lack it

    try:
        pybigtools.open(str(path), "w").write({contig.name: contig.length for contig in contigs}, iter(rows))
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise OSError(f"the bigWig writer failed: {error}") from None
    if rows.error is not None:
        raise rows.error


def _gather(file: int, store: GenomeStore, tables: Sequence[Table], column: str) -> tuple[np.ndarray, int]:
    """All values as float32 by position of ``store.raw``, NaN for null, in a file; and how many are there.

    In a file, for contigs are wanted in another order than that of the tables.
    """
    import pyarrow.parquet as pq

    os.truncate(file, 4 * store.total)
    values = np.memmap(os.fdopen(os.dup(file), "r+b"), np.float32, "r+", shape=(store.total,))
    known = 0
    for part, path in tables:
        at = part.start
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_BLOCK, columns=[column]):
            found = batch.column(0).to_numpy(zero_copy_only=False)
            values[at : at + len(found)] = found
            known += int(np.count_nonzero(~np.isnan(found)))
            at += len(found)
    return values, known


def _check_room(path: Path, known: int) -> None:
    needed = _BYTES * known
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise UserError(
            f"{path}: no space is left for a bigWig file of up to {needed / 1e9:.1f} GB ({free / 1e9:.1f} GB free); "
            "make room and run again, or leave bigwig out of tracks"
        )


def _check_written(path: Path, known: int) -> None:
    import pybigtools

    with pybigtools.open(str(path)) as file:
        written = file.info()["summary"]["basesCovered"]
    if written != known:
        raise OSError(f"the bigWig file holds {written:,} values of {known:,}")
