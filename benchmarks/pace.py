"""How long a step of training takes, to fit a recipe's schedule to a given time."""

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

from domains.audio.config import TrainConfig
from domains.audio.train import train
from domains.audio.windows import rows_per_batch

_STEPS = 24


def seconds_a_step(config: TrainConfig, folder: Path) -> float:
    """The median time of the later steps of a short training, which is thrown away; validation does not count.

    Args:
        config: of the training.
        folder: for its run; made and removed.
    """
    trainer = replace(
        config.trainer,
        max_steps=_STEPS,
        max_minutes=None,
        log_every=_STEPS // 4,
        validate_every=_STEPS,
        checkpoint_every=_STEPS,
        health_every=2 * _STEPS,
    )
    data = replace(config.data, validation_tokens=1)
    train(replace(config, data=data, trainer=trainer), folder, overwrite=True, progress=False)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    speeds = [row["train/samples_per_second"] for row in rows if row.get("train/samples_per_second")]
    return samples_a_step(config) / statistics.median(speeds[len(speeds) // 2 :])


def samples_a_step(config: TrainConfig) -> int:
    """Samples of an optimizer step of a generator."""
    return rows_per_batch(config.data) * config.data.window * config.trainer.accumulate


def fitted(config: TrainConfig, steps: int) -> TrainConfig:
    """The recipe with so many steps; it is looked at as often as it was meant to be."""
    share = steps / config.trainer.max_steps
    often = {
        name: max(1, round(getattr(config.trainer, name) * share)) for name in ("validate_every", "checkpoint_every")
    }
    return replace(config, trainer=replace(config.trainer, max_steps=steps, max_minutes=None, **often))
