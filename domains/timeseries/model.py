"""A forecaster: a causal backbone over the whole history, and a head that says how each step ahead is distributed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from domains.errors import UserError
from domains.timeseries.clock import HOURS_A_WEEK
from domains.timeseries.config import HeadConfig, TrainConfig
from domains.timeseries.data import CALENDAR
from domains.timeseries.distributions import Distribution, Head, make_head
from domains.timeseries.transforms import feature_count
from mamba_core.backbone import BackboneConfig
from mamba_core.state import State


@dataclass(frozen=True)
class Shape:
    """What a forecaster is built for.

    Attributes:
        past, future, static: names of the covariates.
        horizon: steps ahead.
    """

    past: tuple[str, ...]
    future: tuple[str, ...]
    static: tuple[str, ...]
    horizon: int

    @property
    def features(self) -> int:
        return feature_count(len(self.past), len(self.future), len(self.static))

    @property
    def known(self) -> int:
        return CALENDAR + len(self.future)


class Forecaster(nn.Module):
    """Rows of a series in, raw numbers of the head out, for every row and every step ahead.

    Each step ahead sees what the backbone made of the history, the number of the step, and what is known of its stamp
    in advance. Nothing is said at first: all outputs start at 0, a distribution as wide as the scale that the inputs
    are measured in, so training begins where a running mean square and a clock end.
    """

    def __init__(self, shape: Shape, backbone: BackboneConfig, head: HeadConfig) -> None:
        super().__init__()
        self.shape = shape
        self.head: Head = make_head(head)
        width = backbone.d_model
        self.embed = nn.Linear(shape.features, width)
        self.backbone = backbone.build()
        if not self.backbone.capabilities.causal:
            raise ValueError("backbone.bidirectional=true: a forecaster knows the past alone")
        self.norm_inputs = nn.LayerNorm(width)
        self.from_history = nn.Linear(width, width)
        self.from_inputs = nn.Linear(shape.features, width)
        self.from_known = nn.Linear(shape.known, width)
        self.from_cell = nn.Embedding(HOURS_A_WEEK, width)
        self.from_step = nn.Embedding(shape.horizon, width)
        self.out = nn.Linear(width, self.head.size)
        self.direct = nn.Linear(shape.features, self.head.size, bias=False)
        for embedding in (self.from_cell, self.from_step):
            nn.init.normal_(embedding.weight, std=0.02)
        for weight in (self.out.weight, self.out.bias, self.direct.weight):
            nn.init.zeros_(weight)

    def forward(
        self,
        inputs: Tensor,
        cells: Tensor,
        known: Tensor,
        state: State | None = None,
        *,
        seq_idx: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Run rows of one or more series.

        Args:
            inputs: float (b, l, features), of :func:`domains.timeseries.transforms.see`.
            cells: int64 (b, l, horizon), hour of the week of each step ahead.
            known: float (b, l, horizon, known), the rest that is known of it.
            state: of the rows before; None: there are none.
            seq_idx: int64 (b, l), which series; see :meth:`mamba_core.mixers.Mixer.forward`.

        Returns:
            Raw numbers (b, l, horizon, head.size), for :meth:`distribution`, and the state behind the last row.
        """
        history, after = self.read(inputs, state, seq_idx=seq_idx)
        return self.say(history, inputs, cells, known), after

    def read(
        self, inputs: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The first half of :meth:`forward`: what the backbone makes of the rows, (b, l, d_model), and the state."""
        return self.backbone(self.embed(inputs), state, seq_idx=seq_idx)

    def say(self, history: Tensor, inputs: Tensor, cells: Tensor, known: Tensor) -> Tensor:
        """The second half, for any rows: (..., d_model), (..., features), (..., horizon), (..., horizon, known) in,
        (..., horizon, head.size) out."""
        return self.answer(*self.condense(history, inputs), cells, known)

    def condense(self, history: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the second half takes from a row, whatever step it is asked for: (..., d_model), (..., head.size)."""
        return self.from_history(history) + self.from_inputs(inputs), self.direct(inputs)

    def answer(
        self, context: Tensor, direct: Tensor, cells: Tensor, known: Tensor, steps: Tensor | None = None
    ) -> Tensor:
        """What is said of some steps ahead of rows that were condensed.

        Args:
            context, direct: of :meth:`condense`.
            cells: int64 (..., s). known: float (..., s, known).
            steps: int64 (..., s), which steps ahead, from 0; None: all of them.

        Returns:
            Raw numbers (..., s, head.size).
        """
        which = self.from_step.weight if steps is None else self.from_step(steps)
        ahead = self.from_known(known) + self.from_cell(cells) + which
        mixed = nn.functional.silu(self.norm_inputs(context[..., None, :] + ahead))
        return self.out(mixed) + direct[..., None, :]

    def distribution(self, raw: Tensor) -> Distribution:
        """Of the outcome over the expected spread, (b, l, horizon)."""
        return self.head(raw)

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """The state before any row."""
        return self.backbone.init_state(batch, device)


def build_model(shape: Shape, config: TrainConfig, where: str = "config") -> Forecaster:
    """A freshly initialised model; a UserError when the sizes of the backbone do not fit together."""
    try:
        return Forecaster(shape, config.backbone, config.head)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def parameter_count(model: nn.Module) -> int:
    """Numbers that training may change."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
