"""A language model over a small vocabulary: bases of DNA, or mu-law levels of sound."""

import torch
from torch import Tensor, nn

from mamba_core.backbone import BackboneConfig
from mamba_core.state import State


class CausalLM(nn.Module):
    """Embedding, backbone and a linear head; logits at t are for the token at t + 1."""

    def __init__(self, vocab_size: int, backbone: BackboneConfig):
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, backbone.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = backbone.build()
        if not self.backbone.capabilities.causal:
            raise ValueError("backbone.bidirectional=true: a causal model reads in one direction")
        self.head = nn.Linear(backbone.d_model, vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(
        self, tokens: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Score a whole sequence.

        Args:
            tokens: (b, l) integer.
            state: where an earlier call ended; a fresh one when None.
            seq_idx: (b, l) integer document index, -1 at padding; see :meth:`mamba_core.mixers.Mixer.forward`.

        Returns:
            logits (b, l, vocab_size), and the state after the last token.
        """
        x, state = self.backbone(self.embedding(tokens), state, seq_idx=seq_idx)
        return self.head(x), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token of each row: tokens (b,) -> logits (b, vocab_size); see :meth:`mamba_core.Backbone.step`."""
        x, state = self.backbone.step(self.embedding(tokens), state)
        return self.head(x), state

    @torch.no_grad()
    def step_(self, tokens: Tensor, state: State) -> Tensor:
        """As :meth:`step` without gradients, to the bit, but ``state`` is overwritten and keeps its storage."""
        return self.head(self.backbone.step_(self.embedding(tokens), state))

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """The state before any token."""
        return self.backbone.init_state(batch, device)
