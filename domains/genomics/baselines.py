"""Markov models of every order up to a bound: what a sceptic would try first on DNA.

The model of order k predicts a base from the k bases before it. It is interpolated with the model of order k - 1, whose
context is one base shorter, as the mean of a Dirichlet posterior (MacKay and Peto 1995, A hierarchical Dirichlet
language model):

    p_k(x | c) = (n(c x) + a_k p_{k-1}(x | c')) / (n(c) + a_k),    p_{-1} = 1/4

with n the counts over both strands of the training regions, c' the context c without its oldest base, and the
strength a_k > 0 chosen on the validation regions, order by order. N breaks a context: the bases after it, like those at
the start of a region, are predicted from the shorter context that there is, with the model of that order.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from domains.errors import UserError
from domains.genomics.splits import Region
from domains.genomics.store import GenomeStore
from domains.genomics.tokens import A, reverse_complement
from domains.interpolation import choose_strength, interpolate

MAX_ORDER = 12  # 4^13 counts of 8 bytes: half a gigabyte
_BLOCK = 1 << 20  # bases worked on at a time
_VALIDATION_BASES = 1 << 21  # enough to tell orders apart to 0.001 bit


class MarkovModels:
    """Markov models of orders 0 to ``max_order``, and which of them does best on validation.

    Attributes:
        max_order: the largest order fitted.
        chosen_order: the order with the fewest bits per base on validation.
        validation_bits: bits per base of each order on validation, forward strand.
        strengths: a_k of each order.
    """

    def __init__(self, log2: list[np.ndarray], validation_bits: list[float], strengths: list[float]) -> None:
        self._log2 = log2  # of each order k: float32 (4**(k + 1),), by the code of the context and the base after it
        self.validation_bits = validation_bits
        self.strengths = strengths
        self.max_order = len(log2) - 1
        self.chosen_order = int(np.argmin(validation_bits))

    @classmethod
    def fit(
        cls,
        store: GenomeStore,
        regions: Sequence[Region],
        max_order: int,
        validation: Sequence[Region],
        progress: bool = False,
    ) -> "MarkovModels":
        """Count the training ``regions``, both strands, and choose strengths and order on ``validation``.

        Of long validation regions an even sample of about two million bases is used. The memory is about 50 bytes for
        each of 4**(max_order + 1) words: 0.2 GB at order 10.

        Raises:
            UserError: an order outside 0 to 12, or regions without a known base.
        """
        if not 0 <= max_order <= MAX_ORDER:
            raise UserError(f"max_order={max_order}: Markov models have orders from 0 to {MAX_ORDER}")
        counts = count_words(store, regions, max_order, progress)
        sample = [_Words(block, context, max_order) for block, context in sample_blocks(store, validation, max_order)]
        known = sum(int(words.known.sum()) for words in sample)
        if not counts[0].sum() or not known:
            raise UserError(f"{store.source_name}: no known base to fit Markov models on; check data.validation")
        tables: list[np.ndarray] = []
        bits: list[float] = []
        strengths: list[float] = []
        lower = np.full(1, 0.25)  # probabilities of the order below
        odds = [np.full(len(words.known), 0.25) for words in sample]  # of each validation base, by that order
        for order, words in enumerate(counts):
            table = words.reshape(-1, 4).astype(np.float64)
            strength, odds = _choose_strength(table, sample, odds, order)
            backed = np.resize(lower, table.size).reshape(-1, 4)  # repeats: the oldest base leads the code
            lower = interpolate((table, table.sum(1, keepdims=True), backed), strength)
            tables.append(np.log2(lower, dtype=np.float32).ravel())
            strengths.append(strength)
            bits.append(-sum(float(np.log2(q[w.known]).sum()) for q, w in zip(odds, sample, strict=True)) / known)
        return cls(tables, bits, strengths)

    def log2_probs(self, tokens: np.ndarray, order: int | None = None, context: np.ndarray | None = None) -> np.ndarray:
        """Log2 probability of each base given those before it.

        Args:
            tokens: uint8 (length,), a sequence or a stretch of it.
            order: of the model; the chosen one by default.
            context: the tokens just before ``tokens``; the last ``order`` of them are used.

        Returns:
            float32 (length,), NaN at N.
        """
        order = self.chosen_order if order is None else order
        if not 0 <= order <= self.max_order:
            raise ValueError(f"order {order} was not fitted; there are 0 to {self.max_order}")
        before = np.asarray([] if context is None else context, dtype=np.uint8)
        before = before[max(0, len(before) - order) :]
        read = np.concatenate([before, np.asarray(tokens, dtype=np.uint8)])
        result = np.full(len(tokens), np.nan, dtype=np.float32)
        for start in range(0, len(tokens), _BLOCK):
            at = start + len(before)
            words = _Words(read[at : at + _BLOCK], read[max(0, at - order) : at], order)
            out = result[start : start + _BLOCK]
            for used, positions, codes in words.by_order(order):
                out[positions] = self._log2[used][codes]
        return result

    def bits_per_base(
        self, store: GenomeStore, regions: Iterable[Region], order: int | None = None, both_strands: bool = False
    ) -> float:
        """Mean bits per known base of the regions, on the forward strand or on both."""
        total, known = 0.0, 0
        for region in regions:
            tokens = store.tokens(*region)
            for strand in (tokens, reverse_complement(tokens)) if both_strands else (tokens,):
                log2 = self.log2_probs(strand, order)
                total -= float(np.nansum(log2, dtype=np.float64))
                known += int(np.count_nonzero(~np.isnan(log2)))
        return total / known if known else float("nan")


def count_words(
    store: GenomeStore, regions: Sequence[Region], max_order: int, progress: bool = False
) -> list[np.ndarray]:
    """How often each word of 1 to ``max_order + 1`` bases occurs in the regions, on both strands.

    Returns:
        for each length, int64 (4**length,); a word's code has two bits a base (A, C, G, T = 0 to 3), the oldest base
        in the highest bits.
    """
    counts = [np.zeros(4 ** (order + 1), dtype=np.int64) for order in range(max_order + 1)]
    block = max(_BLOCK, len(counts[-1]) // 4)  # a pass over the table costs as much as a pass over the bases
    total = sum(region.length for region in regions)
    shown = tqdm(
        total=total, desc="Markov models", unit="b", unit_scale=True, delay=1, leave=False, disable=not progress
    )
    with shown as bar:
        for region in regions:
            for tokens, context in _blocks(store, region, block, max_order):
                for order, _, codes in _Words(tokens, context, max_order).by_order(max_order):
                    counts[order] += np.bincount(codes, minlength=len(counts[order]))
                bar.update(len(tokens))
    for order in range(max_order - 1, -1, -1):  # so far only bases with no longer context were counted here
        counts[order] += counts[order + 1].reshape(4, -1).sum(0)
    return [_both_strands(table, order + 1) for order, table in enumerate(counts)]


def _both_strands(table: np.ndarray, length: int) -> np.ndarray:
    words = table.reshape((4,) * length)
    return (words + np.flip(words.T)).ravel()  # .T reverses the word, flip complements its bases


class _Words:
    """The words that end at each base of a stretch, with as much context as there is, up to an order."""

    def __init__(self, tokens: np.ndarray, context: np.ndarray, order: int) -> None:
        self._lead = len(context)
        bases = np.concatenate([context, tokens]) - np.uint8(A)  # what is no base wraps round to above 3
        known = bases < 4
        self._bases = np.where(known, bases, 0).astype(np.int32)
        position = np.arange(len(bases), dtype=np.int32)
        broken = np.maximum.accumulate(np.where(known, np.int32(-1), position))
        self.known = known[self._lead :]
        self._reach = (position - broken)[self._lead :] - 1  # known bases just before; -1 at an unknown one
        self._short = np.flatnonzero(self.known & (self._reach < order))

    def by_order(self, order: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(order used, positions, codes of the words that end there); every known base comes once."""
        reach = self._reach[self._short]
        for used in np.unique(reach[reach < order]).tolist():
            positions = self._short[reach == used]
            yield used, positions, self._codes_at(positions, used)
        positions = np.flatnonzero(self._reach >= order)
        if len(positions):
            codes = rolling_codes(self._bases, order + 1)
            yield order, positions, codes[positions + (self._lead - order)]

    def _codes_at(self, positions: np.ndarray, order: int) -> np.ndarray:
        codes = np.zeros(len(positions), dtype=np.int32)
        for back in range(order, -1, -1):
            codes = (codes << 2) | self._bases[positions + (self._lead - back)]
        return codes


