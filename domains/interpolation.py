"""Frequencies of symbols after contexts of growing length, each order leaning on the one below.

    p_k(x | context) = (count(context, x) + a_k p_(k-1)(x | shorter context)) / (count(context) + a_k)

With few counts an order follows the one below, with many its own. The strengths a_k are chosen by likelihood on data
that was not counted.
"""

from collections.abc import Sequence

import numpy as np

STRENGTHS = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0)

Counted = tuple[
    np.ndarray, np.ndarray, np.ndarray
]  # of some symbols: count, total of the context, p of the order below


def interpolate(part: Counted, strength: float) -> np.ndarray:
    """Probabilities of symbols, float64 (n,)."""
    count, total, lower = part
    return (count + strength * lower) / (total + strength)


def choose_strength(parts: Sequence[Counted]) -> float:
    """The strength under which all these symbols together are likeliest."""
    return max(STRENGTHS, key=lambda strength: sum(float(np.log2(interpolate(part, strength)).sum()) for part in parts))
