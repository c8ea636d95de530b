"""What the training tasks of all domains share: a loss that is a weighted mean, its optimizer, and its measurements."""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from domains.config import TrainerConfig
from domains.errors import UserError
from domains.optim import make_optimizer
from domains.parallel import ALONE
from mamba_core.health import HealthProbe, gradient_norms
from mamba_core.mixers import Attention
from mamba_core.segments import check_streams, in_segments
from mamba_core.state import State


class Score(NamedTuple):
    """The loss of a batch in two sums, so that batches of unequal weight can be averaged exactly."""

    total: Tensor  # () float, weighted sum of the losses
    weight: Tensor  # () float, sum of the weights


class Task(LightningModule, ABC):
    """Trains a plain ``nn.Module`` to lower a weighted mean loss.

    A domain says how a batch is scored and what its numbers are called; optimizer, clipping, health and averaging are
    here. Batches are dictionaries. Training updates the weights with the mean over a batch; what is logged is the mean
    over all batches since the last row.

    Of several processes each scores its share of a batch; losses, gradients and what is logged are of all.

    With ``config.segment_length``, a batch of longer sequences is trained and validated on in segments, by a task that
    has :meth:`score_segment`: the same loss and gradient with the memory of one segment.

    Class attributes:
        unit: what throughput counts, in plural.
        monitor: validation metric, lower is better, that decides which weights are best.
    """

    unit: ClassVar[str]
    monitor: ClassVar[str]

    def __init__(self, model: nn.Module, config: TrainerConfig) -> None:
        super().__init__()
        if config.segment_length is not None:
            self._check_segments(model, config.segment_length)
        self.model = model
        self.config = config
        self.processes = ALONE
        self.gradient_norm: Tensor | None = None  # of the latest optimizer step, before clipping
        self.learning_rate = 0.0  # of the latest optimizer step
        self.health: dict[str, float] = {}  # of the latest probed step
        self.validation: dict[str, float] = {}  # of the latest validation
        self._validation_total: Tensor | float = 0.0
        self._validation_weight: Tensor | float = 0.0

    @abstractmethod
    def score(self, batch: dict[str, Tensor], *, training: bool) -> Score:
        """Loss of a batch; in validation without the weights that training gives to some positions."""

    def score_segment(self, batch: dict[str, Tensor], state: State | None, *, training: bool) -> tuple[Score, State]:
        """Loss of a stretch of a batch from the state before it (None: its beginning), and the state behind it.

        The tensors of the batch are (b, l, ...), all cut along l. The scores of the stretches add up to that of the
        batch, so whatever needs the whole sequence belongs into the batch.
        """
        raise NotImplementedError

    @abstractmethod
    def describe(self, loss: float, stage: str) -> dict[str, float]:
        """Metrics of a mean loss, by name; ``stage`` is ``train`` or ``validation``."""

    @abstractmethod
    def size(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        """How many units a batch holds, and the length of its sequences."""

    @abstractmethod
    def flops_per_unit(self) -> float:
        """FLOPs of forward and backward for one unit, as the model's definition asks for them.

        But for what grows with the length of a sequence: see :func:`attention_flops`.
        """

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        accumulate = self.trainer.accumulate_grad_batches
        if self._health_due() and batch_idx % accumulate == 0:
            with HealthProbe(self.model) as probe:  # of a batch in segments it tells the last
                score = self._score(batch, training=True)
            self.health = probe.summary()
        else:
            score = self._score(batch, training=True)
        units, length = self.size(batch)
        total, weight = self.processes.sum(score.total.detach().double(), score.weight.detach().double())
        return {
            "loss": score.total / weight.to(score.weight.dtype).clamp(min=1e-6),
            "total": total,
            "weight": weight,
            "units": units * self.processes.count,  # all have equal shares
            "length": length * self.processes.places,
        }

    def on_validation_epoch_start(self) -> None:
        self._validation_total = self._validation_weight = 0.0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        score = self._score(batch, training=False)
        self._validation_total = self._validation_total + score.total.double()
        self._validation_weight = self._validation_weight + score.weight.double()

    def on_validation_epoch_end(self) -> None:
        sums = (self._validation_total, self._validation_weight)
        total, weight = self.processes.sum(*(torch.as_tensor(value, device=self.device) for value in sums))
        loss = float(total) / max(float(weight), 1e-6)
        self.validation = self.describe(loss, "validation")
        self.log_dict(self.validation, logger=False)  # for callbacks of others, such as EarlyStopping

    def configure_optimizers(self) -> Any:
        config = self.config
        optimizer, schedule = make_optimizer(self.model, config.optimizer, config.max_steps, self.device)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.processes.sum_gradients(self.model)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all parameters, and keep that norm: it is computed here anyway."""
        if self._health_due():
            self.health |= gradient_norms(self.model)
        limit = self.config.gradient_clip if self.config.gradient_clip > 0 else float("inf")
        self.gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def _score(self, batch: dict[str, Tensor], *, training: bool) -> Score:
        """The score of a batch, in segments where it is longer than one."""
        config = self.config
        if config.segment_length is None or next(iter(batch.values())).shape[1] <= config.segment_length:
            return self.score(batch, training=training)

        sums, _ = in_segments(
            partial(self.score_segment, training=training),
            self.model.parameters(),
            batch,
            length=config.segment_length,
            truncate_every=config.truncate_every,
            border_states=config.border_states,
        )
        return Score(*sums)

    def _check_segments(self, model: nn.Module, length: int) -> None:
        if type(self).score_segment is Task.score_segment:
            raise UserError(f"trainer.segment_length={length}: {type(self).__name__} does not train in segments")
        try:
            check_streams(model)
        except ValueError as error:
            raise UserError(f"trainer.segment_length={length}: {error}") from None

    def _health_due(self) -> bool:
        return (self.trainer.global_step + 1) % self.config.health_every == 0


def scan_flops(model: nn.Module) -> float:
    """FLOPs of the state-space recurrence for one token, forward: 5 for each element of the recurrent state.

    Two multiplications and an addition make an element's new state (decay h + B u), a multiplication and an addition
    read it (C h). A chunked kernel does other arithmetic for the same result; counting the definition lets a better
    kernel show a larger share of peak.
    """
    with torch.device("meta"):
        state = model.init_state(1, "meta")  # type: ignore[operator]
    return 5.0 * sum(tensor.numel() for name, tensor in state.items() if name.endswith("ssm"))


def attention_flops(model: nn.Module, length: int) -> float:
    """FLOPs of attention for one token, forward, as the mean over a sequence of ``length`` tokens.

    Each key that a token sees costs a multiplication and an addition for the score, and as many for the value. What a
    kernel computes and masks away does not count.
    """
    total = 0.0
    for mixer in model.modules():
        if isinstance(mixer, Attention):
            reach = min(mixer.window or length, length)
            seen = reach - reach * (reach - 1) / (2 * length)  # the mean of min(t, reach) over t = 1 .. length
            total += 4.0 * mixer.heads * mixer.config.headdim * seen
    return total
