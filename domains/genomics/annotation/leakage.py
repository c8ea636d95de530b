"""Does a model meet in its test what it was trained on? Words that parts share, and windows that are nearly the same.

Of each part the canonical words of 31 bases are kept whose hash falls below a bound (FracMinHash: Irber et al. 2022,
doi:10.1101/2022.01.11.475838), all of them in a small genome. The containment of a window is the share of its kept
words that the training windows hold as well. Words of 31 bases hardly ever agree by chance in a genome; a base that
differs breaks 31 of them, so a copy at 98% identity still shares half.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from domains.genomics.annotation.windows import LabelledWindows, contig_bounds, read_spans
from domains.genomics.store import TOKEN_BITS, GenomeStore
from domains.genomics.tokens import A

WORD = 31  # bases; two bits each fit into 64
NEAR = 0.5  # containment from which a window counts as nearly the same as something in training
_MOST = 1 << 21  # words of the training windows that are kept, about
_BLOCK = 1 << 12  # windows at a time
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))


@dataclass(frozen=True)
class Leakage:
    """What a part shares with the training windows.

    Attributes:
        part: validation or test.
        windows: its windows.
        words: different words of theirs that were looked at. shared: those that occur in training windows too.
        touched: windows with a shared word.
        near: windows with at least half of their words shared.
        kept: share of all words that were looked at.
    """

    part: str
    windows: int
    words: int
    shared: int
    touched: int
    near: int
    kept: float

    def __str__(self) -> str:
        sample = "" if self.kept == 1 else f", of a sample of {self.kept:.2%}"
        return (
            f"{self.part} shares with training {self.shared:,} of {self.words:,} words of {WORD} bases "
            f"({self.shared / max(self.words, 1):.2%}{sample}); {self.near:,} of {self.windows:,} windows are nearly "
            f"the same as training sequence, {self.touched:,} share a word"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class TrainingWords:
    """The words of what is seen in training, for windows of other parts to be compared with.

    Args:
        store: the genome.
        windows: of the training part.
        lead, length: what a model sees of each: ``length`` bases from ``lead`` before its start.
    """

    def __init__(self, store: GenomeStore, windows: LabelledWindows, lead: int = 0, length: int | None = None) -> None:
        self._store = store
        stretches = list(_stretches(store, windows.starts - lead, length or windows.width, windows.starts))
        total = sum(stop - start for start, stop in stretches)
        self.kept = min(1.0, _MOST / max(total, 1))
        self._bound = np.uint64(min(int(self.kept * 2**64), 2**64 - 1))
        found = [np.zeros(0, np.uint64)]
        for start, stop in stretches:
            words, known = canonical_words(store.raw[start:stop] & np.uint8(TOKEN_BITS))
            found.append(np.unique(words[known & (words <= self._bound)]))
        self._words = np.unique(np.concatenate(found))

    def containment(self, windows: LabelledWindows) -> np.ndarray:
        """Share of each window's kept words that occur in training, float64 (n,); 0 where none was kept."""
        shares = [np.zeros(0)]
        for words, kept in self._blocks(windows):
            hits = np.zeros(words.shape, dtype=bool)
            hits[kept] = self._has(words[kept])
            shares.append(hits.sum(1) / np.maximum(kept.sum(1), 1))
        return np.concatenate(shares)

    def compare(self, part: str, windows: LabelledWindows) -> Leakage:
        """The report on another part."""
        containment = self.containment(windows)
        blocks = [np.unique(words[kept]) for words, kept in self._blocks(windows)]
        words = np.unique(np.concatenate([np.zeros(0, np.uint64), *blocks]))
        return Leakage(
            part=part,
            windows=len(windows),
            words=len(words),
            shared=int(self._has(words).sum()),
            touched=int((containment > 0).sum()),
            near=int((containment >= NEAR).sum()),
            kept=self.kept,
        )

    def _has(self, words: np.ndarray) -> np.ndarray:
        if not len(self._words):
            return np.zeros(words.shape, dtype=bool)
        at = np.minimum(np.searchsorted(self._words, words), len(self._words) - 1)
        return self._words[at] == words

    def _blocks(self, windows: LabelledWindows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Words of windows, uint64 (n, words), and which of them are kept, bool, block by block."""
        for first in range(0, len(windows), _BLOCK):
            tokens = read_spans(self._store, windows.starts[first : first + _BLOCK], windows.width)
            words, known = canonical_words(tokens)
            yield words, known & (words <= self._bound)


def canonical_words(tokens: np.ndarray, length: int = WORD) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the words along the last axis, those of a word and of its reverse complement being equal.

    Args:
        tokens: uint8 (..., l).
        length: of the words, at most 32.

    Returns:
        uint64 and bool (..., max(l - length + 1, 0)): the hashes, and where all bases of the word are known.
    """
    bases = tokens - np.uint8(A)  # what is no base wraps round to above 3
    known = bases < 4
    own = np.where(known, bases, 0).astype(np.uint64)
    other = np.where(known, 3 - bases, 0).astype(np.uint64)
    one = (own, other, known)
    whole, width = one, 1
    for bit in bin(length)[3:]:  # by doubling: the words of 2 w bases out of two of w
        whole, width = _joined(whole, width, whole, width), 2 * width
        if bit == "1":
            whole, width = _joined(whole, width, one, 1), width + 1
    own, other, known = whole
    return _mixed(np.minimum(own, other)), known


_Words = tuple[np.ndarray, np.ndarray, np.ndarray]  # of this strand, of the other, and whether all bases are known


def _joined(left: _Words, width: int, right: _Words, more: int) -> _Words:
    """Words of ``width + more`` bases out of those of ``width`` and those of ``more`` that follow them."""
    count = max(left[0].shape[-1] - more, 0)
    a = [part[..., :count] for part in left]
    b = [part[..., width : width + count] for part in right]
    shift = np.uint64(2 * more), np.uint64(2 * width)
    return (a[0] << shift[0]) | b[0], (b[1] << shift[1]) | a[1], a[2] & b[2]


def _mixed(words: np.ndarray) -> np.ndarray:
    """A one-to-one map of 64 bits that spreads words evenly (the finaliser of MurmurHash3)."""
    for factor in _MIX:
        words = (words ^ (words >> np.uint64(33))) * factor
    return words ^ (words >> np.uint64(33))


def _stretches(store: GenomeStore, starts: np.ndarray, length: int, anchors: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches of ``length`` from ``starts`` in order, those that overlap joined, cut where contigs end."""
    firsts, ends = contig_bounds(store, anchors)
    low, high = np.maximum(starts, firsts), np.minimum(starts + length, ends)
    begins = np.concatenate([[True], (low[1:] > high[:-1]) | (firsts[1:] != firsts[:-1])]) if len(low) else []
    edges = np.flatnonzero(begins)
    yield from zip(low[edges].tolist(), high[np.append(edges[1:], len(low)) - 1].tolist(), strict=True)
