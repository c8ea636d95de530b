"""The model folder of a DNA language model: what domains.model_folder says, and ``tokenizer.json``, the vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from domains.errors import UserError
from domains.genomics.config import DataConfig, TrainConfig
from domains.genomics.splits import Splits
from domains.genomics.store import GenomeStore
from domains.genomics.tokens import COMPLEMENT, VOCAB_SIZE, check_tokenizer, save_tokenizer
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
from mamba_core import CausalLM, MaskedLM

KINDS = ("causal", "mlm")  # of task.kind: the models of bases
_TOKENIZER = "tokenizer.json"
FILES = model_files(_TOKENIZER)


@dataclass(frozen=True)
class ModelRecord:
    """What is known about a trained model.

    Attributes:
        path: the model folder.
        config: of the training run, without its paths.
        splits: which regions of the genome it was trained, validated and is to be tested on.
        fingerprint: of the genome that it was trained on.
        source: name of that genome's file.
        metrics: what it reached in training.
    """

    path: Path
    config: TrainConfig
    splits: Splits
    fingerprint: str
    source: str
    metrics: dict[str, Any]


@dataclass(frozen=True)
class LoadedModel(ModelRecord):
    """A trained model and what is known about it.

    Attributes:
        model: in evaluation mode.
        hash: sha256 of model.safetensors, hexadecimal.
    """

    model: CausalLM | MaskedLM
    hash: str

    @property
    def causal(self) -> CausalLM:
        """The model of one that predicts the next base; a UserError when it is a masked one."""
        if isinstance(self.model, CausalLM):
            return self.model
        raise UserError(f"{self.path}: is a masked model; this wants one that predicts the next base (task=causal)")

    @property
    def masked(self) -> MaskedLM:
        """The model of one that predicts hidden bases; a UserError when it is a causal one."""
        if isinstance(self.model, MaskedLM):
            return self.model
        raise UserError(f"{self.path}: is a causal model; this wants one that predicts hidden bases (task=mlm)")


def describe_data(store: GenomeStore, splits: Splits) -> dict[str, Any]:
    """What data.json and splits.json hold: the genome and its parts."""
    return {"source": store.source_name, "fingerprint": store.fingerprint, "splits": splits.to_dict()}


def save_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: TrainConfig,
    data: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> None:
    """Write a model folder; it appears whole, in place of an earlier one of that name."""
    portable = replace(
        config,
        data=_without_paths(config.data, str(data["source"]), data.get("annotation", {}).get("source", "")),
        task=replace(config.task, pretrained=folder_name(data)),
    )
    write_model_folder(folder, weights, portable, data, metrics, {_TOKENIZER: save_tokenizer})


def read_record(folder: Path | str) -> ModelRecord:
    """Read all of a model folder but the weights.

    Raises:
        UserError: a file is missing or damaged, or the vocabulary is another one.
    """
    folder = Path(folder)
    check_complete(folder, FILES)
    check_tokenizer(folder / _TOKENIZER)
    config = read_config(folder, TrainConfig)
    source, fingerprint, splits = read_data(
        folder, lambda data: (str(data["source"]), str(data["fingerprint"]), Splits.from_dict(data["splits"]))
    )
    return ModelRecord(folder, config, splits, fingerprint, source, read_metrics(folder))


def load_model(folder: Path | str, device: str = "cpu") -> LoadedModel:
    """Read a model folder.

    Args:
        folder: as :func:`save_model` wrote it.
        device: where the weights go.

    Raises:
        UserError: a file is missing or damaged, the vocabulary is another one, or the weights do not fit the settings.
    """
    record = read_record(folder)
    if record.config.task.kind not in KINDS:
        raise UserError(
            f"{folder}: is a model of task={record.config.task.kind}; this wants one of bases (task=causal or task=mlm)"
        )
    model = build_model(record.config, where=str(record.path / CONFIG))
    sha256 = load_weights(record.path, model)
    return LoadedModel(**vars(record), model=model.to(device).eval(), hash=sha256)


def build_model(config: TrainConfig, where: str = "config") -> CausalLM | MaskedLM:
    """A freshly initialised model of pre-training; a UserError when the sizes of the backbone do not fit together, or
    it does not suit the task."""
    try:
        if config.task.kind == "mlm":
            return MaskedLM(VOCAB_SIZE, config.backbone, COMPLEMENT)
        return CausalLM(VOCAB_SIZE, config.backbone)
    except ValueError as error:
        raise UserError(f"{where}: backbone: {error}") from None


def check_genome(loaded: ModelRecord, store: GenomeStore) -> None:
    """Make sure that ``store`` holds the genome that the model was trained on: its test regions are positions there."""
    if store.fingerprint != loaded.fingerprint:
        raise UserError(
            f"{store.source_name}: is not the genome that {loaded.path} was trained on ({loaded.source}); "
            "evaluate on that genome, or use predict for another one"
        )


def _without_paths(data: DataConfig, source: str, annotation: str) -> DataConfig:
    """The settings with genome and annotation by the names of their files alone; the bundled genome has none."""
    fasta = source if data.fasta or data.store else ""
    annotation = annotation if data.annotation else ""
    return replace(data, fasta=fasta, store="", stores=DataConfig.stores, annotation=annotation)
