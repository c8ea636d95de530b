"""Windows of a genome as training batches: every batch a pure function of the seed and its number."""

import os
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from domains.batches import Batch, BatchesDataModule
from domains.config import MANY, check_range
from domains.errors import UserError
from domains.genomics.config import DataConfig
from domains.genomics.splits import Region, Splits
from domains.genomics.store import LOWER_BIT, TOKEN_BITS, GenomeStore
from domains.genomics.tokens import BASES, BOS, reverse_complement
from domains.parallel import WHOLE, Share

IGNORE = -100  # a target that counts in no loss


def make_batch(windows: np.ndarray, weights: np.ndarray) -> Batch:
    """Inputs and targets of next-base prediction.

    Args:
        windows: tokens, uint8 (rows, length).
        weights: float32 (rows, length).

    Returns:
        ``inputs`` int64 (rows, length), BOS and then all but the last base; ``targets`` int64 (rows, length), the
        bases, with IGNORE for whatever is not A, C, G or T; ``weights`` float32 (rows, length), of the targets.
    """
    targets = torch.from_numpy(windows.astype(np.int64))
    inputs = torch.empty_like(targets)
    inputs[:, 0] = BOS
    inputs[:, 1:] = targets[:, :-1]
    known = (targets >= BASES.start) & (targets < BASES.stop)
    return {"inputs": inputs, "targets": targets.masked_fill(~known, IGNORE), "weights": torch.from_numpy(weights)}


class Form(Protocol):
    """What a task makes of windows of DNA."""

    def make_batch(self, windows: np.ndarray, weights: np.ndarray, number: int, rows: slice, total: int) -> Batch:
        """Inputs, targets and weights of some rows of a batch.

        Args:
            windows: tokens of these rows, uint8 (rows, length).
            weights: float32 (rows, length).
            number: of the batch.
            rows: which of its rows these are.
            total: rows of the whole batch.
        """


class NextBase:
    """The form of the causal task: :func:`make_batch`."""

    def make_batch(self, windows: np.ndarray, weights: np.ndarray, number: int, rows: slice, total: int) -> Batch:
        return make_batch(windows, weights)


NEXT_BASE = NextBase()


