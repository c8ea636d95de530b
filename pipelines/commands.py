"""The commands that every domain has: train, its export to another machine, import-run, evaluate.

What is slow to import is imported where it is used, so that a mistake in the configuration is told at once.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from domains.errors import UserError
from domains.launch import rank
from domains.settings import to_dict, write_yaml
from pipelines.cli import Invocation, Outcome
from pipelines.config import ImportRunRoot, RunConfig, TrackingConfig, copy_key, load, narrow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.places import ModelPlace


@dataclass(frozen=True)
class Training:
    """How a domain trains.

    Attributes:
        config: dataclass of the settings; a root configuration has its fields and more.
        module: the module with the domain's ``train`` (see domains.session) and its FREE_ON_RESUME.
        report: "module:name" of the domain's :class:`pipelines.jobs.Report`.
        metric: the validation metric to tell when a run is done: ``validation/bits_per_base``.
        measure: what it is, after the number: ``bits per base``.
    """

    config: type
    module: str
    report: str
    metric: str
    measure: str


class TrainRoot(Protocol):
    """What the root configuration of every train command has beside the domain's settings."""

    tracking: TrackingConfig
    run: RunConfig
    resume: str | None


class EvaluateRoot(Protocol):
    """What every evaluate command can be told."""

    model: str
    out: str | None
    tracking: TrackingConfig


