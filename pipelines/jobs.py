"""What the jobs of every domain do alike around their work: folders, recording, resuming."""

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from domains.checkpoint import Terminated
from domains.errors import UserError
from domains.files import atomic_file
from domains.folder import RunFolder, read_json, write_json
from domains.runlog import read_metrics
from pipelines.cli import INTERRUPTED, TERMINATED, Invocation, Stopped
from pipelines.config import RunConfig, TrackingConfig
from pipelines.places import ModelPlace
from pipelines.recorder import ModelCard, Recorder, recorder
from pipelines.tracking import DOMAIN_TAG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE, DETAILS, METRICS = "table.txt", "evaluation.json", "metrics.json"  # in an evaluation's folder
Result = TypeVar("Result")

Draw = Callable[[Sequence[Mapping[str, Any]]], "Figure"]  # rows of metrics.jsonl -> plot


def _no_extras(run_dir: Path) -> Mapping[str, Sequence[Path]]:
    return {}


@dataclass(frozen=True)
class Report:
    """What a domain's training runs leave in MLflow beside what every run does.

    Attributes:
        card: how the model folder loads there.
        draw: the plot of the training curve.
        extras: what a run folder holds beside what every run does, by the folder that MLflow is to keep it in.
    """

    card: ModelCard
    draw: Draw
    extras: Callable[[Path], Mapping[str, Sequence[Path]]] = _no_extras


def new_run_dir(run: RunConfig, invocation: Invocation) -> Path:
    """The folder that ``run.dir`` names; without one, a name that is not taken.

    Raises:
        UserError: a run stands there and is not to be replaced.
    """
    if run.dir is not None:
        if (Path(run.dir) / "run.json").exists() and not run.overwrite:
            raise UserError(
                f"{run.dir}: holds a run already; give resume={run.dir} to go on with it, run.overwrite=true to "
                "replace it, or another run.dir"
            )
        return Path(run.dir)
    if invocation.sweep_dir is not None:
        return invocation.sweep_dir
    stem = f"runs/{invocation.domain.name}-{datetime.now():%Y%m%d-%H%M%S}"
    candidates = (Path(stem if i == 1 else f"{stem}-{i}") for i in range(1, sys.maxsize))
    return next(path for path in candidates if not path.exists())


def check_resume(overrides: Iterable[str], free: Iterable[str]) -> list[str]:
    """The keys that the user set anew for a resumed run.

    Args:
        overrides: as typed.
        free: keys that change no number of the run.

    Raises:
        UserError: a key that would.
    """
    free = set(free)
    keys = [text.partition("=")[0].lstrip("+~") for text in overrides]
    keys = [key for key in keys if key != "resume" and key.split(".")[0] != "tracking"]
    if fixed := [key for key in keys if key not in free]:
        raise UserError(
            f"resume goes on with the settings of its run; leave out {', '.join(fixed)} "
            f"(may be given: tracking.*, {', '.join(sorted(free))}), or start a new run"
        )
    return keys


def check_domain(invocation: Invocation, run_dir: Path) -> None:
    """Make sure that a run folder is one of this domain's, before its settings are read as such."""
    domain = RunFolder.open(run_dir).info().get("domain")
    if domain != invocation.domain.name:
        word = invocation.command.word
        raise UserError(f"{run_dir}: is a run of {domain!r}; give it to python -m pipelines.{domain} {word}")


def run_training(
    invocation: Invocation, recorder: Recorder, run_dir: Path, report: Report, work: Callable[[], Result]
) -> Result:
    """Do ``work``, which trains into ``run_dir``, and leave the whole of it in MLflow.

    Raises:
        Stopped: told to by SIGTERM or Ctrl-C, with a checkpoint to go on from.
    """
    go_on = f"go on with: {invocation.next(f'train resume={run_dir}')}"
    again = invocation.next(f"import-run run={run_dir}")
    status = "FAILED"
    try:
        result = work()
        status = "FINISHED"
        with tolerant(again):
            record_run(recorder, run_dir, report)
        return result
    except Terminated as stop:
        status = "KILLED"
        raise Stopped(f"{stop}; {go_on}", TERMINATED) from stop
    except KeyboardInterrupt as stop:
        status = "KILLED"
        if not RunFolder(run_dir).info_path.exists():  # nothing was begun
            raise
        raise Stopped(f"stopped by Ctrl-C; {go_on}", INTERRUPTED) from stop
    finally:
        with tolerant(again):
            recorder.end(status)


def follow_training(work: Callable[[], object]) -> None:
    """Do ``work``, which trains together with the process that records the run.

    Raises:
        Stopped: that was told to stop, or this.
    """
    try:
        work()
    except Terminated as stop:
        raise Stopped(str(stop), TERMINATED) from stop


def record_run(recorder: Recorder, run_dir: Path, report: Report) -> None:
    """Send what a run folder holds: measurements that MLflow lacks, the record, the plot, the model, the evaluation."""
    from pipelines.plots import save_figure

    run = RunFolder(run_dir)
    rows = read_metrics(run.metrics_path)
    recorder.catch_up(rows)
    recorder.files([run.config_path, run.info_path, run.splits_path, run.metrics_path])
    if rows:
        recorder.files([save_figure(report.draw(rows), run_dir / "plots" / "loss.png")], "plots")
    if (run.model / "data.json").exists():
        recorder.files([run.model / "data.json"])
        recorder.model(run.model, report.card)
    if (run_dir / "evaluation" / METRICS).exists():
        record_evaluation(recorder, run_dir / "evaluation")
    for into, paths in report.extras(run_dir).items():
        recorder.files(paths, into)


