"""A masked model along contigs of any length: windows side by side, each read with a halo of what stands around it.

A model that sees both sides has no state to carry, so a contig is read window by window: of each window ``length``
bases are scored and ``halo`` bases on either side are read as well. Windows start at multiples of ``length`` of the
contig, so scores do not depend on where a job begins. What a wider halo would change is measured: see
:func:`halo_error`.

Scores are pseudo-likelihoods: each base given all others that are not hidden with it. One reading of a window hides
every ``mask_every``-th base, by position on the contig, so ``mask_every`` readings score every base once: that is the
cost, times (length + 2 halo) / length.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.config import check_range
from domains.genomics.config import PredictConfig, WindowsConfig
from domains.genomics.masked import CALL, hidden_log_probs, true_log_probs
from domains.genomics.stream import score_sequence
from domains.genomics.tokens import BASES
from mamba_core import CausalLM, MaskedLM

Reader = Callable[[int, int], np.ndarray]  # (start, stop) -> uint8 tokens (stop - start,) of the contig

_MEASURED = 16  # of so many windows, one is read again with a wider halo
_MOST_MEASURED = 4


def check_windows(windows: WindowsConfig) -> None:
    """A UserError when the sizes make no sense."""
    check_range("windows.length", windows.length, 1, 1 << 20, "for memory's sake")
    check_range("windows.halo", windows.halo, 0, 1 << 20, "for memory's sake")


def check_masked(config: PredictConfig) -> None:
    """A UserError when the settings of :func:`masked_scores` make no sense."""
    check_windows(config.windows)
    check_range("mask_every", config.mask_every, 2, 1 << 16, "beyond which nothing changes")


def masked_scores(
    model: MaskedLM, read: Reader, length: int, start: int, stop: int, config: PredictConfig
) -> Iterator[np.ndarray]:
    """Log-probability of each base of a stretch of a contig, given the bases around it.

    Args:
        model: in evaluation mode.
        read: gives tokens of the contig.
        length: of the contig.
        start, stop: the stretch, half-open; scores do not depend on it.
        config: ``windows``, ``mask_every``; ``both_strands`` takes the mean of the probabilities on either strand.

    Yields:
        float32 (n,), nats, NaN where the base is not A, C, G or T; the stretch from left to right.
    """
    size = config.windows.length
    for first in range(start - start % size, stop, size):
        last = min(first + size, length)
        scores = _score(model, read, length, (first, last), config, config.windows.halo)
        yield scores[max(start - first, 0) : min(stop, last) - first]


def score_masked_sequence(model: MaskedLM, tokens: np.ndarray, config: PredictConfig | None = None) -> np.ndarray:
    """Scores of a sequence that is in memory: uint8 (l,) -> float32 (l,), nats, NaN where not A, C, G or T."""
    config = config or PredictConfig()
    pieces = masked_scores(model, lambda a, b: tokens[a:b], len(tokens), 0, len(tokens), config)
    return np.concatenate([*pieces, np.empty(0, np.float32)])


def score_any_sequence(model: CausalLM | MaskedLM, tokens: np.ndarray) -> np.ndarray:
    """Scores of a sequence by a model of either kind, as :func:`domains.genomics.stream.score_sequence` gives them."""
    return score_sequence(model, tokens) if isinstance(model, CausalLM) else score_masked_sequence(model, tokens)


def halo_error(
    model: MaskedLM, read: Reader, length: int, start: int, stop: int, config: PredictConfig
) -> dict[str, Any]:
    """How far scores of a stretch would move with a halo twice as wide, measured on one window in 16, at most 4.

    Args: as of :func:`masked_scores`.

    Returns:
        ``halo``, in bases; ``against``, the halo compared with, or "the whole contig" where that is all there is;
        ``windows`` and ``bases`` compared; ``max`` and ``mean`` of the absolute differences, in nats. All plain values.
    """
    size, halo = config.windows.length, config.windows.halo
    windows = [(first, min(first + size, length)) for first in range(start - start % size, stop, size)]
    cut = [window for window in windows if window[0] > halo or window[1] + halo < length]
    count = min(_MOST_MEASURED, -(-len(cut) // _MEASURED))
    differences = []
    for window in (cut[index * len(cut) // count] for index in range(count)):
        narrow, wide = (_score(model, read, length, window, config, reach) for reach in (halo, 2 * halo))
        differences.append(np.abs(narrow - wide))
    known = np.concatenate(differences) if differences else np.empty(0, np.float32)
    known = known[~np.isnan(known)]
    whole = all(first <= 2 * halo and last + 2 * halo >= length for first, last in cut)
    return {
        "halo": halo,
        "against": "the whole contig" if whole else f"a halo of {2 * halo}",
        "windows": count,
        "bases": len(known),
        "max": float(known.max(initial=0.0)),
        "mean": float(known.mean(dtype=np.float64)) if len(known) else 0.0,
    }


def around(window: tuple[int, int], halo: int, length: int) -> tuple[int, int]:
    """A window with its halo, within the contig."""
    return max(0, window[0] - halo), min(length, window[1] + halo)


def _score(
    model: MaskedLM, read: Reader, length: int, window: tuple[int, int], config: PredictConfig, halo: int
) -> np.ndarray:
    """Scores of one window, float32, from ``mask_every`` readings, as many a call as fit."""
    first, last = around(window, halo, length)
    device = next(model.parameters()).device
    tokens = torch.from_numpy(np.array(read(first, last))).to(device)
    known = (tokens >= BASES.start) & (tokens < BASES.stop)
    turn = torch.arange(first, last, device=device) % config.mask_every  # the reading that hides a base
    scores = torch.full(tokens.shape, torch.nan, device=device)
    for readings in torch.arange(config.mask_every, device=device).split(max(1, CALL // len(tokens))):
        hidden = (turn == readings[:, None]) & known
        scores = _take(model, tokens, hidden, config.both_strands, scores)
    return scores[window[0] - first : window[1] - first].cpu().numpy()


def _take(model: MaskedLM, tokens: Tensor, hidden: Tensor, both_strands: bool, scores: Tensor) -> Tensor:
    """The scores with those of the bases that are hidden in one of these readings (r, l) put in."""
    rows = tokens.expand(len(hidden), -1)
    found = true_log_probs(hidden_log_probs(model, rows, hidden, both_strands), rows)
    return torch.where(hidden.any(0), found.masked_fill(~hidden, 0.0).sum(0), scores)
