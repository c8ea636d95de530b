"""Reference and alternative as windows of equal length, on both strands, from the first base in which they differ.

On either strand the bases before that one are common to both: the *context*, which a causal model reads once and then
goes on from for the reference and each alternative. From there on ``window`` bases of each are compared. The windows
are equally long, so that an insertion does not look unlikely, nor a deletion likely, for the number of its bases alone.
Where a contig ends first, both are cut to the shorter; those of indels also where either comes to an N, for otherwise
more bases of one would count than of the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from domains.genomics.tokens import PAD, N, reverse_complement
from domains.genomics.variants.alleles import Edit, Reader


class Place(NamedTuple):
    """An edit and the contig that it is made to."""

    contig: str
    read: Reader
    length: int
    edit: Edit


@dataclass(frozen=True)
class Windows:
    """What a model reads to compare alleles. Contexts, and branches of equal bases, stand here once.

    Attributes:
        before: uint8 (contexts, at most ``context``), each from the left, PAD behind shorter ones.
        before_length: int64 (contexts,).
        branches: uint8 (branches, at most ``window``), the bases that follow a context; N behind shorter ones.
        context_of: int64 (branches,), rising.
        pairs: int64 (alleles, 2, 2), the branches (reference, alternative) on the forward and on the reverse strand.
        compared: int64 (alleles, 2), how many bases of the two count; 0 where there is nothing to compare.
    """

    before: np.ndarray
    before_length: np.ndarray
    branches: np.ndarray
    context_of: np.ndarray
    pairs: np.ndarray
    compared: np.ndarray

    def ratios(self, log_probs: np.ndarray, most: int | None = None) -> np.ndarray:
        """Log-likelihood ratios of alternative to reference.

        Args:
            log_probs: float32, of the bases of ``branches``; NaN at N.
            most: count no more than so many bases.

        Returns:
            float64 (alleles, 2), nats, of each strand; NaN where there is nothing to compare.
        """
        ratios = np.full(self.compared.shape, np.nan)
        for at in zip(*np.nonzero(self.compared), strict=True):
            reference, alternative = self.pairs[at]
            count = slice(0, self.compared[at] if most is None else min(most, self.compared[at]))
            ratios[at] = np.nansum(log_probs[alternative, count].astype(np.float64) - log_probs[reference, count])
        return ratios


def make_windows(places: Sequence[Place], context: int, window: int) -> Windows:
    """The windows of some alleles.

    Args:
        places: the alleles.
        context: most bases of the context.
        window: bases of reference and alternative that are compared.
    """
    contexts: dict[tuple[str, bool, int], int] = {}
    before: list[np.ndarray] = []
    rows: list[dict[bytes, int]] = []  # of each context the branches, by their bases, in the order that they came
    found = np.zeros((len(places), 2, 3), dtype=np.int64)  # context, and the numbers of the branches there
    compared = np.zeros((len(places), 2), dtype=np.int64)
    for i, place in enumerate(places):
        for strand in (0, 1):
            anchor, branches = _branches(place, strand == 1, window)
            key = (place.contig, strand == 1, anchor)
            if key not in contexts:
                contexts[key] = len(before)
                before.append(_context(place, strand == 1, anchor, context))
                rows.append({})
            at = contexts[key]
            numbers = [rows[at].setdefault(branch.tobytes(), len(rows[at])) for branch in branches]
            found[i, strand] = (at, *numbers)
            compared[i, strand] = _comparable(*branches, place.edit)
    sizes = np.array([len(branches) for branches in rows], dtype=np.int64)
    first = np.cumsum(sizes) - sizes
    return Windows(
        before=_stack(before, PAD),
        before_length=np.array([len(row) for row in before], dtype=np.int64),
        branches=_stack([np.frombuffer(row, np.uint8) for branches in rows for row in branches], N),
        context_of=np.repeat(np.arange(len(rows)), sizes),
        pairs=first[found[..., 0]][..., None] + found[..., 1:] if len(places) else np.zeros((0, 2, 2), np.int64),
        compared=compared,
    )


def _branches(place: Place, reverse: bool, window: int) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """Where reference and alternative first differ on a strand, and their bases from there on, uint8 (window or less,).

    The position is that of the first base of the reference that is read; on the reverse strand of the one before it in
    reading order, plus one: bases are read from it downwards.
    """
    _, read, length, edit = place
    if not reverse:
        edit = edit.rightmost
    stop = edit.start + edit.deleted
    inserted = np.frombuffer(edit.inserted, np.uint8)[-window:] if reverse else np.frombuffer(edit.inserted, np.uint8)
    inserted = inserted[:window]
    rest = window - len(inserted)
    if reverse:
        reference = read(max(0, stop - window), stop)
        alternative = np.concatenate([read(max(0, edit.start - rest), edit.start), inserted])
        return stop, (reverse_complement(reference), reverse_complement(alternative))
    reference = read(edit.start, min(edit.start + window, length))
    alternative = np.concatenate([inserted, read(stop, min(stop + rest, length))])
    return edit.start, (reference, alternative)


def _context(place: Place, reverse: bool, anchor: int, context: int) -> np.ndarray:
    if reverse:
        return reverse_complement(place.read(anchor, min(anchor + context, place.length)))
    return place.read(max(0, anchor - context), anchor)


def _comparable(reference: np.ndarray, alternative: np.ndarray, edit: Edit) -> int:
    count = min(len(reference), len(alternative))
    if edit.deleted == len(edit.inserted):  # N stands at the same places of both
        return count
    unknown = np.flatnonzero((reference[:count] == N) | (alternative[:count] == N))
    return int(unknown[0]) if len(unknown) else count


def _stack(rows: Sequence[np.ndarray], filler: int) -> np.ndarray:
    """Rows of unequal length as one array, with ``filler`` behind them."""
    stacked = np.full((len(rows), max(map(len, rows), default=0)), filler, dtype=np.uint8)
    for row, values in zip(stacked, rows, strict=True):
        row[: len(values)] = values
    return stacked
