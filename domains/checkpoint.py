"""Checkpoints of a run: written atomically, at steps that a resumed run can continue from to the bit.

A checkpoint is taken when a step is wholly done: gradients applied, metrics logged and, where the step has one, the
validation finished. So nothing of that step is left to repeat, and metrics.jsonl can be cut at that step.
"""

import logging
import os
import pickle
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from domains.callbacks import Metrics, step_is_done
from domains.errors import UserError
from domains.task import Task

_log = logging.getLogger(__name__)


class Terminated(Exception):
    """The run was told to stop by SIGTERM; a checkpoint holds all its work. A process then exits with code 143."""

    def __init__(self, step: int, signum: int = signal.SIGTERM) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}; the checkpoint is saved")
        self.step = step
        self.signum = signum


def find_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def newest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest checkpoint that can be read, and its step; None when there are no checkpoints.

    Only tensors and plain values are read (``weights_only``): a checkpoint cannot run code.

    Raises:
        UserError: there are checkpoints, and none can be read.
    """
    found = find_checkpoints(folder)
    for path in found:
        try:
            return path, int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            _log.warning("%s cannot be read (%s); trying the one before", path, " ".join(str(error).split())[:200])
    if found:
        raise UserError(f"{folder}: no checkpoint can be read; restore one, or start a new run")
    return None


class StopSignals:
    """Notes SIGTERM and SIGINT (Ctrl-C) instead of dying by them. A second signal of a kind has its usual effect."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over; nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._note)

    def restore(self) -> None:
        """Give the signals back to who had them."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


class Checkpoints(Checkpoint):
    """Saves every ``every`` steps, at the end, and when told to stop; keeps the newest two.

    Nothing is saved of a run that has diverged, so the checkpoints from before it did remain.

    A stop signal is obeyed at the end of the step under way, its validation included, by raising :class:`Terminated`.
    Of several processes the first saves, and all stop at the same step, whichever was told to.
    """

    def __init__(self, folder: Path, metrics: Metrics, every: int, validate_every: int, keep: int = 2) -> None:
        self._folder = folder
        self._metrics = metrics
        self._every = every
        self._validate_every = validate_every
        self._keep = keep
        self._signals = StopSignals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        self._signals.install()  # after Lightning's, whose handler would stop between the batches of one step
        if not pl_module.processes.first:
            return
        self._folder.mkdir(exist_ok=True)  # a run folder may have been copied without it
        for leftover in self._folder.glob(".step-*"):
            leftover.unlink()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        on_schedule = trainer.global_step % self._validate_every == 0
        validates = trainer.enable_validation and (trainer.should_stop or on_schedule)
        if step_is_done(trainer, batch_idx) and not validates:
            self._finish_step(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish_step(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._signals.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._signals.restore()

    def _finish_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        step, processes = trainer.global_step, pl_module.processes
        stopped_by = processes.largest(self._signals.received or 0)
        if step % self._every == 0 or trainer.should_stop or stopped_by:
            self._metrics.check_state(step, pl_module)
            if processes.first:
                self._save(trainer, step)
        if stopped_by:
            processes.largest(0)  # the others wait: the launcher might end the first with them
            raise Terminated(step, stopped_by)

    def _save(self, trainer: Trainer, step: int) -> None:
        path = self._folder / f"step-{step:08d}.ckpt"
        temporary = path.with_name(f".{path.name}")
        try:
            trainer.save_checkpoint(temporary, weights_only=False)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written ({error.strerror}); make room and resume the run") from error
        for old in find_checkpoints(self._folder)[self._keep :]:
            old.unlink()


class BestWeights(Checkpoint):
    """Keeps a copy of the model's weights from the validation with the lowest score, in memory and in checkpoints.

    Inside the checkpoint, so that a run killed between a validation and a checkpoint never holds weights from a future
    that the resumed run has yet to reach.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self.score: float | None = None
        self.step = 0
        self.weights: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        score = pl_module.validation[self._metric]
        if self.score is None or score < self.score:
            self.score, self.step = score, trainer.global_step
            weights = pl_module.model.state_dict()
            self.weights = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.step, self.weights = state_dict["score"], state_dict["step"], state_dict["weights"]
