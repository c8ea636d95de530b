"""The files of a store of series, as they are written: raw columns, and a hash of what they hold."""

import hashlib
import json
from pathlib import Path
from typing import BinaryIO

import numpy as np

from domains.store_folder import META
from domains.timeseries.checks import Rejects
from domains.timeseries.config import SourceConfig

FORMAT = 1  # raise it when the same source would give other bytes
COLUMNS = {"time": "<i8", "offset": "<i4", "target": "<f8", "past": "<f4", "future": "<f4"}  # <name>.bin


class ColumnWriter:
    """The final files: a raw little-endian file for each column, and a hash of what went into each."""

    def __init__(self, folder: Path, source: SourceConfig) -> None:
        self.names: list[str] = []
        self._folder = folder
        self._source = source
        self._lengths: list[int] = []
        self._static: list[np.ndarray] = []
        self._hashes = {column: hashlib.sha256() for column in COLUMNS}
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "ColumnWriter":
        self._files = {column: (self._folder / f"{column}.bin").open("wb") for column in COLUMNS}
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, name: str, rows: np.ndarray, static: np.ndarray) -> None:
        """Append a series: structured rows (n,), and its static covariates, float32."""
        self.names.append(name)
        self._lengths.append(len(rows))
        self._static.append(static)
        for column, dtype in COLUMNS.items():
            values = np.ascontiguousarray(rows[column], dtype=dtype)
            if values.dtype.kind == "f":
                values[np.isnan(values)] = np.nan  # one NaN of the many, so that equal series have equal hashes
            self._hashes[column].update(values.data)
            self._files[column].write(values.data)

    def finish(self, where: str, rejects: Rejects) -> None:
        """Write the small files, once the columns are closed."""
        starts = np.concatenate([[0], np.cumsum(self._lengths)]).astype("<i8")
        static = np.stack(self._static).astype("<f4")
        static[np.isnan(static)] = np.nan
        np.save(self._folder / "starts.npy", starts, allow_pickle=False)
        np.save(self._folder / "static.npy", static, allow_pickle=False)
        source = self._source
        what = {
            "kind": source.kind,
            "names": self.names,
            "past": list(source.past),
            "future": list(source.future),
            "static": list(source.static),
        }
        fingerprint = hashlib.sha256(json.dumps(what).encode())
        for content in (starts.tobytes(), static.tobytes(), *(each.digest() for each in self._hashes.values())):
            fingerprint.update(content)
        meta = {
            "format": FORMAT,
            "source": where,
            "fingerprint": fingerprint.hexdigest(),
            "rows": int(starts[-1]),
            **what,
            "settings": {key: getattr(source, key) for key in ("time", "id", "target", "zone", "min_rows")},
            "rejects": dict(rejects.counts),
            "rejected_series": rejects.series,
        }
        (self._folder / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
