"""Starting from a model that has read genomes: its backbone, its weights, and what it may have seen of the test."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from domains.errors import UserError
from domains.genomics.annotation.models import BothStrands
from domains.genomics.config import TrainConfig
from domains.genomics.model import ModelRecord, read_record
from domains.genomics.splits import Region, Splits
from domains.genomics.store import GenomeStore
from domains.pretrained import describe

KINDS = ("classify", "segment")  # of task.kind that may start from another model


def adopt(config: TrainConfig, *, resume: bool = False) -> TrainConfig:
    """The settings with the backbone of ``task.pretrained`` in place of their own.

    A resumed run has its weights in its checkpoint: the folder may be gone by then.

    Raises:
        UserError: the folder is no model folder, or of a model of annotation; or there is nothing to freeze.
    """
    task = config.task
    if not task.pretrained:
        if task.freeze:
            raise UserError("task.freeze=true: a backbone that is not pre-trained knows nothing; give task.pretrained")
        return config
    if resume and not Path(task.pretrained).is_dir():
        return config
    return replace(config, backbone=_record(task.pretrained).config.backbone)


def load_pretrained(encoder: BothStrands, config: TrainConfig, store: GenomeStore, splits: Splits) -> dict[str, Any]:
    """Put the weights of ``task.pretrained`` into ``encoder``; what there is to say about them, as plain values.

    ``trained_on_test`` counts the bases of the test regions that the model was pre-trained on; where it was pre-trained
    on another file, it is a line that says so.
    """
    record = _record(config.task.pretrained)
    seen: int | str = f"cannot be told, because it was pre-trained on another file ({record.source})"
    if record.fingerprint == store.fingerprint:
        seen = sum(_common(test, train) for test in splits.test for train in record.splits.train)
    described = describe(record, record.config.task.kind, encoder.load_pretrained(record.path))
    return described | {"trained_on_test": seen, "frozen": config.task.freeze}


def note(pretrained: dict[str, Any]) -> str:
    """One line for people."""
    seen = pretrained["trained_on_test"]
    if isinstance(seen, str):
        warning = f"; whether it has read test regions {seen}"
    else:
        warning = f"; it has read {seen:,} bases of the test regions without labels" if seen else ""
    how = "frozen" if pretrained["frozen"] else "trained on"
    return f"backbone from {pretrained['folder']} ({pretrained['kind']}, {pretrained['source']}), {how}{warning}"


def _record(folder: str) -> ModelRecord:
    record = read_record(folder)
    if record.config.task.kind in KINDS:
        raise UserError(
            f"task.pretrained={folder}: is a model of {record.config.task.kind}; give one that was pre-trained "
            "(task=causal or task=mlm)"
        )
    return record


def _common(one: Region, other: Region) -> int:
    if one.contig != other.contig:
        return 0
    return max(0, min(one.stop, other.stop) - max(one.start, other.start))
