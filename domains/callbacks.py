"""Lightning callbacks of every training run: what is measured, when it stops, what a person sees."""

import math
import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from tqdm import tqdm

from domains.errors import UserError
from domains.hardware import peak_flops
from domains.task import Task, attention_flops


def step_is_done(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a batch completes an optimizer step, seen from ``on_train_batch_end``."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class Deadline(Callback):
    """Asks for the end, by way of a last validation, after ``max_steps`` or after ``max_minutes`` of this session."""

    def __init__(self, max_steps: int, max_minutes: float | None) -> None:
        self._max_steps = max_steps
        self._seconds = math.inf if max_minutes is None else 60 * max_minutes
        self._started = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        if not step_is_done(trainer, batch_idx):
            return
        late = time.monotonic() - self._started > self._seconds
        if math.isfinite(self._seconds):
            late = bool(pl_module.processes.largest(late))  # clocks differ
        if late or trainer.global_step >= self._max_steps:
            trainer.should_stop = True


class Stopwatch:
    """Seconds spent training, without the validations between."""

    def __init__(self) -> None:
        self._spent = 0.0
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            self._spent += time.perf_counter() - self._since
            self._since = None

    def lap(self) -> float:
        """Seconds since the last lap."""
        self.stop()
        spent, self._spent = self._spent, 0.0
        self.start()
        return spent


class Metrics(Callback):
    """Sends loss, learning rate, gradient norm, throughput, state health and validation to every logger.

    Rows carry the number of optimizer steps done. The loss is the mean over all batches since the row before; what has
    been summed up towards the next row travels in checkpoints, so that a resumed run writes the same rows.

    A run that has diverged ends here, with a UserError: at a row, at a validation, or before a checkpoint is saved.
    """

    def __init__(self, log_every: int, health_every: int) -> None:
        self._log_every = log_every
        self._health_every = health_every
        self._total: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0
        self._units = 0  # since the start of training
        self._units_at_lap = 0
        self._watch = Stopwatch()
        self.latest: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"total": float(self._total), "weight": float(self._weight), "units": self._units, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._total, self._weight = state_dict["total"], state_dict["weight"]
        self._units = self._units_at_lap = state_dict["units"]
        self.latest = state_dict["latest"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        self._total = self._total + outputs["total"]
        self._weight = self._weight + outputs["weight"]
        self._units += outputs["units"]
        if not step_is_done(trainer, batch_idx):
            return
        row: dict[str, float] = {}
        if trainer.global_step % self._log_every == 0 or trainer.should_stop:
            row |= self._training_row(trainer, pl_module, outputs["length"])
        if trainer.global_step % self._health_every == 0:
            row |= {f"health/{name}": value for name, value in pl_module.health.items()}
        self._send(trainer, row)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _synchronize(pl_module.device)
        self._watch.stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        for name, value in pl_module.validation.items():
            _check_finite(name, value, trainer.global_step, pl_module)
        self._send(trainer, pl_module.validation)
        self._watch.start()

    def check_state(self, step: int, task: Task) -> None:
        """Make sure that neither the losses since the last row nor the weights hold a NaN or an infinity.

        Raises:
            UserError: they do, and a checkpoint of them would be worth nothing.
        """
        _check_finite("sum of the losses", float(self._total), step, task)
        _check_finite("norm of the weights", float(nn.utils.get_total_norm(task.model.parameters())), step, task)

    def _training_row(self, trainer: Trainer, task: Task, length: int) -> dict[str, float]:
        loss = float(self._total) / max(float(self._weight), 1e-6)  # waits for the device
        self._total = self._weight = 0.0
        _check_finite("loss", loss, trainer.global_step, task)
        speed = (self._units - self._units_at_lap) / max(self._watch.lap(), 1e-9)
        self._units_at_lap = self._units
        row = {
            **task.describe(loss, "train"),
            "train/learning_rate": task.learning_rate,
            "train/gradient_norm": float("nan") if task.gradient_norm is None else float(task.gradient_norm),
            "train/window": float(length),
            f"train/{task.unit}": float(self._units),
            f"train/{task.unit}_per_second": speed,
        }
        if peak := peak_flops(task.device):
            flops = task.flops_per_unit() + 3.0 * attention_flops(task.model, length)
            row["train/share_of_peak"] = speed * flops / (peak * task.processes.count)
        if task.device.type == "cuda":
            row["train/gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated(task.device))
        return row

    def _send(self, trainer: Trainer, row: dict[str, float]) -> None:
        self.latest |= row
        for logger in trainer.loggers if row else ():
            logger.log_metrics(row, step=trainer.global_step)


class ProgressBar(Callback):
    """One bar over the optimizer steps of the whole run, with the latest losses behind it."""

    def __init__(self, metrics: Metrics, shown: dict[str, str]) -> None:
        self._metrics = metrics
        self._shown = shown  # label -> metric
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        interval = 0.5 if sys.stderr.isatty() else 10.0  # a log file wants few lines
        self._bar = tqdm(
            total=trainer.max_steps, initial=trainer.global_step, desc="training", unit="step", mininterval=interval
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None and step_is_done(trainer, batch_idx):
            latest = self._metrics.latest
            postfix = {label: f"{latest[name]:.4f}" for label, name in self._shown.items() if name in latest}
            self._bar.set_postfix(postfix, refresh=False)
            self._bar.update()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _check_finite(what: str, value: float, step: int, task: Task) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"the {what} is {value} at step {step}; one likely cause is a learning rate that is too high "
            f"(trainer.optimizer.learning_rate={task.config.optimizer.learning_rate:g}), others are a short "
            "trainer.optimizer.warmup_fraction and a lax trainer.gradient_clip"
        )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
