"""A bigWig track of a whole genome: what genome browsers read over a network, a stretch and a zoom level at a time."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from domains.errors import UserError
from domains.genomics.store import Contig, GenomeStore
from domains.manifest import Manifest

MOST_CONTIGS = 20_000  # each takes the writer several milliseconds, however short it is
_BYTES = 10  # of the finished file for each value; 6.6 measured on values without pattern, zoom levels included
_BLOCK = 1 << 17  # values at a time


def add_bigwig(manifest: Manifest, file: str, store: GenomeStore, values: Iterable[np.ndarray]) -> None:
    """Make a bigWig of all parts of a folder of results, unless it is there; ``values`` as of :func:`write_bigwig`."""
    if manifest.has_whole(file):
        return
    if known := write_bigwig(manifest.out / file, store, values, manifest.progress):
        manifest.record_whole(file, {"values": known})


def column_of(tables: Iterable[Path], column: str) -> Iterator[np.ndarray]:
    """A column of Parquet files that follow each other, float32 (n,) at a time, NaN for null."""
    import pyarrow.parquet as pq

    for path in tables:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_BLOCK, columns=[column]):
            yield batch.column(0).to_numpy(zero_copy_only=False)


def write_bigwig(path: Path, store: GenomeStore, values: Iterable[np.ndarray], scratch: Path) -> int:
    """Write a value for each base that has one, as bigWig; the file appears whole or not at all.

    Values are float32, not rounded; neighbours that are equal share a row. Contigs stand in the order of their names'
    bytes, whatever the genome's: readers look names up in a tree that is sorted so (UCSC's format; bedGraphToBigWig
    wants the same). Contigs without a value are not in it.

    Args:
        path: the file.
        store: the genome.
        values: of all bases in the order of the genome, float32 (n,) at a time, NaN where a base has none.
        scratch: a folder on the same disk, for what is not finished.

    Returns:
        how many bases have a value; without any, no file is written, for bigWig knows no empty ones.

    Raises:
        UserError: there is no room for it.
    """
    with tempfile.TemporaryFile(dir=scratch) as file:
        gathered, known = _gather(file.fileno(), store, values)
        if not known:
            return 0
        _check_room(path, known)
        contigs = sorted(store.contigs, key=lambda contig: contig.name.encode())
        rows = _Rows(gathered, contigs)
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
    """(contig, start, end, value) of each run of bases with equal values, and what went wrong on the way."""

    def __init__(self, values: np.ndarray, contigs: Sequence[Contig]) -> None:
        self._values = values
        self._contigs = contigs
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[tuple[str, int, int, float]]:
        try:
            for name, offset, length, *_ in self._contigs:
                for start in range(0, length, _BLOCK):
                    block = self._values[offset + start : offset + min(start + _BLOCK, length)]
                    begins = np.flatnonzero(np.concatenate([[True], block[1:] != block[:-1]]))
                    ends = np.append(begins[1:], len(block))
                    known = ~np.isnan(block[begins])
                    begins, ends = begins[known], ends[known]
                    first, last = (begins + start).tolist(), (ends + start).tolist()
                    yield from zip([name] * len(begins), first, last, block[begins].tolist(), strict=True)
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


def _gather(file: int, store: GenomeStore, values: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """All values as float32 by position of ``store.raw``, NaN where there is none, in a file; and how many there are.

    In a file, for contigs are wanted in another order than that of the genome.
    """
    os.truncate(file, 4 * store.total)
    gathered = np.memmap(os.fdopen(os.dup(file), "r+b"), np.float32, "r+", shape=(store.total,))
    at = known = 0
    for found in values:
        gathered[at : at + len(found)] = found
        known += int(np.count_nonzero(~np.isnan(found)))
        at += len(found)
    assert at == store.total, f"{at} values of {store.total} bases"
    return gathered, known


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
