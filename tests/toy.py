"""A domain as small as can be: a line fitted to numbers, with all that the shared training machinery asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from domains.batches import Batch, BatchesDataModule
from domains.config import FREE_TRAINER_KEYS, TrainerConfig
from domains.model_folder import model_files, write_model_folder
from domains.session import TrainResult, open_session, seeded
from domains.task import Score, Task
from mamba_core import BackboneConfig

FREE_ON_RESUME = FREE_TRAINER_KEYS | {"data.path"}
FILES = model_files("slope.txt")


@dataclass
class ToyData:
    path: str = ""
    slope: float = 2.0


@dataclass
class ToyConfig:
    data: ToyData = field(default_factory=ToyData)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0


def toy_config(**trainer: Any) -> ToyConfig:
    """Six steps on CPU with one thread, a validation and a checkpoint every two."""
    settings = TrainerConfig(
        max_steps=6, accumulate=2, accelerator="cpu", threads=1, log_every=1, validate_every=2, checkpoint_every=2
    )
    return ToyConfig(trainer=replace(settings, **trainer))


class ToyBatches:
    """Batch i: three points of the line, decided by i alone."""

    def __init__(self, slope: float, count: int) -> None:
        self.slope, self.count = slope, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.count:
            raise IndexError(index)
        x = torch.rand(3, 1, generator=torch.Generator().manual_seed(index))
        return {"x": x, "y": self.slope * x}


class ToyTask(Task):
    unit, monitor = "points", "validation/error"

    def score(self, batch: dict[str, Tensor], *, training: bool) -> Score:
        error = (self.model(batch["x"]) - batch["y"]).square()
        return Score(error.sum(), torch.tensor(float(error.numel())))

    def describe(self, loss: float, stage: str) -> dict[str, float]:
        return {f"{stage}/error": loss}

    def size(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        return 3, 1

    def flops_per_unit(self) -> float:
        return 6.0


def build_model() -> nn.Linear:
    return nn.Linear(1, 1)


def save_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: ToyConfig,
    data: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> None:
    own = {"slope.txt": lambda path: path.write_text(str(config.data.slope))}
    write_model_folder(folder, weights, config, data, metrics, own)


def train(
    config: ToyConfig, run_dir: Path | str, *, resume: bool = False, overwrite: bool = False, **options: Any
) -> TrainResult:
    """As a domain's train does it."""
    session = open_session(
        "toy", config, run_dir, resume=resume, overwrite=overwrite, free=FREE_ON_RESUME, one_device=True
    )
    fingerprint = f"slope {config.data.slope}"
    if resume:
        session.recorded_data(fingerprint, "line.txt", "line")
    total = config.trainer.max_steps * config.trainer.accumulate
    return session.train(
        ToyTask(seeded(build_model, config.seed), config.trainer),
        BatchesDataModule(
            ToyBatches(config.data.slope, total), ToyBatches(config.data.slope, 2), config.trainer.accumulate, 0
        ),
        {"source": "line.txt", "fingerprint": fingerprint, "parts": [1, 2]},
        save_model,
        announce=("line.txt: a line", "split by halves"),
        **options,
    )
