"""Bits per base: how surprised a model is by DNA. Knowing nothing costs 2 bits; less is better."""

import math
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """Bits per base of one group of bases."""

    group: str  # all | contig | mask
    name: str  # "all", the contig, or "repeat-masked" and "unmasked"
    bases: int  # known bases counted; with both strands scored, each base counts twice
    bits_per_base: float  # NaN when there are no bases


class BitsPerBase:
    """Sums of bits over all bases, by contig, and by repeat mask where there is one.

    Pieces of a contig, and its strands, may come in any order and number: the sums are those of all bases, in float64
    with the rounding of a single addition.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], tuple[int, list[float]]] = {}

    def add(self, contig: str, log2_probs: np.ndarray, soft_mask: np.ndarray | None = None) -> None:
        """Count a stretch of a contig.

        Args:
            contig: its name.
            log2_probs: log2 probability of each base, any float type, (length,); NaN where the base is unknown.
            soft_mask: bool (length,), where the genome is repeat-masked; None when it has no mask.
        """
        log2_probs = np.asarray(log2_probs)
        known = ~np.isnan(log2_probs)
        self._count("contig", contig, log2_probs[known])
        if soft_mask is not None:
            self._count("mask", "repeat-masked", log2_probs[known & soft_mask])
            self._count("mask", "unmasked", log2_probs[known & ~soft_mask])

    def add_nats(self, contig: str, log_probs: np.ndarray, soft_mask: np.ndarray | None = None) -> None:
        """Like :meth:`add`, of natural logarithms."""
        self.add(contig, np.asarray(log_probs, dtype=np.float64) / math.log(2), soft_mask)

    @property
    def bases(self) -> int:
        """Known bases counted."""
        return sum(count for (group, _), (count, _) in self._sums.items() if group == "contig")

    @property
    def bits_per_base(self) -> float:
        """Mean over all known bases; NaN when there are none."""
        bits = [part for (group, _), (_, parts) in self._sums.items() if group == "contig" for part in parts]
        return _mean(bits, self.bases)

    def to_rows(self) -> list[Row]:
        """All bases, then each contig in the order in which they came, then the masked and unmasked bases.

        Contigs and masks without a known base have no row.
        """
        rows = [Row("all", "all", self.bases, self.bits_per_base)]
        for wanted in ("contig", "mask"):
            for (group, name), (count, parts) in self._sums.items():
                if group == wanted and count:
                    rows.append(Row(group, name, count, _mean(parts, count)))
        return rows

    def _count(self, group: str, name: str, log2_probs: np.ndarray) -> None:
        count, parts = self._sums.get((group, name), (0, []))
        parts.append(-float(np.sum(log2_probs, dtype=np.float64)))
        self._sums[group, name] = count + log2_probs.size, parts


def _mean(bits: list[float], bases: int) -> float:
    return math.fsum(bits) / bases if bases else math.nan
