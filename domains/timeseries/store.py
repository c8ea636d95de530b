"""Many time series on disk, memory-mapped, found again by the content of their tables.

A store is a folder. Rows lie sorted by series, then time, in one raw little-endian file for each column: ``time.bin``
(int64, microseconds since 1970 UTC), ``offset.bin`` (int32, seconds that the local clock is ahead), ``target.bin``
(float64), ``past.bin`` and ``future.bin`` (float32, the covariates of a row side by side). ``starts.npy`` says where
each series begins, ``static.npy`` holds its static covariates, ``meta.json`` names, settings, counts and the
fingerprint, ``rejects.parquet`` the rows that were kept aside. numpy alone reads all but the last.
"""

import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from domains.config import MANY, check_range
from domains.errors import UserError
from domains.files import file_sha256, sweep_partials
from domains.store_folder import META, build_store, find_by_key, store_key
from domains.timeseries.checks import EMPTY_FILE, UNSORTED
from domains.timeseries.columns import COLUMNS, FORMAT
from domains.timeseries.config import SourceConfig
from domains.timeseries.history import KINDS, History
from domains.timeseries.io import Table, find_files, open_table
from domains.timeseries.prepare import REJECTS, write_store
from domains.timeseries.sample import sample_series
from domains.words import counted

_SHOWN = 5  # names in a line for people


