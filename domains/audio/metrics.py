"""How well clips are named, how surprised a model is by samples, and whether a difference is more than luck."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class ClassRow(NamedTuple):
    """How one class fared. What cannot be told, for want of clips, is NaN."""

    label: str
    clips: int
    precision: float
    recall: float
    f1: float


class Naming:
    """Scores of a classifier, from its confusion matrix.

    Attributes:
        labels: names of the classes.
        confusion: int64 (classes, classes), clips by true class (row) and by what they were called (column).
    """

    def __init__(self, labels: Sequence[str], truth: np.ndarray, called: np.ndarray) -> None:
        """Of clips whose true and told classes are given, both int64 (n,)."""
        self.labels = list(labels)
        size = len(self.labels)
        pairs = np.asarray(truth) * size + np.asarray(called)
        self.confusion = np.bincount(pairs, minlength=size * size).reshape(size, size)

    @property
    def accuracy(self) -> float:
        """Share of the clips that are named rightly."""
        return _ratio(np.trace(self.confusion), self.confusion.sum())

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes that occur of the share of their clips named rightly."""
        return _balanced(self.confusion)

    def to_dict(self) -> dict[str, object]:
        """Everything as plain values, ready for JSON; what cannot be told is None."""
        rows = [{name: _known(value) for name, value in row._asdict().items()} for row in self.to_rows()]
        scores = {"accuracy": _known(self.accuracy), "balanced_accuracy": _known(self.balanced_accuracy)}
        return {**scores, "classes": rows, "confusion": self.confusion.tolist()}

    def to_rows(self) -> list[ClassRow]:
        """Each class, in the order of ``labels``."""
        rows = []
        for i, label in enumerate(self.labels):
            hits, own, told = self.confusion[i, i], self.confusion[i].sum(), self.confusion[:, i].sum()
            f1 = _ratio(2 * hits, own + told)
            rows.append(ClassRow(label, int(own), _ratio(hits, told), _ratio(hits, own), f1))
        return rows


class BitsPerSample:
    """Sums of bits over clips, each of which may come in pieces.

    Attributes:
        bits: clip -> bits so far. samples: clip -> samples so far.
    """

    def __init__(self) -> None:
        self.bits: dict[int, float] = {}
        self.samples: dict[int, int] = {}

    def add(self, clip: int, bits: np.ndarray) -> None:
        """Count a stretch of a clip: bits of each sample, float (l,)."""
        self.bits[clip] = self.bits.get(clip, 0.0) + float(np.sum(bits, dtype=np.float64))
        self.samples[clip] = self.samples.get(clip, 0) + len(bits)

    @property
    def mean(self) -> float:
        """Bits per sample over all clips, each sample weighing the same; NaN when there are none."""
        return _ratio(math.fsum(self.bits.values()), sum(self.samples.values()))

    def of(self, clips: Sequence[int]) -> np.ndarray:
        """Bits of each of these clips, float64 (n,)."""
        return np.array([self.bits[clip] for clip in clips])


class Difference(NamedTuple):
    """A score less another, on the same clips.

    ``low`` and ``high`` bound what 95% of the resampled sets of ``units`` clips or groups say.
    """

    value: float
    low: float
    high: float
    units: int

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0; where it does not, the difference is not shown."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, object]:
        """As plain values, ready for JSON."""
        return {**self._asdict(), "shown": self.shown}

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]{'' if self.shown else ' not shown'}"


def compare_naming(
    labels: Sequence[str],
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    balanced: bool = True,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Balanced accuracy, or plain, of ``first`` less that of ``second``; all int64 (n,), classes of the same clips.

    Args:
        labels: names of the classes.
        truth, first, second: true classes, and what two classifiers say; of several trainings (runs, n), whose
            accuracies are averaged.
        groups: of the clips; drawn whole, with all their clips. None draws clips.
        balanced: which accuracy.
        resamples, seed: of the bootstrap.
    """
    size = len(labels)

    def confusion(called: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.bincount(truth * size + called, weights=weights, minlength=size * size).reshape(size, size)

    def accuracy(called: np.ndarray, weights: np.ndarray) -> float:
        tables = [confusion(run, weights) for run in np.atleast_2d(called)]
        return float(np.mean([_balanced(t) if balanced else _ratio(np.trace(t), t.sum()) for t in tables]))

    def difference(weights: np.ndarray) -> float:
        return accuracy(first, weights) - accuracy(second, weights)

    return paired_bootstrap(difference, len(truth), groups, resamples=resamples, seed=seed)


def compare_bits(
    first: BitsPerSample,
    second: BitsPerSample,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Bits per sample of ``first`` less those of ``second``, on the same samples; below 0, the first is better.

    Args:
        groups: of the clips, in the order of ``sorted(first.samples)``; drawn whole. None draws clips.
        resamples, seed: of the bootstrap.

    Raises:
        ValueError: the two did not score the same samples.
    """
    if first.samples != second.samples:
        raise ValueError("bits of different samples cannot be compared")
    clips = sorted(first.samples)
    samples = np.array([first.samples[clip] for clip in clips], dtype=np.float64)
    bits = first.of(clips) - second.of(clips)

    def difference(weights: np.ndarray) -> float:
        return float(weights @ bits / (weights @ samples))

    return paired_bootstrap(difference, len(clips), groups, resamples=resamples, seed=seed)


def paired_bootstrap(
    difference: Callable[[np.ndarray], float],
    clips: int,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """The percentile interval of a difference between two models on the same clips (Efron and Tibshirani 1993, ch. 13).

    Args:
        difference: of clips that weigh so much: float64 (clips,), whole numbers, how often each was drawn.
        clips: their number.
        groups: of each clip. Clips of a group go together: few groups make wide intervals, as they should.
        resamples, seed: how many sets are drawn, and from which random numbers.
    """
    units = np.arange(clips) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(units.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)[:, units].astype(np.float64)
    values = [difference(weights) for weights in drawn]
    low, high = np.quantile(values, [0.025, 0.975])
    return Difference(difference(np.ones(clips)), float(low), float(high), count)


def _balanced(confusion: np.ndarray) -> float:
    own = confusion.sum(axis=1)
    present = own > 0
    return float(np.mean(np.diag(confusion)[present] / own[present])) if present.any() else math.nan


def _known(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
