"""One shard of the batch job, from the state before to the state after: the function that every engine runs.

First all series read their new rows, in batches, then what came true of all of them is pooled, and then forecasts are
written: a shard is the unit that is computed and calibrated together, so how it is cut into batches changes nothing.

Numbers are float64 throughout. A history that is read in parts then gives, to a dozen digits, what it gives when read
at once; in float32 the fourth digit of a median near 0 would depend on where the cuts fall.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from domains.timeseries.absorbed import Absorbed
from domains.timeseries.config import LEVELS, ForecastConfig
from domains.timeseries.data import WARM_UP
from domains.timeseries.given import Given, compare, observed_rows
from domains.timeseries.history import is_logarithmic
from domains.timeseries.output import ForecastTable, Reject, Written
from domains.timeseries.paths import Ending, write_paths
from domains.timeseries.scaler import Scaler
from domains.timeseries.states import Shard, Stored
from domains.timeseries.store import SeriesStore
from domains.timeseries.stream import Carried, Said, Stretch, forecasts, joined, read, say
from domains.timeseries.trailing import Recent, Trailing, advanced, first_kept
from domains.timeseries.trained import LoadedModel, load_model
from domains.timeseries.transforms import Rows, Running, next_stamps
from mamba_core.state import State

__all__ = [
    "ShardDone",
    "ShardJob",
    "ahead_of",
    "forecast_shard",
    "is_ripe",
    "load_for_job",
    "observed_rows",
    "tabulate",
]

UNRIPE = f"fewer than {WARM_UP} increments so far: absorbed, not forecast yet"


@dataclass(frozen=True)
class ShardJob:
    """What one shard needs, in plain values: it may be done by another process.

    Attributes:
        model, store, out: folders.
        shard: its number. series: rows of the store's table of series that belong to it.
        generation: of the run.
        config: settings. compare_rows, calibration_window: of the state folder.
        device: cpu or cuda.
        state: the file that the next state goes to. before: the one that holds the present, None at first.
    """

    model: str
    store: str
    out: str
    shard: int
    series: tuple[int, ...]
    generation: int
    config: ForecastConfig
    compare_rows: int
    calibration_window: int
    device: str
    state: str
    before: Stored | None


@dataclass(frozen=True)
class ShardDone:
    """What became of a shard.

    Attributes:
        shard: its number.
        state: the new state file; None when no series had new rows.
        files: of forecasts. paths: of sampled paths.
        series, rows: how many series were forecast, and how many new rows were read.
        repeated: rows that had been absorbed before.
        unseen: series with new rows that the model was not trained on.
        rejects: of series that were set aside.
    """

    shard: int
    state: Stored | None = None
    files: tuple[Written, ...] = ()
    paths: tuple[Written, ...] = ()
    series: int = 0
    rows: int = 0
    repeated: int = 0
    unseen: int = 0
    rejects: tuple[Reject, ...] = ()


def load_for_job(folder: str, device: str) -> LoadedModel:
    """The model of a batch job, in float64."""
    loaded = load_model(folder)
    loaded.model.double().to(device)
    return loaded


def forecast_shard(job: ShardJob, loaded: LoadedModel, store: SeriesStore) -> ShardDone:
    """Read the new rows of a shard's series, write their forecasts and the next state.

    Depends on its arguments and on the files that they name, and writes the same bytes whenever these are the same.

    Args:
        job: which shard.
        loaded: of :func:`load_for_job`.
        store: the table.

    Raises:
        UserError: the state before is missing or damaged.
    """
    shard = Shard() if job.before is None else Shard.load(job.before, torch.device(job.device))
    given = _given(job, shard, loaded.scaler, store)
    repeated = sum(one.repeated for one in given if not one.problem)
    new = [one for one in given if one.fresh]
    files: tuple[Written, ...] = ()
    paths: tuple[Written, ...] = ()
    state = None
    forecast = 0
    if new:
        parts = [_advance(batch, shard, loaded, job) for batch in _batches(new, job.config.rows_at_once)]
        shard = _after(shard, parts)
        calibrated = _calibrated(loaded, shard, job.config)
        tables = [table for part in parts if (table := _forecast(part, calibrated, job.config))]
        if tables:
            table = ForecastTable.joined(tables)
            files = table.write(Path(job.out), job.shard, job.generation, loaded.hash[:16])
            forecast = len(table.series)
        if job.config.paths:
            config = job.config
            endings = [ending for part in parts for ending in _endings(part)]
            where = f"{job.shard:05d}-{job.generation:08d}"
            paths = write_paths(Path(job.out), endings, loaded, config.path_steps, config.paths, config.seed, where)
        state = shard.save(Path(job.state))
    rows = sum(one.fresh for one in new)
    unseen = len({one.name for one in new} - set(loaded.series))
    return ShardDone(job.shard, state, files, paths, forecast, rows, repeated, unseen, _set_aside(given, shard))


def ahead_of(rows: Rows, count: int, scaler: Scaler, before: np.ndarray, steps: int = 0) -> Rows:
    """The rows, and behind the first ``count`` at least ``horizon`` more: those of the table, else the usual stamps.

    Args:
        before: int64, stamps of the last known rows, of these and of earlier ones.
        steps: as many as that in any case.
    """
    missing = max(steps, scaler.shape.horizon) - (len(rows) - count)
    if missing <= 0:
        return rows
    stamps = np.append(before, rows.time[count:])
    return rows.extended(*next_stamps(stamps, rows.offset, missing, scaler.weekends))


def tabulate(
    names: Sequence[str],
    stretches: Sequence[Stretch],
    said: Sequence[Said],
    last: np.ndarray,
    loaded: LoadedModel,
    calibrate: bool,
) -> ForecastTable:
    """Forecasts behind the last new row of some series in units of their observations; ``last`` float64 (n,)."""
    found = forecasts(loaded.model, joined(said), np.array(LEVELS))
    quantiles, mean = found.quantiles, found.mean  # (n, h, q), (n, h)
    if calibrate:
        quantiles = loaded.calibration.apply(quantiles)
    if is_logarithmic(loaded.scaler.kind):
        quantiles, mean = last[:, None, None] * np.exp(quantiles), last[:, None] * np.exp(mean)
    elif loaded.scaler.kind == "level":
        quantiles, mean = last[:, None, None] + quantiles, last[:, None] + mean
    h = loaded.scaler.shape.horizon
    cutoff = np.array([stretch.rows.time[stretch.new - 1] for stretch in stretches], dtype=np.int64)
    stamps = np.array([stretch.rows.time[stretch.new : stretch.new + h] for stretch in stretches], dtype=np.int64)
    scale = np.sqrt(found.variance)
    return ForecastTable(list(names), cutoff, stamps.reshape(-1, h), last, mean, scale, quantiles)


def is_ripe(running: Running) -> bool:
    """Whether a series has shown enough to be forecast."""
    return running.count >= WARM_UP and not np.isnan(running.y)


def _given(job: ShardJob, shard: Shard, scaler: Scaler, store: SeriesStore) -> list[Given]:
    """The rows of the shard's series, compared with what was absorbed."""
    places = {name: i for i, name in enumerate(shard.names)}
    found = []
    for series in job.series:
        place = places.get(store.names[series])
        absorbed = Absorbed() if place is None else shard.absorbed[place]
        found.append(compare(store, series, place, absorbed, scaler, job.compare_rows))
    return found


