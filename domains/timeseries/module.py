"""The forecasting task: score every step ahead at every row."""

from typing import ClassVar

from torch import Tensor

from domains.config import TrainerConfig
from domains.task import Score, Task, scan_flops
from domains.timeseries.model import Forecaster, parameter_count
from mamba_core.state import State


class ForecastTask(Task):
    """Lowers the mean loss of the head over all forecasts whose outcome is known.

    Batches as :meth:`domains.timeseries.data.Windows.batch` makes them. The loss is of outcomes over their expected
    spread: zero gain over a running mean square and a clock is what it starts with.
    """

    unit: ClassVar[str] = "steps"
    monitor: ClassVar[str] = "validation/loss"
    model: Forecaster

    def __init__(self, model: Forecaster, config: TrainerConfig) -> None:
        super().__init__(model, config)
        self._flops = 6.0 * parameter_count(model) + 3.0 * scan_flops(model)

    def score(self, batch: dict[str, Tensor], *, training: bool) -> Score:
        return self.score_segment(batch, None, training=training)[0]

    def score_segment(self, batch: dict[str, Tensor], state: State | None, *, training: bool) -> tuple[Score, State]:
        raw, state = self.model(batch["inputs"], batch["cells"], batch["known"], state, seq_idx=batch.get("seq_idx"))
        losses = self.model.head.loss(raw.float(), batch["target"])  # (b, l, horizon)
        return Score((losses * batch["weight"]).sum(), batch["weight"].sum()), state

    def describe(self, loss: float, stage: str) -> dict[str, float]:
        return {f"{stage}/loss": loss}

    def size(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        b, l, _ = batch["inputs"].shape
        return int((batch["seq_idx"] >= 0).sum()) if "seq_idx" in batch else b * l, l

    def flops_per_unit(self) -> float:
        """6 for each parameter (2 forward, 4 backward), and three times the recurrence."""
        return self._flops
