"""metrics.jsonl: what a run measured, one JSON object a line. Needs no tracking server and survives kill -9."""

import json
import math
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch.loggers import Logger

from domains.files import atomic_file


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Rows of a metrics file, ``{"step": int, "time": seconds since 1970, name: value, ...}``, in order.

    A line that the end of a process cut short is left out; a missing file holds no rows.
    """
    path = Path(path)
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def truncate_metrics(path: Path | str, last_step: int) -> None:
    """Remove the rows after ``last_step``: the steps that a resumed run is about to do again."""
    rows = [row for row in read_metrics(path) if row["step"] <= last_step]
    with atomic_file(path) as file:
        for row in rows:
            file.write(_line(row))


class RunLog(Logger):
    """A Lightning logger that appends to metrics.jsonl; every row is on disk before the next step starts."""

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self._path = Path(path)
        self._file: BinaryIO | None = None

    @property
    def name(self) -> str:
        return "runlog"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row. Infinite and NaN values, which JSON lacks, become null."""
        if self._file is None:
            self._file = self._path.open("ab")
        self._file.write(_line({"step": step, "time": round(time.time(), 3), **metrics}))
        self._file.flush()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml beside this file holds them."""

    def finalize(self, status: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(row: dict[str, Any]) -> bytes:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False).encode("utf-8") + b"\n"
