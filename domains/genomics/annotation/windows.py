"""Windows of a genome labelled by the features that they overlap: what a classifier learns from, and is tested on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from domains.config import check_range
from domains.errors import UserError
from domains.genomics.annotation.table import FeatureTable, by_contig, covered
from domains.genomics.config import DataConfig
from domains.genomics.splits import Region, Splits
from domains.genomics.store import TOKEN_BITS, GenomeStore
from domains.genomics.tokens import BASES, C, G, N

NEGATIVES = ("matched", "balanced", "all")
MAX_UNKNOWN = 0.1  # of a window's bases; windows with more N are left out
_GC_BINS = 50  # of the share of G and C, for matching
_BLOCK = 1 << 14  # windows read at a time


@dataclass(frozen=True)
class LabelledWindows:
    """Windows of one length and their labels.

    Attributes:
        starts: int64 (n,), positions in ``store.raw``, increasing.
        labels: uint8 (n,), 1 inside the features, 0 outside.
        width: bases of a window.
    """

    starts: np.ndarray
    labels: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def positives(self) -> int:
        return int(self.labels.sum())

    def take(self, chosen: np.ndarray) -> "LabelledWindows":
        """Some of the windows, by number or by a mask."""
        return replace(self, starts=self.starts[chosen], labels=self.labels[chosen])


class WindowSplits(NamedTuple):
    """The labelled windows of each part of a genome."""

    train: LabelledWindows
    validation: LabelledWindows
    test: LabelledWindows

    def note(self, data: DataConfig) -> str:
        """One line for people: what was labelled how."""
        counts = ", ".join(
            f"{part} {windows.positives:,} of {len(windows):,}" for part, windows in self._asdict().items()
        )
        return (
            f"windows of {data.window:,} bases with at least {data.min_overlap:.0%} in {data.positive} against windows "
            f"with none ({data.negatives}): {counts} positive"
        )


def check_windows(data: DataConfig) -> None:
    """Make sure that the settings of labelled windows make sense; a UserError names the first that does not."""
    check_range("data.min_overlap", data.min_overlap, 0, 1)
    if not data.min_overlap > 0:
        raise UserError("data.min_overlap=0: windows without any such base are the negatives; give more than 0")
    if data.negatives not in NEGATIVES:
        raise UserError(f"data.negatives={data.negatives}: must be one of {', '.join(NEGATIVES)}")
    if data.stride is not None:
        check_range("data.stride", data.stride, 1)
    if data.context is not None and data.context < data.window:
        raise UserError(f"data.context={data.context}: must be at least data.window={data.window}, or left out")
    check_fraction(data.label_fraction)


def check_fraction(fraction: float) -> None:
    """A UserError when no such share of the labels can be learned from."""
    if not 0 < fraction <= 1:
        raise UserError(f"data.label_fraction={fraction}: must be more than 0 and at most 1")


def label_windows(
    store: GenomeStore, table: FeatureTable, splits: Splits, data: DataConfig, seed: int = 0
) -> WindowSplits:
    """The windows of each part, labelled by overlap, negatives chosen as ``data.negatives`` says.

    Windows lie ``data.stride`` apart from the start of each region, cross no contig or split edge, and hold at most a
    tenth of N. One with at least ``data.min_overlap`` of its bases in features of type ``data.positive`` is positive,
    one with none negative, others are left out, and so are contigs that the annotation does not speak of. ``matched``
    keeps as many negatives as positives in each of 50 classes of GC content, ``balanced`` as many in all; what is kept
    is drawn with ``seed``. Of the training windows ``data.label_fraction`` stays: a smaller share is part of a larger.

    Raises:
        UserError: no feature is of that type (the message lists those that there are), the annotation does not fit the
            genome, or a part has no window of one of the two kinds.
    """
    table.check_type(data.positive, "data.positive")
    table.check_genome(store)
    rows = by_contig(table, table.select(data.positive), store.names)
    known = set(table.contigs)
    parts = []
    for number, part in enumerate(("train", "validation", "test")):
        regions = [region for region in getattr(splits, part) if region.contig in known]
        found = _label(store, regions, rows, data)
        _check_both(found, part, data)
        chosen = choose_negatives(store, found, data.negatives, np.random.default_rng([seed % 2**64, number]))
        _check_both(chosen, part, data)
        parts.append(chosen)
    parts[0] = fraction_of(parts[0], data.label_fraction, seed)
    _check_both(parts[0], "train", data)
    return WindowSplits(*parts)


def choose_negatives(
    store: GenomeStore, windows: LabelledWindows, how: str, rng: np.random.Generator
) -> LabelledWindows:
    """The windows that stay when both kinds are to be ``matched`` or ``balanced``; ``all`` stay otherwise."""
    if how == "all":
        return windows
    groups = np.zeros(len(windows), dtype=np.int64)
    if how == "matched":
        groups = np.minimum((gc_content(store, windows) * _GC_BINS).astype(np.int64), _GC_BINS - 1)
    kept = []
    for group in np.unique(groups):
        kinds = [np.flatnonzero((groups == group) & (windows.labels == label)) for label in (0, 1)]
        count = min(len(kind) for kind in kinds)
        kept += [rng.permutation(kind)[:count] for kind in kinds]
    return windows.take(np.sort(np.concatenate(kept)))


def fraction_of(windows: LabelledWindows, fraction: float, seed: int) -> LabelledWindows:
    """A share of the windows, of both kinds alike; a smaller share is part of a larger one."""
    if fraction == 1:
        return windows
    rng = np.random.default_rng([seed % 2**64, 77])
    kept = []
    for label in (0, 1):
        kind = rng.permutation(np.flatnonzero(windows.labels == label))
        kept.append(kind[: max(1, round(fraction * len(kind)))])
    return windows.take(np.sort(np.concatenate(kept)))


def gc_content(store: GenomeStore, windows: LabelledWindows) -> np.ndarray:
    """Share of G and C among the known bases of each window, float64 (n,); 0.5 where none is known."""
    found = []
    for first in range(0, len(windows), _BLOCK):
        tokens = read_spans(store, windows.starts[first : first + _BLOCK], windows.width)
        known = ((tokens >= BASES.start) & (tokens < BASES.stop)).sum(1)
        gc = ((tokens == G) | (tokens == C)).sum(1)
        found.append(np.where(known > 0, gc / np.maximum(known, 1), 0.5))
    return np.concatenate(found) if found else np.zeros(0)


def read_spans(store: GenomeStore, starts: np.ndarray, length: int, lead: int = 0) -> np.ndarray:
    """Tokens of stretches that begin ``lead`` bases before ``starts``, N where they leave the contig.

    Args:
        store: the genome.
        starts: int64 (n,), positions in ``store.raw`` that decide which contig a stretch is of.
        length: bases of a stretch.
        lead: how many of them come before its start.

    Returns:
        uint8 (n, length).
    """
    firsts, ends = contig_bounds(store, starts)
    tokens = np.full((len(starts), length), N, dtype=np.uint8)
    for row, (at, first, end) in enumerate(zip((starts - lead).tolist(), firsts.tolist(), ends.tolist(), strict=True)):
        low, high = max(at, first), min(at + length, end)
        tokens[row, low - at : high - at] = store.raw[low:high]
    return tokens & np.uint8(TOKEN_BITS)


def contig_bounds(store: GenomeStore, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last (excluded) position in ``store.raw`` of the contig that each position lies on, int64 (n,)."""
    which = contig_numbers(store, positions)
    return store.offsets[which], np.append(store.offsets[1:], store.total)[which]


