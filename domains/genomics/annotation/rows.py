"""The rows of a part of a genome that is annotated: where they are, and what a model says of them.

Models are asked for as many windows at a time as fit a call, counted from the start of a contig wherever a part begins.
So a row's numbers are the same to the bit whichever blocks its contig is cut into, and wherever a killed job goes on.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from domains.genomics.annotation.data import Tiling
from domains.genomics.annotation.models import WindowClassifier
from domains.genomics.annotation.trained import (
    LoadedAnnotator,
    base_probabilities,
    halo_of,
    window_probabilities,
    windows_a_call,
)
from domains.genomics.annotation.windows import MAX_UNKNOWN
from domains.genomics.parts import Part, Piece, pieces
from domains.genomics.store import TOKEN_BITS, GenomeStore
from domains.genomics.tokens import N

_RUN = 1 << 14  # windows; other numbers would give other last digits


class Places(NamedTuple):
    """Where some rows are, in order: int64 (n,) each, positions on their contig, half-open."""

    contig: np.ndarray  # its number in the store
    start: np.ndarray  # of the window or base
    end: np.ndarray
    low: np.ndarray  # the stretch that the row stands for in a track; those of a contig lie on end from end to end
    high: np.ndarray


class WindowRows:
    """Windows half a window apart and one that ends with the contig, of the contigs of a part that holds their starts.

    A contig that is shorter than a window is one.

    Args:
        loaded: a classifier of windows.
        store: the genome.
        part: of it.

    Attributes:
        count: rows of the part.
    """

    def __init__(self, loaded: LoadedAnnotator, store: GenomeStore, part: Part) -> None:
        self._loaded, self._store, self._contigs = loaded, store, part.contigs
        self._window = loaded.config.data.window
        self._step = max(1, self._window // 2)
        own = slice(part.contigs.start, part.contigs.stop)
        self._offset = store.offsets[own]
        last = store.contigs[part.contigs[-1]]
        self._length = np.diff(np.append(self._offset, last.offset + last.length))
        self._last = np.maximum(self._length - self._window, 0)  # where the last window of each contig starts
        # Windows are numbered through all the part's contigs, in whole; the part has those from _first on.
        self._numbers = np.concatenate([[0], np.cumsum(-(-self._last // self._step) + 1)])
        self._first = self._at(0, part.start)
        self.count = self._at(len(part.contigs) - 1, part.stop) - self._first

    def places(self, start: int, stop: int) -> Places:
        """Of rows ``start`` to ``stop``."""
        return self._places(self._first + start, self._first + stop)

    def said(self, done: int = 0) -> Iterator[np.ndarray]:
        """Probabilities from row ``done`` on, call by call: float32 (n, 1), NaN where too much is unknown."""
        first, stop = self._first + done, self._first + self.count
        for at, until in self._calls(first, stop):
            values = self._ask(self._places(at, until))
            yield values[max(first - at, 0) : stop - at, None]

    def _calls(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """The windows of each call that has some of ``first`` to ``stop``: as many as fit, counted anew every _RUN."""
        size, total = windows_a_call(self._loaded), int(self._numbers[-1])
        for run in range(first - first % _RUN, stop, _RUN):
            for at in range(run, min(run + _RUN, stop), size):
                until = min(at + size, run + _RUN, total)
                if until > first:
                    yield at, until

    def _ask(self, places: Places) -> np.ndarray:
        offset = self._offset[places.contig - self._contigs.start]
        start, end = places.start + offset, places.end + offset
        values = window_probabilities(self._loaded, self._store, start)
        read = self._store.raw[start[0] : end[-1]] & np.uint8(TOKEN_BITS)
        known = np.concatenate([[0], np.cumsum(read != N)])
        unknown = self._window - (known[end - start[0]] - known[start - start[0]])  # beyond the contig all are
        values[unknown > MAX_UNKNOWN * self._window] = np.nan
        return values

    def _places(self, first: int, stop: int) -> Places:
        """Of windows by number, those before the part and behind it included."""
        number = np.arange(first, stop)
        which = np.searchsorted(self._numbers, number, side="right") - 1
        nth, last, length = number - self._numbers[which], self._last[which], self._length[which]
        before, start, after = (np.minimum((nth + by) * self._step, last) for by in (-1, 0, 1))
        half = self._window // 2  # the stretch of a window ends midway between its middle and the next one's
        low = np.where(nth == 0, 0, (before + half + start + half) // 2)
        high = np.where(start == last, length, (start + half + after + half) // 2)
        return Places(which + self._contigs.start, start, np.minimum(start + self._window, length), low, high)

    def _at(self, which: int, position: int) -> int:
        """Number of the first window of one of the contigs that starts at a position of ``store.raw`` or behind it."""
        at = position - self._offset[which]
        if at > self._last[which]:
            return int(self._numbers[which + 1])
        return int(self._numbers[which] - (-at // self._step))


class BaseRows:
    """The bases of a part, in order.

    Args:
        loaded: a segmenter.
        store: the genome.
        part: of it.

    Attributes:
        count: rows of the part.
    """

    def __init__(self, loaded: LoadedAnnotator, store: GenomeStore, part: Part) -> None:
        self._loaded, self._store, self._part = loaded, store, part
        self._offset = store.offsets[part.contigs.start : part.contigs.stop]
        self.count = part.length

    def places(self, start: int, stop: int) -> Places:
        """Of rows ``start`` to ``stop``."""
        at = np.arange(self._part.start + start, self._part.start + stop)
        which = np.searchsorted(self._offset, at, side="right") - 1
        position = at - self._offset[which]
        return Places(which + self._part.contigs.start, position, position + 1, position, position + 1)

    def said(self, done: int = 0) -> Iterator[np.ndarray]:
        """Probabilities of classes and sites from row ``done`` on, call by call: float32 (n, tracks), NaN for N."""
        before = 0
        for piece in pieces(self._store, self._part):
            skipped = min(max(done - before, 0), piece.length)
            before += piece.length
            if skipped < piece.length:
                yield from self._ask(piece, piece.start + skipped)

    def _ask(self, piece: Piece, start: int) -> Iterator[np.ndarray]:
        """Of the bases of a piece from a position of its contig on."""
        offset, window = piece.contig.offset, self._loaded.config.data.window
        tiling = Tiling(offset, piece.contig.length, window, halo_of(window))
        size = windows_a_call(self._loaded)
        first = tiling.number_of(start)
        for at in range(first - first % size, tiling.number_of(piece.stop - 1) + 1, size):
            tiles = [tiling.tile(number) for number in range(at, min(at + size, tiling.total))]
            said = [np.concatenate(both, axis=1) for _, *both in base_probabilities(self._loaded, self._store, tiles)]
            values = np.concatenate(said)
            read = self._store.raw[tiles[0].first : tiles[-1].last] & np.uint8(TOKEN_BITS)
            values[read == N] = np.nan
            begin = tiles[0].first - offset
            yield values[max(start - begin, 0) : piece.stop - begin]


Rows = WindowRows | BaseRows


def open_rows(loaded: LoadedAnnotator, store: GenomeStore, part: Part) -> Rows:
    """The rows of a part, by the kind of the model."""
    return (WindowRows if isinstance(loaded.model, WindowClassifier) else BaseRows)(loaded, store, part)
