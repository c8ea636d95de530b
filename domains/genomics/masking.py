"""Masked language modelling of DNA: which bases are hidden, and what stands in their places.

BERT's recipe (arXiv:1810.04805, 3.1) on four letters: of the known bases a fraction is asked for; of these 80 % are
shown as [MASK], 10 % as a random base of A, C, G, T, and 10 % as they are. N is neither hidden nor put anywhere. All of
it is a pure function of the seed and the number of the batch, so a resumed run hides what it would have hidden.
"""

import numpy as np
import torch

from domains.batches import Batch
from domains.config import check_range
from domains.errors import UserError
from domains.genomics.data import IGNORE
from domains.genomics.tokens import BASES, MASK, A, T

MASKED, RANDOM = 0.8, 0.1  # of the bases asked for; the rest is shown as it is


class Masking:
    """Makes batches of masked language modelling.

    Args:
        fraction: of the known bases, how many are asked for.
        seed: any integers; with the number of a batch it decides everything.
        hide_all: show [MASK] in place of all of them, as in validation: what is shown is nothing to be guessed.

    Raises:
        UserError: a fraction that is not between 0 and 1.
    """

    def __init__(self, fraction: float, *seed: int, hide_all: bool = False) -> None:
        check_fraction("task.mask_fraction", fraction)
        self._fraction = fraction
        self._seed = [number % 2**64 for number in seed]  # numpy takes no negative seed
        self._hide_all = hide_all

    def make_batch(self, windows: np.ndarray, weights: np.ndarray, number: int, rows: slice, total: int) -> Batch:
        """Inputs and targets of some rows of a batch; no row's depend on which others are asked for.

        Args:
            windows: tokens of these rows, uint8 (rows, length).
            weights: float32 (rows, length).
            number: of the batch.
            rows: which of its rows these are.
            total: rows of the whole batch.

        Returns:
            ``inputs`` int64 (rows, length); ``targets`` int64 (rows, length), the bases asked for and IGNORE elsewhere;
            ``weights`` float32 (rows, length), of the targets.
        """
        rng = np.random.default_rng([*self._seed, number])
        shape = (total, windows.shape[1])
        draws = rng.random(shape, dtype=np.float32)[rows]
        others = rng.integers(A, T + 1, shape, dtype=np.uint8)[rows]
        asked = (draws < self._fraction) & (windows >= BASES.start) & (windows < BASES.stop)
        shown = np.float32(self._fraction) * np.float32(1.0 if self._hide_all else MASKED)
        swapped = np.float32(self._fraction) * np.float32(MASKED + RANDOM)
        inputs = np.where(asked & (draws < swapped), others, windows)
        inputs[asked & (draws < shown)] = MASK
        targets = torch.from_numpy(windows.astype(np.int64)).masked_fill(~torch.from_numpy(asked), IGNORE)
        return {
            "inputs": torch.from_numpy(inputs.astype(np.int64)),
            "targets": targets,
            "weights": torch.from_numpy(weights),
        }


def check_fraction(name: str, fraction: float) -> None:
    """A UserError unless the fraction lies between 0 and 1."""
    check_range(name, fraction, 0)
    if not 0 < fraction < 1:
        raise UserError(f"{name}={fraction}: must lie between 0 and 1")
