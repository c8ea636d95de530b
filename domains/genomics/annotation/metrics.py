"""How well a probability tells one class from another: ranks, decisions, calibration."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_BINS = 10  # of equal width, of the probability, for calibration
_CURVE = 400  # points of a curve that are kept


@dataclass(frozen=True)
class Reliability:
    """How often the class occurred where the probability fell into each of ten bins of equal width.

    Attributes:
        count: int64 (bins,). said: float64 (bins,), mean probability. true: float64 (bins,), share of the class; both
            NaN in empty bins.
    """

    count: np.ndarray
    said: np.ndarray
    true: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of the two, weighted by count (arXiv:1706.04599, eq. 3)."""
        filled = self.count > 0
        return float((np.abs(self.said - self.true)[filled] * self.count[filled]).sum() / max(self.count.sum(), 1))


@dataclass(frozen=True)
class Binary:
    """Scores of probabilities of a class; those that nothing can be said about, for want of one kind, are NaN.

    Attributes:
        count, positives: how many were scored, and how many are of the class.
        auc: area under the ROC curve. ap: average precision.
        mcc, f1, accuracy: of the decision at 0.5 (Matthews correlation coefficient).
        brier: mean squared distance of the probability from the truth. ece: expected calibration error.
    """

    count: int
    positives: int
    auc: float
    ap: float
    mcc: float
    f1: float
    accuracy: float
    brier: float
    ece: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def score_binary(labels: np.ndarray, probabilities: np.ndarray) -> Binary:
    """All scores of probabilities of class 1: both (n,), labels 0 or 1."""
    labels = np.asarray(labels).astype(np.int64)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    called = probabilities >= 0.5
    tp, fp = int((called & (labels == 1)).sum()), int((called & (labels == 0)).sum())
    fn, tn = int((~called & (labels == 1)).sum()), int((~called & (labels == 0)).sum())
    both = 0 < labels.sum() < len(labels)
    return Binary(
        count=len(labels),
        positives=int(labels.sum()),
        auc=roc_auc(labels, probabilities),
        ap=average_precision(labels, probabilities) if both else float("nan"),
        mcc=matthews(tp, fp, fn, tn),
        f1=2 * tp / (2 * tp + fp + fn) if 2 * tp + fp + fn else float("nan"),
        accuracy=(tp + tn) / len(labels) if len(labels) else float("nan"),
        brier=float(np.mean((probabilities - labels) ** 2)) if len(labels) else float("nan"),
        ece=reliability(labels, probabilities).error,
    )


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a member of the class scores higher than a non-member, ties half; NaN without one of them."""
    from scipy.stats import rankdata  # late: slow to import

    inside = np.asarray(labels) > 0
    members, others = int(inside.sum()), int((~inside).sum())
    if not (members and others):
        return float("nan")
    ranks = rankdata(np.asarray(scores, dtype=np.float64))
    return float((ranks[inside].sum() - members * (members + 1) / 2) / (members * others))  # Mann and Whitney's U


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean precision over recall, without interpolation; that of chance is the share of the class."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores))


def matthews(tp: int, fp: int, fn: int, tn: int) -> float:
    """Matthews correlation coefficient; 0 where it is not defined, as for one and the same answer to all."""
    root = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
    return (float(tp) * tn - float(fp) * fn) / root**0.5 if root else 0.0


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> Reliability:
    """The reliability table of probabilities in 0 .. 1."""
    which = np.minimum((np.asarray(probabilities) * _BINS).astype(np.int64), _BINS - 1)
    count = np.bincount(which, minlength=_BINS)
    said = np.bincount(which, weights=probabilities, minlength=_BINS)
    true = np.bincount(which, weights=labels, minlength=_BINS)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Reliability(count, said / count, true / count)


def roc_points(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates along the ROC curve, thinned to some hundred points."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(labels, scores)
    return _thinned(false), _thinned(true)


def pr_points(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision along the precision-recall curve, thinned likewise."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(labels, scores)
    return _thinned(recall), _thinned(precision)


def _thinned(points: np.ndarray) -> np.ndarray:
    return points[np.unique(np.linspace(0, len(points) - 1, _CURVE).astype(np.int64))]
