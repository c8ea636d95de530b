"""The model folder: what every later stage needs, as safetensors, YAML and JSON.

::

    model.safetensors  weights
    config.yaml        every setting of the training run, but for its paths: a model travels, and folders have no
                       business where it goes
    tokenizer.json     the vocabulary
    data.json          fingerprint and source of the training data, and which part of it was for what
    metrics.json       what the model reached in training

Reading one runs no code from it.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from domains.errors import UserError
from domains.folder import atomic_folder, read_json, write_json
from domains.genomics.config import DataConfig, TrainConfig
from domains.genomics.splits import Splits
from domains.genomics.store import GenomeStore
from domains.genomics.tokens import VOCAB_SIZE, check_tokenizer, save_tokenizer
from domains.settings import from_dict, read_yaml, to_dict, write_yaml
from mamba_core import CausalLM

FILES = ("model.safetensors", "config.yaml", "tokenizer.json", "data.json", "metrics.json")


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

    model: CausalLM
    hash: str


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
    with atomic_folder(folder) as new:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, new / "model.safetensors")
        portable = replace(config, data=_without_paths(config.data, str(data["source"])))
        write_yaml(new / "config.yaml", to_dict(portable))
        shutil.copymode(new / "config.yaml", new / "model.safetensors")  # safetensors makes it the owner's alone
        save_tokenizer(new / "tokenizer.json")
        write_json(new / "data.json", data)
        write_json(new / "metrics.json", metrics)


def read_record(folder: Path | str) -> ModelRecord:
    """Read all of a model folder but the weights.

    Raises:
        UserError: a file is missing or damaged, or the vocabulary is another one.
    """
    folder = Path(folder)
    _check_complete(folder)
    check_tokenizer(folder / "tokenizer.json")
    config = from_dict(TrainConfig, read_yaml(folder / "config.yaml"), where=str(folder / "config.yaml"))
    data = read_json(folder / "data.json")
    try:
        source, fingerprint, splits = str(data["source"]), str(data["fingerprint"]), Splits.from_dict(data["splits"])
    except KeyError as error:
        raise UserError(f"{folder / 'data.json'}: lacks {error}; restore the file or train again") from None
    return ModelRecord(folder, config, splits, fingerprint, source, read_json(folder / "metrics.json"))


def load_model(folder: Path | str, device: str = "cpu") -> LoadedModel:
    """Read a model folder.

    Args:
        folder: as :func:`save_model` wrote it.
        device: where the weights go.

    Raises:
        UserError: a file is missing or damaged, the vocabulary is another one, or the weights do not fit the settings.
    """
    record = read_record(folder)
    weights_path = record.path / "model.safetensors"
    model = build_model(record.config, where=str(record.path / "config.yaml"))
    try:
        model.load_state_dict(load_file(weights_path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights_path}: cannot be read ({error}); copy the model folder again") from None
    except RuntimeError:
        raise UserError(f"{weights_path}: the weights do not fit config.yaml beside them; restore both files") from None
    sha256 = hashlib.sha256(weights_path.read_bytes()).hexdigest()
    return LoadedModel(**vars(record), model=model.to(device).eval(), hash=sha256)


def build_model(config: TrainConfig, where: str = "config") -> CausalLM:
    """A freshly initialised model; a UserError when the sizes of the backbone do not fit together."""
    try:
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


def _without_paths(data: DataConfig, source: str) -> DataConfig:
    """The settings with the genome by the name of its file alone; the bundled genome has none."""
    return replace(data, fasta=source if data.fasta or data.store else "", store="", stores=DataConfig.stores)


def _check_complete(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder; give the model/ folder of a finished run")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing and (folder / "model").is_dir():
        raise UserError(f"{folder}: is a run folder; give the model folder in it, {folder / 'model'}")
    if missing:
        raise UserError(f"{folder}: is no complete model folder ({', '.join(missing)} missing); copy it again")