def contig_numbers(store: GenomeStore, positions: np.ndarray) -> np.ndarray:
    """Which contig of ``store.contigs`` each position of ``store.raw`` lies on, int64 (n,)."""
    return np.searchsorted(store.offsets, positions, side="right") - 1


def _label(
    store: GenomeStore, regions: Sequence[Region], rows: dict[str, np.ndarray], data: DataConfig
) -> LabelledWindows:
    starts, labels = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
    for region in regions:
        contig = store.contig(region.contig)
        inside = np.cumsum(np.concatenate([[0], covered(rows[region.contig], contig.length)]))
        unknown = np.cumsum(np.concatenate([[0], store.tokens(region.contig) == N]))
        at = np.arange(region.start, region.stop - data.window + 1, data.stride or data.window)
        share = (inside[at + data.window] - inside[at]) / data.window
        clear = unknown[at + data.window] - unknown[at] <= MAX_UNKNOWN * data.window
        kept = clear & ((share >= data.min_overlap) | (share == 0))
        starts.append(at[kept] + contig.offset)
        labels.append((share[kept] > 0).astype(np.uint8))
    order = np.argsort(np.concatenate(starts), kind="stable")
    return LabelledWindows(np.concatenate(starts)[order], np.concatenate(labels)[order], data.window)


def _check_both(windows: LabelledWindows, part: str, data: DataConfig) -> None:
    for label, name in ((1, "positive"), (0, "negative")):
        if not (windows.labels == label).any():
            remedy = (
                f"lower data.min_overlap={data.min_overlap} or data.window={data.window}"
                if label
                else f"give a smaller data.window than {data.window}, or hold out other contigs"
            )
            raise UserError(f"the {part} part has no {name} window for {data.positive}; {remedy}")
