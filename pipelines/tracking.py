"""Where MLflow is and what it has: addresses, the link from a run folder to its MLflow run, errors in one line."""

import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from domains.errors import UserError
from domains.folder import read_json, write_json
from pipelines.config import TrackingConfig

DEFAULT_URI = "sqlite:///mlflow.db"
LINK = "mlflow.json"  # in a run folder: which MLflow run records it
FOLDER_TAG = "serpentine.run_dir"
DOMAIN_TAG = "serpentine.domain"

# Set before mlflow is imported, unless the user did. One writer keeps SQLite free of lock waits and metrics in order.
_ENVIRONMENT = {
    "MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS": "1",
    "MLFLOW_ASYNC_LOGGING_THREADPOOL_SIZE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def tracking_uri(config: TrackingConfig, run_dir: Path | None = None) -> str:
    """Where runs are recorded: tracking.uri, else MLFLOW_TRACKING_URI, else where ``run_dir`` was, else SQLite here.

    Raises:
        UserError: a folder (MLflow 3 dropped its file store), or SQLite in a folder that does not exist.
    """
    linked = link(run_dir).get("tracking_uri") if run_dir else None
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or linked or DEFAULT_URI
    if not re.match(r"[a-z][a-z0-9+]*:", uri) or uri.startswith("file:"):
        raise UserError(f"{uri}: MLflow no longer records into a folder; give tracking.uri={DEFAULT_URI}, or a server")
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///")).absolute()
        if not database.parent.is_dir():
            raise UserError(f"{database.parent}: no such folder; make it, or give another tracking.uri")
        uri = f"sqlite:///{database}"
    return uri


def linked_run_id(run_dir: Path) -> str | None:
    """The MLflow run that records a run folder, as far as the folder knows."""
    return link(run_dir).get("run_id")


def write_link(run_dir: Path, run_id: str, uri: str) -> None:
    """Note in a run folder which MLflow run records it, so that a resumed run goes on there."""
    write_json(run_dir / LINK, {"run_id": run_id, "tracking_uri": without_password(uri)})


def set_environment() -> None:
    """MLflow's settings; to be called before it is imported."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)


def find_recorded(config: TrackingConfig, run_id: str) -> tuple[Any, str]:
    """An MLflow run by its id, and the store's address; a UserError when there is none."""
    set_environment()
    uri = tracking_uri(config)
    missing = UserError(f"{for_people(uri)}: has no run {run_id}; give tracking.uri=<where it is recorded>")
    if is_unmade(uri):
        raise missing
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with reaching(uri):
        try:
            return MlflowClient(uri).get_run(run_id), uri
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise missing from None
            raise


def is_unmade(uri: str) -> bool:
    """Whether the address is that of a SQLite database that MLflow would make on first use."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn what goes wrong between here and the store into one line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError) as error:  # ImportError: the driver of a database
        reason = without_password(textwrap.shorten(str(error).strip().splitlines()[0], 160, placeholder=" ..."))
        raise UserError(
            f"{for_people(uri)}: MLflow cannot record there ({reason}); give another tracking.uri, or "
            "tracking.enabled=false"
        ) from error


def link(run_dir: Path) -> dict[str, Any]:
    """What a run folder says about its MLflow run: ``run_id`` and ``tracking_uri``; nothing when it has none."""
    path = run_dir / LINK
    return read_json(path) if path.exists() else {}


def for_people(uri: str) -> str:
    """Without passwords, and a database of this folder by its name alone."""
    here = f"sqlite:///{Path.cwd()}/"
    return f"sqlite:///{uri.removeprefix(here)}" if uri.startswith(here) else without_password(uri)


def without_password(uri: str) -> str:
    """A text with addresses, as it may be shown and written down."""
    return re.sub(r"//[^/@]*@", "//", uri)
