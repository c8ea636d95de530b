"""The scores of a part of a genome by a masked model, on their way to its files."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from domains.engines import Progress
from domains.genomics.config import PredictConfig
from domains.genomics.masked_windows import Source, check_windows, halo_error, masked_scores, packed_scores
from domains.genomics.part_scores import packs
from domains.genomics.parts import Piece
from domains.genomics.spool import Spool
from domains.genomics.store import GenomeStore
from mamba_core import MaskedLM


class MaskedScores:
    """Log-probabilities of bases given those around them, from a masked model; the face is that of CausalScores.

    Contigs are read in windows (domains.genomics.masked_windows), short ones of a part together, each as if it were
    alone. With ``both_strands`` each window is read on both, so a part has one spool, which goes on behind the last
    window that it holds.

    Args:
        model: in evaluation mode.
        store: the genome.
        config: ``windows``, ``mask_every``, ``both_strands``.
    """

    strands = (False,)

    def __init__(self, model: MaskedLM, store: GenomeStore, config: PredictConfig) -> None:
        check_windows(config.windows)
        self._model = model
        self._store = store
        self._config = config

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the scores beside model and genome."""
        windows = self._config.windows
        return {"mask_every": self._config.mask_every, "window": windows.length, "halo": windows.halo}

    def fill(self, pieces: Sequence[Piece], spool: Spool, reverse: bool, progress: Progress) -> None:
        """Bring a spool to its end: a row for each base of the pieces, in their order."""
        progress(spool.rows)
        before = 0
        for together in packs(pieces, reverse, self._config.windows.length):
            bases = sum(piece.length for piece in together)
            done = max(spool.rows - before, 0)
            before += bases
            if done < bases:
                for scores in self._read(together, done):
                    spool.append(scores, None)
                    progress(len(scores))

    def read(self, pieces: Sequence[Piece], spool: Spool, reverse: bool, start: int, stop: int) -> np.ndarray:
        """Scores ``start`` to ``stop`` of a spool that is full."""
        return spool.read(start, stop)

    def facts(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What the manifest says of a part: how far a wider halo would move its scores, at the piece where most."""
        told = [halo_error(self._model, self._source(p), p.start, p.stop, self._config) for p in pieces]
        return {"halo_error": max(told, key=lambda error: error["max"])}

    def _read(self, together: Sequence[Piece], done: int) -> Iterator[np.ndarray]:
        """Scores of pieces on end, from the one with number ``done`` on; those of several at once."""
        if len(together) == 1:
            yield from self._alone(together[0], done)
        elif any(piece.contig.circular for piece in together):
            yield np.concatenate([scores for piece in together for scores in self._alone(piece)])
        else:
            tokens = [self._store.tokens(piece.contig.name) for piece in together]
            yield np.concatenate(packed_scores(self._model, tokens, self._config))

    def _alone(self, piece: Piece, done: int = 0) -> Iterator[np.ndarray]:
        return masked_scores(self._model, self._source(piece), piece.start + done, piece.stop, self._config)

    def _source(self, piece: Piece) -> Source:
        contig = piece.contig

        def read(start: int, stop: int) -> np.ndarray:
            first, last = max(start, 0), min(stop, contig.length)
            parts = [(first, last)]
            if start < 0:
                parts.insert(0, (contig.length + start, contig.length))
            if stop > contig.length:
                parts.append((0, stop - contig.length))
            return np.concatenate([self._store.tokens(contig.name, *part) for part in parts])

        return Source(read, contig.length, contig.circular)
