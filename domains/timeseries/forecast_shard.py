"""One shard of the batch job, from the state before to the state after: the function that every engine runs.

Numbers are float64 throughout. A history that is read in parts then gives, to a dozen digits, what it gives when read
at once; in float32 the fourth digit of a median near 0 would depend on where the cuts fall.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from domains.timeseries.absorbed import Absorbed, Problem, row_hashes, static_hash
from domains.timeseries.config import LEVELS, ForecastConfig
from domains.timeseries.data import WARM_UP, read_rows
from domains.timeseries.output import ForecastTable, Reject, Written
from domains.timeseries.scaler import Scaler
from domains.timeseries.states import Shard, Stored
from domains.timeseries.store import SeriesStore
from domains.timeseries.stream import Carried, Said, Stretch, forecasts, joined, stream
from domains.timeseries.trained import LoadedModel, load_model
from domains.timeseries.transforms import Rows, Running, next_stamps
from mamba_core.state import State

UNRIPE = f"fewer than {WARM_UP} increments so far: absorbed, not forecast yet"
_NO_CUTOFF = np.zeros(0, np.int64)


@dataclass(frozen=True)
class ShardJob:
    """What one shard needs, in plain values: it may be done by another process.

    Attributes:
        model, store, out: folders.
        shard: its number. series: rows of the store's table of series that belong to it.
        generation: of the run.
        config: settings.
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
    device: str
    state: str
    before: Stored | None


@dataclass(frozen=True)
class ShardDone:
    """What became of a shard.

    Attributes:
        shard: its number.
        state: the new state file; None when no series had new rows.
        files: of forecasts.
        series, rows: how many series were forecast, and how many new rows were read.
        repeated: rows that had been absorbed before.
        unseen: series with new rows that the model was not trained on.
        rejects: of series that were set aside.
    """

    shard: int
    state: Stored | None = None
    files: tuple[Written, ...] = ()
    series: int = 0
    rows: int = 0
    repeated: int = 0
    unseen: int = 0
    rejects: tuple[Reject, ...] = ()


class _Given(NamedTuple):
    """The rows of a series that the table holds."""

    name: str
    place: int | None  # in the shard; None: it is new there
    rows: Rows  # new rows, and behind them those that are schedule alone
    fresh: int  # how many are new
    repeated: int  # how many more there were that had been absorbed
    absorbed: Absorbed  # with the new ones
    problem: Problem | None  # why the series is refused, if it is


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
    places = {name: i for i, name in enumerate(shard.names)}
    given = [_compare(store, series, shard, places, loaded.scaler) for series in job.series]
    repeated = sum(one.repeated for one in given if not one.problem)
    new = [one for one in given if one.fresh]
    files: tuple[Written, ...] = ()
    state = None
    forecast = 0
    if new:
        batches = list(_batches(new, job.config.rows_at_once))
        advanced = [_advance(batch, shard, loaded, job) for batch in batches]
        shard = _after(shard, batches, [carried for carried, _ in advanced])
        tables = [table for _, table in advanced if table]
        if tables:
            table = ForecastTable.joined(tables)
            files = table.write(Path(job.out), job.shard, job.generation, loaded.hash[:16])
            forecast = len(table.series)
        state = shard.save(Path(job.state))
    rows = sum(one.fresh for one in new)
    unseen = len({one.name for one in new} - set(loaded.series))
    return ShardDone(job.shard, state, files, forecast, rows, repeated, unseen, _set_aside(given, shard))


def ahead_of(rows: Rows, count: int, scaler: Scaler, before: np.ndarray) -> Rows:
    """The rows, and behind the first ``count`` at least ``horizon`` more: those of the table, else the usual stamps.

    Args:
        before: int64, stamps of the last known rows, of these and of earlier ones.
    """
    missing = scaler.shape.horizon - (len(rows) - count)
    if missing <= 0:
        return rows
    stamps = np.append(before, rows.time[count:])
    return rows.extended(*next_stamps(stamps, rows.offset, missing, scaler.weekends))


def observed_rows(y: np.ndarray, scaler: Scaler) -> int:
    """How many rows have come: with covariates known in advance, those at the end without observation are schedule."""
    if not scaler.shape.future:
        return len(y)
    observed = np.flatnonzero(~np.isnan(y))
    return int(observed[-1]) + 1 if len(observed) else 0


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
    if loaded.scaler.kind == "price":
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


