"""The tasks of pre-training on DNA: predict each base from all before it, or those that are hidden from all others."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from domains.config import TrainerConfig
from domains.genomics.data import IGNORE
from domains.genomics.tokens import BASES
from domains.task import Score, Task, scan_flops
from mamba_core import CausalLM, MaskedLM, State


def base_log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities of A, C, G, T: (..., vocab_size) any floating dtype -> (..., 4) float32, in nats.

    Over the four bases alone: a model owes no probability to tokens that never are the answer.
    """
    return torch.log_softmax(logits[..., BASES].float(), dim=-1)


class BaseTask(Task):
    """Prediction of bases, in nats for the optimizer and bits per base for people.

    Batches: ``inputs`` int64 (b, l), ``targets`` int64 (b, l) of bases and IGNORE, ``weights`` float32 (b, l).
    """

    unit: ClassVar[str] = "bases"
    monitor: ClassVar[str] = "validation/bits_per_base"

    def describe(self, loss: float, stage: str) -> dict[str, float]:
        return {f"{stage}/loss": loss, f"{stage}/bits_per_base": loss / math.log(2)}

    def size(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        return batch["inputs"].numel(), batch["inputs"].shape[1]


def true_log_probs(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Of (..., 4) log-probabilities those of the bases (...,) that stand there; NaN where none of A, C, G, T does."""
    known = (tokens >= BASES.start) & (tokens < BASES.stop)
    column = (tokens.long() - BASES.start).masked_fill(~known, 0)
    return log_probs.gather(-1, column[..., None]).squeeze(-1).masked_fill(~known, torch.nan)


class CausalTask(BaseTask):
    """Next-base prediction."""

    def __init__(self, model: CausalLM, config: TrainerConfig) -> None:
        super().__init__(model, config)
        mixing = sum(parameter.numel() for parameter in model.parameters()) - model.embedding.weight.numel()
        self._flops = 6.0 * mixing + 3.0 * scan_flops(model)

    def score(self, batch: dict[str, Tensor], *, training: bool) -> Score:
        """Negative log-likelihood of the known bases; each weighs ``weights`` in training, 1 in validation."""
        return self.score_segment(batch, None, training=training)[0]

    def score_segment(self, batch: dict[str, Tensor], state: State | None, *, training: bool) -> tuple[Score, State]:
        logits, state = self.model(batch["inputs"], state)
        return score_bases(logits, batch, training=training), state

    def flops_per_unit(self) -> float:
        """6 for each parameter outside the embedding (2 forward, 4 backward), and three times the recurrence."""
        return self._flops


class MaskedTask(BaseTask):
    """Prediction of hidden bases; targets are IGNORE at all others (see :mod:`domains.genomics.masking`)."""

    def __init__(self, model: MaskedLM, config: TrainerConfig) -> None:
        super().__init__(model, config)
        mixing = sum(parameter.numel() for parameter in model.parameters()) - model.embedding.weight.numel()
        self._flops = (2 if model.symmetric else 1) * (6.0 * mixing + 3.0 * scan_flops(model.backbone))

    def score(self, batch: dict[str, Tensor], *, training: bool) -> Score:
        """Negative log-likelihood of the hidden bases; each weighs ``weights`` in training, 1 in validation."""
        return score_bases(self.model(batch["inputs"]), batch, training=training)

    def flops_per_unit(self) -> float:
        """As of the causal task; a symmetric model reads each base twice."""
        return self._flops


def score_bases(logits: Tensor, batch: dict[str, Tensor], *, training: bool) -> Score:
    """Negative log-likelihood of the targets, logits (b, l, vocab_size); of weight 1 in validation."""
    known = batch["targets"] != IGNORE
    bases = (batch["targets"] - BASES.start).clamp(min=0)
    nats = -base_log_probs(logits).gather(-1, bases[..., None]).squeeze(-1)  # (b, l)
    weights = batch["weights"] * known if training else known.to(nats.dtype)
    return Score((nats * weights).sum(), weights.sum())
