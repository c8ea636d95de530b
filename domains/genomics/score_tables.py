"""The files that per-base scores are written to: a Parquet table and a bedGraph track for each part of a genome."""

import gzip
import json
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from domains.genomics.parts import Part
from domains.genomics.store import LOWER_BIT, TOKEN_BITS, Contig, GenomeStore
from domains.genomics.tokens import A

ROWS = 1 << 17  # of a Parquet row group, so that files do not depend on the chunk


class ScoreTables:
    """The files of one part, open for appending rows.

    Parquet columns: ``contig``, ``position`` (0-based), ``base``, ``log_likelihood`` (nats, null where the base is
    unknown); with both strands ``log_likelihood_forward`` and ``log_likelihood_reverse``, whose mean it is;
    ``soft_mask`` where the genome has a repeat mask. bedGraph: the log-likelihood, to 4 decimals, of each known base.

    Args:
        parquet: where the table goes.
        bedgraph: where the track goes; None for none.
        store: the genome.
        part: of it.
        both_strands: whether scores come by strand.
        model_hash: for the table's metadata.
    """

    def __init__(
        self,
        parquet: BinaryIO,
        bedgraph: BinaryIO | None,
        store: GenomeStore,
        part: Part,
        both_strands: bool,
        model_hash: str,
    ) -> None:
        import pyarrow as pa  # late: machines that only train lack it
        import pyarrow.csv
        import pyarrow.parquet

        self._pa = pa
        self._store = store
        self._part = part
        self._contigs = [store.contigs[number] for number in part.contigs]
        self._offsets = store.offsets[part.contigs.start : part.contigs.stop]
        scores = ["log_likelihood"]
        if both_strands:
            scores += ["log_likelihood_forward", "log_likelihood_reverse"]
        fields = [("contig", pa.dictionary(pa.int32(), pa.string())), ("position", pa.int64())]
        fields += [("base", pa.dictionary(pa.int8(), pa.string()))]
        fields += [(name, pa.float32()) for name in scores]
        fields += [("soft_mask", pa.bool_())] if store.has_soft_mask else []
        origin = {"model": model_hash, "genome": store.fingerprint, "source": store.source_name}
        self._masked = store.has_soft_mask
        self._schema = pa.schema(fields, metadata={"serpentine": json.dumps(origin)})
        self._parquet = pa.parquet.ParquetWriter(parquet, self._schema, compression="zstd")
        self._gzip = bedgraph and open_gzip(bedgraph)
        self._csv = pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")

    def __enter__(self) -> "ScoreTables":
        return self

    def __exit__(self, *error: object) -> None:
        self._parquet.close()
        if self._gzip:
            self._gzip.close()

    def write(self, start: int, score: np.ndarray, strands: tuple[np.ndarray, ...] = ()) -> None:
        """Append rows.

        Args:
            start: which base of the part is the first.
            score: float32 (n,), nats, NaN where the base is unknown.
            strands: of forward and reverse strand likewise, where both were asked for.
        """
        pa = self._pa
        at = np.arange(self._part.start + start, self._part.start + start + len(score))
        stored = self._store.raw[at[0] : at[-1] + 1]
        number = np.searchsorted(self._offsets, at, side="right") - 1
        contig = contig_column(self._contigs, number)
        position = at - self._offsets[number]
        columns = [
            contig,
            pa.array(position),
            pa.DictionaryArray.from_arrays(((stored & TOKEN_BITS) - np.uint8(A)).astype(np.int8), list("ACGTN")),
            *(pa.array(column, mask=np.isnan(column)) for column in (score, *strands)),
        ]
        if self._masked:
            columns.append(pa.array(stored >= LOWER_BIT))
        self._parquet.write_table(pa.table(columns, schema=self._schema))
        if self._gzip:
            known = ~np.isnan(score)
            self._write_bedgraph(contig.filter(pa.array(known)), position[known], score[known])

    def _write_bedgraph(self, contig: Any, position: np.ndarray, score: np.ndarray) -> None:
        pa = self._pa
        columns = {
            "contig": contig.cast(pa.string()),
            "start": position,
            "stop": position + 1,
            "score": np.round(score, 4),
        }
        pa.csv.write_csv(pa.table(columns), self._gzip, self._csv)


def contig_column(contigs: Sequence[Contig], number: np.ndarray) -> Any:
    """Names of contigs, as a column: ``number`` says of each row which it is of, ascending, int64 (n,), n > 0."""
    import pyarrow as pa

    first = int(number[0])
    names = [contig.name for contig in contigs[first : int(number[-1]) + 1]]
    return pa.DictionaryArray.from_arrays((number - first).astype(np.int32), names)


def open_gzip(file: BinaryIO) -> gzip.GzipFile:
    """A file to compress into. No time stamp and no name in its header: the same content gives the same bytes."""
    return gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=4, mtime=0)
