"""Two-sided k-mer models: what a sceptic would try first on hidden bases.

The model of flank k tells a base from the k bases before it and the k bases after it. Where fewer are known, because
others are hidden, unknown or beyond the end, the a <= k before and the b <= k after that are known at a stretch are
used. Each pair (a, b) is interpolated with the context that is one base shorter, on the longer side, or the mean of
both where the sides are equal (MacKay and Peto 1995, as domains.genomics.baselines does from one side)::

    p_ab(x | l, r) = (n(l x r) + s_ab q_ab(x)) / (n(l . r) + s_ab)
    q_ab = p_(a-1)b if a > b, p_a(b-1) if a < b, their mean if a = b, 1/4 if both are 0

with n the counts over both strands of the training regions and the strength s_ab = s_ba chosen on the validation
regions, so both strands are told alike. The model of flank 0 knows the shares of the four letters, a unigram.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from domains.errors import UserError
from domains.genomics.baselines import MAX_ORDER, count_words, rolling_codes, sample_blocks
from domains.genomics.splits import Region
from domains.genomics.store import GenomeStore
from domains.genomics.tokens import A
from domains.interpolation import choose_strength, interpolate

MAX_FLANK = MAX_ORDER // 2
_STRENGTH_PIECES = 4  # of 65,536 validation bases: enough to choose one number each

Hide = Callable[[int, int], np.ndarray]  # (number of a piece, its length) -> bool (length,), which bases are hidden


class TwoSidedModels:
    """Two-sided models of flanks 0 to ``max_flank``, and which of them does best on validation.

    Attributes:
        max_flank: the largest flank fitted.
        chosen_flank: the flank with the fewest bits per hidden base on validation.
        validation_bits: bits per hidden base of each flank on validation.
    """

    def __init__(self, log2: dict[tuple[int, int], np.ndarray], max_flank: int) -> None:
        self._log2 = log2  # of each (a, b): float32 (4**a, 4, 4**b), by the bases before, the base, the bases after
        self.max_flank = max_flank
        self.validation_bits: list[float] = []
        self.chosen_flank = max_flank

    @classmethod
    def fit(
        cls,
        store: GenomeStore,
        regions: Sequence[Region],
        max_flank: int,
        validation: Sequence[Region],
        hide: Hide,
        progress: bool = False,
    ) -> "TwoSidedModels":
        """Count the training ``regions``, both strands; choose strengths and flank on ``validation``.

        Of long validation regions an even sample of about two million bases is used, ``hide`` saying which of them are
        hidden. The memory is about 40 bytes for each of 4**(2 max_flank + 1) words: 0.2 GB at flank 5.

        Raises:
            UserError: a flank outside 0 to 6, or regions without a known base.
        """
        if not 0 <= max_flank <= MAX_FLANK:
            raise UserError(f"max_order={2 * max_flank}: two-sided models have from 0 to {MAX_FLANK} bases a side")
        counts = count_words(store, regions, 2 * max_flank, progress)
        sample = [tokens for tokens, _ in sample_blocks(store, validation, 0)]
        if not counts[0].sum() or not any(_known(tokens).any() for tokens in sample):
            raise UserError(f"{store.source_name}: no known base to fit two-sided models on; check data.validation")
        models = cls(_fit_tables(counts, max_flank, sample[:: max(1, len(sample) // _STRENGTH_PIECES)]), max_flank)
        models._choose_flank(sample, hide)
        return models

    def log2_probs(self, tokens: np.ndarray, hidden: np.ndarray, flank: int | None = None) -> np.ndarray:
        """Log2 probabilities of A, C, G, T where a base is hidden.

        Args:
            tokens: uint8 (length,), a stretch of a sequence.
            hidden: bool (length,), of known bases; what stands there is not read.
            flank: of the model; the chosen one by default.

        Returns:
            float32 (hidden bases, 4), in their order.
        """
        flank = self.chosen_flank if flank is None else flank
        if not 0 <= flank <= self.max_flank:
            raise ValueError(f"flank {flank} was not fitted; there are 0 to {self.max_flank}")
        bases = tokens.astype(np.int64) - A
        at = np.flatnonzero(hidden)
        usable = _known(tokens) & ~hidden
        before = np.minimum(_run_before(usable)[at], flank)
        after = np.minimum(_run_before(usable[::-1])[::-1][at], flank)
        found = np.empty((len(at), 4), dtype=np.float32)
        for a, b in product(range(flank + 1), repeat=2):
            own = np.flatnonzero((before == a) & (after == b))
            if len(own):
                left = _code(bases, at[own], range(-a, 0))
                right = _code(bases, at[own], range(1, b + 1))
                found[own] = self._log2[a, b][left, :, right]
        return found

    def _choose_flank(self, sample: Sequence[np.ndarray], hide: Hide) -> None:
        totals, count = np.zeros(self.max_flank + 1), 0
        for number, tokens in enumerate(sample):
            hidden = hide(number, len(tokens)) & _known(tokens)
            true = tokens[hidden].astype(np.int64) - A
            count += len(true)
            for flank in range(self.max_flank + 1):
                totals[flank] -= self.log2_probs(tokens, hidden, flank)[np.arange(len(true)), true].sum()
        self.validation_bits = (totals / max(count, 1)).tolist()
        self.chosen_flank = int(np.argmin(totals))


def _fit_tables(
    counts: Sequence[np.ndarray], max_flank: int, sample: Sequence[np.ndarray]
) -> dict[tuple[int, int], np.ndarray]:
    """log2 p_ab of all a, b up to ``max_flank``, from the counts of words of each length."""
    probs: dict[tuple[int, int], np.ndarray] = {}
    pairs = ((a, b) for a, b in product(range(max_flank + 1), repeat=2) if a >= b)
    for a, b in sorted(pairs, key=sum):
        count = counts[a + b].reshape(4**a, 4, 4**b).astype(np.float64)
        total = count.sum(1, keepdims=True)
        lower = _lower(probs, a, b)
        words = [_word_codes(tokens, a + b + 1) for tokens in sample]
        totals, backed = np.broadcast_to(total, count.shape).ravel(), lower.ravel()
        strength = choose_strength([(count.ravel()[codes], totals[codes], backed[codes]) for codes in words])
        probs[a, b] = interpolate((count, total, lower), strength)
        probs[b, a] = _other_strand(probs[a, b], a, b)
    return {key: np.log2(table, dtype=np.float32) for key, table in probs.items()}


def _other_strand(table: np.ndarray, a: int, b: int) -> np.ndarray:
    """A table of a and b bases as one of b and a: what it says of a base is said of its partner."""
    words = table.reshape((4,) * (a + 1 + b))
    return np.flip(words.T).reshape(4**b, 4, 4**a)  # .T reverses the word, flip complements its bases


def _lower(probs: dict[tuple[int, int], np.ndarray], a: int, b: int) -> np.ndarray:
    """q_ab of a >= b, (4**a, 4, 4**b)."""
    if a == 0:
        return np.full((1, 4, 1), 0.25)
    without_first = np.tile(probs[a - 1, b], (4, 1, 1))  # the first base leads the code
    if a > b:
        return without_first
    return (without_first + np.repeat(probs[a, b - 1], 4, axis=2)) / 2  # the last base ends it


def _word_codes(tokens: np.ndarray, length: int) -> np.ndarray:
    """Codes of the words of ``length`` known bases in a stretch."""
    if len(tokens) < length:
        return np.empty(0, dtype=np.int64)
    known = _known(tokens)
    bases = np.where(known, tokens - np.uint8(A), 0).astype(np.int32)
    whole = np.lib.stride_tricks.sliding_window_view(known, length).all(1)
    return rolling_codes(bases, length)[whole]


def _known(tokens: np.ndarray) -> np.ndarray:
    return (tokens - np.uint8(A)) < 4  # what is below A wraps round


def _run_before(usable: np.ndarray) -> np.ndarray:
    """How many usable positions stand at a stretch just before each, int64 (length,)."""
    position = np.arange(len(usable) + 1)
    broken = np.maximum.accumulate(np.where(np.concatenate([[False], usable]), -1, position))
    return (position - broken)[:-1]


def _code(bases: np.ndarray, at: np.ndarray, offsets: range) -> np.ndarray:
    """Code of the bases at ``offsets`` from each position, the first in the highest bits."""
    code = np.zeros(len(at), dtype=np.int64)
    for offset in offsets:
        code = code * 4 + bases[at + offset]
    return code