class SeriesStore:
    """Prepared series, open for reading at any row. Made by :func:`prepare_store`.

    Opening reads the tables of names and starts alone; rows come from memory maps, so a store of any size costs no
    memory, and copies sent to worker processes send the path.

    Attributes:
        path: the folder.
        names: of the series, sorted; ``id/column`` where the table has several targets.
        starts: int64 (series + 1,), the first row of each series.
        time: int64 (rows,), microseconds since 1970 UTC, strictly increasing within a series.
        offset: int32 (rows,), seconds that the local clock is ahead of UTC.
        target: float64 (rows,), NaN where missing.
        past, future: float32 (rows, covariates), NaN where missing.
        static: float32 (series, covariates), NaN where missing.
        past_names, future_names, static_names: of the covariates.
        kind: price, return or level.
        fingerprint: sha256 over names and arrays: equal for equal series, whatever their files.
        source_name: the file, folder or glob that it was made from.
        rejects: what was kept aside: reason -> rows, or series where the reason is one of a series.
        rejected_series: the series kept aside: name, reason, rows.
        reused: whether prepare_store found it rather than made it.
    """

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        self.names = [str(name) for name in meta["names"]]
        self.kind: str = meta["kind"]
        self.fingerprint: str = meta["fingerprint"]
        self.source_name: str = meta["source"]
        self.past_names, self.future_names, self.static_names = (
            [str(name) for name in meta[kind]] for kind in ("past", "future", "static")
        )
        self.rejects: dict[str, int] = dict(meta["rejects"])
        self.rejected_series: list[dict[str, Any]] = list(meta["rejected_series"])
        self.reused = False
        rows = int(meta["rows"])
        self.starts: np.ndarray = np.load(path / "starts.npy", allow_pickle=False)
        self.static: np.ndarray = np.load(path / "static.npy", allow_pickle=False)
        self.time, self.offset, self.target = (self._map(column, rows) for column in ("time", "offset", "target"))
        self.past = self._map("past", rows, len(self.past_names))
        self.future = self._map("future", rows, len(self.future_names))
        for name, array, shape in (
            ("starts.npy", self.starts, (len(self.names) + 1,)),
            ("static.npy", self.static, (len(self.names), len(self.static_names))),
        ):
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, not {shape}")
        if self.starts[0] != 0 or self.starts[-1] != rows or (np.diff(self.starts) < 1).any():
            raise ValueError("starts.npy does not fit the rows")
        self._by_name = {name: i for i, name in enumerate(self.names)}

    def _map(self, column: str, rows: int, width: int | None = None) -> np.ndarray:
        shape = (rows,) if width is None else (rows, width)
        dtype = np.dtype(COLUMNS[column])
        path = self.path / f"{column}.bin"
        size, expected = path.stat().st_size, rows * (1 if width is None else width) * dtype.itemsize
        if size != expected:
            raise ValueError(f"{path.name} has {size:,} bytes, not {expected:,}")
        if not expected:  # nothing can be mapped
            return np.zeros(shape, dtype=dtype)
        return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape))

    @classmethod
    def open(cls, path: Path | str) -> "SeriesStore":
        """Open the store in folder ``path``.

        Raises:
            UserError: it is missing, no store, of another format version, or damaged.
        """
        path = Path(path)
        try:
            meta = json.loads((path / META).read_text(encoding="utf-8"))
            if meta["format"] != FORMAT:
                raise UserError(f"{path}: is a store of format {meta['format']}, not {FORMAT}; prepare the table again")
            return cls(path, meta)
        except (FileNotFoundError, NotADirectoryError) as error:
            missing = Path(str(error.filename)).name
            raise UserError(f"{path}: is no prepared table ({missing} is missing); run prepare on the table") from None
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete it and prepare the table again") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return SeriesStore.open, (self.path,)  # worker processes map the files themselves

    def __len__(self) -> int:
        return len(self.names)

    def series(self, i: int) -> slice:
        """The rows of series ``i``."""
        return slice(int(self.starts[i]), int(self.starts[i + 1]))

    def history(self, i: int) -> History:
        """Series ``i``, with its increments; stamps and observations are views of the memory map."""
        rows = self.series(i)
        return History.of(self.names[i], self.kind, self.time[rows], self.offset[rows], self.target[rows])

    def index(self, name: str) -> int:
        """The number of the series of that name; a UserError names the nearest ones when there is none."""
        if name in self._by_name:
            return self._by_name[name]
        near = difflib.get_close_matches(name, self.names, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {_some(self.names)}"
        raise UserError(f"{self.source_name}: has no series {name!r}; {hint}")

    def summary(self) -> str:
        """One line about the series, for people."""
        missing = sum(int(np.isnan(self.target[self.series(i)]).sum()) for i in range(len(self)))
        first, last = (self.time[at].astype("datetime64[us]") for at in (self.starts[:-1], self.starts[1:] - 1))
        span = f"{first.min().astype('datetime64[D]')} to {last.max().astype('datetime64[D]')}"
        count = f"{len(self):,} series" if len(self) > 1 else "1 series"
        return f"{count}, {len(self.time):,} rows, {span}, {missing / len(self.time):.2%} missing"

    def notes(self) -> list[str]:
        """What was kept aside or put in order, a line for each reason."""
        lines = []
        by_reason: dict[str, list[str]] = {}
        for each in self.rejected_series:
            by_reason.setdefault(each["reason"], []).append(each["name"])
        for reason, count in self.rejects.items():
            if reason in by_reason:
                lines.append(f"{count:,} series kept aside: {reason} ({_some(by_reason[reason])})")
            elif reason == EMPTY_FILE:
                lines.append(f"{counted(count, 'empty file')} passed over (see {self.path / REJECTS})")
            elif reason == UNSORTED:
                lines.append(f"{count:,} {reason}")
            else:
                rows = "rows" if count > 1 else "row"
                lines.append(f"{count:,} {rows} kept aside: {reason} (see {self.path / REJECTS})")
        return lines


def open_store(source: SourceConfig, progress: bool = True) -> SeriesStore:
    """The series that the settings mean: a prepared store, else a table, else the bundled series.

    Raises:
        UserError: the store cannot be opened or is of another kind than the settings ask for; or see
            :func:`prepare_store`.
    """
    if not source.store:
        return prepare_store(source, progress)
    store = SeriesStore.open(source.store)
    has = {"kind": store.kind, "past": store.past_names, "future": store.future_names, "static": store.static_names}
    for name, value in has.items():
        asked = getattr(source, name)
        if asked not in (value, getattr(SourceConfig(), name)):  # what is left as it was asks for nothing
            raise UserError(
                f"{source.store}: was prepared with data.{name}={value}, not {asked}; prepare the table again, "
                "or leave that setting out"
            )
    return store


def prepare_store(source: SourceConfig, progress: bool = True) -> SeriesStore:
    """Turn a long table into a store in folder ``source.stores``, or find the one made from the same content before.

    The store is ``stores/<stem>-<12 hex of content and settings>``; it appears whole or not at all (see
    domains.store_folder). Rows that cannot be used, and series that tell nothing, are kept aside with a reason and the
    rest goes on. The memory is that of a few batches and of the longest series; meanwhile the disk holds rows twice.

    Stamps that are written with an offset or in a time zone become UTC, with the offset of each row beside it; those
    without are taken as they are. With ``source.zone``, the offset is that of this zone's clock, and stamps written
    without any are taken as UTC.

    Args:
        source: what to read; without a path the bundled series.
        progress: show a bar of what takes longer than a second, and say on stderr what was kept aside.

    Raises:
        UserError: a setting makes no sense; no file matches; a file cannot be read, lacks a column, or holds text where
            numbers or stamps belong in all its rows; stamps with and without time zone come together; no series is
            left; or the folder cannot be written.
    """
    _check_settings(source)
    if not source.path:
        source = replace(source, path=str(sample_series(source.stores)))
    root = Path(source.stores)
    files = find_files(source.path, root)
    opened = {path: open_table(path, source) for path in files}
    tables = [table for table in opened.values() if table]
    empty = [path for path, table in opened.items() if not table]
    if not tables:
        raise UserError(f"{source.path}: holds no rows; give a table with a header and rows")
    _check_stems(tables, source.id)
    sweep_partials(root)
    key = store_key(FORMAT, _settings(source), *(_content(path, opened[path]) for path in files))
    found = find_by_key(root, key)
    if found:
        store = SeriesStore.open(found)
        store.reused = True
    else:
        where = Path(source.path).name or Path(source.path).resolve().name

        def write(folder: Path) -> None:
            write_store(folder, tables, source, where, empty, progress)

        stem = tables[0].stem if len(files) == 1 else _stem(source.path)
        store = SeriesStore.open(build_store(root, stem, key, write, f"the series of {source.path}"))
    if progress:
        for line in store.notes():
            print(f"{store.source_name}: {line}", file=sys.stderr)
    return store


def _check_settings(source: SourceConfig) -> None:
    if source.kind not in KINDS:
        raise UserError(f"data.kind={source.kind}: must be one of {', '.join(KINDS)}")
    if not source.target:
        raise UserError("data.target is empty; name at least one column")
    check_range("data.min_rows", source.min_rows, 0, MANY)
    used: dict[str, str] = {}
    for field in fields(SourceConfig):
        if field.name not in ("time", "id", "target", "past", "future", "static"):
            continue
        value = getattr(source, field.name)
        for column in [value] if isinstance(value, str) else value:
            if column in used:
                raise UserError(f"column {column!r} is named as data.{used[column]} and as data.{field.name}; keep one")
            used[column] = field.name


def _stem(path: str) -> str:
    """What to call several files: what their names have in common, or their folder."""
    common = Path(re.sub(r"\[[^]]*\]|[*?]", "", Path(path).name))
    name = common.name if Path(path).is_dir() else common.name.split(".")[0].strip("-_ ")
    return name or re.sub(r"[*?[\].]", "", Path(path).parent.name) or "series"


def _check_stems(tables: Sequence[Table], column: str) -> None:
    """Make sure that all tables name their series, or none does and each is a series of its own."""
    seen: dict[str, Path] = {}
    named = next((table.path for table in tables if table.named), None)
    for table in tables:
        if not table.named and named is not None:
            raise UserError(
                f"{table.path}: has no column {column!r} (data.id), which {named} has; add it, or give files alone "
                "that have it"
            )
        if not table.named and table.stem in seen:
            raise UserError(
                f"{table.path}: has no column of series names, and {seen[table.stem]} would be a series of the same "
                "name; rename one of them, or add the column to both"
            )
        if not table.named:
            seen[table.stem] = table.path


def _settings(source: SourceConfig) -> str:
    names = ("time", "id", "target", "past", "future", "static", "zone", "kind", "min_rows")
    return json.dumps([getattr(source, name) for name in names])


def _content(path: Path, table: Table | None) -> str:
    """What a file adds to the key: its content, and its name where that becomes the name of a series."""
    try:
        sha256 = file_sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return f"{sha256}/{table.stem}" if table and not table.named else sha256


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
