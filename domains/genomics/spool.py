"""Numbers of a long contig on their way to a file, kept with the state behind them: a killed job goes on from there."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from domains.files import atomic_file
from mamba_core import State

SAVE_EVERY = 20.0  # seconds


class Spool:
    """Rows that come in order, on disk, and now and then the state that goes on behind them.

    Two files: ``<path>.rows``, float32, and ``<path>.state``, safetensors with the number of rows that it is behind.
    Rows are on the disk before a state says so; what came after the last state is computed again.

    Args:
        path: of both files, without their endings.
        made_from: what decides the rows, plain values; what another job left there is thrown away.
        width: numbers in a row.

    Attributes:
        rows: how many there are.
        state: what goes on behind them; None before the first row, and where rows need none.
    """

    def __init__(self, path: Path, made_from: Any, width: int = 1) -> None:
        self._rows_path = path.with_name(f"{path.name}.rows")
        self._state_path = path.with_name(f"{path.name}.state")
        self._width = width
        self._origin = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).digest()
        self.rows, self.state = self._found()
        self._file: BinaryIO = self._rows_path.open("ab")
        self._file.truncate(4 * width * self.rows)
        self._saved = time.monotonic()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, rows: np.ndarray, state: State | None) -> None:
        """Add float32 (n,) or (n, width) rows, and the state behind them; it is saved if that was long ago."""
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).data)
        self.rows += len(rows)
        self.state = state
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self._save()
            self._saved = time.monotonic()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``: float32 (n,), or (n, width)."""
        self._file.flush()
        count = (stop - start) * self._width
        found = np.fromfile(self._rows_path, np.float32, count, offset=4 * self._width * start)
        return found if self._width == 1 else found.reshape(-1, self._width)

    def remove(self) -> None:
        """Delete both files."""
        self._file.close()
        for path in (self._rows_path, self._state_path):
            path.unlink(missing_ok=True)

    def _save(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        own = {
            "rows": torch.tensor([self.rows]),
            "origin": torch.frombuffer(bytearray(self._origin), dtype=torch.uint8)[None],
        }
        nested = {} if self.state is None else State.nest({"state": self.state.to("cpu")})
        tensors = {name: tensor.contiguous().clone() for name, tensor in {**own, **nested}.items()}
        with atomic_file(self._state_path) as file:
            file.write(safetensors.torch.save(tensors))

    def _found(self) -> tuple[int, State | None]:
        """What an earlier process left: rows, and the state behind them."""
        try:
            saved = State.load(self._state_path)
            rows = int(saved["rows"])
            fits = saved["origin"].numpy().tobytes() == self._origin
            if fits and self._rows_path.stat().st_size >= 4 * self._width * rows:
                return rows, saved.child("state") or None
        except (OSError, SafetensorError, KeyError, ValueError):
            pass
        return 0, None
