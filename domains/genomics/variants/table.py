"""The table of scored alleles: a row for each alternative allele of each record, in the order of the file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

ROWS = 1 << 16  # of a row group


@dataclass
class Row:
    """An allele and its score.

    Attributes:
        record: number of the record in the file, from 0; malformed lines count.
        line: of the file, from 1.
        contig, position, id, ref, alt: as the VCF has them, ``position`` 1-based.
        kind: snv, mnv, insertion, deletion or delins; None where the allele could not be understood.
        normal_position, normal_ref, normal_alt: the same allele alone, left-normalised.
        llr: log-likelihood of the alternative less that of the reference, nats: the mean of both strands.
        llr_forward, llr_reverse: of each strand.
        reason: why there is no score.
        duplicate: the same allele stood at the same position just before.
    """

    record: int
    line: int
    contig: str | None
    position: int | None
    id: str | None
    ref: str | None
    alt: str | None
    kind: str | None = None
    normal_position: int | None = None
    normal_ref: str | None = None
    normal_alt: str | None = None
    llr: float | None = None
    llr_forward: float | None = None
    llr_reverse: float | None = None
    reason: str | None = None  # one of Reason
    duplicate: bool = False


def schema(origin: Mapping[str, object]) -> Any:
    """The Arrow schema: columns of :class:`Row`; ``origin`` stands in the metadata, as JSON under ``serpentine``."""
    import pyarrow as pa  # late: machines that only train lack it

    words = pa.dictionary(pa.int32(), pa.string())
    kinds = {
        "record": pa.int64(),
        "line": pa.int64(),
        "contig": words,
        "position": pa.int64(),
        "id": pa.string(),
        "ref": pa.string(),
        "alt": pa.string(),
        "kind": words,
        "normal_position": pa.int64(),
        "normal_ref": pa.string(),
        "normal_alt": pa.string(),
        "llr": pa.float32(),
        "llr_forward": pa.float32(),
        "llr_reverse": pa.float32(),
        "reason": words,
        "duplicate": pa.bool_(),
    }
    return pa.schema(list(kinds.items()), metadata={"serpentine": json.dumps(dict(origin))})


def write_shard(file: BinaryIO, rows: Sequence[Row], origin: Mapping[str, object]) -> None:
    """Write some rows as a Parquet file of their own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([vars(row) for row in rows], schema(origin)), file, compression="zstd")


def read_rows(path: Path) -> list[Row]:
    """The rows of a shard, in their order."""
    import pyarrow.parquet as pq

    return [Row(**values) for values in pq.read_table(path).to_pylist()]


def join_shards(file: BinaryIO, shards: Sequence[Path], origin: Mapping[str, object]) -> None:
    """Write the rows of all shards as one Parquet file, with the memory of a few of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, schema(origin), compression="zstd") as writer:
        for tables in _gathered(shards):
            writer.write_table(pa.concat_tables(tables).unify_dictionaries().combine_chunks())


def _gathered(shards: Sequence[Path]) -> Iterator[list[Any]]:
    """Tables of shards, so many together as make up a row group."""
    import pyarrow.parquet as pq

    held: list[Any] = []
    for path in shards:
        held.append(pq.read_table(path))
        if sum(table.num_rows for table in held) >= ROWS:
            yield held
            held = []
    if held:
        yield held
