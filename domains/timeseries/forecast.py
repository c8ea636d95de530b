"""The batch job: new rows in, forecasts out, and of each series a state that makes the next run read new rows alone.

A run works shard by shard (:mod:`domains.timeseries.forecast_shard`). For each it writes the next state file beside the
old one, and Parquet files of forecasts (:mod:`domains.timeseries.output`); nothing of that counts until one rename of
the states' manifest (:mod:`domains.timeseries.states`). Names depend on what was read alone, so a run that was killed
writes the same files again, and a run that finds nothing new writes none.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from domains.config import MANY, check_range, check_seed
from domains.engines import check_engine, run_local
from domains.errors import UserError
from domains.hardware import choose_device
from domains.manifest import disk_errors
from domains.timeseries.config import ForecastConfig
from domains.timeseries.forecast_shard import ShardDone, ShardJob, forecast_shard, load_for_job
from domains.timeseries.output import OutputFolder, Reject, open_output
from domains.timeseries.states import Shard, StateFolder, open_states
from domains.timeseries.store import SeriesStore
from domains.timeseries.trained import LoadedModel

CALIBRATIONS = ("trailing", "validation", "none")
_USUAL = 64  # rows that the usual gap between stamps is told from
_SHOWN = 5  # names in a line for people


@dataclass
class Forecasted:
    """What a call of :func:`forecast` did.

    Attributes:
        out: folder of the forecasts.
        series, rows: how many series were forecast, and how many new rows were read.
        repeated: rows that had been absorbed before.
        unseen: series with new rows that the model was not trained on.
        files: of forecasts, written now, names relative to ``out``. paths: of sampled paths.
        rejects: number of series set aside, by reason and some of their names.
        forgotten: series of the states that a reread dropped which the table does not have.
    """

    out: Path
    series: int = 0
    rows: int = 0
    repeated: int = 0
    unseen: int = 0
    files: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    rejects: dict[str, int] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)


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

    With covariates known in advance, rows at the end of a series without observation are its schedule: they tell what
    is known of the steps ahead, are not absorbed, and are to be given again once they have come.

    Args:
        model_dir: a model folder.
        store: the rows, new ones alone or with some that were absorbed before.
        out: folder of the forecasts.
        states: folder of the states.
        config: settings.
        device: auto, cpu or gpu.

    Raises:
        UserError: a setting makes no sense; the table does not have the model's columns; the folders hold something
            else, or states of another model; a state file is damaged; another job is at work there; or the disk is
            full.
    """
    check_config(config)
    chosen = str(choose_device(device))
    loaded = load_for_job(str(model_dir), chosen)
    check_columns(loaded, store)
    out, states = Path(out), Path(states)
    if out.resolve() == states.resolve():
        raise UserError(f"{out}: is to hold forecasts and states; choose two folders")
    opened = open_states(states, _version(loaded), len(store), config)
    with disk_errors(states), opened as folder, disk_errors(out), open_output(out, folder) as output:
        jobs = list(_jobs(loaded, store, output, folder, config, chosen))
        done = list(_run(jobs, loaded, store, config))
        return _commit(output, folder, done, store, loaded)


def check_config(config: ForecastConfig) -> None:
    """Make sure that the settings make sense; a UserError names the first that does not."""
    check_range("series_per_shard", config.series_per_shard, 1, MANY)
    check_range("rows_at_once", config.rows_at_once, 1, MANY)
    check_range("chunk", config.chunk, 1, MANY)
    check_range("workers", config.workers, 1, MANY)
    check_range("paths", config.paths, 0, 100_000)
    check_range("path_steps", config.path_steps, 1, 10_000)
    check_seed(config.seed)
    check_range("compare_rows", config.compare_rows, _USUAL, MANY)
    if config.calibration_window is not None:
        check_range("calibration_window", config.calibration_window, 1, 100_000)
    if config.calibrate not in CALIBRATIONS:
        raise UserError(f"calibrate={config.calibrate}: must be one of {', '.join(CALIBRATIONS)}")
    check_engine(config.engine)


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


