"""One session of a training run, whichever domain it is of: from settings to a model folder, and on after a stop.

A domain's ``train`` opens a session, makes data and model as its settings say, and hands them over::

    session = open_session("genomics", config, run_dir, resume=resume, overwrite=overwrite, free=FREE_ON_RESUME)
    ...
    return session.train(task, data, described, save_model, announce=lines, progress=progress)
"""

import argparse
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from domains.checkpoint import Terminated, newest_checkpoint
from domains.config import TrainerConfig, check_seed
from domains.errors import UserError
from domains.folder import RunFolder, read_json, write_json
from domains.hardware import choose_device, describe_hardware
from domains.launch import rank, signed
from domains.parallel import Share, share_of, take_gpu
from domains.runlog import truncate_metrics
from domains.settings import flatten, from_dict, read_yaml, to_dict, write_yaml
from domains.task import Task
from domains.trainer import Fitted, check_trainer, fit
from mamba_core.backbone import BackboneConfig

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)

# Writes a model folder: folder, weights, config, description of the data, metrics.
SaveModel = Callable[[Path, Mapping[str, Tensor], Any, Mapping[str, Any], Mapping[str, float]], None]


class TrainSettings(Protocol):
    """What the settings of every domain's training have in common; they are a dataclass."""

    backbone: BackboneConfig
    trainer: TrainerConfig
    seed: int


@dataclass(frozen=True)
class TrainResult:
    """Where a training run left its results.

    Attributes:
        run_dir: the run folder.
        model_dir: the model folder in it.
        metrics: the latest value of every metric, and the best validation under ``best/``.
        finished: False when ``trainer.max_minutes`` ended it before ``trainer.max_steps``; it can be resumed.
    """

    run_dir: Path
    model_dir: Path
    metrics: dict[str, float]
    finished: bool


@dataclass(frozen=True)
class Session:
    """A run folder that may be trained in, under checked settings. Made by :func:`open_session`.

    Attributes:
        domain: name of the domain.
        config: all settings of the run.
        run: the run folder; a new run's is not there yet, so that a mistake in the data leaves nothing behind.
        device: what the run trains on.
        resume: whether it goes on with an earlier run.
        overwrite: whether a new run replaces an earlier one.
        share: the part of every batch that this process works on; the first process alone writes to the folder.
    """

    domain: str
    config: TrainSettings
    run: RunFolder
    device: torch.device
    resume: bool
    overwrite: bool
    share: Share

    @property
    def begun(self) -> bool:
        """Whether a resumed run has a checkpoint, and so needs nothing of what its weights started from."""
        return self.resume and newest_checkpoint(self.run.checkpoints) is not None

    def recorded_data(self, fingerprint: str, source: str, noun: str) -> dict[str, Any]:
        """The description of its data that a resumed run began with.

        Args:
            fingerprint: of the data that is to be trained on now.
            source: its name, for people.
            noun: what such data is called: ``genome``.

        Raises:
            UserError: the run began with other data.
        """
        recorded = read_json(self.run.splits_path)
        if recorded.get("fingerprint") != fingerprint:
            raise UserError(
                f"{source}: is not the {noun} that this run began with ({recorded.get('source')}); "
                f"resume with that {noun}, or start a new run"
            )
        return recorded

    def train(
        self,
        task: Task,
        data: LightningDataModule,
        described: Mapping[str, Any],
        save: SaveModel,
        *,
        announce: Sequence[str] = (),
        loggers: Sequence[Logger] = (),
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
        command: str | None = None,
    ) -> TrainResult:
        """Train, from the newest readable checkpoint of a resumed run, and write the model folder.

        Args:
            task: holds the model at step 0.
            data: starts its training batches at the trainer's step, as domains.batches.BatchesDataModule does.
            described: the data and its parts, for splits.json and the model folder's data.json: plain values, among
                them ``fingerprint`` and ``source``.
            save: writes the model folder.
            announce: lines about the data, told on standard error before training begins.
            loggers: get every row that goes into metrics.jsonl, with the number of optimizer steps done.
            callbacks: further Lightning callbacks.
            progress: say what is done, with bars, on standard error.
            command: the command line, for run.json.

        Raises:
            UserError: someone else is at work in the folder, a loss is not finite, or the model cannot be shared by
                processes.
            Terminated: SIGTERM came; a checkpoint holds all the work.
            KeyboardInterrupt: Ctrl-C; a checkpoint holds all the work once training has begun.
        """
        run, config = self.run, self.config
        assert self.share.processes == 1 or getattr(data, "share", None) == self.share, "data is not shared"
        self.share.check_model(task.model)
        if not self.share.first:
            return self._follow(task, data)
        if not self.resume:
            run.create(overwrite=self.overwrite)
            write_yaml(run.config_path, to_dict(config))
            write_json(run.splits_path, described)
        if progress:
            print(*announce, _describe_model(task.model, config.backbone, self.device), sep="\n", file=sys.stderr)
        with run.locked():
            checkpoint, step = newest_checkpoint(run.checkpoints) or (None, 0)
            truncate_metrics(run.metrics_path, step)
            hardware = describe_hardware(self.device, config.trainer.threads)
            run.begin(self.domain, command=command, hardware=hardware, from_step=step)
            with _recorded_end(run):
                fitted = fit(
                    task, data, run, resume_from=checkpoint, loggers=loggers, callbacks=callbacks, progress=progress
                )
                save(run.model, fitted.weights, config, described, _reached(fitted))
            run.end("finished" if fitted.finished else "stopped", fitted.step)
        return TrainResult(run.path, run.model, fitted.metrics, fitted.finished)

    def _follow(self, task: Task, data: LightningDataModule) -> TrainResult:
        """Train with the first process, which writes down what comes of it. A new run has no checkpoint: one that
        stands there is of the run that the first process is about to remove."""
        found = newest_checkpoint(self.run.checkpoints) if self.resume else None
        fitted = fit(task, data, self.run, resume_from=found and found[0], progress=False)
        return TrainResult(self.run.path, self.run.model, fitted.metrics, fitted.finished)


