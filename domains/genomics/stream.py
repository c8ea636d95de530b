"""Scoring a sequence of any length in the memory of two chunks: the state carries on, the next chunk is read ahead."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from domains.genomics.module import base_log_probs, true_log_probs
from domains.genomics.tokens import BOS, reverse_complement
from domains.hardware import full_precision
from mamba_core import CausalLM, State, stream

Reader = Callable[[int, int], np.ndarray]  # (start, stop) -> uint8 tokens (stop - start,) of the forward strand


class Scored(NamedTuple):
    """Scores of one chunk, by position on the forward strand whichever strand was read."""

    start: int
    log_probs: np.ndarray  # float32 (n,), nats; NaN where the base is not A, C, G or T


class Scorer(nn.Module):
    """``scores, state = f(tokens, state)``: the log-probability of each base given those before it.

    Args:
        model: in evaluation mode.
        context: forget everything after this many tokens: the model then starts afresh, from BOS. None: never.

    The state knows the last token and how many have been read, beside the model's own.
    """

    def __init__(self, model: CausalLM, context: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.context = context

    @torch.inference_mode()
    @full_precision()
    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Score the next tokens, in float32 where the weights are, without TF32.

        Args:
            tokens: uint8 (b, l).
            state: where an earlier call ended; a fresh one when None.

        Returns:
            scores float32 (b, l), nats, NaN where the token is not A, C, G or T; and the state behind them.
        """
        state = self.init_state(len(tokens), tokens.device) if state is None else state
        position = state["read"][:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        window, begins = None, position == 0
        if self.context is not None:  # a window is a document: state and convolution do not cross its border
            window, begins = position // self.context, position % self.context == 0
        before = torch.cat([state["last"][:, None], tokens[:, :-1]], dim=1).masked_fill(begins, BOS)
        logits, after = self.model(before.int(), state.child("model"), seq_idx=window)
        scores = true_log_probs(base_log_probs(logits), tokens)
        own = {"last": tokens[:, -1].clone(), "read": state["read"] + tokens.shape[1]}
        return scores, State({**own, **State.nest({"model": after})})

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """The state before any token."""
        model = self.model.init_state(batch, device)
        own = {"last": torch.uint8, "read": torch.int64}
        zeros = {name: torch.zeros(batch, dtype=dtype, device=device) for name, dtype in own.items()}
        return State({**zeros, **State.nest({"model": model})})


def stream_strand(
    model: nn.Module,
    read: Reader,
    length: int,
    *,
    chunk: int,
    reverse: bool = False,
    first: int = 0,
    state: State | None = None,
) -> Generator[tuple[Tensor, State], None, None]:
    """What a model makes of one strand of a sequence, chunk by chunk in the order of reading.

    While it works on one, a thread reads the next.

    Args:
        model: ``y, state = model(tokens, state)`` of uint8 tokens (1, l), such as a :class:`Scorer`.
        read: gives tokens of the forward strand, as ``GenomeStore.tokens`` of a contig does.
        length: of the sequence.
        chunk: bases a call.
        reverse: read the reverse complement, from the end of the sequence to its start.
        first: bases that were read before, a multiple of ``chunk``; with the same ``chunk`` and on the same kind of
            device the rest has the bits that it would have had without the break.
        state: the state behind them.

    Yields:
        y (1, l, ...) and the state behind the chunk, on the model's device.
    """

    def tokens() -> Iterator[Tensor]:
        for start in range(first, length, chunk):
            stop = min(start + chunk, length)
            stretch = reverse_complement(read(length - stop, length - start)) if reverse else read(start, stop)
            yield torch.from_numpy(np.array(stretch))[None]

    return stream(model, tokens(), state)


def stream_log_probs(
    model: CausalLM,
    read: Reader,
    length: int,
    *,
    chunk: int = 16384,
    reverse: bool = False,
    context: int | None = None,
) -> Iterator[Scored]:
    """Log-probability of each base of a sequence given all the bases before it on its strand.

    The model reads BOS and then the bases, once, in pieces of ``chunk``; the pieces do not change the result (1e-5).

    Args:
        model: in evaluation mode.
        read, length, chunk, reverse: as of :func:`stream_strand`.
        context: bases after which the model starts afresh, counted from where reading begins; None: never.

    Yields:
        the chunks in the order of reading: from position 0 up, or with ``reverse`` from the last position down.
    """
    first = 0
    with closing(stream_strand(Scorer(model, context), read, length, chunk=chunk, reverse=reverse)) as scored:
        for scores, _ in scored:
            found = scores[0].cpu().numpy()
            yield Scored(length - first - len(found), found[::-1]) if reverse else Scored(first, found)
            first += len(found)


@torch.inference_mode()
@full_precision()
def score_packed(model: CausalLM, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Scores of short sequences in one call, each as if it were alone (1e-5).

    Args:
        model: in evaluation mode.
        sequences: uint8 tokens (l,) of each, at least one base.

    Returns:
        float32 (l,) of each, nats, NaN where the token is not A, C, G or T.
    """
    lengths = [len(sequence) for sequence in sequences]
    device = next(model.parameters()).device
    tokens = torch.from_numpy(np.concatenate(sequences))[None].to(device)
    document = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))[None].to(device)
    before = torch.cat([torch.full_like(tokens[:, :1], BOS), tokens[:, :-1]], dim=1)
    before[:, 1:].masked_fill_(document[:, 1:] != document[:, :-1], BOS)
    logits, _ = model(before.int(), seq_idx=document)
    scores = true_log_probs(base_log_probs(logits), tokens)[0].cpu().numpy()
    return np.split(scores, np.cumsum(lengths)[:-1])


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
