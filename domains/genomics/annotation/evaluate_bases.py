"""A segmenter beside gene models of its field: class by class, contig by contig, and where genes begin and end."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from domains.folder import write_json
from domains.genomics.annotation.codon import CodonModel
from domains.genomics.annotation.data import Tile, base_windows, share_of_windows, tile
from domains.genomics.annotation.evaluate_windows import MODEL, Curves, facts, key_of
from domains.genomics.annotation.labels import CLASS_OF_STATE, NO_LABEL, SITES, BaseLabels, label_bases
from domains.genomics.annotation.locus import Locus, find_locus, genes_in, step_of
from domains.genomics.annotation.metrics import Binary, average_precision, matthews, score_binary
from domains.genomics.annotation.table import FeatureTable
from domains.genomics.annotation.trained import LoadedAnnotator, base_probabilities, halo_of
from domains.genomics.config import EvaluateConfig
from domains.genomics.evaluate import prefix
from domains.genomics.splits import Region
from domains.genomics.store import GenomeStore
from domains.tables import aligned

ORDERS = (3, 5)  # of the codon models
_CDS = 1  # its place among the classes
_LONGEST = 8192  # bases that a codon model decodes at once


class ClassScore(NamedTuple):
    """How one class fared; NaN where nothing can be said."""

    name: str
    bases: int
    precision: float
    recall: float
    f1: float


class SiteScore(NamedTuple):
    """How one kind of site fared."""

    name: str
    bases: int
    ap: float  # average precision of the model
    share: float  # of such bases among all: the average precision of chance


class Method(NamedTuple):
    """What one method reached, its answer for a base being the likeliest class."""

    name: str
    classes: list[ClassScore]
    cds: Binary  # of the probability of CDS against the rest; f1, mcc and accuracy at 0.5
    cds_mcc: float  # of the likeliest class being CDS
    accuracy: float


class ContigRow(NamedTuple):
    """One contig."""

    contig: str
    bases: int
    cds: int
    scores: dict[str, float]  # F1 of CDS, by method


@dataclass(frozen=True)
class BaseEvaluation:
    """How a segmenter did.

    Attributes:
        methods: the model first, then the codon models, and CDS everywhere.
        sites: start and stop codons, donors and acceptors, by the model.
        by_contig: each test contig.
        curves: of CDS against the rest, by method.
        locus: what the model says along a stretch of the test contigs.
        what: the bases in words. facts: genome, annotation, model, settings and hardware, as plain values.
    """

    methods: list[Method]
    sites: list[SiteScore]
    by_contig: list[ContigRow]
    curves: dict[str, Curves]
    locus: Locus
    what: str
    facts: dict[str, Any]

    @property
    def contig_score(self) -> str:
        """What the scores of contigs are."""
        return "F1 of CDS"

    def table(self) -> str:
        """Methods, classes, sites and contigs as aligned text."""
        rows = [["CDS", "F1", "precision", "recall", "MCC", "AUC", "AP", "Brier", "ECE", "accuracy of all"]]
        for method in self.methods:
            cds = method.classes[_CDS]
            numbers = [cds.f1, cds.precision, cds.recall, method.cds_mcc, method.cds.auc, method.cds.ap]
            numbers += [method.cds.brier, method.cds.ece, method.accuracy]
            rows.append([method.name, *(f"{number:.4f}" for number in numbers)])
        names = [score.name for score in self.methods[0].classes]
        classes = [["F1", *names]]
        classes.append(["bases", *(f"{score.bases:,}" for score in self.methods[0].classes)])
        for method in self.methods:
            classes.append([method.name, *(f"{score.f1:.4f}" for score in method.classes)])
        sites = [["sites", "bases", "average precision", "of chance"]]
        sites += [[site.name, f"{site.bases:,}", f"{site.ap:.4f}", f"{site.share:.4f}"] for site in self.sites]
        contigs = [[self.contig_score, "bases", "CDS", *(method.name for method in self.methods)]]
        for row in self.by_contig:
            numbers_by = [f"{row.scores[method.name]:.4f}" for method in self.methods]
            contigs.append([row.contig, f"{row.bases:,}", f"{row.cds:,}", *numbers_by])
        parts = [aligned(part) for part in (rows, classes, sites, contigs)]
        return "\n".join([self.what, *(line for part in parts for line in (*part, ""))]).rstrip()

    def metrics(self) -> dict[str, float]:
        """The numbers by name, for a tracker."""
        flat: dict[str, float] = {}
        for method in self.methods:
            prefix = "test" if method.name == MODEL else f"test/{key_of(method.name)}"
            flat |= {f"{prefix}/{score.name.lower()}_f1": score.f1 for score in method.classes}
            flat |= {f"{prefix}/cds_{name}": getattr(method.cds, name) for name in ("auc", "ap", "brier", "ece")}
            flat |= {f"{prefix}/cds_mcc": method.cds_mcc, f"{prefix}/accuracy": method.accuracy}
        flat |= {f"test/{site.name}_ap": site.ap for site in self.sites}
        return {name: value for name, value in flat.items() if value == value}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "what": self.what,
            "methods": {
                method.name: {
                    "classes": [score._asdict() for score in method.classes],
                    "cds": method.cds.to_dict(),
                    "cds_mcc": method.cds_mcc,
                    "accuracy": method.accuracy,
                }
                for method in self.methods
            },
            "sites": [site._asdict() for site in self.sites],
            "by_contig": [row._asdict() for row in self.by_contig],
            "curves": {name: curves.to_dict() for name, curves in self.curves.items()},
            "locus": self.locus.to_dict(),
            **self.facts,
        }

    def save(self, path: Path | str) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        write_json(path, self.to_dict())


class _Said(NamedTuple):
    """What a method says of all bases scored, one after another."""

    classes: np.ndarray  # uint8 (n,), the likeliest
    cds: np.ndarray  # float32 (n,), its probability


def evaluate_bases(
    loaded: LoadedAnnotator,
    store: GenomeStore,
    table: FeatureTable,
    config: EvaluateConfig,
    hardware: dict[str, object],
    progress: bool,
) -> BaseEvaluation:
    """Score every labelled base of the test regions with the model and with codon models fitted on its labels.

    The model reads windows as long as those it learned from, whose edges overlap (see trained.halo_of).
    """
    window = loaded.config.data.window
    labels = label_bases(store, table)
    regions = prefix(loaded.splits.test, config.max_bases)
    where = np.concatenate([np.arange(*_places(store, region)) for region in regions])
    truth = CLASS_OF_STATE[labels.states[where]]
    started = time.perf_counter()
    sites = np.zeros((len(where), len(SITES)), dtype=np.float32)
    tiles = tile(regions, store, window, halo_of(window))
    said = {MODEL: _read(regions, store, base_probabilities(loaded, store, tiles, progress=progress), sites)}
    seconds = time.perf_counter() - started
    halves = tile(regions, store, _LONGEST, halo_of(_LONGEST))
    train, validation = _stretches(loaded, store, labels)
    for order in ORDERS if config.baselines else ():
        model = CodonModel(store, labels, train, validation, order)
        said[model.name] = _read(regions, store, ((one, p, None) for one, p in model.class_probabilities(halves)))
    of_train = np.concatenate([CLASS_OF_STATE[labels.states[start:stop]] for start, stop in train])
    share = (of_train == _CDS).sum() / max((of_train != NO_LABEL).sum(), 1)
    said["CDS everywhere"] = _Said(np.full(len(where), _CDS, np.uint8), np.full(len(where), share, np.float32))
    known = truth != NO_LABEL
    names = loaded.classes
    return BaseEvaluation(
        methods=[_score(name, names, truth[known], one.classes[known], one.cds[known]) for name, one in said.items()],
        sites=_score_sites(labels.sites[where[known]], sites[known]),
        by_contig=_by_contig(
            store, where[known], truth[known], {name: one.classes[known] for name, one in said.items()}
        ),
        curves={name: Curves.of(truth[known] == _CDS, one.cds[known]) for name, one in said.items()},
        locus=_locus(loaded, store, table, config),
        what=_what(loaded, store, int(known.sum()), regions),
        facts=facts(loaded, store, table, hardware, seconds) | {"window": window, "halo": halo_of(window)},
    )


_Stretches = list[tuple[int, int]]  # start and stop in positions of store.raw


def _stretches(loaded: LoadedAnnotator, store: GenomeStore, labels: BaseLabels) -> tuple[_Stretches, _Stretches]:
    """The bases that the model learned from, and those of validation."""
    data, seed = loaded.config.data, loaded.config.seed
    train = [_places(store, region) for region in loaded.splits.train]
    if data.label_fraction < 1:
        starts = base_windows(store, labels, loaded.splits.train, data.window)
        train = [(at, at + data.window) for at in share_of_windows(starts, data.label_fraction, seed).tolist()]
    return train, [_places(store, region) for region in loaded.splits.validation]


def _places(store: GenomeStore, region: Region) -> tuple[int, int]:
    """A region in positions of store.raw."""
    offset = store.contig(region.contig).offset
    return offset + region.start, offset + region.stop


def _read(
    regions: list[Region],
    store: GenomeStore,
    answers: Iterable[tuple[Tile, np.ndarray, np.ndarray | None]],
    sites: np.ndarray | None = None,
) -> _Said:
    """What comes tile by tile, brought into the order of the regions; sites go into the array for them."""
    at, total = _index(regions, store)
    classes, cds = np.zeros(total, np.uint8), np.zeros(total, np.float32)
    for one, probabilities, of_sites in answers:
        place = slice(at(one.first), at(one.first) + one.last - one.first)
        classes[place] = probabilities.argmax(-1)
        cds[place] = probabilities[:, _CDS]
        if sites is not None and of_sites is not None:
            sites[place] = of_sites
    return _Said(classes, cds)


def _index(regions: list[Region], store: GenomeStore) -> tuple[Callable[[int], int], int]:
    """Where a position of store.raw stands among the bases of the regions, and how many these are."""
    starts = np.array([_places(store, region)[0] for region in regions])
    before = np.cumsum([0, *(region.length for region in regions)])
    order = np.argsort(starts)

    def at(position: int) -> int:
        number = order[np.searchsorted(starts[order], position, side="right") - 1]
        return int(before[number] + position - starts[number])

    return at, int(before[-1])


def score_classes(names: list[str], truth: np.ndarray, called: np.ndarray) -> tuple[list[ClassScore], np.ndarray]:
    """How each class fared, of true and told classes (n,), and the confusion matrix, true classes in its rows."""
    size = len(names)
    pairs = truth.astype(np.int64) * size + called
    confusion = np.bincount(pairs, minlength=size * size).reshape(size, size)
    classes = []
    for i, one in enumerate(names):
        hits, own, told = confusion[i, i], confusion[i].sum(), confusion[:, i].sum()
        classes.append(ClassScore(one, int(own), _ratio(hits, told), _ratio(hits, own), _ratio(2 * hits, own + told)))
    return classes, confusion


def _score(name: str, names: list[str], truth: np.ndarray, called: np.ndarray, cds: np.ndarray) -> Method:
    classes, confusion = score_classes(names, truth, called)
    hits, own, told = (int(n) for n in (confusion[_CDS, _CDS], confusion[_CDS].sum(), confusion[:, _CDS].sum()))
    mcc = matthews(hits, told - hits, own - hits, len(truth) - own - told + hits)
    accuracy = _ratio(np.trace(confusion), confusion.sum())
    return Method(name, classes, score_binary(truth == _CDS, cds), mcc, accuracy)


def _score_sites(truth: np.ndarray, said: np.ndarray) -> list[SiteScore]:
    rows = []
    for i, name in enumerate(SITES):
        bases = truth >> i & 1
        ap = average_precision(bases, said[:, i]) if bases.any() else float("nan")
        rows.append(SiteScore(name, int(bases.sum()), ap, float(bases.mean())))
    return rows


def _by_contig(
    store: GenomeStore, where: np.ndarray, truth: np.ndarray, said: dict[str, np.ndarray]
) -> list[ContigRow]:
    rows = []
    for contig in store.contigs:
        first, last = np.searchsorted(where, [contig.offset, contig.offset + contig.length])
        if last > first:
            own = truth[first:last] == _CDS
            f1 = {}
            for name, classes in said.items():
                told = classes[first:last] == _CDS
                f1[name] = _ratio(2 * int((own & told).sum()), int(own.sum()) + int(told.sum()))
            rows.append(ContigRow(contig.name, int(last - first), int(own.sum()), f1))
    return rows


def _locus(loaded: LoadedAnnotator, store: GenomeStore, table: FeatureTable, config: EvaluateConfig) -> Locus:
    where = find_locus(config.locus, store, loaded.splits.test)
    tracks = np.zeros((where.length, len(loaded.classes) + len(SITES)), np.float32)
    first, _ = _places(store, where)
    window = loaded.config.data.window
    for one, classes, sites in base_probabilities(loaded, store, tile([where], store, window, halo_of(window))):
        tracks[one.first - first : one.last - first] = np.concatenate([classes, sites], axis=1)
    step = step_of(where)
    shown = [*loaded.classes[1:], *SITES]
    return Locus(
        contig=where.contig,
        start=where.start,
        end=where.stop,
        positions=list(range(where.start, where.stop, step)),
        tracks={name: [round(float(v), 4) for v in tracks[::step, i + 1]] for i, name in enumerate(shown)},
        genes=genes_in(table, where),
    )


def _what(loaded: LoadedAnnotator, store: GenomeStore, bases: int, regions: list[Region]) -> str:
    contigs = ", ".join(region.contig for region in regions[:4])
    more = f" and {len(regions) - 4} more" if len(regions) > 4 else ""
    data = loaded.config.data
    share = "" if data.label_fraction == 1 else f", {data.label_fraction:.0%} of the labels"
    return (
        f"{bases:,} labelled bases of {contigs}{more} of {store.source_name}, read in windows of {data.window:,} with "
        f"at least {halo_of(data.window):,} bases of overlap at either edge{share}"
    )


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