class Evaluation(Protocol):
    """What evaluating a model came to."""

    def table(self) -> str:
        """For people, the baselines beside the model."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""

    def metrics(self) -> dict[str, float]:
        """The numbers that MLflow is to show."""


Found = TypeVar("Found", bound=Evaluation)


def train_command(training: Training, root: TrainRoot, invocation: Invocation) -> Outcome:
    """A new run, or an interrupted one to its end; with ``run.export`` the settings of one."""
    from pipelines.jobs import follow_training, new_run_dir, run_training, tags
    from pipelines.live import Opening, Relay
    from pipelines.places import find_run
    from pipelines.recorder import recorder

    if root.run.export is not None:
        return _export(training, root, root.run.export, invocation)
    resume = root.resume is not None
    if root.resume is not None:
        run_dir = find_run(root.resume, root.tracking)
        config = _resumed_config(training, root, run_dir, invocation)
    else:
        run_dir = new_run_dir(root.run, invocation)
        config = narrow(training.config, root)
    work = partial(
        importlib.import_module(training.module).train,
        config,
        run_dir,
        resume=resume,
        overwrite=root.run.overwrite and not resume,
    )
    if rank() > 0:  # the first process records
        follow_training(partial(work, progress=False))
        return Outcome("")
    listener = recorder(root.tracking, invocation.domain.name, run_dir, continues=resume)
    listener.check()
    work = partial(
        work,
        loggers=[Relay(listener)],
        callbacks=[Opening(listener, to_dict(config), partial(tags, invocation.domain.name, run_dir))],
        command=invocation.line,
    )
    result = run_training(invocation, listener, run_dir, load(training.report), work)
    lines = [f"model: {result.model_dir}{_reached(training, result.metrics)}", *listener.where]
    onward = [invocation.next(f"evaluate model={result.model_dir}")]
    if not result.finished:
        lines.append(f"stopped by trainer.max_minutes={config.trainer.max_minutes:g}, before trainer.max_steps")
        onward.append(invocation.next(f"train resume={run_dir}"))
    return Outcome("\n".join(lines), (*onward, *listener.look))


def import_command(training: Training, root: ImportRunRoot, invocation: Invocation) -> Outcome:
    """A run folder into MLflow."""
    from domains.session import run_config
    from pipelines.jobs import check_domain, import_folder
    from pipelines.places import find_run

    run_dir = find_run(root.run, root.tracking)
    check_domain(invocation, run_dir)
    settings = to_dict(run_config(run_dir, training.config))
    listener = import_folder(invocation, root.tracking, run_dir, settings, load(training.report))
    onward = f"evaluate model={run_dir / 'model'}" if (run_dir / "model").is_dir() else f"train resume={run_dir}"
    return Outcome("\n".join([f"imported: {run_dir}", *listener.where]), (invocation.next(onward), *listener.look))


def evaluate_command(
    root: EvaluateRoot,
    invocation: Invocation,
    measure: Callable[["ModelPlace"], Found],
    draw: Callable[[Found], Mapping[str, "Figure"]],
    onward: Sequence[str],
    apart: Mapping[str, object] | None = None,
) -> Outcome:
    """A model beside its baselines: told, written, and added to the model's MLflow run.

    Args:
        root: the configuration.
        invocation: what the user typed.
        measure: evaluates the model there.
        draw: the plots, by file name without ending.
        onward: words of the domain's command line, to go on with.
        apart: settings whose evaluations stand beside each other, in folders with their values in the name.
    """
    from pipelines.jobs import track_evaluation, write_evaluation
    from pipelines.places import find_model, output_folder
    from pipelines.recorder import recorder

    place = find_model(root.model, root.tracking)
    given = "".join(f"-{name}-{value}" for name, value in (apart or {}).items() if value is not None)
    folder = output_folder(root.out or place.evaluation.with_name(place.evaluation.name + given))
    recorder(root.tracking, invocation.domain.name, place.evaluation.parent, continues=True).check()
    found = measure(place)
    print(found.table())
    write_evaluation(folder, found.table(), found.to_dict(), found.metrics(), draw(found))
    listener = track_evaluation(invocation, root.tracking, place, folder)
    lines = [f"evaluation: {folder}", *listener.where]
    return Outcome("\n".join(lines), (*map(invocation.next, onward), *listener.look))


def kind_of_run(invocation: Invocation, config: type, text: str, tracking: TrackingConfig) -> str:
    """The task of a run folder or an MLflow run; "" where there is none, or one of another domain: the command says so.

    Args:
        invocation: names the domain.
        config: dataclass of its settings, with ``task.kind``.
        text: what the user calls the run.
        tracking: where MLflow runs are looked up.
    """
    from domains.folder import RunFolder
    from domains.session import run_config
    from pipelines.places import find_run

    run_dir = find_run(text, tracking)
    if (run_dir / "config.yaml").exists() and RunFolder(run_dir).info().get("domain") == invocation.domain.name:
        return run_config(run_dir, config).task.kind
    return ""


def _export(training: Training, root: TrainRoot, path: str, invocation: Invocation) -> Outcome:
    """The settings of a run as a file for a machine that has PyTorch and Lightning but not Hydra, MLflow or polars."""
    from pipelines.places import output_file

    if root.resume is not None:
        raise UserError("run.export and resume do not go together; a run folder holds its settings in config.yaml")
    target = output_file(path)
    write_yaml(target, to_dict(narrow(training.config, root)))
    onward = (
        "copy it and the prepared store (data.store) to the other machine",
        f"python -m {training.module} --config {target} --run-dir <folder>",
        invocation.next("import-run run=<folder>"),
    )
    return Outcome(f"settings: {target}", onward)


def _resumed_config(training: Training, root: TrainRoot, run_dir: Path, invocation: Invocation) -> Any:
    """The settings of the run, with what the user sets anew."""
    from domains.session import run_config
    from pipelines.jobs import check_domain, check_resume

    check_domain(invocation, run_dir)
    config: Any = run_config(run_dir, training.config)
    for key in check_resume(invocation.overrides, importlib.import_module(training.module).FREE_ON_RESUME):
        copy_key(key, root, config)
    return config


def _reached(training: Training, metrics: Mapping[str, float]) -> str:
    reached = metrics.get(f"best/{training.metric}", metrics.get(training.metric))
    return "" if reached is None else f" ({reached:.4f} {training.measure} on validation)"
