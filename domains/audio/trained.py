"""The model folder of a model of sound: what domains.model_folder says, and ``sound.json``: what it hears.

``sound.json`` holds the rate, the labels, the loudness that clips are brought to, and of a generator its levels: all
that is needed to bring a stranger's recording before the model. Reading a folder runs no code from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from domains.audio.config import DataConfig, SourceConfig, TrainConfig
from domains.audio.models.costs import Model
from domains.audio.splits import Splits
from domains.audio.store import AudioStore
from domains.audio.tokens import LEVELS
from domains.config import check_range
from domains.errors import UserError
from domains.folder import read_json, write_json
from domains.model_folder import (
    CONFIG,
    check_complete,
    load_weights,
    model_files,
    read_config,
    read_data,
    read_metrics,
    write_model_folder,
)
from domains.pretrained import folder_name

SOUND = "sound.json"
FILES = model_files(SOUND)
GENERATE, CLASSIFY, SPECTROGRAM = KINDS = ("generate", "classify", "spectrogram")


@dataclass(frozen=True)
class Sound:
    """What a model hears, and what it says.

    Attributes:
        kind: what it was trained for: one of KINDS.
        rate: samples per second.
        labels: classes, in the order of its logits; of a generator none.
        level_db: RMS in dBFS that each clip is brought to; None: as recorded.
        levels: mu-law levels of a generator's samples.
    """

    kind: str
    rate: int
    labels: tuple[str, ...]
    level_db: float | None
    levels: int = LEVELS

    @classmethod
    def of(cls, store: AudioStore, config: TrainConfig) -> "Sound":
        """That of a training run."""
        labels = () if config.task.kind == GENERATE else tuple(store.labels)
        return cls(config.task.kind, store.rate, labels, config.data.level_db)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "Sound":
        """What ``dataclasses.asdict`` gave; a UserError when it is something else."""
        try:
            level = values["level_db"]
            found = cls(
                str(values["kind"]),
                int(values["rate"]),
                tuple(map(str, values["labels"])),
                None if level is None else float(level),
                int(values["levels"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: is damaged ({error!r}); restore the file or train again") from None
        if found.kind not in KINDS or found.levels != LEVELS or found.rate < 1:
            raise UserError(f"{where}: describes a model that this version does not have; use the one it is from")
        return found


@dataclass(frozen=True)
class ModelRecord:
    """What is known about a trained model.

    Attributes:
        path: the model folder.
        config: of the training run, without its paths.
        sound: what it hears.
        splits: which clips it was trained, validated and is to be tested on.
        fingerprint: of the clips that it was trained on.
        source: name of their folder or table.
        metrics: what it reached in training.
        pretrained: what is known about the model that it started from (domains.audio.pretrained); empty for none.
    """

    path: Path
    config: TrainConfig
    sound: Sound
    splits: Splits
    fingerprint: str
    source: str
    metrics: dict[str, Any]
    pretrained: dict[str, Any]


@dataclass(frozen=True)
class LoadedModel(ModelRecord):
    """A trained model and what is known about it.

    Attributes:
        model: in evaluation mode.
        hash: sha256 of model.safetensors, hexadecimal.
    """

    model: Model
    hash: str


def check_task(config: TrainConfig) -> None:
    """Make sure that the task makes sense whatever the clips; a UserError names what does not."""
    if config.task.kind not in KINDS:
        raise UserError(f"task.kind={config.task.kind}: must be one of {', '.join(KINDS)}")
    check_range("task.label_smoothing", config.task.label_smoothing, 0, 1)


def build_model(config: TrainConfig, sound: Sound, where: str = "config") -> Model:
    """A freshly initialised model; a UserError when its sizes do not fit together."""
    task, backbone = config.task, config.backbone
    try:
        if sound.kind == GENERATE:
            return task.generator.build(backbone)
        if sound.kind == CLASSIFY:
            return task.classifier.build(backbone, len(sound.labels))
        return task.spectrogram.build(backbone, len(sound.labels), sound.rate)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def describe_data(store: AudioStore, splits: Splits) -> dict[str, Any]:
    """What data.json and splits.json hold: the clips and their parts."""
    return {"source": store.source_name, "fingerprint": store.fingerprint, "splits": splits.to_dict()}


def save_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: TrainConfig,
    data: Mapping[str, Any],
    metrics: Mapping[str, float],
    *,
    sound: Sound,
) -> None:
    """Write a model folder; it appears whole, in place of an earlier one of that name."""
    portable = replace(
        config,
        data=_without_paths(config.data, str(data["source"])),
        task=replace(config.task, pretrained=folder_name(data)),
    )
    own = {SOUND: partial(write_json, table=asdict(sound))}
    write_model_folder(folder, weights, portable, data, metrics, own)


def read_record(folder: Path | str) -> ModelRecord:
    """Read all of a model folder but the weights; a UserError when a file is missing or damaged."""
    folder = Path(folder)
    check_complete(folder, FILES)
    config = read_config(folder, TrainConfig)
    sound = Sound.from_dict(read_json(folder / SOUND), str(folder / SOUND))
    source, fingerprint, splits, pretrained = read_data(
        folder,
        lambda data: (
            str(data["source"]),
            str(data["fingerprint"]),
            Splits.from_dict(data["splits"]),
            dict(data.get("pretrained", {})),
        ),
    )
    return ModelRecord(folder, config, sound, splits, fingerprint, source, read_metrics(folder), pretrained)


def load_model(folder: Path | str, device: str = "cpu", kinds: Sequence[str] = KINDS) -> LoadedModel:
    """Read a model folder.

    Args:
        folder: as :func:`save_model` wrote it.
        device: where the weights go.
        kinds: those that will do.

    Raises:
        UserError: a file is missing or damaged, the weights do not fit the settings, or the model is of another kind.
    """
    record = read_record(folder)
    if record.sound.kind not in kinds:
        raise UserError(f"{folder}: was trained with task={record.sound.kind}; give a model of {' or '.join(kinds)}")
    model = build_model(record.config, record.sound, where=str(record.path / CONFIG))
    sha256 = load_weights(record.path, model)
    return LoadedModel(**vars(record), model=model.to(device).eval(), hash=sha256)


def check_clips(record: ModelRecord, store: AudioStore) -> None:
    """Make sure that ``store`` holds the clips that the model was trained on, or scores would not be of strangers."""
    if store.fingerprint != record.fingerprint:
        raise UserError(
            f"{store.source_name}: are not the clips that {record.path} was trained on ({record.source}); "
            "evaluate on those, or use predict for others"
        )


def _without_paths(data: DataConfig, source: str) -> DataConfig:
    """The settings with the clips by the name of their folder or table alone; bundled clips have none."""
    own = bool(data.root or data.manifest or data.store)
    return replace(data, root=source if own else "", manifest="", store="", stores=SourceConfig.stores)
