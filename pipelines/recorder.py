"""Recording a run in MLflow. Whatever is recorded comes from the run folder, which stays complete without MLflow."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domains.errors import UserError
from domains.settings import flatten
from pipelines.config import TrackingConfig
from pipelines.tracking import (
    FOLDER_TAG,
    for_people,
    is_unmade,
    linked_run_id,
    reaching,
    set_environment,
    tracking_uri,
    write_link,
)

_BATCH = 500  # metrics a request; the servers' limit is 1,000


@dataclass(frozen=True)
class ModelCard:
    """How a domain's model folder becomes an MLflow pyfunc without a pickle.

    Attributes:
        code: the Python file that MLflow runs to load the model ("models from code").
        inputs: column name to MLflow type; empty where names are the user's: MLflow then takes any table.
        outputs: likewise.
        packages: packages of ours whose source travels with the model.
        requires: distributions that the code imports, recorded at the versions installed here.
    """

    code: Path
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    packages: tuple[str, ...]
    requires: tuple[str, ...]


class Recorder:
    """Where a job reports to. This one listens and keeps nothing: ``tracking.enabled=false``.

    Every method raises UserError when the record cannot be reached.
    """

    @property
    def where(self) -> tuple[str, ...]:
        """A line that tells people where the record is; none when there is none."""
        return ()

    @property
    def look(self) -> tuple[str, ...]:
        """A command line that shows the record."""
        return ()

    def check(self) -> None:
        """Raise UserError if the store is out of reach: before work starts, and leaving no trace."""

    def begin(self, settings: Mapping[str, Any], tags: Mapping[str, str], started: float | None = None) -> None:
        """Create the run, or continue the one that records this run folder; ``started`` is in seconds since 1970."""

    def attach(self, run_id: str) -> bool:
        """Add to a run without opening it: its status and times stay. False when the store does not have it."""
        return True

    def metrics(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        """Record values measured at ``step``, at a time in seconds since 1970; returns at once."""

    def catch_up(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record those rows of metrics.jsonl that are missing."""

    def results(self, values: Mapping[str, float]) -> None:
        """Record values that belong to the whole run, such as an evaluation's; the latest stands."""

    def files(self, paths: Sequence[Path], into: str = "") -> None:
        """Keep those of the files that exist as artifacts."""

    def model(self, folder: Path, card: ModelCard) -> None:
        """Keep the model folder as a model that MLflow can load and serve; nothing if it is kept already."""

    def end(self, status: str, seconds: float | None = None) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""


