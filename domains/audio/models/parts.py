"""What classifiers of sound share: layers that run in one direction or in both, and what is kept of all frames."""

import torch
from torch import Tensor, nn

from mamba_core import BackboneConfig, State


class Scan(nn.Module):
    """A backbone over frames, or two: the second from the end of each row to its beginning, their outputs side by side.

    Attributes:
        width: of the outputs.
    """

    def __init__(self, backbone: BackboneConfig, bidirectional: bool) -> None:
        super().__init__()
        self.ahead = backbone.build()
        self.back = backbone.build() if bidirectional else None
        self.width = backbone.d_model * (2 if bidirectional else 1)
        flags = self.ahead.capabilities
        if not (flags.packs and (bidirectional or flags.causal)):
            raise ValueError(f"backbone.pattern={backbone.pattern}: cannot work on rows of several lengths")

    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        """(b, l, d_model) -> (b, l, width), and the state; seq_idx (b, l) is -1 at padding, 0 elsewhere.

        In both directions a state is neither taken nor given: the empty one comes back.
        """
        y, after = self.ahead(x, state, seq_idx=seq_idx)
        if self.back is None:
            return y, after
        z, _ = self.back(x.flip(1), seq_idx=None if seq_idx is None else seq_idx.flip(1))
        return torch.cat([y, z.flip(1)], dim=-1), State({})


class Pool(nn.Module):
    """Mean and maximum over all frames so far, (b, l, width) -> (b, 2 width); both 0 before any.

    State: ``sum`` (b, width) float64, ``max`` (b, width), ``count`` (b,) frames.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, y: Tensor, real: Tensor, state: State) -> tuple[Tensor, State]:
        """What is kept behind the last frame; frames that are not ``real`` (b, l) do not count."""
        summed = state["sum"] + y.masked_fill(~real[..., None], 0.0).sum(1, dtype=torch.float64)
        largest = y.masked_fill(~real[..., None], -torch.inf).amax(1).to(state["max"].dtype)
        before = state["max"].masked_fill(state["count"][:, None] == 0, -torch.inf)
        count = state["count"] + real.sum(1)
        largest = torch.maximum(before, largest).masked_fill(count[:, None] == 0, 0.0)
        after = State({"sum": summed, "max": largest, "count": count})
        return self.read(after, y.dtype), after

    def running(self, y: Tensor, real: Tensor, state: State) -> Tensor:
        """What is kept before the first frame and behind each: (b, 1 + l, 2 width)."""
        masked = y.masked_fill(~real[..., None], 0.0).double()
        summed = torch.cat([state["sum"][:, None], masked], dim=1).cumsum(1)
        count = torch.cat([state["count"][:, None], real], dim=1).cumsum(1)[..., None]
        before = state["max"].masked_fill(state["count"][:, None] == 0, -torch.inf)[:, None]
        largest = torch.cat([before, y.masked_fill(~real[..., None], -torch.inf).to(before.dtype)], dim=1)
        largest = largest.cummax(1).values.masked_fill(count == 0, 0.0)
        return torch.cat([(summed / count.clamp(min=1)).to(y.dtype), largest.to(y.dtype)], dim=-1)

    def read(self, state: State, dtype: torch.dtype) -> Tensor:
        """(b, 2 width)."""
        mean = state["sum"] / state["count"].clamp(min=1)[:, None]
        return torch.cat([mean.to(dtype), state["max"].to(dtype)], dim=-1)

    def init_state(self, batch: int, device: torch.device | str | None, dtype: torch.dtype) -> State:
        """The state before any frame."""
        return State(
            {
                "sum": torch.zeros(batch, self.width, dtype=torch.float64, device=device),
                "max": torch.zeros(batch, self.width, dtype=dtype, device=device),
                "count": torch.zeros(batch, dtype=torch.int64, device=device),
            }
        )


class Head(nn.Module):
    """Dropout and a linear layer: (..., 2 width) -> logits (..., classes), which start at 0."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        if classes < 2 or not 0 <= dropout < 1:
            raise ValueError(f"classes={classes}, dropout={dropout}: must be at least 2, and from 0 to below 1")
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * width, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, kept: Tensor) -> Tensor:
        return self.linear(self.dropout(kept))
