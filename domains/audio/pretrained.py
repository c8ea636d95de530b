"""Going on from a generator that was trained before: its sizes, its weights, and which held-out clips it has heard."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from domains.audio.config import TrainConfig
from domains.audio.models.costs import Model
from domains.audio.splits import Splits
from domains.audio.store import AudioStore
from domains.audio.trained import GENERATE, ModelRecord, read_record
from domains.errors import UserError
from domains.model_folder import load_weights
from domains.pretrained import describe
from domains.session import run_config
from domains.settings import flatten, to_dict


def adopt(config: TrainConfig, resumed: Path | str | None = None) -> TrainConfig:
    """The settings with the sizes of ``task.pretrained``: those of its generator and of its backbone.

    Args:
        config: all settings. Sizes that are left at their defaults ask for nothing.
        resumed: the folder of a run that is gone on with, which knows its sizes; None for a new run.

    Raises:
        UserError: the folder is no model folder, or not one of a generator, or of another rate; or the settings ask
            for other sizes.
    """
    task = config.task
    if not task.pretrained:
        return config
    if task.kind != GENERATE:
        raise UserError(f"task.pretrained={task.pretrained}: is for task=generate; leave it out for task={task.kind}")
    if resumed is not None:
        own, whose = run_config(resumed, TrainConfig), str(resumed)
    else:
        record = _record(task.pretrained)
        if not config.data.store:  # a store's rate is known once it is open
            _check_rate(record, config.data.rate)
        own, whose = record.config, f"task.pretrained={task.pretrained}"
    _check_sizes(config, own, whose)
    return replace(config, backbone=own.backbone, task=replace(task, generator=own.task.generator))


def load_pretrained(model: Model, config: TrainConfig, store: AudioStore, splits: Splits) -> dict[str, Any]:
    """Put the weights of ``task.pretrained`` into ``model``; what there is to say about them, as plain values.

    ``trained_on_test`` and ``trained_on_validation`` count the clips of those parts that the weights were trained on.
    They are None where it was trained on another set of clips: which of them are the same is not known then. Nor is
    looked up what that model had started from in turn.
    """
    record = _record(config.task.pretrained)
    _check_rate(record, store.rate)
    same, heard = record.fingerprint == store.fingerprint, set(record.splits.train)
    return describe(record, GENERATE, load_weights(record.path, model)) | {
        f"trained_on_{part}": len(heard.intersection(getattr(splits, part))) if same else None
        for part in ("test", "validation")
    }


def notes(pretrained: dict[str, Any]) -> list[str]:
    """Lines for people: where weights and sizes come from, and a warning where held-out clips are known to them."""
    lines = [f"weights and sizes from {pretrained['folder']} (trained on {pretrained['source']})"]
    test, validation = pretrained["trained_on_test"], pretrained["trained_on_validation"]
    if test or validation:
        lines.append(
            f"warning: {pretrained['folder']} was trained on {test:,} of the test clips and {validation:,} of the "
            "validation clips, so their bits will be too low; give data.test and data.validation as it had them"
        )
    return lines


def _record(folder: str) -> ModelRecord:
    record = read_record(folder)
    if record.sound.kind != GENERATE:
        raise UserError(f"task.pretrained={folder}: is a model of task={record.sound.kind}; give a generator")
    return record


def _check_rate(record: ModelRecord, rate: int) -> None:
    if record.sound.rate != rate:
        raise UserError(
            f"task.pretrained={record.path}: hears {record.sound.rate:,} samples a second and the clips have {rate:,}; "
            f"prepare them with data.rate={record.sound.rate}"
        )


def _check_sizes(config: TrainConfig, own: TrainConfig, whose: str) -> None:
    defaults, given, known = map(_sizes, (TrainConfig(), config, own))
    for key, value in given.items():
        if value not in (defaults[key], known[key]):
            raise UserError(f"{key}={value}: {whose} has {known[key]}; leave it out, for sizes are taken from there")


def _sizes(config: TrainConfig) -> dict[str, Any]:
    return flatten({"backbone": to_dict(config.backbone), "task": {"generator": to_dict(config.task.generator)}})