class Windows:
    """Reads windows of a genome as batches: of each batch the rows, and of each window the tokens, of one process.

    Args:
        store: the genome.
        share: the part of the process; other parts are not read.
        form: of the batches.
        masked_weight: weight of lower-case bases.
    """

    def __init__(self, store: GenomeStore, share: Share, form: Form, masked_weight: float = 1.0) -> None:
        self._store = store
        self._form = form
        self._share = share
        self._masked_weight = masked_weight if store.has_soft_mask else 1.0

    def batch(self, starts: np.ndarray, flips: np.ndarray, length: int, number: int) -> Batch:
        """Batch ``number``: windows of ``length`` from ``starts``, read from the other strand where ``flips``.

        A process for which there is no row gets one that counts in no loss.
        """
        rows = self._share.rows(len(starts))
        empty = rows.start == rows.stop
        rows = slice(0, 1) if empty else rows
        parts = []
        for part in self._share.tokens(length):
            tokens, weights, lead = self._read(starts[rows], flips[rows], length, part)
            made = self._form.make_batch(tokens, weights, number, rows, len(starts))
            parts.append({name: tensor[:, lead:] for name, tensor in made.items()})
        batch = parts[0] if len(parts) == 1 else {name: torch.cat([p[name] for p in parts], dim=1) for name in parts[0]}
        return batch | ({"targets": torch.full_like(batch["targets"], IGNORE)} if empty else {})

    def _read(
        self, starts: np.ndarray, flips: np.ndarray, length: int, part: slice
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Tokens and weights of a part of each window, and how many of its first tokens are of the part before."""
        lead = int(part.start > 0)  # the token before the part is its first input
        count = part.stop - part.start + lead
        first = np.where(flips, starts + length - part.stop, starts + part.start - lead)
        stored = np.stack([self._store.raw[at : at + count] for at in first])
        tokens = stored & np.uint8(TOKEN_BITS)
        weights = np.ones(tokens.shape, dtype=np.float32)
        if self._masked_weight != 1.0:
            weights[stored >= LOWER_BIT] = self._masked_weight
        tokens[flips] = reverse_complement(tokens[flips])
        weights[flips] = weights[flips, ::-1]
        return tokens, weights, lead


def check_data(data: DataConfig) -> None:
    """Make sure that the values make sense whatever the genome; a UserError names the first that does not."""
    check_range("data.window", data.window, 2, MANY)
    check_range("data.tokens_per_step", data.tokens_per_step, 1, MANY)
    check_range("data.validation_tokens", data.validation_tokens, 1)
    check_range("data.soft_mask_weight", data.soft_mask_weight, 0)
    check_range("data.workers", data.workers, 0, os.cpu_count() or 1, "the processors of this machine")
    _check_warmup(data)


def _check_warmup(data: DataConfig) -> None:
    for length in data.window_warmup:
        if not 2 <= length <= data.window:
            raise UserError(
                f"data.window_warmup={data.window_warmup}: give lengths from 2 to data.window={data.window}"
            )
    if not 0 <= data.window_warmup_fraction <= 1:
        raise UserError(f"data.window_warmup_fraction={data.window_warmup_fraction}: must lie between 0 and 1")


class Epoch(NamedTuple):
    """The windows of one pass over the training regions, in their order."""

    starts: np.ndarray  # int64, positions of store.raw
    flips: np.ndarray  # bool, read from the other strand


class WindowStream:
    """An endless, seeded sequence of windows of one length.

    Each epoch tiles every region from a phase of its own, drops windows made wholly of N, and shuffles; the phase lies
    such that each region holds at least one window. Epochs are a pure function of (seed, length, epoch), so any window
    of the stream is found without drawing those before it.

    Raises:
        UserError: no region holds a window with a known base.
    """

    def __init__(self, store: GenomeStore, regions: list[Region], length: int, seed: int, flip: bool) -> None:
        self.length = length
        self._store = store
        self._seed = seed % 2**64  # numpy takes no negative seed
        self._flip = flip
        usable = [region for region in regions if region.length >= length]
        offsets = [store.contig(region.contig).offset for region in usable]
        self._first = np.array([o + r.start for o, r in zip(offsets, usable, strict=True)], dtype=np.int64)
        self._size = np.array([region.length for region in usable], dtype=np.int64)
        self._ends: list[int] = []  # how many windows the stream holds up to the end of each epoch drawn so far
        self._kept: dict[int, Epoch] = {}
        if not usable or not len(self.epoch(0).starts):
            raise UserError(
                f"{store.source_name}: no training contig holds a window of {length:,} with a known base; "
                "give a smaller data.window"
            )

    def epoch(self, number: int) -> Epoch:
        """The windows of one epoch; the last two asked for are kept."""
        if number not in self._kept:
            self._kept = dict(list(self._kept.items())[-1:])
            self._kept[number] = self._draw_epoch(number)
        return self._kept[number]

    def windows(self, first: int, count: int) -> Epoch:
        """Windows ``first`` to ``first + count - 1`` of the stream."""
        starts, flips = [], []
        while count:
            number, before = self._locate(first)
            epoch = self.epoch(number)
            part = slice(first - before, first - before + count)
            starts.append(epoch.starts[part])
            flips.append(epoch.flips[part])
            first += len(starts[-1])
            count -= len(starts[-1])
        return Epoch(np.concatenate(starts), np.concatenate(flips))

    def _locate(self, window: int) -> tuple[int, int]:
        """The epoch that holds a window of the stream, and how many windows come before that epoch."""
        while not self._ends or self._ends[-1] <= window:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + len(self.epoch(len(self._ends)).starts))
        number = int(np.searchsorted(self._ends, window, side="right"))
        return number, self._ends[number - 1] if number else 0

    def _draw_epoch(self, number: int) -> Epoch:
        rng = np.random.default_rng([self._seed, self.length, number])
        phase = rng.integers(0, np.minimum(self.length, self._size - self.length + 1))
        starts = _tile(self._first + phase, (self._size - phase) // self.length, self.length)
        starts = starts[~self._store.all_n(starts, self.length)]
        rng.shuffle(starts)
        flips = rng.random(len(starts)) < 0.5 if self._flip else np.zeros(len(starts), dtype=bool)
        return Epoch(starts, flips)


def _tile(first: np.ndarray, counts: np.ndarray, length: int) -> np.ndarray:
    """Starts of ``counts[i]`` windows on end from ``first[i]``, for every i."""
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first, counts) + within * length


class Stage(NamedTuple):
    """Batches from number ``first`` on have windows of ``length``."""

    first: int
    length: int


def plan_stages(data: DataConfig, max_steps: int, accumulate: int) -> list[Stage]:
    """The length warm-up: the shorter windows share ``window_warmup_fraction`` of the steps, the full window follows.

    Raises:
        UserError: a warm-up length outside 2 .. window, or a fraction outside 0 .. 1.
    """
    _check_warmup(data)
    share = data.window_warmup_fraction * max_steps / max(len(data.window_warmup), 1)
    lengths = [*data.window_warmup, data.window]
    return [Stage(round(index * share) * accumulate, length) for index, length in enumerate(lengths)]


class TrainBatches(Dataset[Batch]):
    """The batches of a training run, by number; a resumed run reads on at the number where it stopped.

    Item i is a batch of (rows, length), of the form of the task, with rows * length as near to
    ``data.tokens_per_step`` as whole rows allow, below it but for a single row; or this process's share of that.
    """

    def __init__(
        self,
        store: GenomeStore,
        regions: list[Region],
        data: DataConfig,
        max_steps: int,
        accumulate: int,
        seed: int,
        share: Share = WHOLE,
        form: Form = NEXT_BASE,
    ) -> None:
        self._data = data
        self._total = max_steps * accumulate
        self._stages = plan_stages(data, max_steps, accumulate)
        flip = data.reverse_complement
        self._streams = [WindowStream(store, regions, stage.length, seed, flip) for stage in self._stages]
        self._windows = Windows(store, share, form, data.soft_mask_weight)
        for stage in self._stages:
            share.check(rows_per_batch(data, stage.length), stage.length)

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self._total:
            raise IndexError(f"batch {index} of {self._total}")
        number = max(i for i, stage in enumerate(self._stages) if stage.first <= index)
        first, length = self._stages[number]
        rows = rows_per_batch(self._data, length)
        starts, flips = self._streams[number].windows((index - first) * rows, rows)
        return self._windows.batch(starts, flips, length, index)


class ValidationBatches(Dataset[Batch]):
    """Fixed windows on end over the validation regions, at most ``data.validation_tokens`` bases, spread over them all.

    Forward strand, every known base of weight 1; each item is a batch of the form of the task, or this process's share
    of it.
    """

    def __init__(
        self,
        store: GenomeStore,
        regions: list[Region],
        data: DataConfig,
        share: Share = WHOLE,
        form: Form = NEXT_BASE,
    ) -> None:
        self._windows = Windows(store, share, form)
        self._length = data.window
        self._rows = rows_per_batch(data, data.window)
        first = np.array([store.contig(region.contig).offset + region.start for region in regions], dtype=np.int64)
        counts = np.array([region.length // data.window for region in regions], dtype=np.int64)
        starts = _tile(first, counts, data.window)
        starts = starts[~store.all_n(starts, data.window)]
        if not len(starts):
            raise UserError(
                f"{store.source_name}: no validation contig holds a window of {data.window:,} with a known base; "
                "give a smaller data.window or another data.validation"
            )
        wanted = min(len(starts), max(1, data.validation_tokens // data.window))
        self._starts = starts[(np.arange(wanted) * len(starts)) // wanted]

    def __len__(self) -> int:
        return -(-len(self._starts) // self._rows)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        starts = self._starts[index * self._rows : (index + 1) * self._rows]
        return self._windows.batch(starts, np.zeros(len(starts), dtype=bool), self._length, index)


def rows_per_batch(data: DataConfig, length: int) -> int:
    """Windows of ``length`` in a batch: the whole rows that ``data.tokens_per_step`` holds, and at least one."""
    return max(1, data.tokens_per_step // length)


class GenomeDataModule(BatchesDataModule):
    """Training and validation batches of a prepared genome for a Lightning trainer.

    ``forms`` are those of the task's training and validation batches; by default of the causal task.
    """

    def __init__(
        self,
        store: GenomeStore,
        splits: Splits,
        data: DataConfig,
        max_steps: int,
        accumulate: int,
        seed: int,
        share: Share = WHOLE,
        forms: tuple[Form, Form] = (NEXT_BASE, NEXT_BASE),
    ) -> None:
        train = TrainBatches(store, splits.train, data, max_steps, accumulate, seed, share, forms[0])
        validation = ValidationBatches(store, splits.validation, data, share, forms[1])
        super().__init__(train, validation, accumulate, data.workers, share)
