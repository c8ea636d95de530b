"""Two scans of a sequence, one from each end, that share their projections: BiMamba (arXiv:2403.03234, section 3.1)."""

import torch
from torch import Tensor

from mamba_core.mixers.base import Capabilities, Mixer, ProjectedMixer
from mamba_core.state import State


class Bidirectional(Mixer):
    """in_proj; the sum of a scan from the first token on and one from the last token back; out_proj.

    Each direction has a convolution, decays and time steps of its own; the two projections, which hold nearly all
    numbers, serve both. Being linear and the same at every token, each is computed once::

        y = out_proj(ahead(in_proj(x)) + flip(back(flip(in_proj(x)))))

    With ``seq_idx`` each direction keeps documents apart and passes over padding. The state that is returned tells
    where both scans ended, for inspection: ``ahead.*`` behind the last token, ``back.*`` before the first. No call
    goes on from one.

    Args:
        ahead, back: two mixers of one kind and size. Those of ``ahead`` become the projections of both.
    """

    capabilities = Capabilities(causal=False, streams=False, steps=False, packs=True)

    def __init__(self, ahead: ProjectedMixer, back: ProjectedMixer):
        super().__init__()
        self.in_proj = ahead.in_proj
        self.out_proj = ahead.out_proj
        for direction in (ahead, back):  # once in the model, so once in a file of its weights
            del direction.in_proj, direction.out_proj
        self.ahead = ahead
        self.back = back

    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        if state is not None:
            raise ValueError("a bidirectional mixer sees whole sequences: it goes on from no state")
        projected = self.in_proj(x)
        y, ahead = self.ahead.inner(projected, seq_idx=seq_idx)
        z, back = self.back.inner(projected.flip(1), seq_idx=None if seq_idx is None else seq_idx.flip(1))
        return self.out_proj(y + z.flip(1)), State.nest({"ahead": ahead, "back": back})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        raise ValueError("a bidirectional mixer sees whole sequences: it takes no single steps")

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """What both scans start from."""
        return State.nest({"ahead": self.ahead.init_state(batch, device), "back": self.back.init_state(batch, device)})

    def time_steps(self, x: Tensor) -> Tensor:
        """Of both directions, side by side."""
        projected = self.in_proj(x)
        back = self.back.inner_time_steps(projected.flip(1)).flip(1)
        return torch.cat([self.ahead.inner_time_steps(projected), back], dim=-1)
