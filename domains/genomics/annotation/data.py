"""Labelled windows and labelled bases as batches: every batch a pure function of the seed and its number."""

from bisect import bisect_right
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from domains.batches import Batch
from domains.genomics.annotation.labels import CLASS_OF_STATE, NO_LABEL, BaseLabels
from domains.genomics.annotation.windows import LabelledWindows, read_spans
from domains.genomics.config import DataConfig
from domains.genomics.data import IGNORE, rows_per_batch
from domains.genomics.splits import Region
from domains.genomics.store import GenomeStore
from domains.parallel import WHOLE, Share


class Order:
    """Which of ``count`` items come in which row of which batch: each epoch holds all of them, in an order of its own.

    Args:
        count: of the items. rows: of a batch. seed: of the orders.
    """

    def __init__(self, count: int, rows: int, seed: int) -> None:
        self._count, self._rows, self._seed = count, rows, seed % 2**64
        self._kept: dict[int, np.ndarray] = {}

    def batch(self, number: int) -> np.ndarray:
        """Items of a batch, int64 (rows,)."""
        places = np.arange(number * self._rows, (number + 1) * self._rows)
        epochs = places // self._count
        return np.concatenate(
            [self._epoch(int(epoch))[places[epochs == epoch] % self._count] for epoch in np.unique(epochs)]
        )

    def _epoch(self, number: int) -> np.ndarray:
        if number not in self._kept:
            self._kept = dict(list(self._kept.items())[-1:])
            self._kept[number] = np.random.default_rng([self._seed, number]).permutation(self._count)
        return self._kept[number]


def span(data: DataConfig) -> int:
    """Bases that a classifier reads: the window, and as many on either side as make up ``data.context``."""
    context = data.window if data.context is None else data.context
    return context + (context - data.window) % 2


