"""How a classifier names the clips that were held out from it, beside classifiers that need no samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from domains.audio.baselines import Majority, MfccLogistic
from domains.audio.config import EvaluateConfig
from domains.audio.data import ValidationClips
from domains.audio.metrics import Difference, Naming, compare_naming
from domains.audio.models.generator import Generator
from domains.audio.store import AudioStore
from domains.audio.trained import LoadedModel
from domains.folder import write_json
from domains.tables import aligned

MODEL = "model"
_FEW_GROUPS = 5  # of fewer a bootstrap draws a handful of different sets


class ClipRow(NamedTuple):
    """What a clip was called."""

    name: str
    label: str  # the true one
    group: str
    called: dict[str, str]  # method -> label
    probabilities: dict[str, float]  # label -> the model's


@dataclass(frozen=True)
class NamingEvaluation:
    """A classifier and its baselines on the same test clips.

    Attributes:
        kind: classify or spectrogram.
        labels: names of the classes.
        methods: the model first, then the baselines.
        differences: baseline -> what was drawn (clips, groups) -> balanced accuracy of the model less its own.
        clips: each test clip.
        note: one line about the clips.
        about: source, fingerprint and hash of weights, hardware.
    """

    kind: str
    labels: list[str]
    methods: Mapping[str, Naming]
    differences: Mapping[str, Mapping[str, Difference]]
    clips: list[ClipRow]
    note: str
    about: dict[str, Any]

    def table(self) -> str:
        """Accuracies with the baselines beside them, each class, and what was taken for what."""
        lines = [*accuracy_lines(self.methods, self.differences), *group_lines(self.differences)]
        return "\n".join([self.note, "", *lines, *class_lines(self.methods)])

    def metrics(self) -> dict[str, float]:
        """The numbers that a tracker shows: ``test/accuracy``, ``test/majority/accuracy``."""
        found: dict[str, float] = {}
        for name, naming in self.methods.items():
            where = "test" if name == MODEL else f"test/{_key(name)}"
            found |= {f"{where}/accuracy": naming.accuracy, f"{where}/balanced_accuracy": naming.balanced_accuracy}
        rows = self.methods[MODEL].to_rows()
        found |= {f"test/f1/{row.label}": row.f1 for row in rows if row.clips}
        return found | {"test/clips": float(len(self.clips))}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "kind": self.kind,
            "note": self.note,
            "labels": self.labels,
            "methods": {name: naming.to_dict() for name, naming in self.methods.items()},
            "differences": {
                name: {drawn: found.to_dict() for drawn, found in of.items()} for name, of in self.differences.items()
            },
            "clips": [clip._asdict() for clip in self.clips],
            **self.about,
        }

    def save(self, path: Path | str) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        write_json(path, self.to_dict())


def name_clips(
    loaded: LoadedModel, store: AudioStore, config: EvaluateConfig, about: dict[str, Any], progress: bool
) -> NamingEvaluation:
    """Name the test clips by the model and by the baselines.

    The baselines learn from training and validation clips together, and choose among these by themselves.
    """
    splits = loaded.splits
    test, known = splits.clips(store, "test"), [*splits.clips(store, "train"), *splits.clips(store, "validation")]
    truth = np.array([store.labels.index(store.clips[clip].label) for clip in test], dtype=np.int64)
    probabilities = class_probabilities(loaded, store, test, config, progress)
    called = {MODEL: probabilities.argmax(1)} | baseline_names(store, known, test)
    methods = {name: Naming(store.labels, truth, own) for name, own in called.items()}
    clips = []
    for i, clip in enumerate(test):
        entry = store.clips[clip]
        said = {name: store.labels[own[i]] for name, own in called.items()}
        shares = {label: round(float(p), 6) for label, p in zip(store.labels, probabilities[i], strict=True)}
        clips.append(ClipRow(entry.name, entry.label, entry.group, said, shares))
    note = f"{len(test):,} test clips of {store.source_name}; {splits.note}"
    differences = compare_all(store.labels, truth, called, [clip.group for clip in clips], config.resamples)
    return NamingEvaluation(loaded.sound.kind, list(store.labels), methods, differences, clips, note, about)


def class_probabilities(
    loaded: LoadedModel, store: AudioStore, clips: Sequence[int], config: EvaluateConfig, progress: bool = False
) -> np.ndarray:
    """Probability of each class: float64 (clips, classes), in the order of ``clips``."""
    device = next(loaded.model.parameters()).device
    found = np.zeros((len(clips), len(loaded.sound.labels)))
    place = {clip: i for i, clip in enumerate(clips)}
    with tqdm(total=len(clips), desc="naming", unit="clip", delay=1, disable=not progress) as bar:
        for batch in _batches(loaded, store, clips, config):
            with torch.inference_mode():
                logits, _ = loaded.model(batch["inputs"].to(device), seq_idx=batch["seq_idx"].to(device))
            rows = [place[clip] for clip in batch["clips"].tolist()]
            found[rows] = logits.double().softmax(-1).cpu().numpy()
            bar.update(len(rows))
    return found


def _batches(
    loaded: LoadedModel, store: AudioStore, clips: Sequence[int], config: EvaluateConfig
) -> Iterator[dict[str, torch.Tensor]]:
    data = replace(loaded.config.data, max_seconds=config.max_seconds, tokens_per_step=config.chunk)
    assert not isinstance(loaded.model, Generator)
    batches = ValidationClips(store, clips, data, loaded.model.stride)
    yield from (batches[number] for number in range(len(batches)))


def baseline_names(store: AudioStore, known: Sequence[int], test: Sequence[int]) -> dict[str, np.ndarray]:
    """What each baseline, fitted on the clips ``known``, calls the clips ``test``: int64 (n,)."""
    majority, mfcc = Majority.fit(store, known), MfccLogistic.fit(store, known)
    return {majority.name: majority.predict(store, test), mfcc.name: mfcc.predict(store, test)}


def compare_all(
    labels: Sequence[str],
    truth: np.ndarray,
    called: Mapping[str, np.ndarray],
    groups: Sequence[str],
    resamples: int,
) -> dict[str, dict[str, Difference]]:
    """Balanced accuracy of the model less that of each baseline, by clips drawn, and by groups where there are some.

    Args:
        labels: names of the classes.
        truth: int64 (n,).
        called: method -> int64 (n,), or (runs, n) of several trainings; the model first.
        groups: of the clips; empty where there are none.
        resamples: of the bootstrap.
    """
    found: dict[str, dict[str, Difference]] = {}
    drawn = {"clips": None} | ({"groups": list(groups)} if len(set(groups)) > 1 else {})
    for name, own in called.items():
        if name != MODEL:
            found[name] = {
                what: compare_naming(labels, truth, called[MODEL], own, which, resamples=resamples)
                for what, which in drawn.items()
            }
    return found


def accuracy_lines(methods: Mapping[str, Naming], differences: Mapping[str, Mapping[str, Difference]]) -> list[str]:
    """A line each method; of the baselines how far the model is above them, by clips and by groups drawn."""
    rows = [["", "accuracy", "balanced", "model - it, 95% by clips", "by groups"]]
    for name, naming in methods.items():
        found = differences.get(name, {})
        shown = [str(found[what]) if what in found else "" for what in ("clips", "groups")]
        rows.append([name, f"{naming.accuracy:.3f}", f"{naming.balanced_accuracy:.3f}", *shown])
    return aligned(rows)


def group_lines(differences: Mapping[str, Mapping[str, Difference]]) -> list[str]:
    """A line where groups were drawn, and there are too few of them."""
    units = {found["groups"].units for found in differences.values() if "groups" in found}
    return [f"{count:,} groups: too few for an interval to mean much" for count in units if count < _FEW_GROUPS]


def class_lines(methods: Mapping[str, Naming]) -> list[str]:
    """F1 of each class by each method, and what the model takes for what."""
    rows = [["F1", "clips", *methods]]
    by_method = [naming.to_rows() for naming in methods.values()]
    for own in zip(*by_method, strict=True):
        rows.append([own[0].label, f"{own[0].clips:,}", *("-" if np.isnan(row.f1) else f"{row.f1:.3f}" for row in own)])
    model = methods[MODEL]
    confusion = [["is \\ called", *model.labels]]
    for label, counts in zip(model.labels, model.confusion.tolist(), strict=True):
        confusion.append([label, *(f"{count:,}" for count in counts)])
    return ["", *aligned(rows), "", *aligned(confusion)]


def _key(name: str) -> str:
    """A method's name as part of a metric's."""
    return "_".join(name.replace("+", " ").split()).lower()
