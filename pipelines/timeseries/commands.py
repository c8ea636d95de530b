"""The time series commands: each takes its configuration and does its work through domains.timeseries.

What is slow to import is imported where it is used, so that a mistake in the configuration is told at once.
"""

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from domains.timeseries.config import DataConfig, EvaluateConfig, ForecastConfig, SourceConfig, TrainConfig
from pipelines.cli import Invocation, Outcome
from pipelines.commands import Training, evaluate_command, import_command, train_command
from pipelines.config import ImportRunRoot, narrow
from pipelines.timeseries.roots import EvaluateRoot, ForecastRoot, NewRows, PrepareRoot, TrainRoot, WhereConfig

if TYPE_CHECKING:
    from domains.timeseries.evaluate import Evaluation
    from domains.timeseries.store import SeriesStore
    from pipelines.places import ModelPlace

TRAINING = Training(
    config=TrainConfig,
    module="domains.timeseries.train",
    report="pipelines.timeseries.report:REPORT",
    metric="validation/loss",
    measure="loss",
)


def prepare(root: PrepareRoot, invocation: Invocation) -> Outcome:
    """A table into a store."""
    from domains.timeseries.store import open_store

    store = open_store(root.data)
    how = "found prepared already" if store.reused else "prepared"
    return Outcome(
        f"store: {store.path} ({how}; {store.summary()})", (invocation.next(f"train data.store={store.path}"),)
    )


def train(root: TrainRoot, invocation: Invocation) -> Outcome:
    """A new run, or an interrupted one to its end."""
    return train_command(TRAINING, root, invocation)


def evaluate(root: EvaluateRoot, invocation: Invocation) -> Outcome:
    """A model beside the baselines, on what was held out from it."""
    from domains.timeseries import evaluate as evaluation
    from pipelines.timeseries.report import draw_evaluation

    def measure(place: "ModelPlace") -> "Evaluation":
        store = _training_series(place, root.data)
        return evaluation.evaluate(place.folder, store, narrow(EvaluateConfig, root), device=root.device)

    onward = (f"forecast model={root.model} data.path=<new rows> out=forecasts/ state=states/",)
    return evaluate_command(root, invocation, measure, draw_evaluation, onward)


def forecast(root: ForecastRoot, invocation: Invocation) -> Outcome:
    """Forecasts behind the last row of every series."""
    from domains.timeseries import forecast as forecasting
    from domains.timeseries.store import prepare_store
    from domains.timeseries.trained import read_record
    from pipelines.places import find_model, output_folder

    place = find_model(root.model, root.tracking)
    out, states = output_folder(root.out), output_folder(root.state)
    record = read_record(place.folder)
    store = prepare_store(_new_rows(root.data, record.config.data))
    config = narrow(ForecastConfig, root)
    done = forecasting.forecast(place.folder, store, out, states, config, device=root.device)
    told = [f"{done.series:,} series, {done.rows:,} new rows"]
    told += [_nothing_new(root)] if done.repeated and not done.rows else []
    told += [f"{root.paths:,} paths of {root.path_steps:,} steps of each, in paths/"] if done.paths else []
    told += [f"{done.repeated:,} rows that were absorbed before"] if done.repeated else []
    told += [f"{done.unseen:,} series that the model was not trained on"] if done.unseen else []
    if done.forgotten:
        names = f"{', '.join(done.forgotten[:5])}{', ...' if len(done.forgotten) > 5 else ''}"
        told.append(f"{len(done.forgotten):,} series of the earlier states are not in the table: forgotten ({names})")
    told += [f"{count:,} series set aside: {reason}" for reason, count in sorted(done.rejects.items())]
    told += [f"{count:,} rows or series kept aside: {reason}" for reason, count in sorted(store.rejects.items())]
    lines = [f"forecasts: {done.out} ({told[0]})", *(f"  {line}" for line in told[1:])]
    return Outcome("\n".join(lines), (f"read the files that {done.out / 'manifest.json'} lists, with polars for one",))


def _nothing_new(root: ForecastRoot) -> str:
    """What it means that there were no new rows, also for what was asked for."""
    asked = [f"paths={root.paths}"] if root.paths else []
    asked += [f"calibrate={root.calibrate}"] if root.calibrate != ForecastConfig.calibrate else []
    line = "nothing new, so nothing was forecast or written"
    if asked:
        line += f": {' and '.join(asked)} will count when rows come (now: with new out and state folders)"
    return line


def import_run(root: ImportRunRoot, invocation: Invocation) -> Outcome:
    """A run folder into MLflow."""
    return import_command(TRAINING, root, invocation)


def _training_series(place: "ModelPlace", where: WhereConfig) -> "SeriesStore":
    """The series that a model was trained on: where the user says, where they were, or among the prepared ones here."""
    from domains.timeseries.store import SeriesStore, open_store
    from domains.timeseries.trained import read_record
    from pipelines.places import find_training_data

    trained = read_record(place.folder)
    if where.path or where.store:
        return open_store(replace(trained.config.data, path=where.path, store=where.store, stores=where.stores))
    return find_training_data(place, trained, where.stores, open_store, SeriesStore.open, key="data.path")


def _new_rows(given: NewRows, trained: DataConfig) -> SourceConfig:
    """The table of new rows, its columns as in training where the user does not say otherwise."""
    source = SourceConfig(**{entry.name: getattr(trained, entry.name) for entry in fields(SourceConfig)})
    said = {entry.name: getattr(given, entry.name) for entry in fields(NewRows)}
    # A few new rows need not move, and short series are told apart by the job itself: none is kept aside here.
    return replace(source, store="", min_rows=0, **{name: value for name, value in said.items() if value is not None})
