"""Records committed results in MLflow, so that they stand beside one's own runs.

    python benchmarks/track.py benchmarks/results/long_context_h100.json

One run a file, in the experiment ``benchmarks``: commit, hardware and settings as parameters, every number of every row
as a metric (``<impl>/<case>/tokens_per_second``; its step is the row's length, where it has one), the JSON and a
picture of the same name as artifacts. The address is that of all commands: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from domains.settings import flatten
from pipelines.config import TrackingConfig
from pipelines.tracking import set_environment, tracking_uri

EXPERIMENT = "benchmarks"
STEP = "length"  # the number of a row that it is drawn over


def metrics(rows: list[Mapping[str, Any]]) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every number: a row's words make the first part of the name."""
    for row in rows:
        words = [str(value) for value in row.values() if isinstance(value, str)]
        if "error" in row:
            continue
        for name, value in row.items():
            if isinstance(value, int | float) and name != STEP:
                yield allowed("/".join([*words, name])), float(value), int(row.get(STEP) or 0)


def allowed(name: str) -> str:
    """The name, without what MLflow does not take in one."""
    return re.sub(r"[^\w\-. /]", "", name)[:250]


def record(path: Path, uri: str) -> str:
    """Record one result; returns the id of the MLflow run."""
    set_environment()
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    result = json.loads(path.read_text())
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
    run = client.create_run(experiment, run_name=path.stem).info
    told = {key: value for key, value in result.items() if key != "rows" and not isinstance(value, list)}
    client.log_batch(run.run_id, params=[Param(allowed(key), str(value)[:500]) for key, value in flatten(told).items()])
    rows = result.get("rows", [])
    known = rows if isinstance(rows, list) else []  # of drift.py "rows" is a number
    values = [Metric(name, value, run.start_time, step) for name, value, step in metrics(known)]
    for first in range(0, len(values), 500):
        client.log_batch(run.run_id, metrics=values[first : first + 500])
    for file in (path, path.with_suffix(".png")):
        if file.exists():
            client.log_artifact(run.run_id, str(file))
    client.set_terminated(run.run_id)
    return run.run_id


def main(arguments: list[str] | None = None) -> None:
    """Record each file that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files of benchmarks/results")
    uri = tracking_uri(TrackingConfig())
    for path in parser.parse_args(arguments).results:
        print(f"{path}: MLflow run {record(path, uri)} in {uri}")


if __name__ == "__main__":
    main()