def open_session(
    domain: str,
    config: TrainSettings,
    run_dir: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    free: Collection[str],
    one_device: bool = False,
) -> Session:
    """Check what can be checked before data is opened: the settings that all domains share, and the run folder.

    Args:
        domain: name of the domain.
        config: all settings; those of a resumed run must be its own, but for ``free``.
        run_dir: folder of the run; made by :meth:`Session.train` when missing.
        resume: go on with the run that stands there.
        overwrite: remove the run that stands there when training begins.
        free: dotted keys that a resumed run may be told anew: those of domains.config.FREE_TRAINER_KEYS, and the
            domain's own that say where data is.
        one_device: the domain's batches cannot be shared by processes.

    Raises:
        UserError: a setting makes no sense or is not the resumed run's; the folder is not free, or no run folder;
            torchrun started another number of processes.
    """
    check_seed(config.seed)
    check_trainer(config.trainer)
    if one_device and config.trainer.devices > 1:
        raise UserError(f"trainer.devices={config.trainer.devices}: {domain} trains on one device")
    device, share = choose_device(config.trainer.accelerator), share_of(config.trainer)
    if share.processes > 1 and device.type == "cuda":
        take_gpu()
    if resume:
        run = RunFolder.open(run_dir)
        _check_same(config, run, free)
    else:
        run = RunFolder(run_dir)
        if share.first:
            run.check_free(overwrite=overwrite)
    return Session(domain, config, run, device, resume, overwrite, share)


def run_config(run_dir: Path | str, config_class: type[Config]) -> Config:
    """The settings of an existing run; a UserError when ``run_dir`` is no run folder."""
    path = RunFolder.open(run_dir).config_path
    return from_dict(config_class, read_yaml(path), where=str(path))


def seeded(build: Callable[[], Model], seed: int) -> Model:
    """The model that ``build`` makes at step 0: decided by ``seed``, whatever random numbers were drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _check_same(config: TrainSettings, run: RunFolder, free: Collection[str]) -> None:
    """Make sure that a resumed run keeps the settings that decide its numbers."""
    recorded, given = flatten(to_dict(run_config(run.path, type(config)))), flatten(to_dict(config))
    for key, value in given.items():
        if key not in free and recorded.get(key) != value:
            raise UserError(
                f"{run.config_path}: {key} is {recorded.get(key)!r} in this run and {value!r} now; resume with the "
                "run's own settings, or start a new run"
            )


def _reached(fitted: Fitted) -> dict[str, float]:
    """What metrics.json of the model folder holds."""
    measured = {name: value for name, value in fitted.metrics.items() if not name.startswith("health/")}
    return measured | {"step": float(fitted.step), "weights_step": float(fitted.weights_step)}


@contextmanager
def _recorded_end(run: RunFolder) -> Iterator[None]:
    """Write to run.json how a session ends when it does not end well."""
    try:
        yield
    except Terminated as stop:
        run.end("stopped", stop.step)
        if stop.signum == signal.SIGINT:
            raise KeyboardInterrupt(str(stop)) from stop
        raise
    except BaseException:
        run.end("failed")
        raise


def _describe_model(model: nn.Module, backbone: BackboneConfig, device: torch.device) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"model: {backbone.n_layers} layers ({', '.join(backbone.pattern)}) of width {backbone.d_model}, "
        f"{parameters:,} parameters, on {device.type}"
    )


def command_line(
    domain: str,
    config_class: type[TrainSettings],
    train: Callable[..., TrainResult],
    about: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """``python -m domains.<domain>.train``: training where there is neither Hydra nor MLflow.

    Args:
        domain: name of the domain.
        config_class: dataclass of its settings.
        train: called as ``train(config, run_dir, resume=, overwrite=, progress=, command=)``.
        about: one line for ``--help``.
        arguments: None takes those of the process.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM.
    """
    program = f"python -m domains.{domain}.train"
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser(program, about, config_class.__name__).parse_args(words)
    try:
        if options.resume and not options.config:
            config = run_config(options.run_dir, config_class)
        else:
            config = from_dict(config_class, read_yaml(options.config) if options.config else {}, str(options.config))
        result = train(
            config,
            options.run_dir,
            resume=options.resume,
            overwrite=options.overwrite,
            progress=not options.no_progress and rank() == 0,
            command=" ".join([program, *words]),
        )
    except UserError as error:
        if options.debug:
            raise
        print(signed(f"error: {error}"), file=sys.stderr)
        return 2
    except Terminated as stop:
        print(signed(f"{stop}; go on with --resume"), file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt as stop:
        print(signed(f"{stop}; go on with --resume"), file=sys.stderr)
        return 128 + signal.SIGINT
    if rank() == 0:
        print(f"model: {result.model_dir}")
    return 0


def _parser(program: str, about: str, settings: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--config", type=Path, help=f"YAML file with any of the settings of {settings}")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run-dir (needs no --config)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --run-dir")
    parser.add_argument("--no-progress", action="store_true", help="say nothing while working")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
    return parser
