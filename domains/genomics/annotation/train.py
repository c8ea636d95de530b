"""What training a model of annotation needs beside what all training does: labels, batches, the model, its record."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from domains.batches import BatchesDataModule
from domains.errors import UserError
from domains.genomics.annotation.data import BaseBatches, WindowBatches, base_windows, share_of_windows, span
from domains.genomics.annotation.labels import label_bases
from domains.genomics.annotation.leakage import TrainingWords
from domains.genomics.annotation.models import Annotator, Segmenter, WindowClassifier
from domains.genomics.annotation.pretrained import load_pretrained, note
from domains.genomics.annotation.table import FeatureTable, prepare_annotation
from domains.genomics.annotation.tasks import ClassifyTask, SegmentTask
from domains.genomics.annotation.windows import LabelledWindows, check_fraction, check_windows, label_windows
from domains.genomics.config import DataConfig, TrainConfig
from domains.genomics.data import rows_per_batch
from domains.genomics.model import describe_data
from domains.genomics.sample import sample_annotation
from domains.genomics.splits import Splits, make_splits
from domains.genomics.store import GenomeStore
from domains.parallel import Share
from domains.pretrained import check_same
from domains.session import Session, seeded
from domains.task import Task

_OF_WINDOWS = ("positive", "min_overlap", "negatives", "stride", "context")  # settings that classify alone has


@dataclass(frozen=True)
class Assembled:
    """All that a session trains with: see domains.session.Session.train."""

    task: Task
    data: BatchesDataModule
    described: dict[str, Any]
    announce: tuple[str, ...] = ()


def check_annotation(config: TrainConfig) -> None:
    """Make sure that the settings make sense whatever the genome; a UserError names the first that does not."""
    data, trainer = config.data, config.trainer
    if not (data.annotation or _is_sample(data)):
        raise UserError("data.annotation is missing; give the GFF3, GTF, BED or GenBank file of the genome's features")
    if config.task.kind == "classify":
        check_windows(data)
    else:
        _refuse_what_windows_have(data)
    check_fraction(data.label_fraction)
    if trainer.context_parallel > 1:
        raise UserError(
            f"trainer.context_parallel={trainer.context_parallel}: task={config.task.kind} reads windows from both "
            "ends, whole; it splits batches by rows alone"
        )
    if data.window_warmup:
        raise UserError(f"data.window_warmup={data.window_warmup}: is for pre-training; leave it out")


def _refuse_what_windows_have(data: DataConfig) -> None:
    """A UserError when a setting of labelled windows is not at its default: a segmenter has none."""
    default = DataConfig()
    for name in _OF_WINDOWS:
        if (value := getattr(data, name)) != getattr(default, name):
            raise UserError(f"data.{name}={value}: is for task=classify; leave it out")


def open_annotation(data: DataConfig, progress: bool = True) -> FeatureTable:
    """The annotation that the settings name, prepared or found prepared; that of the bundled genome needs no name."""
    return prepare_annotation(data.annotation or sample_annotation(), data.stores, progress)


def _is_sample(data: DataConfig) -> bool:
    """Whether the settings name the bundled genome."""
    return not (data.fasta or data.store)


def annotation_splits(store: GenomeStore, config: TrainConfig) -> Splits:
    """The parts of the genome: as for pre-training, with gaps of what a model sees at once."""
    data = config.data
    return make_splits(store, replace(data, window=span(data)) if config.task.kind == "classify" else data)


def build_annotator(config: TrainConfig, classes: int, where: str = "config") -> Annotator:
    """A freshly initialised model; a UserError when the sizes of the backbone do not fit together."""
    try:
        if config.task.kind == "classify":
            return WindowClassifier(config.backbone, config.data.window, config.task.freeze)
        return Segmenter(config.backbone, classes, config.task.freeze)
    except ValueError as error:
        raise UserError(f"{where}: backbone: {error}") from None


def assemble(
    config: TrainConfig,
    store: GenomeStore,
    splits: Splits,
    session: Session,
    recorded: dict[str, Any] | None,
    progress: bool,
) -> Assembled:
    """Labels, batches and model of ``task=classify`` or ``task=segment``.

    Args:
        config: all settings, with the backbone that is trained.
        store: the genome. splits: its parts.
        session: that is going to train.
        recorded: what a resumed run wrote of its data when it began; None for a new one.
        progress: show bars.

    Raises:
        UserError: the annotation cannot be read, does not fit the genome, or is not the one that the run began with; a
            part has nothing to learn from; or the pre-trained model cannot be read.
    """
    table = open_annotation(config.data, progress)
    if recorded is not None:
        _check_same(table, recorded)
    make = _classification if config.task.kind == "classify" else _segmentation
    data, facts, announce, classes = make(config, store, table, splits, session.share)
    model = seeded(partial(build_annotator, config, classes), config.seed)
    described = {"annotation": {"source": table.source, "fingerprint": table.fingerprint, **facts}}
    announce = [f"{table.source}: {table.summary()}", *announce]
    if config.task.pretrained and not session.begun:
        described["pretrained"] = load_pretrained(model.encoder, config, store, splits)
        check_same(described["pretrained"], recorded)
        announce.append(note(described["pretrained"]))
    task = (ClassifyTask if isinstance(model, WindowClassifier) else SegmentTask)(model, config.trainer)  # type: ignore[arg-type]
    return Assembled(task, data, recorded or describe_data(store, splits) | described, tuple(announce))


def _check_same(table: FeatureTable, recorded: dict[str, Any]) -> None:
    began = recorded.get("annotation", {})
    if began.get("fingerprint") != table.fingerprint:
        raise UserError(
            f"{table.source}: is not the annotation that this run began with ({began.get('source')}); resume with that "
            "one, or start a new run"
        )


_Made = tuple[BatchesDataModule, dict[str, Any], list[str], int]  # batches, facts, lines for people, classes


def _classification(
    config: TrainConfig, store: GenomeStore, table: FeatureTable, splits: Splits, share: Share
) -> _Made:
    data = config.data
    windows = label_windows(store, table, splits, data, config.seed)
    length = span(data)
    share.check(rows_per_batch(data, length), length)
    words = TrainingWords(store, windows.train, (length - data.window) // 2, length)
    leakage = [words.compare(part, getattr(windows, part)) for part in ("validation", "test")]
    train = WindowBatches(store, windows.train, data, share, shuffled=_shuffled(config))
    validation = WindowBatches(store, _spread(windows.validation, data.validation_tokens // length), data, share)
    facts: dict[str, Any] = {"windows": windows.note(data), "leakage": [report.to_dict() for report in leakage]}
    announce = [windows.note(data), *map(str, leakage)]
    return _module(config, train, validation, share), facts, announce, 1


def _segmentation(config: TrainConfig, store: GenomeStore, table: FeatureTable, splits: Splits, share: Share) -> _Made:
    data = config.data
    labels = label_bases(store, table)
    starts = {part: base_windows(store, labels, getattr(splits, part), data.window) for part in ("train", "validation")}
    for part, found in starts.items():
        if not len(found):
            raise UserError(
                f"{store.source_name}: the {part} part holds no window of {data.window:,} bases with a label; give a "
                f"smaller data.window, or another data.{'test' if part == 'train' else part}"
            )
    share.check(rows_per_batch(data, data.window), data.window)
    held = starts["validation"]
    wanted = min(len(held), max(1, data.validation_tokens // data.window))
    chosen = share_of_windows(starts["train"], data.label_fraction, config.seed)
    train = BaseBatches(store, labels, chosen, data, share, shuffled=_shuffled(config))
    validation = BaseBatches(store, labels, held[np.arange(wanted) * len(held) // wanted], data, share)
    facts = {"classes": list(labels.classes), "note": labels.note()}
    announce = [labels.note(), f"training on {len(chosen):,} of {len(starts['train']):,} windows of {data.window:,}"]
    return _module(config, train, validation, share), facts, announce, len(labels.classes)


def _module(
    config: TrainConfig, train: WindowBatches | BaseBatches, validation: WindowBatches | BaseBatches, share: Share
) -> BatchesDataModule:
    return BatchesDataModule(train, validation, config.trainer.accumulate, config.data.workers, share)


def _shuffled(config: TrainConfig) -> tuple[int, int]:
    """Batches of the training, and the seed of their order."""
    return config.trainer.max_steps * config.trainer.accumulate, config.seed


def _spread(windows: LabelledWindows, count: int) -> LabelledWindows:
    """At most so many of the windows, evenly along the genome; at least one."""
    count = min(len(windows), max(1, count))
    return windows.take(np.arange(count) * len(windows) // count)
