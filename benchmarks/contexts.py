"""Models trained on windows of several lengths, tested at several contexts: means, differences and the table of both.

Sums of bits come in blocks, by contig or piece, so that differences can be resampled over blocks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLINGS = 10_000
Sums = Mapping[str, Sequence[float]]  # contig or piece -> bits, or units, of each block
Cells = Mapping[tuple[int, str], Any]  # by window of the training and context of the test


def joined(sums: Sums) -> np.ndarray:
    """The blocks of all contigs or pieces."""
    return np.concatenate([np.asarray(blocks, dtype=np.float64) for blocks in sums.values()])


def mean(known: Sums, bits: Sums) -> float:
    """Bits per unit over all blocks."""
    return float(joined(bits).sum() / joined(known).sum())


def by_part(known: Sums, bits: Sums) -> dict[str, float]:
    """Bits per unit of each contig or piece."""
    return {part: round(sum(own) / sum(known[part]), 5) for part, own in bits.items()}


def difference(known: Sums, bits: Sums, base: Sums) -> dict[str, float]:
    """Bits per unit more than another's on the same blocks, with a 95 % interval; negative is better."""
    extra, units = joined(bits) - joined(base), joined(known)
    drawn = np.random.default_rng(0).integers(0, len(extra), (RESAMPLINGS, len(extra)))
    low, high = np.quantile(extra[drawn].sum(1) / units[drawn].sum(1), [0.025, 0.975])
    parts = {"difference": extra.sum() / units.sum(), "low": low, "high": high}
    return {name: round(float(value), 5) for name, value in parts.items()}


def differences(known: Sums, cells: Cells, cell: tuple[int, str]) -> dict[str, dict[str, float]]:
    """Those of a cell from two others.

    ``from_shortest``: from the shortest window at its own context; ``from_own_shortest``: from the same model at the
    shortest context.
    """
    shortest = min(window for window, _ in cells)
    bases = {"from_shortest": (shortest, str(shortest)), "from_own_shortest": (cell[0], str(shortest))}
    return {
        name: difference(known, cells[cell], cells[base])
        for name, base in bases.items()
        if base in cells and base != cell
    }


def markdown(cells: Cells, value: str, whole: str | None, others: Mapping[str, Mapping[str, float]]) -> str:
    """The table for people: bits per unit, then the differences that say whether context helps.

    Args:
        cells: rows of a result's table.
        value: the key of their bits per unit.
        whole: how a context that is no number is called; None: as it is.
        others: further rows, such as baselines: name -> context -> bits per unit; blank where there are none.
    """
    contexts = list(dict.fromkeys(context for _, context in cells))
    titles = [f"{int(context):,}" if context.isdigit() else whole or context for context in contexts]
    lines = [f"| trained on windows of | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    head, windows = list(lines), sorted({window for window, _ in cells})
    for window in windows:
        found = [cells.get((window, context)) for context in contexts]
        bits = ["-" if row is None else f"{row[value]:.4f}" for row in found]
        lines.append(f"| {window:,} | {' | '.join(bits)} |")
    for name, bits_of in others.items():
        shown = [f" {bits_of[context]:.4f}" if context in bits_of else "" for context in contexts]
        lines.append(f"| {name} |{' |'.join(shown)} |")
    lines += ["", "Difference (95 % interval) from the first row's first cell; in brackets, from the row's own:", ""]
    lines += head
    for window in windows:
        found = [cells.get((window, context)) for context in contexts]
        lines.append(f"| {window:,} | {' | '.join('-' if row is None else _shown(row) for row in found)} |")
    return "\n".join(lines)


def _shown(row: dict[str, Any]) -> str:
    first, own = row.get("from_shortest"), row.get("from_own_shortest")
    text = "0" if first is None else f"{first['difference']:+.4f} ({first['low']:+.4f} to {first['high']:+.4f})"
    return text if own is None or own == first else f"{text} [{own['difference']:+.4f}]"
