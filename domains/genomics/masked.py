"""What a masked model says of bases that are hidden from it."""

import math

import numpy as np
import torch
from torch import Tensor

from domains.genomics.module import base_log_probs
from domains.genomics.module import true_log_probs as true_log_probs
from domains.genomics.tokens import COMPLEMENT, MASK
from domains.hardware import full_precision
from mamba_core import MaskedLM

CALL = 1 << 16  # tokens of a call, about


@torch.inference_mode()
@full_precision()
def hidden_log_probs(
    model: MaskedLM, tokens: Tensor, hidden: Tensor, both_strands: bool = False, *, seq_idx: Tensor | None = None
) -> Tensor:
    """Log-probabilities of A, C, G, T at every position of sequences in which some bases are hidden.

    In float32 where the weights are, without TF32. What stands at a hidden position is not read.

    Args:
        model: in evaluation mode.
        tokens: (b, l) integer.
        hidden: (b, l) bool; there the model sees [MASK].
        both_strands: the mean of the probabilities that the model gives on either strand, read one by one (the
            post-hoc way to symmetry, at twice the cost). A symmetric model has done so already, and is asked once.
        seq_idx: (b, l) integer, -1 at padding; see :class:`mamba_core.MaskedLM`.

    Returns:
        float32 (b, l, 4), nats. Those of positions that are not hidden tell how well the model copies.
    """
    shown = tokens.masked_fill(hidden, MASK).int()
    found = base_log_probs(model(shown, seq_idx=seq_idx))
    if not both_strands or model.symmetric:
        return found
    turned = torch.tensor(COMPLEMENT, dtype=torch.int32, device=tokens.device)[shown.flip(1)]
    other = base_log_probs(model(turned, seq_idx=None if seq_idx is None else seq_idx.flip(1)))
    return torch.logaddexp(found, other.flip(1, 2)) - math.log(2)  # columns A, C, G, T backwards: T, G, C, A


def masked_log_probs(
    model: MaskedLM, tokens: np.ndarray, positions: np.ndarray, *, spacing: int = 0, both_strands: bool = False
) -> np.ndarray:
    """Log-probabilities of A, C, G, T at some positions of one sequence, each hidden from the model.

    Args:
        model: in evaluation mode.
        tokens: uint8 (l,), the sequence with its surroundings: all of it is read at once.
        positions: integer (n,), in any order.
        spacing: 0 hides one position at a time: the sequence is read n times. Otherwise those are hidden together
            that are a multiple of ``spacing`` apart, and it is read ``spacing`` times at most, whatever n is; the model
            then sees a little less beside each.
        both_strands: see :func:`hidden_log_probs`.

    Returns:
        float32 (n, 4), nats.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if positions.size and not 0 <= positions.min() <= positions.max() < len(tokens):
        raise ValueError(f"positions must lie within the {len(tokens)} tokens")
    group = _groups(positions, spacing)
    found = np.empty((len(positions), 4), dtype=np.float32)
    device = next(model.parameters()).device
    sequence = torch.from_numpy(np.array(tokens)).to(device)
    rows = max(1, CALL // max(len(tokens), 1))
    for first in range(0, int(group.max(initial=-1)) + 1, rows):
        own = np.flatnonzero((group >= first) & (group < first + rows))
        row, column = (torch.from_numpy(index).to(device) for index in (group[own] - first, positions[own]))
        count = int(group[own].max()) - first + 1
        hidden = torch.zeros(count, len(tokens), dtype=torch.bool, device=device)
        hidden[row, column] = True
        log_probs = hidden_log_probs(model, sequence.expand(count, -1), hidden, both_strands)
        found[own] = log_probs[row, column].cpu().numpy()
    return found


def _groups(positions: np.ndarray, spacing: int) -> np.ndarray:
    """Which reading each position is hidden in, int64 (n,), from 0 on; equal positions share one."""
    return np.unique(positions % spacing if spacing else positions, return_inverse=True)[1]
