"""Hidden states of a model along a genome, averaged over windows, and of both strands."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor, nn

from domains.genomics.hidden import hidden_states
from domains.genomics.parts import Reader
from domains.genomics.stream import stream_strand
from domains.genomics.tokens import BASES, BOS, reverse_complement
from domains.hardware import full_precision
from mamba_core import CausalLM, MaskedLM, State

Pooled = tuple[np.ndarray, State | None]  # rows float32 (n, d), and the state behind them


class Embedder(nn.Module):
    """``hidden, state = f(tokens, state)``: what a causal model makes of each base once it has read it.

    Args:
        model: in evaluation mode.
        layer: the residual stream behind so many layers, 0 that of the embedding; None: what the head sees, behind the
            last layer and its norm.
    """

    def __init__(self, model: CausalLM, layer: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.layer = layer

    @torch.inference_mode()
    @full_precision()
    def forward(
        self, tokens: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Read on; without a state from BOS.

        Args:
            tokens: uint8 (b, l).
            state: where an earlier call ended.
            seq_idx: (b, l) document of each token, each of which brings its own BOS.

        Returns:
            (b, l, d_model), and the state behind.
        """
        fresh = state is None and seq_idx is None
        read = torch.cat([torch.full_like(tokens[:, :1], BOS), tokens], dim=1) if fresh else tokens
        x, after = self.model.embedding(read.int()), {}
        blocks = list(self.model.backbone.blocks())
        for name, block in blocks[: self.layer]:
            x, after[name] = block(x, None if state is None else state.child(name), seq_idx=seq_idx)
        if self.layer is None:
            x = self.model.backbone.norm(x)
        return (x[:, 1:] if fresh else x), State.nest(after)


def pool_strand(
    embedder: Embedder,
    read: Reader,
    length: int,
    *,
    window: int,
    chunk: int,
    reverse: bool = False,
    lead: int = 0,
    done: int = 0,
    state: State | None = None,
) -> Iterator[Pooled]:
    """Means over windows on end of one strand, in the order of reading: from the last window down with ``reverse``.

    Args:
        embedder: of a causal model.
        read: tokens of the forward strand; position 0 is the start of the first window.
        length: from there to the end of the last window, which may be shorter.
        window: bases; those that are not A, C, G or T do not count.
        chunk: bases a call, a multiple of ``window``.
        lead: bases read before the first window to warm up.
        done, state: windows that were read before, and the state behind them.

    Yields:
        rows float32 (n, d_model), NaN for windows without a known base; and the state behind.
    """
    count = -(-length // window)
    first = _bases(done, count, length, window, reverse)
    if lead and not first:
        ahead = stream_strand(
            embedder,
            (lambda a, b: read(length + a, length + b)) if reverse else (lambda a, b: read(a - lead, b - lead)),
            lead,
            chunk=chunk,
            reverse=reverse,
        )
        with closing(ahead):
            for _, after in ahead:
                state = after
    while first < length:
        # Read from the other end, it is the first chunk that may be short: chunks end where windows do.
        stop = min(first + chunk, length) if not reverse or first else (length - 1) % chunk + 1
        tokens = reverse_complement(read(length - stop, length - first)) if reverse else read(first, stop)
        stretch = torch.from_numpy(np.array(tokens))[None].to(embedder.model.embedding.weight.device)
        hidden, state = embedder(stretch, state)
        flipped = (hidden.flip(1), stretch.flip(1)) if reverse else (hidden, stretch)
        rows = pool(*flipped, window)[0].float().cpu().numpy()
        yield (rows[::-1] if reverse else rows), state
        first = stop


def _bases(done: int, count: int, length: int, window: int, reverse: bool) -> int:
    """Bases of the first ``done`` windows in the order of reading."""
    if not reverse:
        return min(done * window, length)
    return length - (count - done) * window if done else 0


def pool(hidden: Tensor, tokens: Tensor, window: int) -> Tensor:
    """Means of hidden states over windows on end, of the known bases in each.

    Args:
        hidden: (b, l, d). tokens: (b, l). window: bases; the last may be shorter.

    Returns:
        (b, ceil(l / window), d), NaN where a window has no known base.
    """
    known = ((tokens >= BASES.start) & (tokens < BASES.stop)).to(hidden.dtype)
    if window == 1:
        return hidden.masked_fill(known[..., None] == 0, torch.nan)
    short = -hidden.shape[1] % window
    weighted = nn.functional.pad(hidden * known[..., None], (0, 0, 0, short))
    sums = weighted.unflatten(1, (-1, window)).sum(2)
    counts = nn.functional.pad(known, (0, short)).unflatten(1, (-1, window)).sum(2)
    return sums / torch.where(counts > 0, counts, torch.nan)[..., None]


def pool_masked(
    model: MaskedLM, read: Reader, length: int, *, window: int, chunk: int, halo: int, both_strands: bool, done: int = 0
) -> Iterator[Pooled]:
    """As :func:`pool_strand` of a masked model, which sees both sides: chunks are read with ``halo`` bases around.

    Args:
        read: as there; positions before 0 and from ``length`` on are of the halo, as far as the contig has them.
        both_strands: the mean of the model's readings of either strand; a symmetric model needs one.
    """
    device = next(model.parameters()).device
    for first in range(done * window, length, chunk):
        stop = min(first + chunk, length)
        before, inside, behind = read(first - halo, first), read(first, stop), read(stop, stop + halo)
        tokens = torch.from_numpy(np.concatenate([before, inside, behind]))[None].to(device)
        hidden = _read_masked(model, tokens, both_strands)
        own = slice(len(before), len(before) + len(inside))
        yield pool(hidden[:, own], tokens[:, own], window)[0].float().cpu().numpy(), None


@torch.inference_mode()
@full_precision()
def _read_masked(model: MaskedLM, tokens: Tensor, both_strands: bool) -> Tensor:
    """Hidden states (1, l, d) of a stretch, the mean of both strands where that is not the model's own affair."""
    hidden = hidden_states(model, tokens)
    if both_strands and not model.symmetric:
        other = torch.from_numpy(reverse_complement(tokens.cpu().numpy())).to(tokens.device)
        hidden = (hidden + hidden_states(model, other).flip(1)) / 2
    return hidden


def width(model: CausalLM | MaskedLM) -> int:
    """Numbers in an embedding."""
    return model.embedding.embedding_dim


def mean(forward: np.ndarray, reverse: np.ndarray) -> np.ndarray:
    """Of both strands, float32."""
    return (forward + reverse) / np.float32(2)
