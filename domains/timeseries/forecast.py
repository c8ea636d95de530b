"""The batch job: new rows in, forecasts out, and of each series a state that makes the next run read new rows alone.

A run works shard by shard. For each it writes the next state file beside the old one, and Parquet files of forecasts;
nothing of that counts until one rename of the states' manifest (:mod:`domains.timeseries.states`). Names depend on what
was read alone, so a run that was killed writes the same files again, and a run that finds nothing new writes none.

In the output folder there are ``cutoff=<date>/part-<shard>-<run>.parquet``, ``rejects/<run>.parquet``, and
``manifest.json``, which lists the files that count.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from domains.errors import UserError
from domains.files import atomic_file, file_sha256
from domains.folder import read_json, write_json
from domains.hardware import choose_device
from domains.manifest import disk_errors
from domains.timeseries.absorbed import Absorbed, row_hashes
from domains.timeseries.config import LEVELS, ForecastConfig
from domains.timeseries.data import read_rows
from domains.timeseries.splits import for_people
from domains.timeseries.states import Shard, StateFolder, open_states
from domains.timeseries.store import SeriesStore
from domains.timeseries.stream import Carried, Said, Stretch, forecasts, stream
from domains.timeseries.trained import LoadedModel, load_model
from domains.timeseries.transforms import Rows, next_stamps
from mamba_core.state import State

_PART = re.compile(r"part-\d{5}-(\d{8})\.parquet")


@dataclass(frozen=True)
class ShardJob:
    """What one shard needs, in plain values: it may be done by another process.

    Attributes:
        model, store, states, out: folders.
        shard: its number. series: rows of the store's table of series that belong to it.
        generation: of the run.
        config: settings.
        state: the file that the next state goes to; before: the one that holds the present, None at first.
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
    before: str | None


@dataclass(frozen=True)
class ShardDone:
    """What became of a shard.

    Attributes:
        shard: its number.
        changed: whether any series had new rows, so that there is a new state file.
        files: forecasts, names relative to the output folder.
        series, rows: how many series were forecast, and how many new rows were read.
        repeated: rows that had been absorbed before.
        unseen: series that the model was not trained on.
        rejects: (series, reason) of those that were set aside.
    """

    shard: int
    changed: bool
    files: tuple[str, ...] = ()
    series: int = 0
    rows: int = 0
    repeated: int = 0
    unseen: int = 0
    rejects: tuple[tuple[str, str], ...] = ()


@dataclass
class Forecasted:
    """What a call of :func:`forecast` did.

    Attributes:
        out: folder of the forecasts.
        series, rows, repeated, unseen: as in :class:`ShardDone`, over all shards.
        files: written now.
        rejects: number of series set aside, by reason.
    """

    out: Path
    series: int = 0
    rows: int = 0
    repeated: int = 0
    unseen: int = 0
    files: list[str] = field(default_factory=list)
    rejects: dict[str, int] = field(default_factory=dict)


