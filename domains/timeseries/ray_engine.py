"""The batch job on Ray Data: the same function for each shard, in actors that load the model once.

Files are written by the actors, so all of them must see the state and output folders.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from domains.errors import UserError
from domains.timeseries.config import ForecastConfig
from domains.timeseries.forecast import ShardDone, ShardJob, forecast_shard


class ShardForecaster:
    """An actor: holds the model and the table, does one shard a call."""

    def __init__(self, model: str, store: str) -> None:
        import torch

        from domains.timeseries.store import SeriesStore
        from domains.timeseries.trained import load_model

        torch.set_num_threads(1)
        self._loaded = load_model(model)
        self._store = SeriesStore.open(store)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        values = row["job"]
        job = ShardJob(**{**values, "series": tuple(values["series"]), "config": ForecastConfig(**values["config"])})
        return {"done": asdict(forecast_shard(job, self._loaded, self._store))}


def run_ray(jobs: Sequence[ShardJob], workers: int) -> list[ShardDone]:
    """All shards, in their order; ``workers`` actors of one CPU each, on the cluster that Ray finds or starts.

    Raises:
        UserError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("engine=ray needs Ray, which is not installed; pip install '.[ray]'") from None
    if not jobs:
        return []
    rows = ray.data.from_items([{"number": i, "job": asdict(job)} for i, job in enumerate(jobs)])
    done = rows.map(
        ShardForecaster,
        fn_constructor_args=(jobs[0].model, jobs[0].store),
        concurrency=min(workers, len(jobs)),
        num_cpus=1,
    )
    found = [_done(row["done"]) for row in done.take_all()]
    return sorted(found, key=lambda one: one.shard)


def _done(values: dict[str, Any]) -> ShardDone:
    rejects = tuple((str(name), str(reason)) for name, reason in values["rejects"])
    return ShardDone(**{**values, "files": tuple(values["files"]), "rejects": rejects})
