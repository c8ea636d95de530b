"""What MLflow has, and what a run folder has, in the same form."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domains.runlog import read_metrics


def client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs(folder: Path) -> list[Any]:
    found = client(folder)
    return found.search_runs([experiment.experiment_id for experiment in found.search_experiments()])


def artifacts(folder: Path, run_id: str, within: str | None = None) -> Iterator[str]:
    for artifact in client(folder).list_artifacts(run_id, within):
        yield from artifacts(folder, run_id, artifact.path) if artifact.is_dir else [artifact.path]


def recorded(folder: Path, run_id: str) -> dict[tuple[str, int], list[float]]:
    """Every value that MLflow has, by metric and step."""
    found: dict[tuple[str, int], list[float]] = {}
    for key in client(folder).get_run(run_id).data.metrics:
        for metric in client(folder).get_metric_history(run_id, key):
            found.setdefault((key, metric.step), []).append(metric.value)
    return found


def measured(run_dir: Path) -> dict[tuple[str, int], list[float]]:
    """Every value that the run folder has."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    return {
        (k, row["step"]): [v] for row in rows for k, v in row.items() if k not in ("step", "time") and v is not None
    }
