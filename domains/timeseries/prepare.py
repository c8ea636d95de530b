"""From tables of rows to the files of a store, in the memory of a few batches and of the longest series.

Two passes over the tables. The first counts the rows of each series. The second writes every row behind those of its
series in a file of rows, whose length is known by then; rows of a batch are grouped first, so that a write takes many.
Then the series are read one after another, sorted and checked, and written as columns. Files are written, not mapped:
pages of a mapping count as memory of the process.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from domains.errors import UserError
from domains.timeseries.checks import (
    CONTRADICTION,
    DUPLICATE,
    EMPTY_FILE,
    UNSORTED,
    Rejects,
    RowReasons,
    clean_series,
    series_reason,
)
from domains.timeseries.columns import ColumnWriter
from domains.timeseries.config import SourceConfig
from domains.timeseries.io import Batch, Table, read_batches, read_names
from domains.timeseries.stamps import StampReader

REJECTS = "rejects.parquet"


def row_dtype(source: SourceConfig) -> np.dtype[Any]:
    """One row of one series while the store is made."""
    covariates = [(name, "<f4", (len(getattr(source, name)),)) for name in ("past", "future")]
    return np.dtype([("time", "<i8"), ("target", "<f8"), ("offset", "<i4"), ("file", "<i4"), *covariates])


@dataclass(frozen=True)
class Layout:
    """Where the rows of each series are in the file of rows.

    Attributes:
        ids: names in the id column, sorted; series of several targets are one behind the other.
        starts: int64 (series + 1,), first row of each series.
        ends: int64 (series,), where its next row is written.
        lowest, highest: float32 (ids, static), of the static covariates so far; NaN while missing.
    """

    ids: list[str]
    starts: np.ndarray
    ends: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray


def write_store(
    folder: Path, tables: list[Table], source: SourceConfig, where: str, empty: list[Path], progress: bool
) -> None:
    """Fill ``folder`` with the files of a store.

    Args:
        folder: exists, and is empty.
        tables: the files that hold rows.
        source: what their columns are.
        where: the source, for messages and the record.
        empty: files that hold no row.
        progress: show a bar of what takes longer than a second.

    Raises:
        UserError: see :func:`domains.timeseries.store.prepare_store`.
    """
    stamps = StampReader(source.time, source.zone)
    layout = _count(tables, source, progress)
    rows_path = folder / "rows.tmp"
    with Rejects(folder / REJECTS) as rejects:
        for path in empty:
            rejects.add(path.name, [None], [None], [None], [EMPTY_FILE])
        with rows_path.open("w+b", buffering=0) as file:
            _scatter(file.fileno(), tables, source, stamps, layout, rejects, progress)
            writer = ColumnWriter(folder, source)
            with writer:
                _gather(file.fileno(), tables, source, bool(stamps.aware), layout, rejects, writer, progress)
    rows_path.unlink()
    if not writer.names:
        why = ", ".join(f"{count:,} x {reason}" for reason, count in rejects.counts.items())
        raise UserError(f"{where}: no series is left ({why}); lower data.min_rows or mend the table")
    writer.finish(where, rejects)


def _count(tables: list[Table], source: SourceConfig, progress: bool) -> Layout:
    counts: Counter[str] = Counter()
    with _bar("counting rows", None, progress) as bar:
        for table in tables:
            for names in read_names(table, source):
                found = names.drop_nulls().value_counts()
                counts.update(dict(found.iter_rows()))
                bar.update(len(names))
    ids = sorted(counts)
    rows = np.repeat([counts[name] for name in ids], len(source.target)).astype(np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(rows)])
    unknown = np.full((len(ids), len(source.static)), np.nan, dtype=np.float32)
    return Layout(ids, starts, starts[:-1].copy(), unknown, unknown.copy())


def _scatter(
    file: int,
    tables: list[Table],
    source: SourceConfig,
    stamps: StampReader,
    layout: Layout,
    rejects: Rejects,
    progress: bool,
) -> None:
    """Write the rows of all tables to their series, and keep those aside that cannot be used."""
    import polars as pl

    ids = pl.Series(layout.ids, dtype=pl.String)
    codes = pl.Series(np.arange(len(ids), dtype=np.int32))
    total = int(layout.starts[-1]) // len(source.target)
    with _bar("reading rows", total, progress) as bar:
        for number, table in enumerate(tables):
            for batch in read_batches(table, source, stamps):
                code = batch.names.replace_strict(ids, codes, default=-1, return_dtype=pl.Int32).to_numpy()
                common = RowReasons.of(batch, source)
                _keep_static(batch, code, source, layout)
                for target, column in enumerate(source.target):
                    reasons = common.with_target(batch, column, source.kind)
                    _reject_rows(batch, reasons, table, column, source, rejects)
                    kept = np.flatnonzero(reasons.code == 0)
                    rows = _rows(batch, kept, column, source, number)
                    _write_rows(file, rows, code[kept] * len(source.target) + target, layout)
                bar.update(len(batch))


def _keep_static(batch: Batch, code: np.ndarray, source: SourceConfig, layout: Layout) -> None:
    known = code >= 0
    for i, column in enumerate(source.static):
        values = batch.numbers[column][known].astype(np.float32)
        np.fmin.at(layout.lowest[:, i], code[known], values)
        np.fmax.at(layout.highest[:, i], code[known], values)


def _reject_rows(
    batch: Batch, reasons: RowReasons, table: Table, column: str, source: SourceConfig, rejects: Rejects
) -> None:
    import polars as pl

    rows, texts = reasons.kept_aside()
    if not len(rows):
        return
    time, target = (batch.frame[name].gather(rows).cast(pl.String) for name in (source.time, column))
    names = batch.names.gather(rows)
    rejects.add(table.path.name, [name and _series_name(name, column, source) for name in names], time, target, texts)


def _rows(batch: Batch, kept: np.ndarray, column: str, source: SourceConfig, file: int) -> np.ndarray:
    rows = np.empty(len(kept), dtype=row_dtype(source))
    rows["time"] = batch.stamps.time[kept]
    rows["offset"] = batch.stamps.offset[kept]
    rows["target"] = batch.numbers[column][kept]
    rows["file"] = file
    for kind in ("past", "future"):
        for i, covariate in enumerate(getattr(source, kind)):
            rows[kind][:, i] = batch.numbers[covariate][kept]
    return rows


def _write_rows(file: int, rows: np.ndarray, series: np.ndarray, layout: Layout) -> None:
    """Write rows behind those that their series have, one write for each series."""
    counts = np.bincount(series, minlength=len(layout.ends))
    narrow = np.uint16 if len(counts) <= 1 << 16 else series.dtype  # numpy sorts 16 bits much faster
    rows = rows[np.argsort(series.astype(narrow), kind="stable")]
    present = np.flatnonzero(counts)
    borders = np.concatenate([[0], np.cumsum(counts[present])])
    for i, which in enumerate(present):
        _write_all(file, rows[borders[i] : borders[i + 1]].view(np.uint8), int(layout.ends[which]) * rows.itemsize)
    np.add(layout.ends, counts, out=layout.ends)


def _write_all(file: int, data: np.ndarray, at: int) -> None:
    left = memoryview(data.data)
    while len(left):  # one call writes 2 GiB at most
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written


def _read_all(file: int, size: int, at: int) -> bytearray:
    data = bytearray(size)
    left = memoryview(data)
    while len(left):
        read = os.preadv(file, [left], at)
        assert read, "the file of rows is shorter than what was written"
        left, at = left[read:], at + read
    return data


def _gather(
    file: int,
    tables: list[Table],
    source: SourceConfig,
    aware: bool,
    layout: Layout,
    rejects: Rejects,
    writer: ColumnWriter,
    progress: bool,
) -> None:
    """Read series by series, check each, and write those that are kept as columns."""
    dtype = row_dtype(source)
    with _bar("sorting series", int(layout.starts[-1]), progress) as bar:
        for series, (start, end) in enumerate(zip(layout.starts[:-1].tolist(), layout.ends.tolist(), strict=True)):
            which, target = divmod(series, len(source.target))
            name = _series_name(layout.ids[which], source.target[target], source)
            data = _read_all(file, (end - start) * dtype.itemsize, start * dtype.itemsize)
            rows, again, contradicts, late = clean_series(np.frombuffer(data, dtype=dtype))
            if late:
                rejects.counts[UNSORTED] += late
            if len(again):
                _check_one_series(rows, again, contradicts, tables, source)
                _reject_duplicates(name, again, contradicts, tables, aware, rejects)
            reason = _static_reason(which, source, layout) or series_reason(rows["target"], source.min_rows)
            if reason:
                rejects.add_series(name, len(rows), reason)
            else:
                writer.add(name, rows, layout.lowest[which])
            bar.update(int(layout.starts[series + 1]) - start)


def _static_reason(which: int, source: SourceConfig, layout: Layout) -> str | None:
    changes = np.flatnonzero(layout.lowest[which] < layout.highest[which])
    return f"static covariate {source.static[changes[0]]} changes" if len(changes) else None


def _check_one_series(
    rows: np.ndarray, again: np.ndarray, contradicts: np.ndarray, tables: list[Table], source: SourceConfig
) -> None:
    """Make sure that a table without names is the one series that it is taken for: where most stamps come again with
    other values it is several, and the column that tells them apart goes by another name."""
    table = tables[int(again["file"][0])]
    if not table.named and contradicts.sum() >= len(rows):
        raise UserError(
            f"{table.path}: has no column {source.id!r} (data.id), so it is one series, but {contradicts.sum():,} of "
            f"its {len(rows) + len(again):,} rows contradict others of the same stamp; name the column of the series "
            "as data.id"
        )


def _reject_duplicates(
    name: str, rows: np.ndarray, contradicts: np.ndarray, tables: list[Table], aware: bool, rejects: Rejects
) -> None:
    texts = np.where(contradicts, CONTRADICTION, DUPLICATE)
    local = rows["time"] + rows["offset"].astype(np.int64) * 1_000_000 * aware
    times = np.datetime_as_string(local.astype("datetime64[us]"))
    for number in np.unique(rows["file"]):
        here = np.flatnonzero(rows["file"] == number)
        shown = [str(times[i]) + (_offset_text(int(rows["offset"][i])) if aware else "") for i in here]
        target = [repr(float(value)) for value in rows["target"][here]]
        rejects.add(tables[number].path.name, [name] * len(here), shown, target, texts[here].tolist())


def _offset_text(seconds: int) -> str:
    minutes = abs(seconds) // 60
    return f"{'-' if seconds < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}"


def _series_name(name: str, column: str, source: SourceConfig) -> str:
    return name if len(source.target) == 1 else f"{name}/{column}"


def _bar(what: str, total: int | None, progress: bool) -> "tqdm[Any]":
    return tqdm(desc=what, total=total, unit=" rows", unit_scale=True, delay=1.0, leave=False, disable=not progress)
