"""Series as training batches: every batch a pure function of the seed and its number.

A row of a batch is ``data.window`` steps. Long series give windows of that length; shorter pieces are packed one behind
the other, told apart by ``seq_idx``, so that a panel of short series wastes no steps.
"""

import os
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from domains.config import MANY, check_range
from domains.errors import UserError
from domains.packing import Passes, cut_range, pack
from domains.timeseries.clock import Clock
from domains.timeseries.config import DataConfig
from domains.timeseries.history import increments
from domains.timeseries.splits import Splits
from domains.timeseries.store import SeriesStore
from domains.timeseries.transforms import Rows, Running, feature_count, known_ahead, see, steps_ahead

CALENDAR = 7  # numbers that are known of every stamp ahead
BURN_IN = 2000  # rows before a window from which its running means start
WARM_UP = 16  # increments that a series must have shown before a forecast counts

Batch = dict[str, torch.Tensor]


def check_data(data: DataConfig) -> None:
    """Make sure that the values make sense whatever the series; a UserError names the first that does not."""
    check_range("data.horizon", data.horizon, 1, 10_000)
    check_range("data.embargo", data.embargo, 0, MANY)
    check_range("data.window", data.window, 8, MANY)
    check_range("data.tokens_per_step", data.tokens_per_step, 1, MANY)
    check_range("data.validation_tokens", data.validation_tokens, 1)
    check_range("data.workers", data.workers, 0, os.cpu_count() or 1, "the processors of this machine")


class Ahead(NamedTuple):
    """What is known at each of n rows of the steps ahead, and what came of them."""

    cells: np.ndarray  # int64 (n, horizon), hour of the week
    known: np.ndarray  # float32 (n, horizon, CALENDAR + future)
    spread: np.ndarray  # float64 (n, horizon), expected size of the outcome
    outcome: np.ndarray  # float64 (n, horizon), NaN where it is missing or behind the end


def read_rows(store: SeriesStore, series: int, start: int, stop: int) -> Rows:
    """Rows ``start`` to ``stop`` of a series."""
    first = store.series(series).start
    part = slice(first + start, first + stop)
    return Rows(
        np.asarray(store.time[part]),
        np.asarray(store.offset[part]),
        np.asarray(store.target[part]),
        np.asarray(store.past[part]),
        np.asarray(store.future[part]),
        np.asarray(store.static[series]),
    )


def look_ahead(
    rows: Rows, scale: np.ndarray, mean: np.ndarray, spread: np.ndarray, x: np.ndarray, kind: str, clock: Clock, h: int
) -> Ahead:
    """For the first n of n + h rows: see :class:`Ahead`.

    Args:
        rows: n + h rows. Of the last h only what is known in advance is read, but for the outcome.
        scale, mean, spread: of the first n rows (:class:`domains.timeseries.transforms.Seen`).
        x: increments of n + h rows; NaN where they are unknown.
    """
    n = len(scale)
    ahead = np.arange(n)[:, None] + np.arange(1, h + 1)
    cells, calendar = known_ahead(rows.time, rows.offset)
    past = rows.past.shape[1]
    future = (rows.future[ahead] - mean[:, None, past:]) / spread[:, None, past:]
    known = np.concatenate([calendar[ahead], np.nan_to_num(np.clip(future, -6, 6))], axis=-1, dtype=np.float32)
    expected = scale[:, None] * steps_ahead(clock, rows.time, rows.offset, kind, h)
    outcome = x[ahead]
    if kind != "return":
        outcome = np.where(np.isnan(outcome), np.nan, np.cumsum(np.nan_to_num(outcome), axis=1))
    return Ahead(cells[ahead], known, expected, outcome)


class Piece(NamedTuple):
    """Rows ``start`` to ``stop`` of a series, cut-offs of forecasts; rows behind ``end`` are not to be looked at."""

    series: int
    start: int
    stop: int
    end: int


