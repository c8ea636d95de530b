"""The training tasks on sound: predict each sample from those before it, or name a whole clip."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from domains.audio.config import TrainConfig
from domains.audio.models.classifier import WaveClassifier
from domains.audio.models.costs import Model, flops_per_sample
from domains.audio.models.generator import Generator
from domains.audio.models.spectrogram import SpectrogramClassifier
from domains.audio.windows import IGNORE
from domains.config import TrainerConfig
from domains.task import Score, Task
from mamba_core import State


class GenerateTask(Task):
    """Next-sample prediction over mu-law levels, in nats for the optimizer and bits per sample for people.

    Batches as :func:`domains.audio.windows.make_windows` makes them.
    """

    unit: ClassVar[str] = "samples"
    monitor: ClassVar[str] = "validation/bits_per_sample"

    def __init__(self, model: Generator, config: TrainerConfig) -> None:
        super().__init__(model, config)
        self._flops = flops_per_sample(model)

    def score(self, batch: dict[str, Tensor], *, training: bool) -> Score:
        return self.score_segment(batch, None, training=training)[0]

    def score_segment(self, batch: dict[str, Tensor], state: State | None, *, training: bool) -> tuple[Score, State]:
        logits, state = self.model(batch["inputs"], state, seq_idx=batch.get("seq_idx"))
        targets = batch["targets"]
        nats = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        return Score(nats, (targets != IGNORE).sum().to(nats.dtype)), state

    def describe(self, loss: float, stage: str) -> dict[str, float]:
        return {f"{stage}/loss": loss, f"{stage}/bits_per_sample": loss / math.log(2)}

    def size(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        return batch["inputs"].numel(), batch["inputs"].shape[1]

    def flops_per_unit(self) -> float:
        """See :func:`domains.audio.models.costs.flops_per_sample`."""
        return self._flops


class ClassifyTask(Task):
    """Naming whole clips, of raw samples or of their spectrogram.

    Batches as :func:`domains.audio.data.make_clips` makes them. The loss is the cross entropy with ``targets``, which
    hold the classes' weights; of validation it is that of clips which weigh the same.

    Args:
        model: the classifier.
        config: the trainer's settings.
        label_smoothing: share of each target that is spread over all classes, in training.
        seed: of what dropout leaves out, which depends on the step alone, so that a resumed run draws the same.
    """

    unit: ClassVar[str] = "samples"
    monitor: ClassVar[str] = "validation/loss"

    def __init__(
        self,
        model: WaveClassifier | SpectrogramClassifier,
        config: TrainerConfig,
        label_smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(model, config)
        self._flops = flops_per_sample(model)
        self._label_smoothing = label_smoothing
        self._seed = seed
        self._hits: Tensor | int = 0
        self._clips = 0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, object]:
        drawn = self.trainer.global_step * self.config.accumulate + batch_idx % self.config.accumulate
        torch.manual_seed((self._seed + drawn) % 2**63)
        return super().training_step(batch, batch_idx)

    def score(self, batch: dict[str, Tensor], *, training: bool) -> Score:
        logits, _ = self.model(batch["inputs"], seq_idx=batch["seq_idx"])
        targets = batch["targets"]
        weight = targets.sum()
        if training:
            even = targets.sum(1, keepdim=True) / targets.shape[1]
            targets = torch.lerp(targets, even.expand_as(targets), self._label_smoothing)
        else:
            self._hits = self._hits + (logits.argmax(1) == batch["labels"]).sum()
            self._clips += len(logits)
        return Score(-(targets * logits.float().log_softmax(-1)).sum(), weight)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._hits = self._clips = 0

    def describe(self, loss: float, stage: str) -> dict[str, float]:
        found = {f"{stage}/loss": loss}
        if stage == "validation":
            found[f"{stage}/accuracy"] = float(self._hits) / max(self._clips, 1)
        return found

    def size(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        return batch["inputs"].numel(), batch["inputs"].shape[1]

    def flops_per_unit(self) -> float:
        """See :func:`domains.audio.models.costs.flops_per_sample`."""
        return self._flops


def make_task(model: Model, config: TrainConfig) -> Task:
    """The task of a model that :func:`domains.audio.trained.build_model` made."""
    if isinstance(model, Generator):
        return GenerateTask(model, config.trainer)
    return ClassifyTask(model, config.trainer, config.task.label_smoothing, config.seed)