def write_evaluation(
    folder: Path, table: str, details: Mapping[str, Any], metrics: Mapping[str, float], plots: Mapping[str, "Figure"]
) -> None:
    """Write table.txt, evaluation.json, a PNG for each plot, and last metrics.json; other files there stay."""
    from pipelines.plots import save_figure

    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / TABLE) as file:
        file.write(f"{table.rstrip()}\n".encode())
    write_json(folder / DETAILS, details)
    for name, figure in plots.items():
        save_figure(figure, folder / f"{name}.png")
    write_json(folder / METRICS, metrics)


def record_evaluation(recorder: Recorder, folder: Path) -> None:
    """Send an evaluation's folder."""
    recorder.results(read_json(folder / METRICS))
    recorder.files([folder / name for name in (TABLE, DETAILS, METRICS)], "evaluation")
    recorder.files(sorted(folder.glob("*.png")), "plots")


def track_evaluation(invocation: Invocation, tracking: TrackingConfig, place: ModelPlace, folder: Path) -> Recorder:
    """Add an evaluation to the MLflow run of its model; a model without one gets a run for this evaluation."""
    return track_results(invocation, tracking, place, folder, partial(_send_evaluation, folder))


def track_results(
    invocation: Invocation,
    tracking: TrackingConfig,
    place: ModelPlace,
    folder: Path,
    send: Callable[[Recorder], None],
) -> Recorder:
    """Add results to the MLflow run of the model that they were got with; a model without one gets a run for them.

    Args:
        invocation: what the user typed.
        tracking: where to record.
        place: the model.
        folder: of the results; a run of their own is linked there.
        send: hands the results to the recorder.
    """
    known = place.run_id is not None
    listener = recorder(tracking, invocation.domain.name, place.evaluation.parent if known else folder, continues=known)
    with tolerant(invocation.line):
        if place.run_id is not None and listener.attach(place.run_id):
            send(listener)
            return listener
        listener.begin({"model": str(place.folder)}, {DOMAIN_TAG: invocation.domain.name})
        send(listener)
        listener.end("FINISHED")
    return listener


def _send_evaluation(folder: Path, listener: Recorder) -> None:
    record_evaluation(listener, folder)


def track_files(
    invocation: Invocation, tracking: TrackingConfig, place: ModelPlace, files: Sequence[Path], into: str
) -> Recorder:
    """Add files to the MLflow run of a model; nothing where it has none."""
    if place.run_id is None:
        return Recorder()
    listener = recorder(tracking, invocation.domain.name, place.evaluation.parent, continues=True)
    with tolerant(invocation.line):
        if not listener.attach(place.run_id):
            return Recorder()
        listener.files(files, into)
    return listener


def import_folder(
    invocation: Invocation, tracking: TrackingConfig, run_dir: Path, settings: Mapping[str, Any], report: Report
) -> Recorder:
    """Record a run folder as it stands; the MLflow run gets the times and the status of the run folder.

    Raises:
        UserError: tracking is off or out of reach.
    """
    info = RunFolder.open(run_dir).info()
    if not tracking.enabled:
        raise UserError("import-run records in MLflow, so tracking.enabled=false leaves nothing to do; leave it out")
    quiet = replace(tracking, system_metrics=False)  # of this machine: no business of that run
    listener = recorder(quiet, invocation.domain.name, run_dir, continues=True)
    listener.check()
    listener.begin(settings, tags(invocation.domain.name, run_dir), started=_seconds(info.get("started")))
    record_run(listener, run_dir, report)
    status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}.get(info.get("status", ""), "RUNNING")
    listener.end(status, _seconds(info.get("ended")))
    return listener


def tags(domain: str, run_dir: Path) -> dict[str, str]:
    """What MLflow's table of runs shows of a run beside its numbers."""
    info = RunFolder(run_dir).info()
    session = (info.get("sessions") or [{}])[0]
    hardware = session.get("hardware", {})
    found = {
        DOMAIN_TAG: domain,
        "serpentine.command": session.get("command"),
        "serpentine.commit": session.get("git_commit"),
        "serpentine.device": hardware.get("gpu") or hardware.get("cpu"),
    }
    return {key: str(value) for key, value in found.items() if value}


@contextmanager
def tolerant(remedy: str) -> Iterator[None]:
    """Warn when MLflow does not take something: it is on disk. ``remedy`` is the command to try again with."""
    try:
        yield
    except (UserError, OSError) as error:
        reason = textwrap.shorten(str(error), 240, placeholder=" ...")
        print(f"warning: MLflow did not take everything ({reason}); try again with: {remedy}", file=sys.stderr)


def _seconds(moment: str | None) -> float | None:
    """ISO 8601 as seconds since 1970."""
    return datetime.fromisoformat(moment).timestamp() if moment else None
