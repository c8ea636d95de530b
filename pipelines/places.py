"""What a user points to, on disk or in MLflow: a run to go on with, a model to use and the data it was trained on."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from domains.errors import UserError
from pipelines.config import TrackingConfig
from pipelines.tracking import FOLDER_TAG, find_recorded, linked_run_id

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_FOLDERS = Path("runs")  # where models fetched from MLflow are kept

Store = TypeVar("Store")


@dataclass(frozen=True)
class ModelPlace:
    """A model folder and where what is found out about it belongs.

    Attributes:
        folder: the model folder.
        evaluation: folder for its evaluation, unless the user names another.
        run_id: the MLflow run that it comes from, where known.
        run_dir: the run folder around it, where there is one.
    """

    folder: Path
    evaluation: Path
    run_id: str | None
    run_dir: Path | None = None


class Trained(Protocol):
    """What a domain's record of a model folder says about the data that the model was trained on."""

    @property
    def config(self) -> Any:
        """Settings of the training, without paths; ``config.data`` is a dataclass with the key ``stores``."""

    @property
    def fingerprint(self) -> str:
        """Of the data."""

    @property
    def source(self) -> str:
        """Name of the data."""


def find_run(text: str, tracking: TrackingConfig) -> Path:
    """The run folder that ``text`` names: a path, or the id of the MLflow run that records it.

    Raises:
        UserError: there is none, or it is on another machine.
    """
    path = Path(text)
    if path.is_dir() or not _RUN_ID.fullmatch(text):
        if not path.is_dir():
            raise UserError(f"{text}: is neither a run folder nor an MLflow run id; look into {_FOLDERS}/")
        return path
    recorded, _ = find_recorded(tracking, text)
    folder = recorded.data.tags.get(FOLDER_TAG)
    if not folder or linked_run_id(Path(folder)) != text:
        raise UserError(
            f"{text}: its run folder {folder or ''} is not here; go on where it was trained, or copy it here"
        )
    return Path(folder)


def find_model(text: str, tracking: TrackingConfig) -> ModelPlace:
    """The model that ``text`` names: a model folder, the run folder around one, or an MLflow run id.

    The model of an MLflow run is taken from its run folder, and fetched when that is not here.

    Raises:
        UserError: there is no such folder or run, or the run holds no model.
    """
    path = Path(text)
    if path.is_dir():
        return _on_disk(path)
    if not _RUN_ID.fullmatch(text):
        raise UserError(f"{text}: no such model folder; give the model/ folder of a finished run, or an MLflow run id")
    recorded, uri = find_recorded(tracking, text)
    folder = Path(recorded.data.tags.get(FOLDER_TAG, "")) / "model"
    if (folder / "model.safetensors").exists() and linked_run_id(folder.parent) == text:
        return _on_disk(folder)
    return ModelPlace(_fetch(text, uri), _FOLDERS / text / "evaluation", text)


def find_training_data(
    place: ModelPlace,
    trained: Trained,
    stores: str,
    open_source: Callable[[Any], Store],
    open_store: Callable[[Path], Store],
    *,
    key: str,
) -> Store:
    """The data that a model was trained on: where it was then, or among what is prepared here.

    Args:
        place: the model.
        trained: its record.
        stores: folder of prepared data.
        open_source: opens what a domain's data settings name.
        open_store: opens a prepared store by its folder.
        key: how the user says where the data is: ``data.fasta``.

    Raises:
        UserError: it is nowhere.
    """
    from domains.session import run_config
    from domains.store_folder import find_store

    try:
        if place.run_dir is not None:  # its settings have paths, those of the model folder have none
            return open_source(run_config(place.run_dir, type(trained.config)).data)
        return open_source(replace(trained.config.data, stores=stores))
    except UserError as error:
        if (found := find_store(stores, trained.fingerprint, open_store)) is not None:
            return found
        raise UserError(
            f"{error}; the model was trained on it ({trained.source}): say where it is now with {key}=<file>"
        ) from error


def output_folder(text: str | Path) -> Path:
    """A folder to write into, made when missing but not yet.

    Raises:
        UserError: a file has that name, or nothing can be written there.
    """
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; choose a folder to write into")
    _check_writable(path, next(place for place in (path, *path.absolute().parents) if place.exists()))
    return path


def output_file(text: str | Path) -> Path:
    """A file to write.

    Raises:
        UserError: a folder has that name, the folder for it is missing, or nothing can be written there.
    """
    path = Path(text)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of the file to write in it")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it, or choose another")
    _check_writable(path, path.parent)
    return path


def _check_writable(path: Path, folder: Path) -> None:
    """Make and remove a folder in ``folder``: permissions alone do not tell, of root and of special file systems."""
    try:
        tempfile.TemporaryDirectory(prefix=".", dir=folder).cleanup()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place for the results") from None


def _on_disk(path: Path) -> ModelPlace:
    if not (path / "model.safetensors").exists() and (path / "model").is_dir():
        path = path / "model"
    run_dir = path.parent
    if path.name == "model" and (run_dir / "run.json").exists():
        return ModelPlace(path, run_dir / "evaluation", linked_run_id(run_dir), run_dir)
    return ModelPlace(path, path.with_name(f"{path.absolute().name}-evaluation"), None)


def _fetch(run_id: str, uri: str) -> Path:
    from mlflow.exceptions import MlflowException

    from pipelines.pyfunc import download_model

    try:
        return download_model(run_id, uri, _FOLDERS / run_id / "model")
    except MlflowException as error:
        raise UserError(
            f"{run_id}: this MLflow run holds no model yet; finish it with train resume={run_id}"
        ) from error
