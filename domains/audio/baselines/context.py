"""How often each level follows the k levels before it: a Markov model over mu-law levels of each order up to three.

Each order leans on the one below (see domains.interpolation), order 0 on equal chances; strengths and order are chosen
on validation. What comes before a clip is silence.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from domains.audio.baselines.share import Stretch, even_share
from domains.audio.store import AudioStore
from domains.audio.tokens import LEVELS, SILENCE
from domains.errors import UserError
from domains.interpolation import choose_strength, interpolate

MAX_ORDER = 3  # contexts of four levels are hardly ever seen twice
_COUNT = 64_000_000  # training samples counted
_CHOOSE = 2_000_000  # validation samples that strengths and order are chosen on
_BLOCK = 1 << 20


class ContextModels:
    """Context models of orders 0 to ``max_order``, and which of them does best on validation.

    Attributes:
        max_order: the largest order fitted.
        chosen_order: the order with the fewest bits per sample on validation.
        validation_bits: bits per sample of each order on validation.
        strengths: a_k of each order.
    """

    def __init__(self, tables: "list[_Table]", validation_bits: list[float], strengths: list[float]) -> None:
        self._tables = tables
        self.validation_bits = validation_bits
        self.strengths = strengths
        self.max_order = len(tables) - 1
        self.chosen_order = int(np.argmin(validation_bits))

    @property
    def name(self) -> str:
        return f"context {self.chosen_order}"

    @classmethod
    def fit(
        cls,
        store: AudioStore,
        train: Sequence[int],
        validation: Sequence[int],
        *,
        max_order: int = MAX_ORDER,
        level_db: float | None = None,
    ) -> "ContextModels":
        """Count the training clips, and choose strengths and order on the validation clips.

        Of long parts an even share is used. The memory is at most 16 bytes for each training sample and order.

        Raises:
            UserError: an order outside 0 to 3.
        """
        if not 0 <= max_order <= MAX_ORDER:
            raise UserError(f"max_order={max_order}: context models have orders from 0 to {MAX_ORDER}")
        codes = _words(even_share(store, train, _COUNT, level_db), max_order)
        held = _words(even_share(store, validation, _CHOOSE, level_db), max_order)
        tables, strengths, bits = [], [], []
        lower = np.full(len(held), 1 / LEVELS)
        for order in range(max_order + 1):
            table = _Table(_last(codes, order))
            found = (*table.look_up(_last(held, order)), lower)
            strengths.append(choose_strength([found]))
            lower = interpolate(found, strengths[-1])
            tables.append(table)
            bits.append(-float(np.log2(lower).mean()))
        return cls(tables, bits, strengths)

    def bits(self, levels: np.ndarray, order: int | None = None) -> np.ndarray:
        """Bits of each sample of a clip from its beginning, by the chosen order or another: uint8 (l,) -> float64 (l,).

        Raises:
            ValueError: an order that was not fitted.
        """
        order = self.chosen_order if order is None else order
        if not 0 <= order <= self.max_order:
            raise ValueError(f"order {order} was not fitted; there are 0 to {self.max_order}")
        codes, found = _codes(levels, order), []
        for at in range(0, len(codes), _BLOCK):
            block = codes[at : at + _BLOCK]
            odds = np.full(len(block), 1 / LEVELS)
            for used in range(order + 1):
                odds = interpolate((*self._tables[used].look_up(_last(block, used)), odds), self.strengths[used])
            found.append(-np.log2(odds))
        return np.concatenate(found) if found else np.zeros(0)


class _Table:
    """Counts of words of levels that occur, and of what they begin with."""

    def __init__(self, codes: np.ndarray) -> None:
        self._codes, self._counts = np.unique(codes, return_counts=True)
        contexts = self._codes // LEVELS
        starts = np.flatnonzero(np.concatenate([[True], contexts[1:] != contexts[:-1]]))
        self._contexts, self._totals = contexts[starts], np.add.reduceat(self._counts, starts)

    def look_up(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How often each word was seen, and its context: both int64 (n,)."""
        return _find(self._codes, self._counts, codes), _find(self._contexts, self._totals, codes // LEVELS)


def _find(known: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, values[at], 0)


def _codes(levels: np.ndarray, order: int) -> np.ndarray:
    """Each level and the ``order`` before it as one number, the oldest in the highest bits: uint32 (l,)."""
    padded = np.concatenate([np.full(order, SILENCE, np.uint8), levels]).astype(np.uint32)
    codes = np.zeros(len(levels), dtype=np.uint32)
    for back in range(order, -1, -1):
        codes = codes << np.uint32(8) | padded[order - back : len(padded) - back]
    return codes


def _last(codes: np.ndarray, order: int) -> np.ndarray:
    """Codes of shorter words at the same places."""
    return codes & np.uint32(256 ** (order + 1) - 1)


def _words(stretches: Iterable[Stretch], order: int) -> np.ndarray:
    return np.concatenate([_codes(levels, order)[lead:] for levels, lead in stretches])
