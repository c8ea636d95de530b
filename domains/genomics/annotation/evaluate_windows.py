"""A classifier of windows beside its baselines: one table, contig by contig, and without what training holds too."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from domains.folder import write_json
from domains.genomics.annotation.baselines import fit_baselines
from domains.genomics.annotation.data import span
from domains.genomics.annotation.leakage import NEAR, Leakage, TrainingWords
from domains.genomics.annotation.locus import Locus, find_locus, genes_in, step_of
from domains.genomics.annotation.metrics import (
    Binary,
    Reliability,
    pr_points,
    reliability,
    roc_auc,
    roc_points,
    score_binary,
)
from domains.genomics.annotation.table import FeatureTable
from domains.genomics.annotation.trained import LoadedAnnotator, window_probabilities
from domains.genomics.annotation.windows import LabelledWindows, WindowSplits, contig_numbers, label_windows
from domains.genomics.config import EvaluateConfig
from domains.genomics.store import GenomeStore
from domains.tables import aligned

MODEL = "model"


class Method(NamedTuple):
    """What one method reached."""

    name: str
    all: Binary  # on every test window
    apart: Binary  # on those that are not nearly the same as training sequence


class ContigRow(NamedTuple):
    """One contig."""

    contig: str
    windows: int
    positives: int
    scores: dict[str, float]  # area under the ROC curve, by method


class Curves(NamedTuple):
    """ROC and precision-recall curves of a method, and its reliability table."""

    roc: tuple[np.ndarray, np.ndarray]  # false positive rate, true positive rate
    pr: tuple[np.ndarray, np.ndarray]  # recall, precision
    reliability: Reliability

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray) -> "Curves":
        return cls(
            roc_points(labels, probabilities), pr_points(labels, probabilities), reliability(labels, probabilities)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded as a plot may be."""
        table = {name: _plain(getattr(self.reliability, name)) for name in ("count", "said", "true")}
        curves = {name: [_plain(points) for points in getattr(self, name)] for name in ("roc", "pr")}
        return {**curves, "reliability": table}


@dataclass(frozen=True)
class WindowEvaluation:
    """How a classifier of windows did.

    Attributes:
        methods: the model first, then the baselines.
        by_contig: each test contig.
        curves: of each method by name.
        leakage: what the test windows share with training.
        locus: what the model says along a stretch of the test contigs.
        what: the windows in words.
        facts: genome, annotation, model, settings and hardware, as plain values.
        windows: the test windows. said: probabilities by method, (n,) each; neither is written.
    """

    methods: list[Method]
    by_contig: list[ContigRow]
    curves: dict[str, Curves]
    leakage: Leakage
    locus: Locus
    what: str
    facts: dict[str, Any]
    windows: LabelledWindows
    said: dict[str, np.ndarray]

    @property
    def contig_score(self) -> str:
        """What the scores of contigs are."""
        return "AUC"

    def table(self) -> str:
        """Methods, contigs and calibration as aligned text."""
        names = ("auc", "ap", "mcc", "f1", "accuracy", "brier", "ece")
        head = ["", "AUC", "AP", "MCC", "F1", "accuracy", "Brier", "ECE", "AUC apart"]
        rows = [head]
        for method in self.methods:
            numbers = [f"{getattr(method.all, name):.4f}" for name in names]
            rows.append([method.name, *numbers, f"{method.apart.auc:.4f}"])
        contigs = [[self.contig_score, "windows", "positive", *(method.name for method in self.methods)]]
        for row in self.by_contig:
            numbers = [f"{row.scores[method.name]:.4f}" for method in self.methods]
            contigs.append([row.contig, f"{row.windows:,}", f"{row.positives:,}", *numbers])
        table = self.curves[MODEL].reliability
        calibration = [["model says", "windows", "mean said", "share true"]]
        for i, count in enumerate(table.count.tolist()):
            edges = f"{i / len(table.count):.1f} to {(i + 1) / len(table.count):.1f}"
            numbers = [f"{table.said[i]:.3f}", f"{table.true[i]:.3f}"] if count else ["-", "-"]
            calibration.append([edges, f"{count:,}", *numbers])
        notes = [f"apart: without the windows that are nearly the same as training sequence; {self.leakage}"]
        return "\n".join([self.what, *aligned(rows), "", *notes, "", *aligned(contigs), "", *aligned(calibration)])

    def metrics(self) -> dict[str, float]:
        """The numbers by name, for a tracker."""
        flat = {"test/windows": float(self.leakage.windows), "test/near_training": float(self.leakage.near)}
        for method in self.methods:
            prefix = "test" if method.name == MODEL else f"test/{key_of(method.name)}"
            flat |= {f"{prefix}/{name}": value for name, value in method.all.to_dict().items() if name != "count"}
            flat[f"{prefix}/auc_apart"] = method.apart.auc
        return {name: value for name, value in flat.items() if value == value}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "what": self.what,
            "methods": {
                method.name: {"all": method.all.to_dict(), "apart": method.apart.to_dict()} for method in self.methods
            },
            "by_contig": [row._asdict() for row in self.by_contig],
            "leakage": self.leakage.to_dict(),
            "curves": {name: curves.to_dict() for name, curves in self.curves.items()},
            "locus": self.locus.to_dict(),
            **self.facts,
        }

    def save(self, path: Path | str) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        write_json(path, self.to_dict())


