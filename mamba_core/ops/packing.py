"""Packed documents: what ``seq_idx`` means, in the form that the operations use.

``seq_idx`` (batch, length) holds the index of the document that each token belongs to. A change of index starts a new
document: state and convolution do not cross it. An index of -1 marks padding: the token neither reads nor changes
anything, its output is 0 and it gets no gradient. The initial state belongs to the first document of the row.
"""

import torch
from torch import Tensor


def document_runs(seq_idx: Tensor) -> tuple[Tensor, Tensor]:
    """Number the documents of each row in order of appearance.

    Args:
        seq_idx: (b, l) integer.

    Returns:
        real: (b, l) bool, False at padding.
        run: (b, l) int64, non-decreasing; 0 for the first document and 1 more at every change of index. Padding
            carries the run of the token before it, so a document goes on behind padding in its middle.
    """
    real = seq_idx >= 0
    position = torch.arange(seq_idx.shape[1], device=seq_idx.device).expand_as(seq_idx)
    last_real = torch.where(real, position, -1).cummax(dim=1).values  # (b, l); -1 before the first real token
    index = torch.where(last_real >= 0, seq_idx.gather(1, last_real.clamp(min=0)), -1)
    before = torch.cat([index[:, :1], index[:, :-1]], dim=1)
    change = (index != before) & (before >= 0)
    return real, change.long().cumsum(dim=1)


def first_and_last_index(seq_idx: Tensor, default: Tensor) -> tuple[Tensor, Tensor]:
    """First and last real document index of each row, (b,) each; ``default`` (b,) for rows of padding alone."""
    real = seq_idx >= 0
    some = real.any(dim=1)
    first = seq_idx.gather(1, real.long().argmax(dim=1, keepdim=True)).squeeze(1)
    from_end = real.flip(1).long().argmax(dim=1, keepdim=True)
    last = seq_idx.gather(1, seq_idx.shape[1] - 1 - from_end).squeeze(1)
    return torch.where(some, first, default), torch.where(some, last, default)