def forecast(
    model_dir: Path | str,
    store: SeriesStore,
    out: Path | str,
    states: Path | str,
    config: ForecastConfig,
    *,
    device: str = "auto",
) -> Forecasted:
    """Read the new rows of every series, and forecast behind its last one.

    Args:
        model_dir: a model folder.
        store: the rows, new ones alone or with some that were absorbed before.
        out: folder of the forecasts.
        states: folder of the states.
        config: settings.
        device: auto, cpu or gpu.

    Raises:
        UserError: the table does not have the model's columns; the folders hold something else, or states of another
            model; another job is at work there; or the disk is full.
    """
    loaded = load_model(model_dir)
    check_columns(loaded, store)
    chosen = str(choose_device(device))
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder for the forecasts")
    shards = max(1, -(-len(store) // max(1, config.series_per_shard)))
    with open_states(Path(states), loaded.hash, shards, reread=config.reread) as folder, disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        _claim(out, folder)
        jobs = list(_jobs(loaded, store, out, folder, config, chosen))
        done = list(_engine(config)(jobs))
        result = _commit(out, folder, jobs, done, store)
        _write_manifest(out, folder)
    return result


def check_columns(loaded: LoadedModel, store: SeriesStore) -> None:
    """Make sure that a table has the covariates and the kind that the model was trained with."""
    shape = loaded.scaler.shape
    for name in ("past", "future", "static"):
        wanted, given = getattr(shape, name), tuple(getattr(store, f"{name}_names"))
        if wanted != given:
            raise UserError(
                f"{store.source_name}: data.{name} is {list(given)}, but {loaded.path} was trained with {list(wanted)}"
            )
    if store.kind != loaded.scaler.kind:
        raise UserError(
            f"{store.source_name}: data.kind is {store.kind}, but {loaded.path} was trained with {loaded.scaler.kind}"
        )


def forecast_shard(job: ShardJob, loaded: LoadedModel, store: SeriesStore) -> ShardDone:
    """One shard, from the state before to the state after. Depends on its arguments and on the files that they name."""
    device = torch.device(job.device)
    shard = Shard() if job.before is None else Shard.load(Path(job.before), device)
    places = {name: i for i, name in enumerate(shard.names)}
    todo: list[_New] = []
    rejects: list[tuple[str, str]] = []
    repeated = 0
    for series in job.series:
        new, again, problem = _find_new(store, series, shard, places, bool(loaded.scaler.shape.future))
        repeated += again
        if problem is not None:
            rejects.append((store.names[series], problem))
        elif new.fresh:
            todo.append(new)
    if not todo:
        return ShardDone(job.shard, False, repeated=repeated, rejects=tuple(rejects))
    known = set(loaded.series)
    unseen = sum(new.name not in known for new in todo)
    table: list[dict[str, Any]] = []
    for batch in _batches(todo, job.config.rows_at_once):
        rows, unripe = _advance(batch, shard, places, loaded, job)
        table += rows
        rejects += [(name, "too few observations to forecast yet; its rows are absorbed") for name in unripe]
    shard.save(Path(job.state))
    files = _write_forecasts(table, Path(job.out), job.shard, job.generation)
    rows_read = sum(new.fresh for new in todo)
    return ShardDone(job.shard, True, files, len(table), rows_read, repeated, unseen, tuple(rejects))


class _New(NamedTuple):
    """New rows of a series."""

    name: str
    place: int | None  # in the shard
    rows: Rows  # new rows, and behind them those that are schedule alone
    fresh: int  # how many are new
    hashes: np.ndarray  # of the new rows


def _find_new(
    store: SeriesStore, series: int, shard: Shard, places: dict[str, int], scheduled: bool
) -> tuple[_New, int, str | None]:
    """The rows of a series that its state has not absorbed; how many it has; and why it is refused, if it is."""
    name = store.names[series]
    part = store.series(series)
    rows = read_rows(store, series, 0, part.stop - part.start)
    end = len(rows.y)
    if scheduled:  # rows at the end without an observation tell what is known ahead
        observed = np.flatnonzero(~np.isnan(rows.y))
        end = int(observed[-1]) + 1 if len(observed) else 0
    hashes = row_hashes(rows.time[:end], rows.y[:end], np.concatenate([rows.past, rows.future], axis=1)[:end])
    place = places.get(name)
    first = again = 0
    if place is not None:
        again, first, problem = shard.absorbed[place].check(rows.time[:end], hashes)
        if problem is not None:
            return _New(name, place, rows, 0, hashes), 0, problem
    return _New(name, place, rows.part(slice(first, None)), end - first, hashes[first:]), again, None


def _batches(todo: list[_New], most: int) -> Iterator[list[_New]]:
    """Series of like length together, at most ``most`` rows with padding."""
    batch: list[_New] = []
    for new in sorted(todo, key=lambda new: (new.fresh, new.name)):
        if batch and (len(batch) + 1) * new.fresh > most:
            yield batch
            batch = []
        batch.append(new)
    if batch:
        yield batch


def _advance(
    batch: list[_New], shard: Shard, places: dict[str, int], loaded: LoadedModel, job: ShardJob
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the new rows of some series of a shard, update it, and give their forecasts and who is too young for one."""
    model = loaded.model.to(job.device)
    fresh = Carried.start(model, loaded.scaler, 1)
    parts = [fresh if new.place is None else _row(shard.carried, new.place) for new in batch]
    before = Carried(tuple(part.running[0] for part in parts), State.cat([part.state for part in parts]))
    stretches = [_stretch(new, shard, loaded) for new in batch]
    said, after = stream(model, loaded.scaler, stretches, before, job.config.chunk)
    table, unripe = [], []
    for i, (new, stretch, one) in enumerate(zip(batch, stretches, said, strict=True)):
        if one.ripe[0] and not np.isnan(after.running[i].y):
            table.append(_forecast_rows(new.name, stretch, one, after.running[i].y, loaded, job.config.calibrate))
        else:
            unripe.append(new.name)
    _put(shard, places, batch, after)
    return table, unripe


def _row(carried: Carried | None, place: int) -> Carried:
    assert carried is not None
    return Carried((carried.running[place],), carried.state.rows([place]))


def _put(shard: Shard, places: dict[str, int], batch: list[_New], after: Carried) -> None:
    """Write what a batch became into the shard."""
    old = [(i, new) for i, new in enumerate(batch) if new.place is not None]
    young = [(i, new) for i, new in enumerate(batch) if new.place is None]
    running = list(shard.carried.running) if shard.carried is not None else []
    state = shard.carried.state if shard.carried is not None else None
    if old:
        assert state is not None
        to = torch.tensor([new.place for _, new in old], device=next(iter(state.values())).device)
        own = after.state.rows([i for i, _ in old])
        state = State({name: tensor.index_copy(0, to, own[name]) for name, tensor in state.items()})
        for i, new in old:
            assert new.place is not None
            running[new.place] = after.running[i]
            shard.absorbed[new.place] = shard.absorbed[new.place].absorb(new.rows.time[: new.fresh], new.hashes)
    if young:
        own = after.state.rows([i for i, _ in young])
        state = own if state is None else State.cat([state, own])
        for i, new in young:
            places[new.name] = len(shard.names)
            shard.names.append(new.name)
            running.append(after.running[i])
            shard.absorbed.append(Absorbed().absorb(new.rows.time[: new.fresh], new.hashes))
    assert state is not None
    shard.carried = Carried(tuple(running), state)


def _stretch(new: _New, shard: Shard, loaded: LoadedModel) -> Stretch:
    """The new rows, and the stamps of the steps ahead: those that the table has, else the usual ones."""
    rows = new.rows
    missing = loaded.scaler.shape.horizon - (len(rows) - new.fresh)
    if missing > 0:
        earlier = shard.absorbed[new.place].times if new.place is not None else np.zeros(0, np.int64)
        times = np.append(earlier, rows.time)
        rows = rows.extended(*next_stamps(times, rows.offset, missing, loaded.scaler.weekends))
    return Stretch(rows, new.fresh, np.array([new.fresh - 1]))


def _forecast_rows(
    name: str, stretch: Stretch, said: Said, y: float, loaded: LoadedModel, calibrate: bool
) -> dict[str, Any]:
    """The forecasts of one series, column by column."""
    found = forecasts(loaded.model, said, np.array(LEVELS))
    quantiles = found.quantiles[0]  # (h, q)
    if calibrate:
        quantiles = loaded.calibration.apply(quantiles)
    values, mean = quantiles, found.mean[0]
    if loaded.scaler.kind == "price":
        values, mean = y * np.exp(values), y * np.exp(mean)
    elif loaded.scaler.kind == "level":
        values, mean = y + values, y + mean
    h = len(mean)
    return {
        "series": [name] * h,
        "cutoff": [int(stretch.rows.time[stretch.new - 1])] * h,
        "step": list(range(1, h + 1)),
        "stamp": stretch.rows.time[stretch.new : stretch.new + h].tolist(),
        "last": [y] * h,
        "centre": mean.tolist(),
        "scale": np.sqrt(found.variance[0]).tolist(),
        "quantiles": values,
        "model": [loaded.hash[:16]] * h,
    }


def _write_forecasts(table: list[dict[str, Any]], out: Path, shard: int, generation: int) -> tuple[str, ...]:
    """Parquet files by the date of the cut-off; their names relative to ``out``."""
    import polars as pl

    days: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(table, key=lambda entry: entry["series"][0]):
        days.setdefault(for_people(entry["cutoff"][0])[:10], []).append(entry)
    names = []
    for day, entries in sorted(days.items()):
        plain = ("series", "cutoff", "step", "stamp", "last", "centre", "scale")
        columns: dict[str, Any] = {name: [value for entry in entries for value in entry[name]] for name in plain}
        quantiles = np.concatenate([entry["quantiles"] for entry in entries])
        columns |= {f"q{level:g}": quantiles[:, j] for j, level in enumerate(LEVELS)}
        columns["model"] = [value for entry in entries for value in entry["model"]]
        stamps = [pl.col(name).cast(pl.Datetime("us", "UTC")) for name in ("cutoff", "stamp")]
        frame = pl.DataFrame(columns).with_columns(stamps)
        name = f"cutoff={day}/part-{shard:05d}-{generation:08d}.parquet"
        (out / name).parent.mkdir(exist_ok=True)
        with atomic_file(out / name) as file:
            frame.write_parquet(file)
        names.append(name)
    return tuple(names)


def _jobs(
    loaded: LoadedModel, store: SeriesStore, out: Path, folder: StateFolder, config: ForecastConfig, device: str
) -> Iterator[ShardJob]:
    """The shards that have rows, in their order."""
    members: dict[int, list[int]] = {}
    for i, name in enumerate(store.names):
        members.setdefault(folder.shard_of(name), []).append(i)
    for shard, series in sorted(members.items()):
        before = folder.present(shard)
        yield ShardJob(
            str(loaded.path),
            str(store.path),
            str(out),
            shard,
            tuple(series),
            folder.generation + 1,
            config,
            device,
            str(folder.file(shard)),
            None if before is None else str(before),
        )


def run_local(jobs: Sequence[ShardJob]) -> Iterator[ShardDone]:
    """One shard after the other, in this process."""
    from tqdm import tqdm

    if not jobs:
        return
    loaded, store = load_model(jobs[0].model), SeriesStore.open(jobs[0].store)
    for job in tqdm(jobs, unit="shard", desc="forecasting"):
        yield forecast_shard(job, loaded, store)


def _engine(config: ForecastConfig) -> Callable[[Sequence[ShardJob]], Iterable[ShardDone]]:
    if config.engine == "local":
        return run_local
    if config.engine == "ray":
        from domains.timeseries.ray_engine import run_ray

        return lambda jobs: run_ray(jobs, config.workers)
    raise UserError(f"engine={config.engine}: there are local and ray")


def _commit(
    out: Path, folder: StateFolder, jobs: Sequence[ShardJob], done: Sequence[ShardDone], store: SeriesStore
) -> Forecasted:
    """The rejects table, and the rename after which all of it has happened."""
    result = Forecasted(out)
    rejects: list[tuple[str, str]] = []
    for one in done:
        result.series += one.series
        result.rows += one.rows
        result.repeated += one.repeated
        result.unseen += one.unseen
        result.files += one.files
        rejects += one.rejects
        for _, reason in one.rejects:
            result.rejects[reason] = result.rejects.get(reason, 0) + 1
    changed = {one.shard: Path(job.state) for job, one in zip(jobs, done, strict=True) if one.changed}
    if rejects:
        _write_rejects(rejects, out / "rejects" / f"{folder.generation + 1:08d}.parquet")
    if changed:
        entries = [{"file": name, "sha256": file_sha256(out / name)} for name in result.files]
        facts = {"out": str(out), "source": store.source_name, "rows": result.rows, "series": result.series}
        folder.commit(changed, entries, facts)
    return result


def _write_rejects(rejects: list[tuple[str, str]], path: Path) -> None:
    import polars as pl

    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as file:
        pl.DataFrame(rejects, schema=["series", "reason"], orient="row").write_parquet(file)


def _claim(out: Path, folder: StateFolder) -> None:
    """Make sure that the output folder belongs to these states, and remove what never came to count."""
    manifest = out / "manifest.json"
    if manifest.exists():
        if read_json(manifest).get("states") != folder.manifest["id"]:
            raise UserError(f"{out}: holds forecasts of another state folder; choose another out folder")
    elif [path for path in out.iterdir() if not path.name.startswith(("cutoff=", "rejects", "."))]:
        raise UserError(f"{out}: holds other files; choose a new out folder")
    for path in out.glob("cutoff=*/part-*.parquet"):
        match = _PART.fullmatch(path.name)
        if match and int(match[1]) > folder.generation:
            path.unlink(missing_ok=True)
    for path in out.glob("cutoff=*/.part-*"):
        path.unlink(missing_ok=True)


def _write_manifest(out: Path, folder: StateFolder) -> None:
    """What counts, for who reads the forecasts."""
    files = [entry for run in folder.manifest["runs"] if run["out"] == str(out) for entry in run["forecasts"]]
    table = {"states": folder.manifest["id"], "model": folder.manifest["model"], "files": files}
    path = out / "manifest.json"
    if not path.exists() or read_json(path) != table:
        write_json(path, table)
