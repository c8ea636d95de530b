"""What a sceptic would try first on windows: counts of short words, Markov models of either kind, the larger class.

All are fitted on the training windows that the model learns from, and choose what there is to choose on validation.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from domains.genomics.annotation.metrics import roc_auc
from domains.genomics.annotation.windows import LabelledWindows, contig_numbers, read_spans
from domains.genomics.baselines import MarkovModels
from domains.genomics.splits import Region
from domains.genomics.store import GenomeStore
from domains.genomics.tokens import A, N, reverse_complement

K = 5  # bases of the words that are counted
MAX_ORDER = 6  # of the Markov models
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # inverse of the L2 penalty's
_BLOCK = 1 << 12  # windows at a time


class WindowBaseline(Protocol):
    """What says of windows how likely they are of the class."""

    @property
    def name(self) -> str:
        """For tables."""

    def predict(self, windows: LabelledWindows) -> np.ndarray:
        """Probabilities, float64 (n,)."""


class KmerLogistic:
    """Logistic regression on how often each word of five bases or its reverse complement occurs in a window.

    Args:
        store: the genome.
        train, validation: labelled windows; the penalty is chosen by AUC on the latter.
        context: (lead, length): count apart, and beside the window's own words, those of ``length`` bases from ``lead``
            before its start.
    """

    def __init__(
        self,
        store: GenomeStore,
        train: LabelledWindows,
        validation: LabelledWindows,
        context: tuple[int, int] | None = None,
    ) -> None:
        from sklearn.linear_model import LogisticRegression  # late: slow to import
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._store, self._context = store, context
        self.name = f"{K}-mer logistic" + (f", {context[1]:,} bases" if context else "")
        counts, held = self._counts(train), self._counts(validation)
        self._model: Any = None
        best = -1.0
        for strength in _STRENGTHS:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
            model.fit(counts, train.labels)
            auc = roc_auc(validation.labels, model.decision_function(held))
            if auc > best:
                self._model, best = model, auc

    def predict(self, windows: LabelledWindows) -> np.ndarray:
        """Probabilities, float64 (n,)."""
        return self._model.predict_proba(self._counts(windows))[:, 1]

    def _counts(self, windows: LabelledWindows) -> np.ndarray:
        blocks = []
        for first in range(0, len(windows), _BLOCK):
            starts = windows.starts[first : first + _BLOCK]
            counts = count_kmers(read_spans(self._store, starts, windows.width))
            if self._context is not None:
                lead, length = self._context
                counts = np.hstack([counts, count_kmers(read_spans(self._store, starts, length, lead))])
            blocks.append(counts)
        return np.concatenate(blocks)


def count_kmers(tokens: np.ndarray, k: int = K) -> np.ndarray:
    """How often each word of ``k`` bases or its reverse complement occurs in each row, words with N left out.

    Args:
        tokens: uint8 (n, l).
        k: bases of a word.

    Returns:
        float32 (n, words), of 512 words for five bases.
    """
    bases = tokens - np.uint8(A)  # what is no base wraps round to above 3
    known = bases < 4
    bases = np.where(known, bases, 0).astype(np.int32)
    width = max(tokens.shape[1] - k + 1, 0)
    codes, whole = np.zeros((len(tokens), width), np.int32), np.ones((len(tokens), width), bool)
    for place in range(k):
        codes = codes * 4 + bases[:, place : place + width]
        whole &= known[:, place : place + width]
    column = _canonical(k)
    columns = int(column.max()) + 1
    cells = (np.arange(len(tokens))[:, None] * columns + column[codes])[whole]
    return np.bincount(cells, minlength=len(tokens) * columns).reshape(len(tokens), columns).astype(np.float32)


def _canonical(k: int) -> np.ndarray:
    """Of each word's code the number of its column: a word and its reverse complement have one."""
    codes = np.arange(4**k)
    back, left = np.zeros_like(codes), codes.copy()
    for _ in range(k):
        back, left = back * 4 + (3 - left % 4), left // 4
    return np.unique(np.minimum(codes, back), return_inverse=True)[1]


class MarkovOdds:
    """The log-odds of two Markov models, of windows of either kind; the order is chosen by AUC on validation.

    A window's odds are the mean of its two strands'; a logistic regression on validation makes them probabilities.
    """

    def __init__(self, store: GenomeStore, train: LabelledWindows, validation: LabelledWindows) -> None:
        from sklearn.linear_model import LogisticRegression

        self._store = store
        self._models = [
            MarkovModels.fit(store, _regions(store, train, label), MAX_ORDER, _regions(store, validation, label))
            for label in (1, 0)
        ]
        by_order = [self._odds(validation, order) for order in range(MAX_ORDER + 1)]
        self._order = int(np.argmax([roc_auc(validation.labels, odds) for odds in by_order]))
        self._calibrated = LogisticRegression(C=1e6).fit(by_order[self._order][:, None], validation.labels)
        self.name = f"Markov {self._order} log-odds"

    def predict(self, windows: LabelledWindows) -> np.ndarray:
        """Probabilities, float64 (n,)."""
        return self._calibrated.predict_proba(self._odds(windows, self._order)[:, None])[:, 1]

    def _odds(self, windows: LabelledWindows, order: int) -> np.ndarray:
        """Mean log-odds of a window's known bases, in bits, float64 (n,)."""
        found = []
        for first in range(0, len(windows), _BLOCK):
            tokens = read_spans(self._store, windows.starts[first : first + _BLOCK], windows.width)
            apart = np.pad(tokens, ((0, 0), (0, 1)), constant_values=N)  # N: no window is another's context
            odds = np.zeros(apart.shape)
            for strand in (apart, reverse_complement(apart)):
                inside, outside = (model.log2_probs(strand.ravel(), order) for model in self._models)
                odds += np.nan_to_num(inside - outside).reshape(odds.shape)
            found.append(odds.sum(1) / (2 * windows.width))
        return np.concatenate(found)


class Majority:
    """The share of the class in training, for every window."""

    name = "majority"

    def __init__(self, train: LabelledWindows) -> None:
        self._share = train.positives / len(train)

    def predict(self, windows: LabelledWindows) -> np.ndarray:
        """Probabilities, float64 (n,)."""
        return np.full(len(windows), self._share)


def fit_baselines(
    store: GenomeStore, train: LabelledWindows, validation: LabelledWindows, context: tuple[int, int] | None
) -> Sequence[WindowBaseline]:
    """All baselines; with ``context`` (lead, length) also one that sees what the model sees around the window."""
    found: list[WindowBaseline] = [KmerLogistic(store, train, validation)]
    if context is not None:
        found.append(KmerLogistic(store, train, validation, context))
    return [*found, MarkovOdds(store, train, validation), Majority(train)]


def _regions(store: GenomeStore, windows: LabelledWindows, label: int) -> list[Region]:
    """The windows of one kind as regions, those that touch or overlap joined."""
    starts = windows.starts[windows.labels == label]
    contigs = contig_numbers(store, starts)
    regions: list[Region] = []
    for start, number in zip(starts.tolist(), contigs.tolist(), strict=True):
        contig = store.contigs[number]
        first = start - contig.offset
        if regions and regions[-1].contig == contig.name and first <= regions[-1].stop:
            regions[-1] = regions[-1]._replace(stop=first + windows.width)
        else:
            regions.append(Region(contig.name, first, first + windows.width))
    return regions