def _set_aside(given: list[Given], shard: Shard) -> tuple[Reject, ...]:
    """Series that are refused, or too young for a forecast, whether their rows came now or before."""
    places = {name: i for i, name in enumerate(shard.names)}
    found = []
    for one in given:
        if one.problem:
            found.append(Reject(one.name, *one.problem))
        elif one.name in places and shard.carried and not is_ripe(shard.carried.running[places[one.name]]):
            found.append(Reject(one.name, UNRIPE, ""))
    return tuple(found)


def _batches(new: list[Given], most: int) -> Iterator[list[Given]]:
    """Series of like length together, at most ``most`` rows with padding."""
    batch: list[Given] = []
    for one in sorted(new, key=lambda one: (one.fresh, one.name)):
        if batch and (len(batch) + 1) * one.fresh > most:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


class _Advanced(NamedTuple):
    """Some series, and what became of them by reading their new rows."""

    batch: list[Given]
    carried: Carried
    trailing: Trailing
    stretches: list[Stretch]  # the last new rows of each, and those ahead
    said: list[Said]  # behind the last new row


@torch.no_grad()
def _advance(batch: list[Given], shard: Shard, loaded: LoadedModel, job: ShardJob) -> _Advanced:
    """Read the new rows of some series."""
    model, scaler, config = loaded.model, loaded.scaler, job.config
    window, horizon = job.calibration_window, scaler.shape.horizon
    carried, before = _before(batch, shard, loaded, window)
    first = np.array([first_kept(one.rows.y[: one.fresh], window, horizon) for one in batch])
    recent = []
    most = config.rows_at_once if len(batch) == 1 else batch[-1].fresh  # a long history comes piece by piece
    for start in range(0, batch[-1].fresh, most):
        stretches = []
        for one, begin in zip(batch, first, strict=True):
            count = min(one.fresh - start, most)
            stretches.append(Stretch(one.rows.part(slice(start, None)), count, np.arange(max(0, begin - start), count)))
        seen, history, carried = read(model, scaler, stretches, carried, config.chunk)
        ends = np.cumsum([len(stretch.cutoffs) for stretch in stretches])
        inputs = np.concatenate([found.inputs[one.cutoffs] for one, found in zip(stretches, seen, strict=True)])
        made = [part.cpu().numpy() for part in model.condense(history, torch.from_numpy(inputs).to(history))]
        for i, (stretch, found) in enumerate(zip(stretches, seen, strict=True)):
            part = slice(ends[i] - len(stretch.cutoffs), ends[i])
            recent.append(Recent.of(stretch.rows, found, *(values[part] for values in made)))
    last = []
    for one, (rows, count, _) in zip(batch, stretches, strict=True):
        ahead = ahead_of(rows, count, scaler, one.absorbed.times, config.path_steps if config.paths else 0)
        last.append(Stretch(ahead, count, np.array([count - 1])))
    said = say(model, scaler, last, seen, history[ends - 1])
    counts = np.array([one.fresh for one in batch]) - first
    trailing = advanced(model, scaler, before, Recent.cat(recent), counts, first, loaded.unseen_from)
    return _Advanced(batch, carried, trailing, last, said)