def _set_aside(given: list[_Given], shard: Shard) -> tuple[Reject, ...]:
    """Series that are refused, or too young for a forecast, whether their rows came now or before."""
    places = {name: i for i, name in enumerate(shard.names)}
    found = []
    for one in given:
        if one.problem:
            found.append(Reject(one.name, *one.problem))
        elif one.name in places and shard.carried and not is_ripe(shard.carried.running[places[one.name]]):
            found.append(Reject(one.name, UNRIPE, ""))
    return tuple(found)


def _compare(store: SeriesStore, series: int, shard: Shard, places: dict[str, int], scaler: Scaler) -> _Given:
    """Tell the rows of a series that its state has absorbed from those that are new."""
    name = store.names[series]
    part = store.series(series)
    rows = read_rows(store, series, 0, part.stop - part.start)
    place = places.get(name)
    absorbed = Absorbed() if place is None else shard.absorbed[place]
    end = observed_rows(rows.y, scaler)
    if absorbed.count:  # what lies before the last stamp came, observed or not
        end = max(end, int(np.searchsorted(rows.time, absorbed.times[-1], side="right")))
    covariates = np.concatenate([rows.past, rows.future], axis=1)[:end]
    times, static = rows.time[:end], static_hash(rows.static)
    hashes = row_hashes(times, rows.offset[:end], rows.y[:end], covariates)
    repeated, problem = absorbed.check(times, hashes, static)
    fresh = 0 if problem else end - repeated
    if fresh:
        absorbed = absorbed.absorb(times, hashes, static)
    return _Given(name, place, rows.part(slice(repeated, None)), fresh, repeated, absorbed, problem)


def _batches(new: list[_Given], most: int) -> Iterator[list[_Given]]:
    """Series of like length together, at most ``most`` rows with padding."""
    batch: list[_Given] = []
    for one in sorted(new, key=lambda one: (one.fresh, one.name)):
        if batch and (len(batch) + 1) * one.fresh > most:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _advance(
    batch: list[_Given], shard: Shard, loaded: LoadedModel, job: ShardJob
) -> tuple[Carried, ForecastTable | None]:
    """Read the new rows of some series: what is carried on, and forecasts of those that are ripe."""
    model, scaler, config = loaded.model, loaded.scaler, job.config
    carried = _before(batch, shard, loaded)
    skipped = 0
    if len(batch) == 1:  # a history longer than what is read at once: piece by piece
        while batch[0].fresh - skipped > config.rows_at_once:
            piece = batch[0].rows.part(slice(skipped, skipped + config.rows_at_once))
            _, carried = stream(model, scaler, [Stretch(piece, len(piece), _NO_CUTOFF)], carried, config.chunk)
            skipped += len(piece)
    stretches = []
    for one in batch:
        rows, count = one.rows.part(slice(skipped, None)), one.fresh - skipped
        stretches.append(Stretch(ahead_of(rows, count, scaler, one.absorbed.times), count, np.array([count - 1])))
    said, carried = stream(model, scaler, stretches, carried, config.chunk)
    ripe = [i for i, running in enumerate(carried.running) if is_ripe(running)]
    if not ripe:
        return carried, None
    table = tabulate(
        [batch[i].name for i in ripe],
        [stretches[i] for i in ripe],
        [said[i] for i in ripe],
        np.array([carried.running[i].y for i in ripe]),
        loaded,
        config.calibrate,
    )
    return carried, table


def _before(batch: list[_Given], shard: Shard, loaded: LoadedModel) -> Carried:
    """What is carried of each series of a batch; of new ones, a start."""
    pool = Carried.start(loaded.model, loaded.scaler, 1)
    if shard.carried is not None:
        pool = Carried(pool.running + shard.carried.running, State.cat([pool.state, shard.carried.state]))
    rows = [0 if one.place is None else one.place + 1 for one in batch]
    return Carried(tuple(pool.running[row] for row in rows), pool.state.rows(rows))


def _after(shard: Shard, batches: list[list[_Given]], carried: list[Carried]) -> Shard:
    """The shard, with what became of the series that were read; new ones behind the others."""
    pool = ([] if shard.carried is None else [shard.carried]) + carried
    rows = {name: i for i, name in enumerate(shard.names)}
    absorbed = dict(zip(shard.names, shard.absorbed, strict=True))
    read = [one for batch in batches for one in batch]
    for i, one in enumerate(read):
        rows[one.name] = len(shard.names) + i
        absorbed[one.name] = one.absorbed
    running = [each for part in pool for each in part.running]
    state = State.cat([part.state for part in pool]).rows(list(rows.values()))
    return Shard(list(rows), Carried(tuple(running[row] for row in rows.values()), state), list(absorbed.values()))
