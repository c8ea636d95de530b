"""Tables of labels as CSV or Parquet, written as rows come."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from domains.audio.stream import Frames
from domains.audio.trained import LoadedModel
from domains.files import atomic_file, file_stem

TABLES = ("csv", "parquet")


class Table(AbstractContextManager["Table"], Protocol):
    """A table that rows are appended to."""

    def write(self, columns: Sequence[Any]) -> None:
        """Append rows: a sequence or array of values for each column, in their order."""


def open_table(kind: str, file: BinaryIO, columns: Mapping[str, type], model: str) -> Table:
    """A table in an open file.

    Args:
        kind: one of TABLES.
        file: open for writing bytes.
        columns: name to str or float. In CSV floats are written with 4 decimals.
        model: hash of the model, for the metadata of a Parquet file.
    """
    return _Csv(file, columns) if kind == "csv" else _Parquet(file, columns, model)


class _Csv:
    def __init__(self, file: BinaryIO, columns: Mapping[str, type]) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._rows = csv.writer(self._text, lineterminator="\n")
        self._rows.writerow(columns)

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *error: object) -> None:
        self._text.detach()  # the file is its owner's to close

    def write(self, columns: Sequence[Any]) -> None:
        for row in zip(*columns, strict=True):
            self._rows.writerow([value if isinstance(value, str) else f"{value:.4f}" for value in row])


class _Parquet:
    def __init__(self, file: BinaryIO, columns: Mapping[str, type], model: str) -> None:
        import pyarrow as pa  # late: machines that only train lack it
        import pyarrow.parquet

        self._pa = pa
        kinds = {str: pa.string(), float: pa.float64()}
        fields = [(name, kinds[kind]) for name, kind in columns.items()]
        self._schema = pa.schema(fields, metadata={"serpentine": json.dumps({"model": model})})
        self._writer = pa.parquet.ParquetWriter(file, self._schema, compression="zstd")

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write(self, columns: Sequence[Any]) -> None:
        arrays = [self._pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(self._pa.table(arrays, schema=self._schema))


class FrameTables(AbstractContextManager["FrameTables"]):
    """Tables of what a model held likely on the way, one for each recording: ``seconds`` and a column for each label.

    Each appears whole or not at all. Used as a context, those that are still open at its end are dropped.
    """

    def __init__(self, out: Path, kind: str, loaded: LoadedModel) -> None:
        self._out, self._kind, self._hash = out, kind, loaded.hash
        self._columns = {"seconds": float, **dict.fromkeys(loaded.sound.labels, float)}
        self._open: dict[str, tuple[ExitStack, Table]] = {}

    def __exit__(self, *error: Any) -> None:
        for name in list(self._open):
            self.close(name, ValueError("not finished"))

    def write(self, recording: str, frames: Frames) -> None:
        """Append the next frames of a recording."""
        if recording not in self._open:
            stack = ExitStack()
            file = stack.enter_context(atomic_file(self._out / self._name(recording)))
            self._open[recording] = stack, stack.enter_context(open_table(self._kind, file, self._columns, self._hash))
        if len(frames.seconds):
            self._open[recording][1].write([frames.seconds, *frames.probabilities.T.astype(float)])

    def close(self, recording: str, error: Exception | None = None) -> dict[str, str]:
        """The end of a recording, or an error for which its table is dropped.

        Returns:
            kind to name of its file, for the manifest; nothing when there is none.
        """
        stack, _ = self._open.pop(recording, (None, None))
        if stack is None:
            return {}
        if error is not None:
            stack.__exit__(type(error), error, error.__traceback__)
            return {}
        stack.close()
        return {f"frames of {recording}": self._name(recording)}

    def _name(self, recording: str) -> str:
        return f"{file_stem(recording)}.frames.{self._kind}"