def _calibrated(loaded: LoadedModel, shard: Shard, config: ForecastConfig) -> LoadedModel:
    """The model, corrected as the outcomes of all series of the shard say, where that is wanted."""
    if config.calibrate != "trailing":
        return loaded
    assert shard.trailing is not None
    return replace(loaded, calibration=loaded.calibration.after(shard.trailing.scores))


def _forecast(part: _Advanced, loaded: LoadedModel, config: ForecastConfig) -> ForecastTable | None:
    """Forecasts of those series that are ripe; None where there are none."""
    ripe = [i for i, running in enumerate(part.carried.running) if is_ripe(running)]
    if not ripe:
        return None
    names = [part.batch[i].name for i in ripe]
    stretches, said = [part.stretches[i] for i in ripe], [part.said[i] for i in ripe]
    last = np.array([part.carried.running[i].y for i in ripe])
    return tabulate(names, stretches, said, last, loaded, config.calibrate != "none")


def _endings(part: _Advanced) -> Iterator[Ending]:
    """Where the series that are ripe end."""
    for i, (one, running) in enumerate(zip(part.batch, part.carried.running, strict=True)):
        if is_ripe(running):
            said, ahead = part.said[i], part.stretches[i].rows.part(slice(part.stretches[i].new, None))
            yield Ending(one.name, running, part.carried.state.rows([i]), said.raw[0], said.spread[0], ahead)


def _before(batch: list[Given], shard: Shard, loaded: LoadedModel, window: int) -> tuple[Carried, Trailing]:
    """What is carried and kept of each series of a batch; of new ones, a start."""
    pool = Carried.start(loaded.model, loaded.scaler, 1)
    trailing = Trailing.start(loaded.model, window)
    if shard.carried is not None and shard.trailing is not None:
        pool = Carried(pool.running + shard.carried.running, State.cat([pool.state, shard.carried.state]))
        trailing = Trailing.cat([trailing, shard.trailing])
    rows = [0 if one.place is None else one.place + 1 for one in batch]
    return Carried(tuple(pool.running[row] for row in rows), pool.state.rows(rows)), trailing.rows(rows)


def _after(shard: Shard, parts: list[_Advanced]) -> Shard:
    """The shard, with what became of the series that were read; new ones behind the others."""
    pool = ([] if shard.carried is None else [shard.carried]) + [part.carried for part in parts]
    kept = ([] if shard.trailing is None else [shard.trailing]) + [part.trailing for part in parts]
    rows = {name: i for i, name in enumerate(shard.names)}
    absorbed = dict(zip(shard.names, shard.absorbed, strict=True))
    for i, one in enumerate(one for part in parts for one in part.batch):
        rows[one.name] = len(shard.names) + i
        absorbed[one.name] = one.absorbed
    order = list(rows.values())
    running = [each for part in pool for each in part.running]
    state = State.cat([part.state for part in pool]).rows(order)
    carried = Carried(tuple(running[row] for row in order), state)
    return Shard(list(rows), carried, list(absorbed.values()), Trailing.cat(kept).rows(order))
