"""What is kept aside of a table, and why: rows that cannot be used, rows that come twice, series that tell nothing."""

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from domains.timeseries.config import SourceConfig
from domains.timeseries.history import is_logarithmic
from domains.timeseries.io import Batch

DUPLICATE = "duplicate stamp"
CONTRADICTION = "contradicting duplicate stamp"
UNSORTED = "rows out of order: sorted"
EMPTY_FILE = "empty file"

_FLUSH = 1 << 16  # rows
_LARGEST = 1e100  # returns and levels are squared; of prices it is the logarithms


class Rejects:
    """The table of rows that were kept aside, written as it comes, and the counts of all reasons.

    Columns of the Parquet file, all text: file, series, time and target as they were written, reason.

    Attributes:
        counts: reason -> rows; for reasons that concern whole series, series.
        series: of each series kept aside: name, reason, and rows that it had.
    """

    COLUMNS = ("file", "series", "time", "target", "reason")

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.counts: Counter[str] = Counter()
        self.series: list[dict[str, Any]] = []
        self._schema = pa.schema([(column, pa.string()) for column in self.COLUMNS])
        self._writer = pq.ParquetWriter(path, self._schema)
        self._waiting: list[Any] = []  # arrow tables
        self._rows = 0

    def __enter__(self) -> "Rejects":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._flush()
        self._writer.close()

    def add(self, file: str, series: Any, time: Any, target: Any, reasons: list[str]) -> None:
        """Keep rows aside; all but ``file`` are sequences of text, one for each row."""
        import pyarrow as pa

        self.counts.update(reasons)
        columns = ([file] * len(reasons), list(series), list(time), list(target), reasons)
        arrays = [pa.array(column, pa.string()) for column in columns]
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows += len(reasons)
        if self._rows >= _FLUSH:
            self._flush()

    def add_series(self, name: str, rows: int, reason: str) -> None:
        """Keep a whole series aside."""
        self.counts[reason] += 1
        self.series.append({"name": name, "reason": reason, "rows": rows})

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
        self._waiting, self._rows = [], 0


class RowReasons:
    """Why rows of a batch are kept aside: the first reason of each.

    Attributes:
        code: int16 (n,), 0 where the row is kept, else an index into ``texts``.
        texts: the reasons.
    """

    def __init__(self, code: np.ndarray, texts: list[str]) -> None:
        self.code = code
        self.texts = texts

    @classmethod
    def of(cls, batch: Batch, source: SourceConfig) -> "RowReasons":
        """What is wrong with rows whatever their target: name, stamp, covariates."""
        reasons = cls(np.zeros(len(batch), dtype=np.int16), [""])
        reasons.mark(batch.names.is_null().to_numpy(), f"no series name in {source.id}")
        reasons.mark(batch.stamps.empty, "no stamp")
        reasons.mark(~batch.stamps.known, "stamp cannot be read")
        for column in (*source.past, *source.future, *source.static):
            reasons.mark(batch.foreign[column], f"{column} is not a number")
            values = batch.numbers[column]
            reasons.mark(~np.isnan(values) & ~fits_float32(values), f"{column} is infinite")
        return reasons

    def with_target(self, batch: Batch, column: str, kind: str) -> "RowReasons":
        """And what is wrong with one target."""
        values = batch.numbers[column]
        reasons = RowReasons(self.code.copy(), list(self.texts))
        reasons.mark(batch.foreign[column], f"{column} is not a number")
        reasons.mark(np.isinf(values), f"{column} is infinite")
        reasons.mark(~np.isnan(values) & ~fits(values, kind), f"{column} is too large")
        if is_logarithmic(kind):
            reasons.mark(values <= 0, f"{column} is not a positive {kind}")
        return reasons

    def mark(self, where: np.ndarray, reason: str) -> None:
        """Give a reason to the rows among these that have none."""
        self.code[where & (self.code == 0)] = len(self.texts)
        self.texts.append(reason)

    def kept_aside(self) -> tuple[np.ndarray, list[str]]:
        """The rows with a reason, int64, and their reasons."""
        rows = np.flatnonzero(self.code)
        return rows, [self.texts[code] for code in self.code[rows]]


def fits(values: np.ndarray, kind: str) -> np.ndarray:
    """Where a number can be an observation, bool: it is finite, and its square and sums of that are."""
    return np.abs(values) <= (np.finfo(np.float64).max if is_logarithmic(kind) else _LARGEST)


def fits_float32(values: np.ndarray) -> np.ndarray:
    """Where a number is finite as a float32, as which covariates are kept, bool."""
    return np.abs(values) <= np.finfo(np.float32).max


def clean_series(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Sort the rows of a series and take out those whose stamp came before.

    Args:
        rows: structured (n,), in the order of the source; see domains.timeseries.prepare.row_dtype.

    Returns:
        The rows to keep, their time strictly increasing; the rows taken out; of each of these whether it says something
        else than the one that is kept, which is the first in the source; how many rows came too late in the source.
    """
    late = 0
    if len(rows):
        late = int(np.count_nonzero(rows["time"] < np.maximum.accumulate(rows["time"])))
    if late:
        rows = rows[np.argsort(rows["time"], kind="stable")]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = rows["time"][1:] != rows["time"][:-1]
    if new.all():
        return rows, rows[:0], np.zeros(0, dtype=bool), late
    before = np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))[~new]  # the row that is kept for each
    kept, again = rows[before], rows[~new]
    same = _equal(kept["target"], again["target"])
    for covariates in ("past", "future"):
        same &= _equal(kept[covariates], again[covariates]).all(axis=-1)
    return rows[new], again, ~same, late


def series_reason(target: np.ndarray, min_rows: int) -> str | None:
    """Why a series with these targets is kept aside; None when it is not, as none that has rows for ``min_rows`` 0."""
    seen = target[~np.isnan(target)]
    if not len(target) or (min_rows and not len(seen)):
        return "no observation"
    if not min_rows:
        return None
    if len(seen) < min_rows:
        return f"fewer than {min_rows} observations"
    return "constant series" if (seen == seen[0]).all() else None


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (np.isnan(a) & np.isnan(b))
