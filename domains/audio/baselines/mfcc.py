"""Classification without learning from samples: the most frequent label, and MFCCs under a logistic regression."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from domains.audio.store import AudioStore

COEFFICIENTS = 20
_WINDOW = 0.025  # s
_HOP = 0.010  # s
_MELS = 40
_MOST = 60.0  # s of a long clip that are looked at, from its beginning
_STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # inverse strengths of the penalty that are tried
_FOLDS = 10  # at most, to choose one


class Majority:
    """Always the label that most training clips have; of equals the first by name."""

    name = "majority"

    @classmethod
    def fit(cls, store: AudioStore, clips: Sequence[int]) -> "Majority":
        """Count the labels of these clips."""
        return cls(int(np.argmax(np.bincount(class_numbers(store, clips), minlength=len(store.labels)))))

    def __init__(self, label: int) -> None:
        self.label = label

    def predict(self, store: AudioStore, clips: Sequence[int]) -> np.ndarray:
        """Places in ``store.labels``, int64 (n,)."""
        return np.full(len(clips), self.label, dtype=np.int64)


class MfccLogistic:
    """Logistic regression on mean and standard deviation of 20 MFCCs, and the duration, all standardised.

    Classes weigh the same, as in the training of our models. How strong the penalty is, is chosen among the clips that
    it is fitted on: by balanced accuracy on groups left out in turn, or on clips where there are no groups.
    """

    name = "MFCC + logistic regression"

    def __init__(self, pipeline: Any, strength: float) -> None:
        self._pipeline = pipeline
        self.strength = strength

    @classmethod
    def fit(cls, store: AudioStore, clips: Sequence[int], features: np.ndarray | None = None) -> "MfccLogistic":
        """Fit on these clips.

        Args:
            store: the clips.
            clips: numbers of those to learn from.
            features: of all clips of the store where they are at hand; see :func:`mfcc_features`.
        """
        known = mfcc_features(store, clips) if features is None else features[list(clips)]
        truth = class_numbers(store, clips)
        folds = _folds(truth, [store.clips[clip].group for clip in clips])
        strength = max(_STRENGTHS, key=lambda one: _left_out(known, truth, folds, one)) if folds else 1.0
        return cls(_logistic(strength).fit(known, truth), strength)

    def predict(self, store: AudioStore, clips: Sequence[int], features: np.ndarray | None = None) -> np.ndarray:
        """Places in ``store.labels``, int64 (n,)."""
        known = mfcc_features(store, clips) if features is None else features[list(clips)]
        return self._pipeline.predict(known).astype(np.int64)


def _logistic(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=5000))


def _folds(truth: np.ndarray, groups: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places of clips to learn from, and of those left out; no fold where one would leave a class out as a whole."""
    from sklearn.model_selection import GroupKFold, StratifiedKFold

    count = len(set(groups))
    if count > 1:
        found = list(GroupKFold(min(count, _FOLDS)).split(truth, groups=groups))
    elif (least := np.bincount(truth)[np.unique(truth)].min()) > 1:
        found = list(StratifiedKFold(min(least, _FOLDS), shuffle=True, random_state=0).split(truth, truth))
    else:
        return []
    return found if all(len(np.unique(truth[known])) == len(np.unique(truth)) for known, _ in found) else []


def _left_out(
    known: np.ndarray, truth: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]], strength: float
) -> float:
    """Balanced accuracy on what is left out, all folds together."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import cross_val_predict

    return balanced_accuracy_score(truth, cross_val_predict(_logistic(strength), known, truth, cv=folds))


def class_numbers(store: AudioStore, clips: Sequence[int]) -> np.ndarray:
    """Places of the clips' labels in ``store.labels``, int64 (n,)."""
    return np.array([store.labels.index(store.clips[clip].label) for clip in clips], dtype=np.int64)


def mfcc_features(store: AudioStore, clips: Sequence[int]) -> np.ndarray:
    """Mean and standard deviation of each MFCC over a clip, and its duration in seconds: float64 (n, 41)."""
    import torch
    from torchaudio.transforms import MFCC

    fft = 2 ** int(np.ceil(np.log2(_WINDOW * store.rate)))
    spectrum = {
        "n_fft": fft,
        "win_length": round(_WINDOW * store.rate),
        "hop_length": round(_HOP * store.rate),
        "n_mels": min(_MELS, fft // 8),
    }
    transform = MFCC(store.rate, COEFFICIENTS, melkwargs=spectrum)
    rows = []
    for clip in clips:
        length = store.clips[clip].length
        sound = torch.from_numpy(store.samples(clip, 0, min(length, round(_MOST * store.rate))))
        sound = torch.nn.functional.pad(sound, (0, max(0, fft - len(sound))))  # a window must fit
        with torch.inference_mode():
            mfcc = transform(sound).double().numpy()  # (coefficients, frames)
        rows.append(np.concatenate([mfcc.mean(axis=1), mfcc.std(axis=1), [length / store.rate]]))
    return np.stack(rows)