class MlflowRecorder(Recorder):
    """One MLflow run. Metrics are sent in the background; a value that stands there already is not sent twice."""

    def __init__(self, uri: str, experiment: str, name: str, run_dir: Path, system_metrics: bool = False) -> None:
        set_environment()
        self._uri = uri
        self._experiment = experiment
        self._name = name
        self._run_dir = run_dir
        self._system_metrics = system_metrics
        self._known: dict[str, set[int]] = {}  # metric to the steps at which MLflow has it already
        self.run_id = ""

    @property
    def where(self) -> tuple[str, ...]:
        return (f"MLflow run: {self.run_id} in {for_people(self._uri)}",) if self.run_id else ()

    @property
    def look(self) -> tuple[str, ...]:
        return (f"mlflow ui --backend-store-uri {for_people(self._uri)}",) if self._uri.startswith("sqlite:") else ()

    def check(self) -> None:
        if not is_unmade(self._uri):
            with reaching(self._uri):
                self._find_experiment()

    def begin(self, settings: Mapping[str, Any], tags: Mapping[str, str], started: float | None = None) -> None:
        import mlflow

        linked = linked_run_id(self._run_dir)
        mlflow.set_tracking_uri(self._uri)
        with reaching(self._uri):
            self.run_id = linked if linked and self._has(linked) else self._create(started)
            self._look_up_known()
            run = mlflow.start_run(run_id=self.run_id, log_system_metrics=self._system_metrics)
            self._client().log_batch(self.run_id, tags=_tags({FOLDER_TAG: str(self._run_dir.absolute()), **tags}))
            if not run.data.params:
                mlflow.log_params({key: _text(value) for key, value in flatten(settings).items()})
        write_link(self._run_dir, self.run_id, self._uri)

    def attach(self, run_id: str) -> bool:
        if not self._has(run_id):
            return False
        self.run_id = run_id
        return True

    def metrics(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        self._send([(key, value, step, seconds) for key, value in values.items()])

    def catch_up(self, rows: Sequence[Mapping[str, Any]]) -> None:
        import mlflow

        values = [
            (key, value, row["step"], row["time"])
            for row in rows
            for key, value in row.items()
            if key not in ("step", "time") and value is not None
        ]
        with reaching(self._uri):
            mlflow.flush_async_logging()
            self._look_up_known()  # so whatever was lost on the way is seen to be missing
            self._send(values)
            mlflow.flush_async_logging()

    def results(self, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with reaching(self._uri):
            self._client().log_batch(self.run_id, metrics=[Metric(key, value, now, 0) for key, value in values.items()])

    def files(self, paths: Sequence[Path], into: str = "") -> None:
        with reaching(self._uri):
            for path in filter(Path.exists, paths):
                self._client().log_artifact(self.run_id, str(path), into or None)

    def model(self, folder: Path, card: ModelCard) -> None:
        from pipelines.pyfunc import log_model

        with reaching(self._uri):
            log_model(self._client(), self.run_id, folder, card)

    def end(self, status: str, seconds: float | None = None) -> None:
        import mlflow

        if not self.run_id:
            return
        with reaching(self._uri):
            mlflow.flush_async_logging()
            mlflow.end_run(status)
            if seconds is not None:
                self._client().set_terminated(self.run_id, status, end_time=int(seconds * 1000))

    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self._uri)

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        client = self._client()
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return client.create_experiment(self._experiment, artifact_location=_artifacts_beside(self._uri))
            except MlflowException:  # another process was first
                found = client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise UserError(
                f"{for_people(self._uri)}: experiment {self._experiment!r} is deleted; give another tracking.experiment"
            )
        return found.experiment_id

    def _create(self, started: float | None) -> str:
        from mlflow.tracking.context.registry import resolve_tags  # user, source and commit, as MLflow's own runs have

        moment = int((time.time() if started is None else started) * 1000)
        run = self._client().create_run(self._find_experiment(), moment, resolve_tags(), self._name)
        return run.info.run_id

    def _has(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        with reaching(self._uri):
            try:
                return self._client().get_run(run_id).info.lifecycle_stage == "active"
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise

    def _send(self, values: Sequence[tuple[str, float, int, float]]) -> None:
        """Queue (metric, value, step, seconds), but for those that MLflow has."""
        from mlflow.entities import Metric

        fresh = [
            Metric(key, value, int(seconds * 1000), step)
            for key, value, step, seconds in values
            if step not in self._known.get(key, ())
        ]
        client = self._client()
        for start in range(0, len(fresh), _BATCH):
            client.log_batch(self.run_id, metrics=fresh[start : start + _BATCH], synchronous=False)

    def _look_up_known(self) -> None:
        client = self._client()
        for key in client.get_run(self.run_id).data.metrics:
            if not key.startswith("system/"):
                self._known[key] = {metric.step for metric in client.get_metric_history(self.run_id, key)}


def recorder(config: TrackingConfig, domain: str, run_dir: Path, *, continues: bool) -> Recorder:
    """The recorder that the configuration asks for.

    Args:
        config: where to record.
        domain: name of the MLflow experiment, unless the configuration names another.
        run_dir: the run folder that is recorded.
        continues: whether to go on with the MLflow run that the folder names, where it was.
    """
    if not config.enabled:
        return Recorder()
    name = config.name or run_dir.absolute().name
    uri = tracking_uri(config, run_dir if continues else None)
    return MlflowRecorder(uri, config.experiment or domain, name, run_dir, config.system_metrics)


def _artifacts_beside(uri: str) -> str | None:
    """Artifacts of a SQLite store stand beside its file, wherever the command was run; a server decides for itself."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()


def _tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(key, str(value)) for key, value in tags.items()]


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
