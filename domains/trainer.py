"""One Lightning Trainer for every domain, set up so that a run can be killed at any moment and goes on to the bit."""

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor

from domains.callbacks import Deadline, Metrics, ProgressBar
from domains.checkpoint import BestWeights, Checkpoints
from domains.config import MANY, OptimizerConfig, TrainerConfig, check_range
from domains.errors import UserError
from domains.folder import RunFolder
from domains.hardware import choose_device
from domains.parallel import joined, share_of
from domains.runlog import RunLog
from domains.task import Task
from mamba_core.segments import BORDER_STATES

deterministic: Any = torch.utils.deterministic  # its one attribute is declared in a way that mypy cannot see
_PRECISIONS = ("auto", "32-true", "bf16-mixed")


@dataclass(frozen=True)
class Fitted:
    """What training came to."""

    step: int  # optimizer steps done
    finished: bool  # whether that is all of them; otherwise the time was up
    weights: dict[str, Tensor]  # of the model, chosen by ``keep``, on the CPU
    weights_step: int  # the step that they come from
    metrics: dict[str, float]  # the latest of every metric, and those of the chosen weights under ``best/``


def check_trainer(config: TrainerConfig) -> None:
    """Make sure that the values make sense; a UserError names the first that does not."""
    for name in ("max_steps", "accumulate", "log_every", "health_every", "validate_every", "checkpoint_every"):
        check_range(f"trainer.{name}", getattr(config, name), 1, MANY)
    for name in ("devices", "context_parallel"):
        check_range(f"trainer.{name}", getattr(config, name), 1, MANY)
    check_range("trainer.gradient_clip", config.gradient_clip, 0)
    _check_segments(config)
    if config.keep not in ("best", "last"):
        raise UserError(f"trainer.keep={config.keep}: must be best or last")
    if config.precision not in _PRECISIONS:
        raise UserError(f"trainer.precision={config.precision}: must be one of {', '.join(_PRECISIONS)}")
    if config.max_minutes is not None and config.max_minutes <= 0:
        raise UserError(f"trainer.max_minutes={config.max_minutes}: must be more than 0, or left out")
    check_range("trainer.threads", config.threads, 0, os.cpu_count() or 1, "the processors of this machine")
    _check_optimizer(config.optimizer)


def _check_segments(config: TrainerConfig) -> None:
    for name in ("segment_length", "truncate_every"):
        if (value := getattr(config, name)) is not None:
            check_range(f"trainer.{name}", value, 1, MANY)
    if config.truncate_every is not None and config.segment_length is None:
        raise UserError(f"trainer.truncate_every={config.truncate_every}: needs trainer.segment_length")
    if config.border_states not in BORDER_STATES:
        raise UserError(f"trainer.border_states={config.border_states}: must be one of {', '.join(BORDER_STATES)}")


def _check_optimizer(config: OptimizerConfig) -> None:
    if not 0 < config.learning_rate < float("inf"):
        raise UserError(f"trainer.optimizer.learning_rate={config.learning_rate}: must be more than 0, and finite")
    check_range("trainer.optimizer.weight_decay", config.weight_decay, 0)
    if not all(0 <= beta < 1 for beta in config.betas):
        raise UserError(f"trainer.optimizer.betas={list(config.betas)}: both must be at least 0 and less than 1")
    for name in ("warmup_fraction", "final_fraction"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"trainer.optimizer.{name}={getattr(config, name)}: must lie between 0 and 1")


def fit(
    task: Task,
    data: LightningDataModule,
    run: RunFolder,
    *,
    resume_from: Path | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Fitted:
    """Train ``task`` on ``data`` as ``task.config`` says, from the beginning or from a checkpoint of the same run.

    The data module must start its training batches at ``trainer.global_step * accumulate``; with that, and
    deterministic operations, a run on CPU that was interrupted gives the numbers of one that was not.

    Of several processes (domains.parallel) each calls this, with its share of the data. The first writes the rows of
    metrics and the checkpoints; to resume, all must be able to read them.

    Raises:
        Terminated: SIGTERM or Ctrl-C came; the checkpoint is saved.
        KeyboardInterrupt: Ctrl-C came before the first step, or a second time.
        UserError: a loss or a weight is not finite, or a checkpoint cannot be written.
    """
    config = task.config
    device, share = choose_device(config.accelerator), share_of(config)
    metrics, best = Metrics(config.log_every, config.health_every), BestWeights(task.monitor)
    own: list[Callback] = [Deadline(config.max_steps, config.max_minutes), metrics]
    if progress:
        own.append(ProgressBar(metrics, {"loss": "train/loss", task.monitor: task.monitor}))
    if config.keep == "best":
        own.append(best)
    own.append(Checkpoints(run.checkpoints, metrics, config.checkpoint_every, config.validate_every))
    with (
        _quiet(),
        _numerics(device, config.threads),
        _plain_ctrl_c(),
        joined(share, task.model, device) as task.processes,
        torch.autograd.set_multithreading_enabled(False),  # one device: waking its thread costs more than short kernels
    ):
        trainer = Trainer(
            accelerator="cuda" if device.type == "cuda" else "cpu",
            devices=[torch.cuda.current_device()] if device.type == "cuda" else 1,
            precision=_precision(config, device),  # type: ignore[arg-type]
            max_steps=config.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=config.accumulate,
            val_check_interval=config.validate_every * config.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=[RunLog(run.metrics_path), *loggers] if share.first else False,
            callbacks=[*own, *callbacks],
            enable_progress_bar=False,  # ours counts steps, not batches of an epoch
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[LightningEnvironment()],  # else SLURM's would write and find checkpoints, and torchrun's use DDP
            default_root_dir=run.path,
        )
        trainer.fit(task, datamodule=data, ckpt_path=resume_from, weights_only=True)
    latest = metrics.latest
    if best.weights is None or best.score is None:
        last = {name: tensor.detach().cpu() for name, tensor in task.model.state_dict().items()}
        return Fitted(trainer.global_step, trainer.global_step >= config.max_steps, last, trainer.global_step, latest)
    chosen = {f"best/{task.monitor}": best.score, "best/step": float(best.step)}
    finished = trainer.global_step >= config.max_steps
    return Fitted(trainer.global_step, finished, best.weights, best.step, latest | chosen)


def _precision(config: TrainerConfig, device: torch.device) -> str:
    if config.precision != "auto":
        return config.precision
    return "bf16-mixed" if device.type == "cuda" else "32-true"


@contextmanager
def _numerics(device: torch.device, threads: int) -> Iterator[None]:
    """The number of CPU threads, and on CPU deterministic operations; as they were when the block ends.

    The random numbers of the process are left alone: Lightning and its data loaders draw some, training uses none.

    Filling fresh memory with NaN, which PyTorch does in this mode to expose reads before writes, costs time and changes
    no result, so it is off.
    """
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    matmul = torch.get_float32_matmul_precision()
    fill = deterministic.fill_uninitialized_memory
    try:
        if threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("high")  # TF32: the products that bf16 autocast leaves in float32
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True)
            deterministic.fill_uninitialized_memory = False
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.set_float32_matmul_precision(matmul)
        deterministic.fill_uninitialized_memory = fill


@contextmanager
def _plain_ctrl_c() -> Iterator[None]:
    """Ctrl-C as Python has it: Lightning makes it an exit with code 1, and may leave the signal ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from end


@contextmanager
def _quiet() -> Iterator[None]:
    """No advice from Lightning about devices, workers and its other products."""
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in logs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 uses what PyTorch 2.11 deprecates
        for log in logs:
            log.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
