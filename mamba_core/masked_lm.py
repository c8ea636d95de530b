"""A masked language model over a small vocabulary: each token from what stands on both its sides."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_core.backbone import BackboneConfig
from mamba_core.reverse_complement import Strands


class MaskedLM(nn.Module):
    """Embedding, backbone and a linear head; logits at t are for the token at t, which the caller has hidden.

    With ``backbone.reverse_complement`` one set of weights runs on both strands (:mod:`mamba_core.reverse_complement`):
    their logits are added, and a hidden state holds both, so ``width`` is twice ``d_model``. A backbone that is not
    bidirectional will then do: either strand is read in one direction, which for the sequence are both.

    Args:
        vocab_size: of the tokens.
        backbone: the stack.
        complement: (vocab_size,) the complement of each token, for ``backbone.reverse_complement``.

    Attributes:
        width: of a hidden state.

    Raises:
        ValueError: sizes that do not fit together, a stack that sees one side alone, or no complement.
    """

    def __init__(self, vocab_size: int, backbone: BackboneConfig, complement: Sequence[int] | None = None):
        super().__init__()
        if not (backbone.bidirectional or backbone.reverse_complement):
            raise ValueError(
                "a masked model sees both sides: set backbone.bidirectional=true or backbone.reverse_complement=true"
            )
        self.strands = None
        if backbone.reverse_complement:
            if complement is None or len(complement) != vocab_size:
                raise ValueError("backbone.reverse_complement=true: the tokens of this model have no complement")
            self.strands = Strands(complement)
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, backbone.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = replace(backbone, reverse_complement=False).build()
        self.head = nn.Linear(backbone.d_model, vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        self.width = backbone.d_model * (2 if self.symmetric else 1)

    @property
    def symmetric(self) -> bool:
        """Whether it says of a reverse complement what it says of the sequence, by construction."""
        return self.strands is not None

    def forward(self, tokens: Tensor, *, seq_idx: Tensor | None = None) -> Tensor:
        """Score whole sequences.

        Args:
            tokens: (b, l) integer, hidden ones replaced by the vocabulary's mask.
            seq_idx: (b, l) integer document index, -1 at padding, whose logits mean nothing; see
                :meth:`mamba_core.mixers.Mixer.forward`.

        Returns:
            logits (b, l, vocab_size).
        """
        own, other = self._run(tokens, seq_idx)
        logits = self.head(own)
        if self.strands is None or other is None:
            return logits
        return logits + F.linear(other, self.strands.translate(self.head.weight))

    def hidden(self, tokens: Tensor, *, seq_idx: Tensor | None = None) -> Tensor:
        """What stands before the head: (b, l, width).

        Of a symmetric model the first half of the channels is of the sequence and the second of the other strand, at
        the same base: of the reverse complement the same numbers come, from the last base to the first, with the halves
        swapped. The mean of the halves is therefore of the base pair, whichever strand it is read from.
        """
        own, other = self._run(tokens, seq_idx)
        return own if other is None else torch.cat([own, other], dim=-1)

    def _run(self, tokens: Tensor, seq_idx: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Hidden states (b, l, d_model) of the sequence, and of the other strand if that is read too."""
        if self.strands is None:
            return self.backbone(self.embedding(tokens), seq_idx=seq_idx)[0], None
        tokens, seq_idx = self.strands.read(tokens, seq_idx)
        return self.strands.align(self.backbone(self.embedding(tokens), seq_idx=seq_idx)[0])
