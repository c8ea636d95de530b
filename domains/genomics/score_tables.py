"""The files that per-base scores are written to: a Parquet and a bedGraph file for each contig."""

import gzip
import json
from typing import BinaryIO

import numpy as np

from domains.genomics.store import Contig, GenomeStore
from domains.genomics.tokens import A

ROWS = 1 << 17  # of a Parquet row group, so that files do not depend on the chunk


class ScoreTables:
    """The two files of one contig, open for appending rows.

    Parquet columns: ``contig``, ``position`` (0-based), ``base``, ``log_likelihood`` (nats, null where the base is
    unknown); with both strands ``log_likelihood_forward`` and ``log_likelihood_reverse``, whose mean it is;
    ``soft_mask`` where the genome has a repeat mask. bedGraph: the log-likelihood, to 4 decimals, of each known base.
    """

    def __init__(
        self,
        parquet: BinaryIO,
        bedgraph: BinaryIO,
        store: GenomeStore,
        contig: Contig,
        both_strands: bool,
        model_hash: str,
    ) -> None:
        import pyarrow as pa  # late: machines that only train lack it
        import pyarrow.csv
        import pyarrow.parquet

        self._pa = pa
        self._store = store
        self._contig = contig
        scores = ["log_likelihood"]
        if both_strands:
            scores += ["log_likelihood_forward", "log_likelihood_reverse"]
        fields = [("contig", pa.dictionary(pa.int32(), pa.string())), ("position", pa.int64())]
        fields += [("base", pa.dictionary(pa.int8(), pa.string()))]
        fields += [(name, pa.float32()) for name in scores]
        fields += [("soft_mask", pa.bool_())] if store.has_soft_mask else []
        origin = {"model": model_hash, "genome": store.fingerprint, "source": store.source_name}
        self._schema = pa.schema(fields, metadata={"serpentine": json.dumps(origin)})
        self._parquet = pa.parquet.ParquetWriter(parquet, self._schema, compression="zstd")
        # No time stamp and no name in the gzip header: the same scores give the same bytes.
        self._gzip = gzip.GzipFile(filename="", mode="wb", fileobj=bedgraph, compresslevel=4, mtime=0)
        self._csv = pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")

    def __enter__(self) -> "ScoreTables":
        return self

    def __exit__(self, *error: object) -> None:
        self._parquet.close()
        self._gzip.close()

    def write(self, start: int, forward: np.ndarray, backward: np.ndarray | None) -> np.ndarray:
        """Append the rows from position ``start``; returns their log-likelihood."""
        pa, contig = self._pa, self._contig
        score, scores = forward, [forward]
        if backward is not None:
            score = (forward + backward) / np.float32(2)
            scores = [score, forward, backward]
        position = np.arange(start, start + len(forward))
        tokens = self._store.tokens(contig.name, start, start + len(forward))
        columns = [
            pa.DictionaryArray.from_arrays(np.zeros(len(forward), np.int32), [contig.name]),
            pa.array(position),
            pa.DictionaryArray.from_arrays((tokens - np.uint8(A)).astype(np.int8), list("ACGTN")),
            *(pa.array(column, mask=np.isnan(column)) for column in scores),
        ]
        if self._store.has_soft_mask:
            columns.append(pa.array(self._store.soft_mask(contig.name, start, start + len(forward))))
        self._parquet.write_table(pa.table(columns, schema=self._schema))
        self._write_bedgraph(position[~np.isnan(score)], score[~np.isnan(score)])
        return score

    def _write_bedgraph(self, position: np.ndarray, score: np.ndarray) -> None:
        pa = self._pa
        name = pa.DictionaryArray.from_arrays(np.zeros(len(position), np.int32), [self._contig.name]).cast(pa.string())
        columns = {"contig": name, "start": position, "stop": position + 1, "score": np.round(score, 4)}
        pa.csv.write_csv(pa.table(columns), self._gzip, self._csv)
