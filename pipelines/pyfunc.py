"""A model folder as an MLflow model that loads and scores without a pickle.

The MLflow model holds three things: the model folder as it is, the file that loads it ("models from code"), and the
source of the packages that this file imports, so that it works where Serpentine is not installed. Loading an MLflow
model runs the code in it: load those of people you trust. A model folder alone runs nothing.
"""

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domains.files import file_sha256

if TYPE_CHECKING:
    from pipelines.recorder import ModelCard

NAME = "model"
_HASH_TAG = "serpentine.model_sha256"


def log_model(client: Any, run_id: str, folder: Path, card: "ModelCard") -> None:
    """Log the model folder to the active MLflow run; nothing when the run holds these very weights already."""
    import mlflow
    from mlflow.models import ModelSignature

    sha256 = file_sha256(folder / "model.safetensors")
    if client.get_run(run_id).data.tags.get(_HASH_TAG) == sha256:
        return
    with tempfile.TemporaryDirectory() as staging, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow would rather infer the signature that is given here
        mlflow.pyfunc.log_model(
            name=NAME,
            python_model=str(card.code),
            artifacts={NAME: str(folder.absolute())},
            code_paths=[str(_copy_sources(package, Path(staging))) for package in card.packages],
            signature=ModelSignature(_schema(card.inputs), _schema(card.outputs)),
            pip_requirements=[f"{name}=={version(name)}" for name in card.requires],
        )
    client.set_tag(run_id, _HASH_TAG, sha256)


def download_model(run_id: str, uri: str, destination: Path) -> Path:
    """Fetch the model folder of an MLflow run into ``destination`` and return it. Only files are read; no code runs.

    Raises:
        mlflow.exceptions.MlflowException: the run holds no model.
    """
    import mlflow

    with tempfile.TemporaryDirectory() as temporary:
        found = mlflow.artifacts.download_artifacts(
            f"runs:/{run_id}/{NAME}/artifacts/{NAME}", dst_path=temporary, tracking_uri=uri
        )
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(destination, ignore_errors=True)
        shutil.move(found, destination)
    return destination


def _copy_sources(package: str, staging: Path) -> Path:
    """The Python files of an installed package, without the data that it ships."""
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.submodule_search_locations, package
    source, target = Path(spec.submodule_search_locations[0]), staging / package
    for path in source.rglob("*.py"):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return target


def _schema(columns: Mapping[str, str]) -> Any:
    from mlflow.types import ColSpec, Schema

    if not columns:
        return None
    return Schema([ColSpec(kind, name) for name, kind in columns.items()])
