"""Clips as windows of mu-law levels, for generators: every batch a pure function of the seed and its number."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from domains.audio.config import DataConfig
from domains.audio.store import AudioStore
from domains.audio.tokens import SILENCE
from domains.batches import Batch
from domains.packing import Passes, cut_range, pack

IGNORE = -100  # a target that counts in no loss


class Piece(NamedTuple):
    """Samples ``start`` to ``stop`` of clip number ``clip``."""

    clip: int
    start: int
    stop: int


def make_windows(store: AudioStore, rows: Sequence[Sequence[Piece]], window: int, level_db: float | None) -> Batch:
    """Inputs and targets of next-sample prediction.

    Returns:
        ``inputs`` int64 (b, l), the level of the sample before each, SILENCE before a clip; ``targets`` int64 (b, l),
        IGNORE where there is none; ``seq_idx`` int64 (b, l), which piece of the row, -1 where there is none; left out
        where each row is one whole piece.
    """
    shape = len(rows), window
    inputs = np.full(shape, SILENCE, np.int64)
    targets = np.full(shape, IGNORE, np.int64)
    seq_idx = np.full(shape, -1, np.int64)
    for row, pieces in enumerate(rows):
        at = 0
        for number, (clip, start, stop) in enumerate(pieces):
            place = slice(at, at + stop - start)
            first = max(0, start - 1)  # the sample before, where there is one
            levels = store.tokens(clip, first, stop, level_db)
            targets[row, place] = levels[start - first :]
            inputs[row, place] = np.concatenate([np.full(1 - (start - first), SILENCE, np.uint8), levels[:-1]])
            seq_idx[row, place] = number
            at = place.stop
    batch = {"inputs": inputs, "targets": targets, "seq_idx": seq_idx}
    if not seq_idx.any():  # whole windows: nothing to tell apart, and models are faster so
        del batch["seq_idx"]
    return {name: torch.from_numpy(values) for name, values in batch.items()}


class TrainWindows(Dataset[Batch]):
    """The batches of a generator's training run, by number. Each pass cuts every clip anew, from another phase."""

    def __init__(self, store: AudioStore, clips: Sequence[int], data: DataConfig, total: int, seed: int) -> None:
        self._store = store
        self._clips = list(clips)
        self._data = data
        self._total = total
        self._seed = seed % 2**64
        self._passes = Passes(self._pass)

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self._total:
            raise IndexError(f"batch {index} of {self._total}")
        return make_windows(self._store, self._passes[index], self._data.window, self._data.level_db)

    def _pass(self, number: int) -> list[list[list[Piece]]]:
        rng = np.random.default_rng([self._seed, number])
        phases = rng.integers(1, self._data.window + 1, len(self._clips))
        pieces = [
            Piece(clip, part.start, part.stop)
            for clip, phase in zip(self._clips, phases.tolist(), strict=True)
            for part in cut_range(range(self._store.clips[clip].length), self._data.window, phase)
        ]
        rows = pack([pieces[i] for i in rng.permutation(len(pieces))], self._data.window)
        size = rows_per_batch(self._data)
        return [rows[first : first + size] for first in range(0, len(rows), size)]


class ValidationWindows(Dataset[Batch]):
    """Clips in windows from their beginning, at most ``data.validation_tokens`` samples, spread over all clips."""

    def __init__(self, store: AudioStore, clips: Sequence[int], data: DataConfig) -> None:
        self._store = store
        self._data = data
        pieces = [
            Piece(clip, part.start, part.stop)
            for clip in clips
            for part in cut_range(range(store.clips[clip].length), data.window, data.window)
        ]
        total = sum(piece.stop - piece.start for piece in pieces)
        wanted = min(len(pieces), max(1, len(pieces) * data.validation_tokens // total))
        self._rows = pack([pieces[i * len(pieces) // wanted] for i in range(wanted)], data.window)

    def __len__(self) -> int:
        return -(-len(self._rows) // rows_per_batch(self._data))

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        size = rows_per_batch(self._data)
        rows = self._rows[index * size : (index + 1) * size]
        return make_windows(self._store, rows, self._data.window, self._data.level_db)


def rows_per_batch(data: DataConfig) -> int:
    """Windows in a batch: the whole rows that ``data.tokens_per_step`` holds, and at least one."""
    return max(1, data.tokens_per_step // data.window)
