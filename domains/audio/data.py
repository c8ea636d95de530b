"""Clips as training batches: every batch a pure function of the seed and its number.

Classifiers get whole clips, padded to the longest of a batch (here); generators get windows of mu-law levels, with the
pieces of short clips packed one behind the other (domains.audio.windows). ``seq_idx`` tells pieces apart, and is -1
where there is nothing.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from domains.audio.augment import augment, check_augment, mix
from domains.audio.config import AugmentConfig, DataConfig
from domains.audio.splits import Splits
from domains.audio.store import AudioStore
from domains.audio.windows import Piece, TrainWindows, ValidationWindows
from domains.batches import Batch, Batches, BatchesDataModule
from domains.config import MANY, check_range
from domains.packing import Passes

_SPREAD = 0.2  # of the lengths of clips that meet in a batch, about
_ALONG = 1  # sets the random numbers of mixing apart from those of a pass


def check_data(data: DataConfig) -> None:
    """Make sure that the values make sense whatever the clips; a UserError names the first that does not."""
    check_range("data.window", data.window, 2, MANY)
    check_range("data.max_seconds", data.max_seconds, 0.01, 86_400)
    check_range("data.tokens_per_step", data.tokens_per_step, 1, MANY)
    check_range("data.validation_tokens", data.validation_tokens, 1)
    if data.level_db is not None:
        check_range("data.level_db", data.level_db, -100, 0)
    check_augment(data.augment)
    check_range("data.workers", data.workers, 0, os.cpu_count() or 1, "the processors of this machine")


class Along(NamedTuple):
    """Another clip that sounds along with one."""

    piece: Piece
    share: float  # of the label, from 0 to 1, that is left to the first


def make_clips(
    store: AudioStore,
    pieces: Sequence[Piece],
    data: DataConfig,
    weights: np.ndarray,
    *,
    multiple: int = 1,
    augmented: tuple[AugmentConfig, int, int] | None = None,
    along: Sequence[Along | None] | None = None,
) -> Batch:
    """Clips of one batch.

    Args:
        store: the clips.
        pieces: of one clip each.
        data: says how loud they are.
        weights: float32 (clips of the store,), see :func:`class_weights`.
        multiple: the length is padded to a multiple of this, for models that stride.
        augmented: what is done to each clip, with seed and epoch; None: nothing.
        along: what sounds along with each piece; of it no more than the longest of the pieces lasts.

    Returns:
        ``inputs`` float32 (b, l), 0 behind the end; ``seq_idx`` int64 (b, l), 0, and -1 behind the end; ``labels``
        int64 (b,), places in ``store.labels``; ``targets`` float32 (b, classes), what each class weighs in the loss;
        ``clips`` int64 (b,), numbers in the store.
    """

    def sound(piece: Piece) -> Tensor:
        found = torch.from_numpy(store.samples(piece.clip, piece.start, piece.stop, data.level_db))
        return augment(found, store.rate, *augmented, piece.clip) if augmented else found

    clips = np.array([piece.clip for piece in pieces], dtype=np.int64)
    labels = np.array([store.labels.index(store.clips[clip].label) for clip in clips], dtype=np.int64)
    targets = np.zeros((len(pieces), len(store.labels)), dtype=np.float32)
    targets[np.arange(len(pieces)), labels] = weights[clips]
    sounds = [sound(piece) for piece in pieces]
    longest = max(map(len, sounds))
    for row, other in enumerate(along or ()):
        if other is not None:
            second, label = other.piece.clip, store.labels.index(store.clips[other.piece.clip].label)
            decibels = store.clips[clips[row]].rms_db - store.clips[second].rms_db if data.level_db is None else 0.0
            sounds[row] = mix(sounds[row], sound(other.piece)[:longest], other.share, decibels)
            targets[row] *= other.share
            targets[row, label] += (1 - other.share) * weights[second]
    length = -(-longest // multiple) * multiple
    inputs = torch.zeros(len(sounds), length)
    seq_idx = torch.full((len(sounds), length), -1, dtype=torch.int64)
    for row, samples in enumerate(sounds):
        inputs[row, : len(samples)] = samples
        seq_idx[row, : len(samples)] = 0
    told = {"labels": labels, "targets": targets, "clips": clips}
    return {"inputs": inputs, "seq_idx": seq_idx} | {name: torch.from_numpy(values) for name, values in told.items()}


def class_weights(store: AudioStore, clips: Sequence[int], balance: bool) -> np.ndarray:
    """A weight for each clip of the store, of mean 1 over ``clips``; with ``balance`` equal sums for each label.

    Returns:
        float32 (clips of the store,); those of other clips mean nothing.
    """
    weights = np.ones(len(store), dtype=np.float32)
    if balance:
        labels = np.array([store.labels.index(store.clips[clip].label) for clip in clips])
        counts = np.bincount(labels, minlength=len(store.labels))
        weights[list(clips)] = len(clips) / (np.count_nonzero(counts) * counts[labels])
    return weights


class TrainClips(Dataset[Batch]):
    """The batches of a classifier's training run, by number: in each pass every clip once, with those of like length.

    A batch holds as many clips as ``data.tokens_per_step`` samples allow, padding included, and at least one.
    """

    def __init__(
        self,
        store: AudioStore,
        clips: Sequence[int],
        data: DataConfig,
        total: int,
        seed: int,
        multiple: int = 1,
    ) -> None:
        self._store = store
        self._clips = list(clips)
        self._data = data
        self._total = total
        self._seed = seed % 2**64
        self._multiple = multiple
        self._weights = class_weights(store, clips, data.balance)
        self._longest = max(1, int(data.max_seconds * store.rate))
        self._passes = Passes(self._pass)

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self._total:
            raise IndexError(f"batch {index} of {self._total}")
        epoch, pieces = self._passes[index]
        augmented = (self._data.augment, self._seed, epoch)
        return make_clips(
            self._store,
            pieces,
            self._data,
            self._weights,
            multiple=self._multiple,
            augmented=augmented,
            along=self._along(index, len(pieces)),
        )

    def _along(self, index: int, count: int) -> list[Along | None]:
        """What sounds along with the pieces of a batch: any training clip, from its beginning."""
        rng = np.random.default_rng([self._seed, index, _ALONG])
        found: list[Along | None] = []
        for chance, clip, share in zip(
            rng.random(count), rng.choice(self._clips, count).tolist(), rng.random(count).tolist(), strict=True
        ):
            piece = Piece(clip, 0, min(self._longest, self._store.clips[clip].length))
            found.append(Along(piece, share) if chance < self._data.augment.mix else None)
        return found

    def _pass(self, number: int) -> list[tuple[int, list[Piece]]]:
        rng = np.random.default_rng([self._seed, number])
        pieces = []
        for clip in self._clips:
            room = max(0, self._store.clips[clip].length - self._longest)
            start = int(rng.integers(0, room + 1))
            pieces.append(Piece(clip, start, start + self._store.clips[clip].length - room))
        lengths = np.array([piece.stop - piece.start for piece in pieces])
        order = np.argsort(lengths * np.exp(rng.uniform(-_SPREAD, _SPREAD, len(lengths))))
        budget = self._data.tokens_per_step / (1 + self._data.augment.speed)
        batches = _batched([pieces[i] for i in order], budget)
        return [(number, batches[i]) for i in rng.permutation(len(batches))]


class ValidationClips(Dataset[Batch]):
    """Clips as they are, from the shortest to the longest; of one longer than ``data.max_seconds`` the beginning.

    Every clip weighs 1.
    """

    def __init__(self, store: AudioStore, clips: Sequence[int], data: DataConfig, multiple: int = 1) -> None:
        self._store = store
        self._data = data
        self._multiple = multiple
        longest = max(1, int(data.max_seconds * store.rate))
        ordered = sorted(clips, key=lambda clip: store.clips[clip].length)
        pieces = [Piece(clip, 0, min(longest, store.clips[clip].length)) for clip in ordered]
        self._batches = _batched(pieces, data.tokens_per_step)
        self._weights = np.ones(len(store), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        return make_clips(self._store, self._batches[index], self._data, self._weights, multiple=self._multiple)


def _batched(pieces: Sequence[Piece], budget: float) -> list[list[Piece]]:
    """Pieces in their order, in batches of at most ``budget`` samples once padded to the longest, or of one piece."""
    batches: list[list[Piece]] = []
    longest = 0
    for piece in pieces:
        longest = max(longest, piece.stop - piece.start)
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = piece.stop - piece.start
        batches[-1].append(piece)
    return batches


class AudioDataModule(BatchesDataModule):
    """Training and validation batches of prepared clips for a Lightning trainer.

    Args:
        store, splits: the clips and their parts.
        data: how batches are drawn.
        generate: whether samples are predicted rather than labels.
        max_steps, accumulate: of the run.
        seed: of all that is drawn.
        multiple: see :func:`make_clips`; of classifiers.
    """

    def __init__(
        self,
        store: AudioStore,
        splits: Splits,
        data: DataConfig,
        generate: bool,
        max_steps: int,
        accumulate: int,
        seed: int,
        multiple: int = 1,
    ) -> None:
        total = max_steps * accumulate
        train, validation = splits.clips(store, "train"), splits.clips(store, "validation")
        train_batches: Batches
        validation_batches: Batches
        if generate:
            train_batches = TrainWindows(store, train, data, total, seed)
            validation_batches = ValidationWindows(store, validation, data)
        else:
            train_batches = TrainClips(store, train, data, total, seed, multiple)
            validation_batches = ValidationClips(store, validation, data, multiple)
        super().__init__(train_batches, validation_batches, accumulate, data.workers)
