"""The files that annotation is written to: a Parquet table and bedGraph tracks for each part of a genome."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO

import numpy as np

from domains.genomics.annotation.rows import Places
from domains.genomics.score_tables import contig_column, open_gzip
from domains.genomics.store import GenomeStore

_DECIMALS = 3  # of bedGraph values: equal neighbours then share a row


class AnnotationTables:
    """The files of one part, open for appending rows.

    Args:
        parquet: where the table goes.
        bedgraphs: where tracks go, by name.
        store: the genome.
        places: columns that say where a row is: start and end, or position.
        tracks: names of the probabilities.
        model_hash: for the table's metadata.
    """

    def __init__(
        self,
        parquet: BinaryIO,
        bedgraphs: Mapping[str, BinaryIO],
        store: GenomeStore,
        places: tuple[str, ...],
        tracks: tuple[str, ...],
        model_hash: str,
    ) -> None:
        import pyarrow as pa  # late: machines that only train lack it
        import pyarrow.parquet

        self._pa, self._store, self._places, self._tracks = pa, store, places, tracks
        fields: list[tuple[str, Any]] = [("contig", pa.dictionary(pa.int32(), pa.string()))]
        fields += [(name, pa.int64()) for name in places] + [(name, pa.float32()) for name in tracks]
        origin = {"model": model_hash, "genome": store.fingerprint, "source": store.source_name}
        self._schema = pa.schema(fields, metadata={"serpentine": json.dumps(origin)})
        self._held = ExitStack()
        self._parquet = self._held.enter_context(
            pyarrow.parquet.ParquetWriter(parquet, self._schema, compression="zstd")
        )
        self._graphs = {name: self._held.enter_context(_BedGraph(file, store)) for name, file in bedgraphs.items()}

    def __enter__(self) -> "AnnotationTables":
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def write(self, places: Places, values: np.ndarray) -> None:
        """Append rows, at least one; ``values`` float32 (n, tracks), NaN where nothing is said."""
        pa = self._pa
        where = {"start": places.start, "end": places.end, "position": places.start}
        columns = [contig_column(self._store.contigs, places.contig)]
        columns += [pa.array(where[name]) for name in self._places]
        columns += [pa.array(column, mask=np.isnan(column)) for column in values.T]
        self._parquet.write_table(pa.table(columns, schema=self._schema))
        for track, graph in self._graphs.items():
            graph.write(places, values[:, self._tracks.index(track)])


class _BedGraph:
    """A gzipped bedGraph file: stretches of equal values, rounded, that do not overlap."""

    def __init__(self, file: BinaryIO, store: GenomeStore) -> None:
        self._gzip = open_gzip(file)
        self._store = store
        self._open: tuple[int, int, int, float] | None = None  # contig, start, end and value of one that may go on

    def __enter__(self) -> "_BedGraph":
        return self

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            self._gzip.write(self._line(*self._open))
        self._gzip.close()

    def write(self, places: Places, values: np.ndarray) -> None:
        """Append the stretches of rows, in order; those without a value are left out."""
        known = ~np.isnan(values)
        contig, low, high = places.contig[known], places.low[known], places.high[known]
        values = np.round(values[known].astype(np.float64), _DECIMALS)
        if not len(values):
            return
        apart = (values[1:] != values[:-1]) | (low[1:] != high[:-1]) | (contig[1:] != contig[:-1])
        begins = np.flatnonzero(np.concatenate([[True], apart]))
        ends = np.append(begins[1:], len(values)) - 1
        lines = []
        columns = (column.tolist() for column in (contig[begins], low[begins], high[ends], values[begins]))
        for number, start, end, value in zip(*columns, strict=True):
            if self._open is not None:
                if self._open[0] == number and self._open[2:] == (start, value):
                    start = self._open[1]
                else:
                    lines.append(self._line(*self._open))
            self._open = (number, start, end, value)
        self._gzip.write(b"".join(lines))

    def _line(self, contig: int, start: int, end: int, value: float) -> bytes:
        return f"{self._store.contigs[contig].name}\t{start}\t{end}\t{value:g}\n".encode()
