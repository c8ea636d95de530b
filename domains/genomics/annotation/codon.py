"""A hidden Markov model of genes with three-periodic Markov emissions: what gene finders were before neural networks.

Hidden states are those of :mod:`domains.genomics.annotation.labels`: a coding base of each strand and codon position,
an intron of each strand that remembers where the codon was cut, and what lies between genes (untranslated bases
included). In each state a base depends on the ``order`` bases before it, so coding sequence has three Markov models a
strand (Borodovsky and McIninch 1993, GeneMark; the model of introns and frames is that of Burge and Karlin 1997,
without signals). Everything is counted on both strands of labelled sequence. A base's class is the one of largest
posterior probability, by the forward-backward algorithm over overlapping stretches.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from domains.genomics.annotation.data import Tile
from domains.genomics.annotation.labels import CODING, INTERGENIC, INTRON, NO_LABEL, UTR, BaseLabels
from domains.genomics.store import TOKEN_BITS, GenomeStore
from domains.genomics.tokens import A, reverse_complement
from domains.interpolation import STRENGTHS, Counted, interpolate

STATES = 13
_GROUP = np.array([0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 8, 8, 8])  # states of one emission: introns of a strand share theirs
_CLASS = np.array([0, *[1] * 6, *[2] * 6])  # of each state, in CLASSES
_BATCH = 64  # stretches decoded side by side


def allowed() -> np.ndarray:
    """Which state may follow which along the forward strand: bool (STATES, STATES)."""
    may = np.eye(STATES, dtype=bool)
    may[CODING : CODING + 6, CODING : CODING + 6] = False
    forward, reverse = CODING, CODING + 3
    may[INTERGENIC, [forward, reverse + 2]] = True  # a start codon, or a stop codon read backwards
    may[[forward + 2, reverse], INTERGENIC] = True
    for position in range(3):
        onward, back = (position + 1) % 3, (position - 1) % 3
        for now, then, intron in (
            (forward + position, forward + onward, INTRON + position),
            (reverse + position, reverse + back, INTRON + 3 + position),
        ):
            may[now, then] = may[now, intron] = may[intron, then] = True
    return may


class CodonModel:
    """The model of one order, fitted on stretches of labelled bases.

    Args:
        store: the genome.
        labels: of its bases.
        train: stretches to count, (start, stop) in positions of ``store.raw``.
        validation: stretches on which the strengths of smoothing are chosen.
        order: bases that a base depends on.
    """

    def __init__(
        self,
        store: GenomeStore,
        labels: BaseLabels,
        train: Sequence[tuple[int, int]],
        validation: Sequence[tuple[int, int]],
        order: int = 3,
    ) -> None:
        self.order = order
        self.name = f"Markov {order} codon HMM"
        self._store = store
        counts, transitions = self._count(labels, train)
        held, _ = self._count(labels, validation)
        self._log_emissions = self._smoothed(counts, held)
        transitions = np.where(allowed(), transitions + 1, 0)  # one more: what is allowed is never impossible
        self._transitions = transitions / transitions.sum(1, keepdims=True)
        occupied = np.bincount(_states(labels, train), minlength=STATES)[:STATES] + 1
        self._prior = occupied / occupied.sum()

    def class_probabilities(self, tiles: Sequence[Tile]) -> Iterable[tuple[Tile, np.ndarray]]:
        """Posterior probabilities of the classes of the bases of each tile that count, float32 (bases, 3)."""
        order = sorted(tiles, key=lambda one: one.stop - one.start)
        for first in range(0, len(order), _BATCH):
            batch = order[first : first + _BATCH]
            posterior = self._posterior(batch)
            for one, states in zip(batch, posterior, strict=True):
                inside = states[one.first - one.start : one.last - one.start]
                yield one, np.stack([inside[:, i == _CLASS].sum(1) for i in range(3)], axis=1)

    def log_likelihood(self, start: int, stop: int) -> np.ndarray:
        """Log-probability of each base of a stretch of ``store.raw`` in each state, float32 (l, STATES); 0 where the
        base or one before it is unknown, as before the stretch."""
        codes, whole = _words(self._store.raw[start:stop] & np.uint8(TOKEN_BITS), self.order)
        found = np.zeros((stop - start, STATES), dtype=np.float32)
        found[whole] = self._log_emissions[:, codes[whole]].T
        return found

    def _count(self, labels: BaseLabels, stretches: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Words by the group of the state of their last base, (groups, 4**(order + 1)), and pairs of states."""
        words = 4 ** (self.order + 1)
        groups = int(_GROUP.max()) + 1
        counts, pairs = np.zeros(groups * words), np.zeros(STATES * STATES)
        for start, stop in stretches:
            tokens = self._store.raw[start:stop] & np.uint8(TOKEN_BITS)
            states = _plain(labels.states[start:stop])
            for strand, of in ((tokens, states), (reverse_complement(tokens), mirrored(states))):
                codes, whole = _words(strand, self.order)
                seen = whole & (of < STATES)
                counts += np.bincount(_GROUP[of[seen]] * words + codes[seen], minlength=len(counts))
                both = (of[:-1] < STATES) & (of[1:] < STATES)
                pairs += np.bincount(of[:-1][both].astype(np.int64) * STATES + of[1:][both], minlength=len(pairs))
        return counts.reshape(groups, words), pairs.reshape(STATES, STATES)

    def _smoothed(self, counts: np.ndarray, held: np.ndarray) -> np.ndarray:
        """Log-probability of the last base of each word in each state, float32 (STATES, words)."""
        lower = np.full((len(counts), 1, 4), 0.25)
        for length in range(1, self.order + 2):
            seen, asked = (table.reshape(len(counts), -1, 4**length).sum(1) for table in (counts, held))
            table = seen.reshape(len(counts), -1, 4)
            backed = np.tile(lower, (1, table.shape[1] // lower.shape[1], 1))  # the oldest base leads the code
            parts = (table, table.sum(-1, keepdims=True), backed)
            lower = interpolate(parts, _strength(parts, asked.reshape(table.shape)))
        return np.log(lower.reshape(len(counts), -1)).astype(np.float32)[_GROUP]

    def _posterior(self, tiles: Sequence[Tile]) -> np.ndarray:
        """Posterior probabilities of the states, float32 (tiles, longest, STATES)."""
        longest = max(one.stop - one.start for one in tiles)
        likelihood = np.ones((longest, len(tiles), STATES), dtype=np.float32)
        for i, one in enumerate(tiles):
            likelihood[: one.stop - one.start, i] = np.exp(self.log_likelihood(one.start, one.stop))
        transitions = self._transitions.astype(np.float32)
        forward = np.empty_like(likelihood)
        now = np.tile(self._prior.astype(np.float32), (len(tiles), 1))
        for t in range(longest):
            now = (now if t == 0 else now @ transitions) * likelihood[t]
            now /= now.sum(1, keepdims=True)
            forward[t] = now
        after = np.ones((len(tiles), STATES), dtype=np.float32)
        for t in range(longest - 1, -1, -1):
            forward[t] *= after
            forward[t] /= forward[t].sum(1, keepdims=True)
            after = (after * likelihood[t]) @ transitions.T
            after /= after.sum(1, keepdims=True)
        return forward.transpose(1, 0, 2)


def mirrored(states: np.ndarray) -> np.ndarray:
    """States of the other strand, read in its own direction: those of the bases in reverse order, strands exchanged."""
    table = np.arange(256, dtype=np.uint8)
    for position in range(3):
        table[CODING + position], table[CODING + 3 + position] = CODING + 3 + position, CODING + position
        table[INTRON + position] = INTRON + 3 + (position + 1) % 3  # what was to its right comes to its left
        table[INTRON + 3 + position] = INTRON + (position - 1) % 3
    return table[states[::-1]]


def _plain(states: np.ndarray) -> np.ndarray:
    """The same with untranslated bases as intergenic ones."""
    return np.where(states == UTR, np.uint8(INTERGENIC), states)


def _states(labels: BaseLabels, stretches: Sequence[tuple[int, int]]) -> np.ndarray:
    found = np.concatenate([_plain(labels.states[start:stop]) for start, stop in stretches])
    return found[found != NO_LABEL]


def _words(tokens: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Code of the word that ends at each base, int64 (l,), and where all its bases are known, bool (l,)."""
    bases = tokens - np.uint8(A)
    known = np.concatenate([np.zeros(order, bool), bases < 4])
    padded = np.concatenate([np.zeros(order, np.int64), np.where(bases < 4, bases, 0).astype(np.int64)])
    codes, whole = np.zeros(len(tokens), np.int64), np.ones(len(tokens), bool)
    for place in range(order + 1):
        codes = codes * 4 + padded[place : place + len(tokens)]
        whole &= known[place : place + len(tokens)]
    return codes, whole


def _strength(parts: Counted, asked: np.ndarray) -> float:
    """The strength under which the words that validation holds are likeliest."""
    return max(STRENGTHS, key=lambda strength: float((asked * np.log2(interpolate(parts, strength))).sum()))
