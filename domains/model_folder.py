"""The model folder: what every later stage needs, as safetensors, YAML and JSON.

::

    model.safetensors  weights
    config.yaml        every setting of the training run, but for its paths: a model travels, and folders have no
                       business where it goes
    data.json          fingerprint and source of the training data, and which part of it was for what
    metrics.json       what the model reached in training

and what a domain adds, such as a tokenizer or a scaler. Reading one runs no code from it.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from domains.errors import UserError
from domains.files import file_sha256
from domains.folder import atomic_folder, read_json, write_json
from domains.settings import from_dict, read_yaml, to_dict, write_yaml

WEIGHTS, CONFIG, DATA, METRICS = "model.safetensors", "config.yaml", "data.json", "metrics.json"

# A file that models of one field have and others do not: so a folder of another field is told from a damaged one.
FIELDS = {"tokenizer.json": "genomics", "sound.json": "sound", "scaler.json": "time series"}

Config = TypeVar("Config")
Parsed = TypeVar("Parsed")


def model_files(*own: str) -> tuple[str, ...]:
    """Names of all files of a model folder, ``own`` being those that a domain adds."""
    return (WEIGHTS, CONFIG, *own, DATA, METRICS)


def write_model_folder(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Any,
    data: Mapping[str, Any],
    metrics: Mapping[str, float],
    own: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Write a model folder; it appears whole, in place of an earlier one of that name.

    Args:
        folder: the folder.
        weights: name to tensor, on any device.
        config: dataclass of the settings, without paths.
        data: what the model was trained on; plain values.
        metrics: what it reached.
        own: files that the domain adds: the name of each, and what writes it to the path that it is given.
    """
    with atomic_folder(folder) as new:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, new / WEIGHTS)
        write_yaml(new / CONFIG, to_dict(config))
        shutil.copymode(new / CONFIG, new / WEIGHTS)  # safetensors makes it the owner's alone
        for name, write in (own or {}).items():
            write(new / name)
        write_json(new / DATA, data)
        write_json(new / METRICS, metrics)


def check_complete(folder: Path, files: Sequence[str]) -> None:
    """Make sure that a folder holds ``files``, those of :func:`model_files`.

    Raises:
        UserError: there is no such folder, it is a run folder or a model of another field, or files are missing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder; give the model/ folder of a finished run")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing and (folder / "model").is_dir():
        raise UserError(f"{folder}: is a run folder; give the model folder in it, {folder / 'model'}")
    fields = [field for name, field in FIELDS.items() if name in files]
    others = [field for name, field in FIELDS.items() if (folder / name).is_file()]
    if fields and others and not set(fields) & set(others):
        raise UserError(f"{folder}: is a model of {others[0]}, not of {fields[0]}; give another model folder")
    if missing:
        raise UserError(f"{folder}: is no complete model folder ({', '.join(missing)} missing); copy it again")


def read_config(folder: Path, config_class: type[Config]) -> Config:
    """The settings of the training run; a UserError when they are damaged or hold what ``config_class`` does not."""
    return from_dict(config_class, read_yaml(folder / CONFIG), where=str(folder / CONFIG))


def read_data(folder: Path, parse: Callable[[dict[str, Any]], Parsed]) -> Parsed:
    """What ``parse`` makes of data.json; a UserError when the file is damaged, or lacks a key that ``parse`` takes."""
    data = read_json(folder / DATA)
    try:
        return parse(data)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / DATA}: is damaged ({error}); restore the file or train again") from None
    except KeyError as error:
        raise UserError(f"{folder / DATA}: lacks {error}; restore the file or train again") from None


def read_metrics(folder: Path) -> dict[str, Any]:
    """What the model reached in training."""
    return read_json(folder / METRICS)


def load_weights(folder: Path, model: nn.Module) -> str:
    """Put the weights of a model folder into ``model``, which was built as its config.yaml says.

    Returns:
        sha256 of model.safetensors, hexadecimal.

    Raises:
        UserError: the file cannot be read, or the weights do not fit the model.
    """
    path = folder / WEIGHTS
    try:
        model.load_state_dict(load_file(path))
        return file_sha256(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy the model folder again") from None
    except RuntimeError:
        raise UserError(f"{path}: the weights do not fit config.yaml beside them; restore both files") from None
