"""Reverse-complement parameter sharing (RCPS; Caduceus, arXiv:2403.03234, 3.2): one set of weights, two strands.

A sequence of DNA and its reverse complement are the same molecule. A model with RCPS runs one embedding, one stack of
norms and mixers and one head on both readings, so it is equivariant by construction: what it says of the reverse
complement is what it says of the sequence, in reverse order and with the complement's letters.

The paper keeps both readings in one tensor, the second half of whose channels is reversed along length and channels,
and each layer undoes that, runs its norm and mixer on either half with the same weights, and does it again. Nothing
passes between the halves before the head. So here the second reading stands as more rows of the batch: the same
function (a test writes out the paper's and compares), any backbone as it is, and a GPU is asked once a layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Strands(nn.Module):
    """Two readings of each row of tokens: as it stands, and of its reverse complement.

    Args:
        complement: (vocab_size,) the complement of each token; its own inverse.

    Raises:
        ValueError: it is not.
    """

    complement: Tensor

    def __init__(self, complement: Sequence[int]):
        super().__init__()
        if any(complement[other] != token for token, other in enumerate(complement)):
            raise ValueError("complement: must be its own inverse")
        self.register_buffer("complement", torch.tensor(list(complement)), persistent=False)

    def read(self, tokens: Tensor, seq_idx: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(b, l) -> (2 b, l): the rows, and behind them their reverse complements; likewise of seq_idx."""
        both = torch.cat([tokens, self.reverse_complement(tokens)])
        return both, None if seq_idx is None else torch.cat([seq_idx, seq_idx.flip(1)])

    def reverse_complement(self, tokens: Tensor) -> Tensor:
        """(b, l) integer -> (b, l), the same type."""
        return self.complement[tokens.flip(1).long()].to(tokens.dtype)

    def align(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two readings (2 b, l, ...) as the first, and the second in the order of the first: (b, l, ...) each."""
        own, other = x.chunk(2)
        return own, other.flip(1)

    def translate(self, weight: Tensor) -> Tensor:
        """The weight of a head (vocab_size, d) as one that names this strand's tokens when it reads the other's."""
        return weight[self.complement]