class _LabelledBatches(Dataset[Batch]):
    """Batches by number of ``count`` items, ``rows`` each, of which this process gets its share.

    ``shuffled``: how many batches of a training there are, and its seed; None for each item once.
    """

    def __init__(self, count: int, rows: int, share: Share, shuffled: tuple[int, int] | None) -> None:
        self._count, self._rows, self._share = count, rows, share
        self._total, self._order = -(-count // rows), None
        if shuffled is not None:
            self._total, seed = shuffled
            self._order = Order(count, rows, seed)

    def __len__(self) -> int:
        return self._total

    def _own(self, index: int) -> tuple[np.ndarray, bool]:
        """Items of this process in a batch, and whether they count: one that has none reads the first for nothing."""
        if not 0 <= index < self._total:
            raise IndexError(f"batch {index} of {self._total}")
        if self._order is None:
            items = np.arange(index * self._rows, min((index + 1) * self._rows, self._count))
        else:
            items = self._order.batch(index)
        own = self._share.rows(len(items))
        counts = own.stop > own.start
        return items[own] if counts else items[:1], counts


class WindowBatches(_LabelledBatches):
    """Batches of labelled windows, by number: ``total`` of them in shuffled order, or each window once in its own.

    Items: ``inputs`` int64 (rows, span), ``labels`` and ``weights`` float32 (rows,). Of several processes each has
    its share of the rows; one for which there is none has a row without weight.
    """

    def __init__(
        self,
        store: GenomeStore,
        windows: LabelledWindows,
        data: DataConfig,
        share: Share = WHOLE,
        *,
        shuffled: tuple[int, int] | None = None,
    ) -> None:
        """``shuffled``: how many batches of a training there are, and its seed; None for each window once."""
        self._store, self._windows = store, windows
        self._length = span(data)
        self._lead = (self._length - data.window) // 2
        super().__init__(len(windows), rows_per_batch(data, self._length), share, shuffled)

    def __getitem__(self, index: int) -> Batch:
        items, counts = self._own(index)
        tokens = read_spans(self._store, self._windows.starts[items], self._length, self._lead)
        return {
            "inputs": torch.from_numpy(tokens.astype(np.int64)),
            "labels": torch.from_numpy(self._windows.labels[items].astype(np.float32)),
            "weights": torch.full((len(items),), float(counts)),
        }


class Tile(NamedTuple):
    """A stretch of a contig that is read at once, and the part of it whose answers count; positions of store.raw."""

    start: int
    stop: int
    first: int
    last: int


class Tiling(NamedTuple):
    """Tiles of ``window`` bases that cover a stretch, spread evenly, the same from either end.

    Each base counts once, in the tile in which it is farther from the edge, and at least ``halo`` bases from it. At the
    edges of the stretch there is no more to see. A stretch shorter than a window is one tile. The tile in the middle is
    a base shorter where the lengths of stretch and window are one odd, one even.
    """

    start: int  # of the stretch, a position of store.raw
    length: int
    window: int
    halo: int  # less than half of ``window``

    @property
    def total(self) -> int:
        """How many there are; none of an empty stretch."""
        if not self.length:
            return 0
        count = 1 - -self._room // (self.window - 2 * self.halo)
        return count + 1 if self.length % 2 and count % 2 == 0 else count  # the middle base wants a tile in the middle

    def tile(self, number: int) -> Tile:
        """One of them, from 0 on."""
        total = self.total
        start, stop = self._span(number, total)
        first, last = self._border(number, total), self._border(number + 1, total)
        return Tile(*(self.start + at for at in (start, stop, first, last)))

    def number_of(self, base: int) -> int:
        """Number of the tile in which a base of the stretch counts, from 0 on both."""
        total = self.total
        return bisect_right(range(1, total), base, key=lambda number: self._border(number, total))

    @property
    def _room(self) -> int:
        """Where the last tile starts."""
        return max(0, self.length - self.window)

    def _span(self, number: int, total: int) -> tuple[int, int]:
        """Start and stop of a tile: those behind the middle mirror those before it."""
        back = total - 1 - number
        if number > back:
            start, stop = self._span(back, total)
            return self.length - stop, self.length - start
        start = -(-number * self._room // max(total - 1, 1))
        return start, min(start + self.window, self.length) if number < back else self.length - start

    def _border(self, number: int, total: int) -> int:
        """Where a tile begins to count: in the middle of what it shares with the one before it."""
        if not 0 < number < total:
            return self.length if number else 0
        if 2 * number > total:
            return self.length - self._border(total - number, total)
        return (self._span(number, total)[0] + self._span(number - 1, total)[1]) // 2


def tile(regions: list[Region], store: GenomeStore, window: int, halo: int) -> list[Tile]:
    """The tiles of regions, see :class:`Tiling`."""
    tiles: list[Tile] = []
    for region in regions:
        tiling = Tiling(store.contig(region.contig).offset + region.start, region.length, window, halo)
        tiles += map(tiling.tile, range(tiling.total))
    return tiles


def base_windows(store: GenomeStore, labels: BaseLabels, regions: list[Region], window: int) -> np.ndarray:
    """Starts of windows that cover the regions that hold one, the last of each ending where the region ends.

    Windows without a labelled base are left out. int64 (n,), positions in store.raw.
    """
    starts = []
    for region in regions:
        if region.length >= window:
            own = np.minimum(np.arange(0, region.length, window), region.length - window)
            starts.append(store.contig(region.contig).offset + region.start + own)
    found = np.concatenate([np.zeros(0, np.int64), *starts])
    return found[[bool((labels.states[at : at + window] != NO_LABEL).any()) for at in found.tolist()]]


def share_of_windows(starts: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A share of the windows, at least one, in order; a smaller share is part of a larger one."""
    count = max(1, round(fraction * len(starts)))
    return starts[np.sort(np.random.default_rng([seed % 2**64, 77]).permutation(len(starts))[:count])]


class BaseBatches(_LabelledBatches):
    """Batches of windows with a label for every base, by number.

    Items: ``inputs`` int64 (rows, window), ``classes`` int64 (rows, window) with IGNORE, ``sites`` uint8 (rows,
    window).
    """

    def __init__(
        self,
        store: GenomeStore,
        labels: BaseLabels,
        starts: np.ndarray,
        data: DataConfig,
        share: Share = WHOLE,
        *,
        shuffled: tuple[int, int] | None = None,
    ) -> None:
        """``starts``: int64 (n,), positions in store.raw. ``shuffled``: see :class:`WindowBatches`."""
        self._store, self._labels, self._starts = store, labels, starts
        self._length = data.window
        super().__init__(len(starts), rows_per_batch(data, data.window), share, shuffled)

    def __getitem__(self, index: int) -> Batch:
        items, counts = self._own(index)
        starts = self._starts[items]
        at = starts[:, None] + np.arange(self._length)
        classes = CLASS_OF_STATE[self._labels.states[at]].astype(np.int64)
        classes[classes == NO_LABEL] = IGNORE
        if not counts:
            classes[:] = IGNORE
        return {
            "inputs": torch.from_numpy(read_spans(self._store, starts, self._length).astype(np.int64)),
            "classes": torch.from_numpy(classes),
            "sites": torch.from_numpy(self._labels.sites[at]),
        }