class Windows:
    """Pieces of a store as packed rows of ``window`` steps."""

    def __init__(self, store: SeriesStore, clock: Clock, window: int, horizon: int) -> None:
        self._store = store
        self._clock = clock
        self.window = window
        self.horizon = horizon
        self._features = feature_count(len(store.past_names), len(store.future_names), len(store.static_names))

    def batch(self, rows: list[list[Piece]]) -> Batch:
        """Pieces packed into rows.

        Returns:
            ``inputs`` float32 (b, l, features); ``seq_idx`` int64 (b, l), which piece, -1 where a row is not filled,
            left out where each row is one whole piece; ``cells`` int64, ``spread``, ``target`` (outcome over spread)
            and ``weight`` float32 (b, l, horizon); ``known`` float32 (b, l, horizon, known).
        """
        b, l, h = len(rows), self.window, self.horizon
        known = CALENDAR + len(self._store.future_names)
        batch: dict[str, np.ndarray] = {
            "inputs": np.zeros((b, l, self._features), np.float32),
            "seq_idx": np.full((b, l), -1, np.int64),
            "cells": np.zeros((b, l, h), np.int64),
            "known": np.zeros((b, l, h, known), np.float32),
            "spread": np.ones((b, l, h), np.float32),
            "target": np.zeros((b, l, h), np.float32),
            "weight": np.zeros((b, l, h), np.float32),
        }
        for row, pieces in enumerate(rows):
            at = 0
            for number, piece in enumerate(pieces):
                place = slice(at, at + piece.stop - piece.start)
                batch["seq_idx"][row, place] = number
                for name, values in self._piece(piece).items():
                    batch[name][row, place] = values
                at = place.stop
        if not batch["seq_idx"].any():  # whole windows: nothing to tell apart, and models are faster so
            del batch["seq_idx"]
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _piece(self, piece: Piece) -> dict[str, np.ndarray]:
        first = max(0, piece.start - BURN_IN)
        n, skip, h = piece.stop - piece.start, piece.start - first, self.horizon
        rows = read_rows(self._store, piece.series, first, min(piece.stop + h, piece.end))
        rows = padded(rows, skip + n + h)
        known_so_far = rows.part(slice(0, skip + n))
        start = Running.start(rows.past.shape[1] + rows.future.shape[1])
        seen, _ = see(known_so_far, self._store.kind, self._clock, start)
        x = increments(rows.y, self._store.kind)[skip:]
        ahead = look_ahead(
            rows.part(slice(skip, None)),
            seen.scale[skip:],
            seen.mean[skip:],
            seen.spread[skip:],
            x,
            self._store.kind,
            self._clock,
            h,
        )
        counts = ~np.isnan(ahead.outcome) & (seen.shown[skip:, None] >= WARM_UP)
        return {
            "inputs": seen.inputs[skip:],
            "cells": ahead.cells,
            "known": ahead.known,
            "spread": ahead.spread,
            "target": np.where(counts, np.nan_to_num(ahead.outcome) / ahead.spread, 0.0),
            "weight": counts,
        }


def padded(rows: Rows, length: int) -> Rows:
    """The rows, with copies of the last stamp and no observation behind them."""
    short = length - len(rows)
    if short <= 0:
        return rows
    return rows.extended(rows.time[-1:].repeat(short), rows.offset[-1:].repeat(short))


def cut(parts: list[tuple[int, range, int]], window: int, phases: np.ndarray | None = None) -> list[Piece]:
    """Cut-offs of each series in pieces of at most ``window``.

    Args:
        parts: series, its cut-offs, and the row at which its part ends.
        phases: length of each series' first piece; None: ``window``.
    """
    return [
        Piece(series, part.start, part.stop, end)
        for i, (series, cutoffs, end) in enumerate(parts)
        for part in cut_range(cutoffs, window, window if phases is None else int(phases[i]))
    ]


class TrainBatches(Dataset[Batch]):
    """The batches of a training run, by number. Each pass over the data cuts every series anew, from another phase."""

    def __init__(
        self, store: SeriesStore, splits: Splits, clock: Clock, data: DataConfig, total: int, seed: int
    ) -> None:
        self._windows = Windows(store, clock, data.window, splits.horizon)
        self._parts = [
            (i, splits.train_cutoffs(i), int(splits.train_ends[i]))
            for i in range(len(store))
            if len(splits.train_cutoffs(i)) > WARM_UP
        ]
        if not self._parts:
            raise UserError(
                f"{store.source_name}: no series has more than {WARM_UP} rows to train on; give a later data.test"
            )
        self._rows = max(1, data.tokens_per_step // data.window)
        self._total = total
        self._seed = seed % 2**64
        self._passes = Passes(self._pass)

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self._total:
            raise IndexError(f"batch {index} of {self._total}")
        return self._windows.batch(self._passes[index])

    def _pass(self, number: int) -> list[list[list[Piece]]]:
        """Batches of rows of pieces."""
        rng = np.random.default_rng([self._seed, number])
        window = self._windows.window
        pieces = cut(self._parts, window, rng.integers(1, window + 1, len(self._parts)))
        rows = pack([pieces[i] for i in rng.permutation(len(pieces))], window)
        return [rows[first : first + self._rows] for first in range(0, len(rows), self._rows)]


class ValidationBatches(Dataset[Batch]):
    """The validation part in pieces, at most ``data.validation_tokens`` steps, spread over the series."""

    def __init__(self, store: SeriesStore, splits: Splits, clock: Clock, data: DataConfig) -> None:
        self._windows = Windows(store, clock, data.window, splits.horizon)
        self._rows = max(1, data.tokens_per_step // data.window)
        # A window of training rows leads into each: a state that starts from nothing knows little.
        lead = data.window // 2
        parts = []
        for i in range(len(store)):
            cutoffs = splits.validation_cutoffs(i)
            for start in range(cutoffs.start, cutoffs.stop, lead):
                stop = min(start + lead, cutoffs.stop)
                parts.append((Piece(i, max(0, start - lead), stop, int(splits.validation_ends[i])), start))
        wanted = max(1, data.validation_tokens // data.window)
        step = max(1, len(parts) // wanted)
        self._lead = {piece: start - piece.start for piece, start in parts[::step]}
        self._packed = pack(list(self._lead), data.window)

    def __len__(self) -> int:
        return -(-len(self._packed) // self._rows)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        rows = self._packed[index * self._rows : (index + 1) * self._rows]
        batch = self._windows.batch(rows)
        for row, pieces in enumerate(rows):
            at = 0
            for piece in pieces:
                batch["weight"][row, at : at + self._lead[piece]] = 0.0  # the lead is not scored
                at += piece.stop - piece.start
        return batch