def _run(
    jobs: Sequence[ShardJob], loaded: LoadedModel, store: SeriesStore, config: ForecastConfig
) -> Iterable[ShardDone]:
    """What became of each shard, in their order."""
    from tqdm import tqdm

    if config.engine == "local":
        done = run_local(lambda job: forecast_shard(job, loaded, store), jobs, device=jobs[0].device if jobs else "cpu")
        bar = tqdm(done, total=len(jobs), unit="shard", desc="forecasting", delay=1.0, leave=False, disable=None)
        found = [one for _, one in bar]
    else:
        from domains.timeseries.ray_engine import run_shards

        found = run_shards(jobs, config.workers)
    return sorted(found, key=lambda one: one.shard)


def _version(loaded: LoadedModel) -> str:
    """Which states a model can go on from: those of its weights, of the numbers that its inputs are scaled by, and of
    the end of its training, from which on outcomes are kept."""
    told = {**loaded.scaler.to_dict(), "unseen_from": loaded.unseen_from}
    scaler = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return f"{loaded.hash}-{scaler[:16]}"


def _jobs(
    loaded: LoadedModel,
    store: SeriesStore,
    output: OutputFolder,
    folder: StateFolder,
    config: ForecastConfig,
    device: str,
) -> Iterator[ShardJob]:
    """The shards that have rows, in their order."""
    members: dict[int, list[int]] = {}
    for i, name in enumerate(store.names):
        members.setdefault(folder.shard_of(name), []).append(i)
    for shard, series in sorted(members.items()):
        yield ShardJob(
            model=str(loaded.path.resolve()),
            store=str(store.path.resolve()),
            out=str(output.path.resolve()),
            shard=shard,
            series=tuple(series),
            generation=folder.generation + 1,
            config=config,
            compare_rows=folder.compare_rows,
            calibration_window=folder.calibration_window,
            device=device,
            state=str(folder.file(shard).resolve()),
            before=folder.present(shard),
        )


def _commit(
    output: OutputFolder, folder: StateFolder, done: Sequence[ShardDone], store: SeriesStore, loaded: LoadedModel
) -> Forecasted:
    """The rejects table, the rename after which all of it has happened, and the manifest for readers.

    After a reread a model may say again what it said before: then the new forecasts count, and the old ones do not.
    """
    result = Forecasted(output.path)
    earlier = {name for path in folder.dropped for name in Shard.names_in(path)}
    for one in done:
        result.series += one.series
        result.rows += one.rows
        result.repeated += one.repeated
        result.unseen += one.unseen
        result.files += [written.file for written in one.files]
        result.paths += [written.file for written in one.paths]
    rejects = [reject for one in done for reject in one.rejects]
    result.rejects = _by_reason(rejects)
    replaces: list[str] = []
    changed = {one.shard: one.state for one in done if one.state is not None}
    named = output.write_rejects(rejects, folder.generation + bool(changed))
    if changed:
        lists = {key: [file for one in done for file in getattr(one, key)] for key in ("files", "paths")}
        for key, files in lists.items():
            gone, rest = output.superseded(key, files, loaded.hash[:16], folder)
            replaces += gone
            files += rest
        run = {
            "out": output.id,
            "folder": str(output.path.resolve()),  # a later run may be started elsewhere
            "source": store.source_name,
            "model": loaded.hash[:16],
            "series": result.series,
            "rows": result.rows,
            "forecasts": [file._asdict() for file in lists["files"]],
            "paths": [file._asdict() for file in lists["paths"]],
            "replaces": replaces,
        }
        folder.commit(changed, run, output.is_listed)
        result.forgotten = sorted(earlier - set(store.names))
    output.record(folder, named)
    for file in replaces:
        (output.path / file).unlink(missing_ok=True)  # after a kill before this, the next run does it
    return result


def _by_reason(rejects: Sequence[Reject]) -> dict[str, int]:
    """How many there are of each reason, with the names of the first."""
    found: dict[str, list[str]] = {}
    for reject in sorted(rejects):
        found.setdefault(reject.reason, []).append(" ".join(filter(None, (reject.series, reject.detail))))
    return {
        f"{reason} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})": len(names)
        for reason, names in found.items()
    }
