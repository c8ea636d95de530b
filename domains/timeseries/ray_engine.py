"""The batch job on Ray: the same function for each shard, in actors that load the model once (domains.engines).

All machines of the cluster must see the model, the prepared table, the state and the output folder under the same
paths.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from domains.engines import run_ray
from domains.timeseries.config import ForecastConfig
from domains.timeseries.forecast_shard import ShardDone, ShardJob, forecast_shard, load_for_job
from domains.timeseries.output import Reject, Written
from domains.timeseries.states import Stored
from domains.timeseries.store import SeriesStore


def run_shards(jobs: Sequence[ShardJob], workers: int) -> list[ShardDone]:
    """All shards, on ``workers`` actors; in any order.

    Raises:
        UserError: Ray is not installed, or a shard's state is damaged.
    """
    if not jobs:
        return []
    model, store, device = jobs[0].model, jobs[0].store, jobs[0].device
    texts = [json.dumps(asdict(job)) for job in jobs]
    done = run_ray(partial(_open_forecaster, model, store, device), texts, workers=workers, device=device)
    return [_done(json.loads(text)) for _, text in done]


def _open_forecaster(model: str, store: str, device: str) -> Callable[[str], str]:
    """What an actor does to a job, once it holds the model and the table."""
    loaded, opened = load_for_job(model, device), SeriesStore.open(store)
    return lambda job: json.dumps(asdict(forecast_shard(_job(json.loads(job)), loaded, opened)))


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