def rolling_codes(bases: np.ndarray, length: int) -> np.ndarray:
    """Codes of all words of ``length`` in ``bases``, by doubling: int32 (len(bases) - length + 1,)."""
    codes, width = bases, 1
    for bit in bin(length)[3:]:
        codes = (codes[:-width] << (2 * width)) | codes[width:]
        width *= 2
        if bit == "1":
            codes = (codes[:-1] << 2) | bases[width:]
            width += 1
    return codes


def _choose_strength(
    table: np.ndarray, sample: list[_Words], odds: list[np.ndarray], order: int
) -> tuple[float, list[np.ndarray]]:
    """The strength with the best likelihood on the sample, and the probabilities of its bases that follow."""
    counts, totals = table.ravel(), table.sum(1)
    found = []
    for words in sample:
        for used, positions, codes in words.by_order(order):
            if used == order:  # bases with less context keep the probability they have
                found.append((positions, counts[codes], totals[codes >> 2]))
                break
        else:
            found.append((np.empty(0, np.int64), np.empty(0), np.empty(0)))

    parts = [(n, of, q[at]) for (at, n, of), q in zip(found, odds, strict=True)]
    best = choose_strength(parts)
    for (at, _, _), part, q in zip(found, parts, odds, strict=True):
        q[at] = interpolate(part, best)
    return best, odds


def _blocks(store: GenomeStore, region: Region, size: int, order: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens of a region in pieces, each with up to ``order`` tokens of the region before it."""
    for start in range(region.start, region.stop, size):
        yield _block(store, region, start, size, order)


def _block(store: GenomeStore, region: Region, start: int, size: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    lead = min(order, start - region.start)
    tokens = store.tokens(region.contig, start - lead, min(start + size, region.stop))
    return tokens[lead:], tokens[:lead]


def sample_blocks(store: GenomeStore, regions: Sequence[Region], order: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of the regions like :func:`_blocks`, spread evenly when they are many."""
    size = 1 << 16
    starts = [(region, start) for region in regions for start in range(region.start, region.stop, size)]
    wanted = min(len(starts), _VALIDATION_BASES // size)
    for index in range(wanted):
        yield _block(store, *starts[index * len(starts) // wanted], size, order)