def evaluate_windows(
    loaded: LoadedAnnotator,
    store: GenomeStore,
    table: FeatureTable,
    config: EvaluateConfig,
    hardware: dict[str, object],
    progress: bool,
) -> WindowEvaluation:
    """Score the test windows with the model and with baselines fitted on the very windows that it learned from."""
    data, seed = loaded.config.data, loaded.config.seed
    windows = label_windows(store, table, loaded.splits, data, seed)
    test = _first(windows.test, config.max_bases)
    length = span(data)
    lead = (length - data.window) // 2
    started = time.perf_counter()
    said = {MODEL: window_probabilities(loaded, store, test.starts, progress=progress)}
    seconds = time.perf_counter() - started
    around = (lead, length) if lead else None
    fitted = fit_baselines(store, windows.train, windows.validation, around) if config.baselines else ()
    for baseline in fitted:
        said[baseline.name] = baseline.predict(test)
    words = TrainingWords(store, windows.train, lead, length)
    apart = words.containment(test) < NEAR
    numbers = contig_numbers(store, test.starts)
    by_contig = []
    for number in np.unique(numbers).tolist():
        own = numbers == number
        aucs = {name: roc_auc(test.labels[own], scores[own]) for name, scores in said.items()}
        by_contig.append(ContigRow(store.contigs[number].name, int(own.sum()), int(test.labels[own].sum()), aucs))
    return WindowEvaluation(
        methods=[
            Method(name, score_binary(test.labels, scores), score_binary(test.labels[apart], scores[apart]))
            for name, scores in said.items()
        ],
        by_contig=by_contig,
        curves={name: Curves.of(test.labels, scores) for name, scores in said.items()},
        leakage=words.compare("test", test),
        locus=_locus(loaded, store, table, config),
        what=_what(loaded, windows, test, store),
        facts=facts(loaded, store, table, hardware, seconds) | {"train_windows": len(windows.train)},
        windows=test,
        said=said,
    )


def facts(
    loaded: LoadedAnnotator, store: GenomeStore, table: FeatureTable, hardware: dict[str, object], seconds: float
) -> dict[str, Any]:
    """What an evaluation says of where its numbers come from."""
    return {
        "source": store.source_name,
        "fingerprint": store.fingerprint,
        "annotation": {"source": table.source, "fingerprint": table.fingerprint},
        "model_hash": loaded.hash,
        "pretrained": loaded.pretrained,
        "label_fraction": loaded.config.data.label_fraction,
        "regions": [region._asdict() for region in loaded.splits.test],
        "seconds": seconds,
        "hardware": hardware,
    }


def _what(loaded: LoadedAnnotator, windows: WindowSplits, test: LabelledWindows, store: GenomeStore) -> str:
    data = loaded.config.data
    around = f", each amid {span(data):,} bases" if span(data) > data.window else ""
    contigs = ", ".join(dict.fromkeys(region.contig for region in loaded.splits.test[:4]))
    more = f" and {len(loaded.splits.test) - 4} more" if len(loaded.splits.test) > 4 else ""
    return (
        f"{len(test):,} windows of {data.window:,} bases{around}, {test.positives:,} with at least "
        f"{data.min_overlap:.0%} in {data.positive} and the others with none ({data.negatives}), on {contigs}{more} of "
        f"{store.source_name}; fitted on {len(windows.train):,} windows"
    )


def _first(windows: LabelledWindows, max_bases: int | None) -> LabelledWindows:
    """The windows, or as many of them as hold so many bases, evenly along the genome."""
    count = len(windows) if max_bases is None else max(1, min(len(windows), max_bases // windows.width))
    return windows.take(np.arange(count) * len(windows) // count)


def _locus(loaded: LoadedAnnotator, store: GenomeStore, table: FeatureTable, config: EvaluateConfig) -> Locus:
    data = loaded.config.data
    where = find_locus(config.locus, store, loaded.splits.test)
    step = max(step_of(where), data.window // 4)
    starts = np.arange(where.start, max(where.start + 1, where.stop - data.window + 1), step)
    probabilities = window_probabilities(loaded, store, starts + store.contig(where.contig).offset)
    return Locus(
        contig=where.contig,
        start=where.start,
        end=where.stop,
        positions=(starts + data.window // 2).tolist(),
        tracks={data.positive: [round(float(value), 4) for value in probabilities]},
        genes=genes_in(table, where, data.positive),
    )


def key_of(name: str) -> str:
    """A method's name as part of a metric's."""
    return "".join(letter if letter.isalnum() else "_" for letter in name).replace("__", "_").strip("_")


def _plain(points: np.ndarray) -> list[float | None]:
    return [None if value != value else round(float(value), 5) for value in points]
