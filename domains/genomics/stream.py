"""Scoring a sequence of any length in the memory of one chunk: the state carries on from chunk to chunk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from domains.genomics.module import base_log_probs
from domains.genomics.tokens import BASES, BOS, reverse_complement
from mamba_core import CausalLM

Reader = Callable[[int, int], np.ndarray]  # (start, stop) -> uint8 tokens (stop - start,) of the forward strand


class Scored(NamedTuple):
    """Scores of one chunk, by position on the forward strand whichever strand was read."""

    start: int
    log_probs: np.ndarray  # float32 (n,), nats; NaN where the base is not A, C, G or T


def stream_log_probs(
    model: CausalLM, read: Reader, length: int, *, chunk: int = 16384, reverse: bool = False
) -> Iterator[Scored]:
    """Log-probability of each base of a sequence given all the bases before it on its strand.

    The model reads BOS and then the bases, once, in pieces of ``chunk``; the pieces do not change the result (1e-5).
    It runs in float32 where its weights are, without TF32.

    Args:
        model: in evaluation mode.
        read: gives tokens of the forward strand, as ``GenomeStore.tokens`` of a contig does.
        length: of the sequence.
        chunk: bases a call.
        reverse: read the reverse complement, from the end of the sequence to its start.

    Yields:
        the chunks in the order of reading: from position 0 up, or with ``reverse`` from the last position down.
    """
    device = next(model.parameters()).device
    state = model.init_state(1, device)
    before = BOS
    for first in range(0, length, chunk):
        last = min(first + chunk, length)
        start, stop = (length - last, length - first) if reverse else (first, last)
        tokens = reverse_complement(read(start, stop)) if reverse else read(start, stop)
        inputs = np.concatenate([[before], tokens[:-1]]).astype(np.int64)
        with torch.inference_mode(), _full_precision():
            logits, state = model(torch.from_numpy(inputs)[None].to(device), state)
            log_probs = base_log_probs(logits[0]).cpu().numpy()
        before = tokens[-1]
        scores = _at_bases(log_probs, tokens)
        yield Scored(start, scores[::-1] if reverse else scores)


def score_sequence(
    model: CausalLM, tokens: np.ndarray, *, chunk: int = 16384, both_strands: bool = False
) -> np.ndarray:
    """Scores of a sequence that is in memory: uint8 (l,) -> float32 (l,), nats, NaN where not A, C, G or T.

    With ``both_strands`` the mean of the two strands at each base.
    """
    strands = (False, True) if both_strands else (False,)
    total = np.zeros(len(tokens), dtype=np.float32)
    for reverse in strands:
        pieces = stream_log_probs(model, lambda a, b: tokens[a:b], len(tokens), chunk=chunk, reverse=reverse)
        for start, log_probs in pieces:
            total[start : start + len(log_probs)] += log_probs
    return total / len(strands)


def _at_bases(log_probs: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The column of each row's own base: (n, 4), (n,) -> float32 (n,)."""
    known = (tokens >= BASES.start) & (tokens < BASES.stop)
    column = np.where(known, tokens, BASES.start).astype(np.int64) - BASES.start
    scores = np.take_along_axis(log_probs, column[:, None], axis=1)[:, 0]
    scores[~known] = np.nan
    return scores


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32: with it, ten bits of mantissa would make results depend on the size of the matrices, so on the chunk."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
