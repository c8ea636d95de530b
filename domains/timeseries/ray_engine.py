"""The batch job on Ray Data: the same function for each shard, in actors that load the model once.

Files are written by the actors, so all machines of the cluster must see the model, the prepared table, the state and
the output folder under the same paths.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from domains.errors import UserError
from domains.timeseries.config import ForecastConfig
from domains.timeseries.forecast_shard import ShardDone, ShardJob, forecast_shard, load_for_job
from domains.timeseries.output import Reject, Written
from domains.timeseries.states import Stored
from domains.timeseries.store import SeriesStore


class ShardForecaster:
    """An actor: holds the model and the table, does one shard a call."""

    def __init__(self, model: str, store: str, device: str) -> None:
        torch.set_num_threads(1)  # as run_local: so the bytes are the same
        self._loaded = load_for_job(model, device)
        self._store = SeriesStore.open(store)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """A job of :func:`run_ray` to what became of it, or to the line for the user when it failed."""
        try:
            done = forecast_shard(_job(json.loads(row["job"])), self._loaded, self._store)
            return {"done": json.dumps(asdict(done)), "error": ""}
        except UserError as error:  # Ray would wrap it in pages
            return {"done": "", "error": str(error)}


def run_ray(jobs: Sequence[ShardJob], workers: int) -> list[ShardDone]:
    """All shards, in their order; ``workers`` actors of one CPU each, on the cluster that Ray finds or starts.

    Raises:
        UserError: Ray is not installed, or a shard's state is damaged.
    """
    try:
        import ray.data
    except ImportError:
        raise UserError("engine=ray needs Ray, which is not installed; pip install '.[ray]'") from None
    if not jobs:
        return []
    rows = ray.data.from_items([{"job": json.dumps(asdict(job))} for job in jobs], override_num_blocks=len(jobs))
    done = rows.map(
        ShardForecaster,
        fn_constructor_args=(jobs[0].model, jobs[0].store, jobs[0].device),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(jobs))),
        num_cpus=1,
        num_gpus=0 if jobs[0].device == "cpu" else 1,
    )
    found = done.take_all()
    for row in found:
        if row["error"]:
            raise UserError(row["error"])
    return sorted((_done(json.loads(row["done"])) for row in found), key=lambda one: one.shard)


def _job(values: dict[str, Any]) -> ShardJob:
    """What JSON made of a job, back."""
    before = values["before"]
    return ShardJob(
        **{
            **values,
            "series": tuple(values["series"]),
            "config": ForecastConfig(**values["config"]),
            "before": None if before is None else Stored(*before),
        }
    )


def _done(values: dict[str, Any]) -> ShardDone:
    """Likewise of what became of it."""
    state = values["state"]
    return ShardDone(
        **{
            **values,
            "state": None if state is None else Stored(*state),
            **{name: tuple(Written(*file) for file in values[name]) for name in ("files", "paths")},
            "rejects": tuple(Reject(*reject) for reject in values["rejects"]),
        }
    )
