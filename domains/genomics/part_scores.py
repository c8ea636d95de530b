"""The scores of a part of a genome, strand by strand, on their way to its files."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, ClassVar

import numpy as np

from domains.engines import Progress
from domains.genomics.parts import Piece, reader
from domains.genomics.spool import Spool
from domains.genomics.store import GenomeStore
from domains.genomics.stream import Scorer, score_packed, stream_strand
from domains.genomics.tokens import reverse_complement
from mamba_core import CausalLM, State


class CausalScores:
    """Log-probabilities of bases given all those before them on their strand, from a causal model.

    A single piece is streamed: its spool holds scores in the order of reading, and the state behind them. Of many
    pieces, as many as fit into a chunk are read in one call, each as if it were alone.

    Args:
        model: in evaluation mode.
        store: the genome.
        chunk: bases a call.
        both_strands: whether each base is read on both, one after the other.

    Attributes:
        strands: those that are read, False the forward one; each has a spool of its own.
    """

    settings: ClassVar[dict[str, Any]] = {}  # what decides scores beside model and genome, but for rounding

    def __init__(self, model: CausalLM, store: GenomeStore, chunk: int, both_strands: bool) -> None:
        self._model = model
        self._store = store
        self._chunk = chunk
        self.strands = (False, True) if both_strands else (False,)

    def fill(self, pieces: Sequence[Piece], spool: Spool, reverse: bool, progress: Progress) -> None:
        """Bring a spool to its end: a row for each base of the pieces."""
        progress(spool.rows)
        if len(pieces) == 1:
            for scores, state in self._stream(pieces[0], reverse, spool.rows, spool.state):
                spool.append(scores, state)
                progress(len(scores))
            return
        done = 0
        for together in packs(pieces, reverse, self._chunk):
            bases = sum(piece.length for piece in together)
            done += bases
            if done > spool.rows:
                spool.append(self._pack(together, reverse), None)
                progress(bases)

    def read(self, pieces: Sequence[Piece], spool: Spool, reverse: bool, start: int, stop: int) -> np.ndarray:
        """Scores ``start`` to ``stop`` of a spool that is full, by position on the forward strand."""
        if reverse and len(pieces) == 1:
            return spool.read(spool.rows - stop, spool.rows - start)[::-1]
        return spool.read(start, stop)

    def facts(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What the manifest says of a part beside its scores: nothing."""
        return {}

    def _stream(
        self, piece: Piece, reverse: bool, done: int = 0, state: State | None = None
    ) -> Iterator[tuple[np.ndarray, State]]:
        """Scores in the order of reading, from the one with number ``done`` on, without those of the warm-up."""
        around, read = piece.trail if reverse else piece.lead, reader(self._store, piece)
        shift = 0 if reverse else around  # the sequence that is read begins before the piece, or ends behind it
        first = around + done if done else 0
        scored = stream_strand(
            Scorer(self._model),
            lambda a, b: read(a - shift, b - shift),
            around + piece.length,
            chunk=self._chunk,
            reverse=reverse,
            first=first,
            state=state if done else None,
        )
        with closing(scored):
            for scores, after in scored:
                found = scores[0].cpu().numpy()[max(around - first, 0) :]
                first += scores.shape[1]
                yield found, after

    def _pack(self, pieces: Sequence[Piece], reverse: bool) -> np.ndarray:
        """Scores of pieces on end, by position on the forward strand."""
        if len(pieces) == 1 or not self._model.backbone.capabilities.packs:
            alone = [np.concatenate([scores for scores, _ in self._stream(piece, reverse)]) for piece in pieces]
        else:
            whole = score_packed(self._model, [self._sequence(piece, reverse) for piece in pieces])
            alone = [scores[-piece.length :] for scores, piece in zip(whole, pieces, strict=True)]
        return np.concatenate([scores[::-1] for scores in alone] if reverse else alone)

    def _sequence(self, piece: Piece, reverse: bool) -> np.ndarray:
        """Tokens in the order of reading, those of the warm-up first."""
        read = reader(self._store, piece)
        if reverse:
            return reverse_complement(read(0, piece.length + piece.trail))
        return read(-piece.lead, piece.length)


def packs(pieces: Sequence[Piece], reverse: bool, most: int) -> Iterator[list[Piece]]:
    """Runs of pieces that are read in one call: as many as have ``most`` bases together, or one that has more."""
    pack: list[Piece] = []
    size = 0
    for piece in pieces:
        bases = piece.length + (piece.trail if reverse else piece.lead)
        if pack and size + bases > most:
            yield pack
            pack, size = [], 0
        pack.append(piece)
        size += bases
    if pack:
        yield pack
