"""A masked model along contigs of any length: windows side by side, each read with a halo of what stands around it.

A model that sees both sides has no state to carry, so a contig is read window by window: of each window ``length``
bases are scored and ``halo`` bases on either side are read as well. Windows start at multiples of ``length`` of the
contig, so scores do not depend on where a job begins. What a wider halo would change is measured: see
:func:`halo_error`.

Scores are pseudo-likelihoods: each base given all others that are not hidden with it. One reading of a window hides
every ``mask_every``-th base, by position on the contig, so ``mask_every`` readings score every base once: that is the
cost, times (length + 2 halo) / length.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from domains.config import check_range
from domains.genomics.config import PredictConfig, WindowsConfig
from domains.genomics.masked import CALL, hidden_log_probs, true_log_probs
from domains.genomics.stream import score_sequence
from domains.genomics.tokens import BASES
from mamba_core import CausalLM, MaskedLM

Window = tuple[int, int]  # half-open, in positions of a contig

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


class Source(NamedTuple):
    """A contig to read.

    Attributes:
        read: (start, stop) -> uint8 tokens (stop - start,); of a circular contig, positions go on round it.
        length: of the contig.
        circular: whether its ends are neighbours.
    """

    read: Callable[[int, int], np.ndarray]
    length: int
    circular: bool = False

    def around(self, window: Window, halo: int) -> Window:
        """A window with its halo, within the contig; round a circular one, as far as no base comes twice."""
        if self.circular:
            spare = self.length - (window[1] - window[0])
            return window[0] - min(halo, spare - spare // 2), window[1] + min(halo, spare // 2)
        return max(0, window[0] - halo), min(self.length, window[1] + halo)


def masked_scores(
    model: MaskedLM, source: Source, start: int, stop: int, config: PredictConfig
) -> Iterator[np.ndarray]:
    """Log-probability of each base of a stretch of a contig, given the bases around it.

    Args:
        model: in evaluation mode.
        source: the contig.
        start, stop: the stretch, half-open; scores do not depend on it.
        config: ``windows``, ``mask_every``; ``both_strands`` takes the mean of the probabilities on either strand.

    Yields:
        float32 (n,), nats, NaN where the base is not A, C, G or T; the stretch from left to right.
    """
    for window in _windows(source, start, stop, config):
        scores = _score(model, source, window, config, config.windows.halo)
        yield scores[max(start - window[0], 0) : min(stop, window[1]) - window[0]]


def packed_scores(model: MaskedLM, sequences: Sequence[np.ndarray], config: PredictConfig) -> list[np.ndarray]:
    """Scores of many short sequences, each as if it were alone, read on end as documents of one row.

    Args:
        sequences: uint8 (length,) each, whole contigs of at most a window.

    Returns:
        float32 (length,) of each, as :func:`masked_scores` gives them.
    """
    lengths = [len(sequence) for sequence in sequences]
    if not sum(lengths):
        return [np.empty(0, np.float32) for _ in lengths]
    turn = np.concatenate([np.arange(length) % config.mask_every for length in lengths])
    document = np.repeat(np.arange(len(lengths)), lengths)
    scores = _readings(model, np.concatenate(sequences), turn, config, document)
    return np.split(scores, np.cumsum(lengths)[:-1])


def score_masked_sequence(model: MaskedLM, tokens: np.ndarray, config: PredictConfig | None = None) -> np.ndarray:
    """Scores of a sequence that is in memory: uint8 (l,) -> float32 (l,), nats, NaN where not A, C, G or T."""
    source = Source(lambda a, b: tokens[a:b], len(tokens))
    pieces = masked_scores(model, source, 0, len(tokens), config or PredictConfig())
    return np.concatenate([*pieces, np.empty(0, np.float32)])


def score_any_sequence(model: CausalLM | MaskedLM, tokens: np.ndarray) -> np.ndarray:
    """Scores of a sequence by a model of either kind, as :func:`domains.genomics.stream.score_sequence` gives them."""
    return score_sequence(model, tokens) if isinstance(model, CausalLM) else score_masked_sequence(model, tokens)


def halo_error(model: MaskedLM, source: Source, start: int, stop: int, config: PredictConfig) -> dict[str, Any]:
    """How far scores of a stretch would move with a halo twice as wide, measured on one window in 16, at most 4.

    Args: as of :func:`masked_scores`.

    Returns:
        ``halo``, in bases; ``against``, the halo compared with, or "the whole contig" where that is all there is;
        ``windows`` and ``bases`` compared; ``max`` and ``mean`` of the absolute differences, in nats. All plain values.
    """
    halo = config.windows.halo
    windows = _windows(source, start, stop, config)
    cut = [window for window in windows if source.around(window, halo) != source.around(window, source.length)]
    count = min(_MOST_MEASURED, -(-len(cut) // _MEASURED))
    differences = [np.empty(0, np.float32)]
    for window in (cut[index * len(cut) // count] for index in range(count)):
        narrow, wide = (_score(model, source, window, config, reach) for reach in (halo, 2 * halo))
        differences.append(np.abs(narrow - wide))
    known = np.concatenate(differences)
    known = known[~np.isnan(known)]
    whole = all(source.around(window, 2 * halo) == source.around(window, source.length) for window in cut)
    return {
        "halo": halo,
        "against": "the whole contig" if whole else f"a halo of {2 * halo}",
        "windows": count,
        "bases": len(known),
        "max": float(known.max(initial=0.0)),
        "mean": float(known.mean(dtype=np.float64)) if len(known) else 0.0,
    }


def _windows(source: Source, start: int, stop: int, config: PredictConfig) -> list[Window]:
    """Those that hold a base of the stretch."""
    size = config.windows.length
    return [(first, min(first + size, source.length)) for first in range(start - start % size, stop, size)]


def _score(model: MaskedLM, source: Source, window: Window, config: PredictConfig, halo: int) -> np.ndarray:
    """Scores of one window, float32."""
    first, last = source.around(window, halo)
    turn = np.arange(first, last) % source.length % config.mask_every
    return _readings(model, source.read(first, last), turn, config)[window[0] - first : window[1] - first]


def _readings(
    model: MaskedLM, tokens: np.ndarray, turn: np.ndarray, config: PredictConfig, document: np.ndarray | None = None
) -> np.ndarray:
    """Scores float32 (l,) of one sequence from ``mask_every`` readings, as many a call as fit.

    ``turn`` (l,) says which reading hides a base, ``document`` (l,) which document it is of.
    """
    device = next(model.parameters()).device
    sequence, turns = torch.from_numpy(np.array(tokens)).to(device), torch.from_numpy(turn).to(device)
    known = (sequence >= BASES.start) & (sequence < BASES.stop)
    seq_idx = None if document is None else torch.from_numpy(document).to(device)
    scores = torch.full(sequence.shape, torch.nan, device=device)
    for readings in torch.arange(config.mask_every, device=device).split(max(1, CALL // len(sequence))):
        hidden = (turns == readings[:, None]) & known
        rows = sequence.expand(len(hidden), -1)
        packed = None if seq_idx is None else seq_idx.expand(len(hidden), -1)
        found = hidden_log_probs(model, rows, hidden, config.both_strands, seq_idx=packed)
        own = true_log_probs(found, rows).masked_fill(~hidden, 0.0).sum(0)
        scores = torch.where(hidden.any(0), own, scores)
    return scores.cpu().numpy()
