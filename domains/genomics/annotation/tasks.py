"""What annotation models learn: the class of a window, the class of every base."""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from domains.config import TrainerConfig
from domains.genomics.annotation.metrics import roc_auc
from domains.genomics.annotation.models import Annotator, Segmenter, WindowClassifier
from domains.genomics.data import IGNORE
from domains.task import Score, Task, scan_flops
from mamba_core import CausalLM


class _AnnotationTask(Task):
    """What both tasks share: what they cost, and bases as their unit.

    Batches hold ``inputs`` int64 (b, l).
    """

    unit: ClassVar[str] = "bases"
    monitor: ClassVar[str] = "validation/loss"

    def __init__(self, model: Annotator, config: TrainerConfig) -> None:
        super().__init__(model, config)
        trunk = model.encoder.trunk
        mixing = sum(parameter.numel() for parameter in trunk.backbone.parameters())
        scan = scan_flops(trunk) if isinstance(trunk, CausalLM) else 0.0
        passes = 1 if model.encoder.freeze else 3  # forward, and a backward of twice its cost
        self._flops = 2 * passes * (2.0 * mixing + scan)  # both strands

    def size(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        return batch["inputs"].numel(), batch["inputs"].shape[1]

    def flops_per_unit(self) -> float:
        """Of both strands: 2 for each parameter of the backbone and pass, and the recurrence; heads are not counted."""
        return self._flops


class ClassifyTask(_AnnotationTask):
    """Binary cross-entropy, in nats a window.

    Batches: ``inputs`` int64 (b, l), ``labels`` float32 (b,), 1 or 0, and ``weights`` float32 (b,).
    """

    model: WindowClassifier

    def __init__(self, model: WindowClassifier, config: TrainerConfig) -> None:
        super().__init__(model, config)
        self._seen: list[tuple[Tensor, Tensor]] = []  # logits and labels of the validation that is going on

    def score(self, batch: dict[str, Tensor], *, training: bool) -> Score:
        logits = self.model(batch["inputs"])
        nats = F.binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none")
        if not training:
            real = batch["weights"] > 0
            self._seen.append((logits[real].detach(), batch["labels"][real]))
        return Score((nats * batch["weights"]).sum(), batch["weights"].sum())

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._seen = []

    def describe(self, loss: float, stage: str) -> dict[str, float]:
        found = {f"{stage}/loss": loss, f"{stage}/bits_per_window": loss / math.log(2)}
        if stage == "validation" and self._seen and self.processes.count == 1:
            logits, labels = (torch.cat(parts).cpu().numpy() for parts in zip(*self._seen, strict=True))
            found[f"{stage}/auc"] = roc_auc(labels, logits)
        return found


class SegmentTask(_AnnotationTask):
    """Cross-entropy of the class of each base and binary cross-entropies of its sites, added up, in nats a base.

    Batches: ``inputs`` int64 (b, l), ``classes`` int64 (b, l) with IGNORE where nothing is known, ``sites`` uint8
    (b, l) with a bit for each kind of site.
    """

    model: Segmenter

    def __init__(self, model: Segmenter, config: TrainerConfig) -> None:
        super().__init__(model, config)
        self._confusion = np.zeros((model.classes, model.classes), dtype=np.int64)  # of the validation going on

    def score(self, batch: dict[str, Tensor], *, training: bool) -> Score:
        found = self.model(batch["inputs"])
        known = batch["classes"] != IGNORE
        nats = F.cross_entropy(found.classes.mT, batch["classes"], ignore_index=IGNORE, reduction="none")
        bits = torch.arange(found.sites.shape[-1], device=known.device)
        sites = (batch["sites"][..., None] >> bits & 1).to(found.sites.dtype)
        nats = nats + F.binary_cross_entropy_with_logits(found.sites, sites, reduction="none").sum(-1)
        if not training:
            pairs = batch["classes"][known] * self.model.classes + found.classes.argmax(-1)[known]
            counts = torch.bincount(pairs, minlength=self.model.classes**2)
            self._confusion += counts.view(self.model.classes, -1).cpu().numpy()
        return Score((nats * known).sum(), known.sum().to(nats.dtype))

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._confusion[:] = 0

    def describe(self, loss: float, stage: str) -> dict[str, float]:
        found = {f"{stage}/loss": loss}
        if stage == "validation" and self._confusion.any() and self.processes.count == 1:
            hits, both = self._confusion[1, 1], self._confusion[1].sum() + self._confusion[:, 1].sum()
            found[f"{stage}/cds_f1"] = 2.0 * float(hits) / max(float(both), 1.0)
        return found
