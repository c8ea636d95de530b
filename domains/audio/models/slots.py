"""Where the samples of a call come to stand among blocks of p, whatever was left over and however documents are packed.

Every document is cut into blocks from its own beginning. The slots of a row are numbered from the first of the block
that the state left unfinished; a new document takes up at the next block, and padding has no slot.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mamba_core.ops.packing import document_runs


@dataclass(frozen=True)
class Slots:
    """The places of the samples of one call among blocks of ``pool`` slots."""

    pool: int
    blocks: int  # unfinished ones included
    phase: Tensor  # (b,) int64: samples left over from the call before
    slot: Tensor  # (b, l) int64; of padding, that of the sample before it, -1 at least
    run: Tensor  # (b, l) int64: documents numbered from 0, which is that of the state
    real: Tensor | None  # (b, l) bool; None: no padding

    @classmethod
    def of(cls, phase: Tensor, length: int, pool: int, seq_idx: Tensor | None) -> "Slots":
        """Lay out ``length`` samples behind ``phase`` (b,) left-over ones. With seq_idx (b, l) this waits for a GPU."""
        if seq_idx is None:
            slot = phase[:, None] + torch.arange(length, device=phase.device)
            return cls(pool, -(-(length + pool - 1) // pool), phase, slot, torch.zeros_like(slot), None)
        real, run = document_runs(seq_idx)
        begins = run.diff(dim=1, prepend=run[:, :1]) > 0
        number = real.cumsum(1) - 1  # among the real samples of the row
        first = torch.where(begins, number, 0).cummax(dim=1).values
        place = number - first + torch.where(run == 0, phase[:, None], 0)  # in its document
        before = torch.cat([phase[:, None] - 1, place[:, :-1]], dim=1)
        blocks = torch.where(begins, before // pool + 1, 0).cumsum(1)  # of the documents before
        slot = blocks * pool + place
        return cls(pool, max(1, int(slot.max()) // pool + 1), phase, slot, run, real)

    def lay(self, x: Tensor, left_over: Tensor) -> Tensor:
        """Samples (b, l, d) in their slots behind the left-over (b, pool - 1, d): (b, (blocks + 1) pool, d), else 0."""
        laid = x.new_zeros(x.shape[0], (self.blocks + 1) * self.pool + 1, x.shape[2])
        laid = laid.scatter(1, self._index()[..., None].expand_as(x), x)
        old = self._before(self.phase)
        front = torch.where(old[..., None], left_over.to(x.dtype), laid[:, : self.pool - 1])
        return torch.cat([front, laid[:, self.pool - 1 : -1]], dim=1)

    def documents(self) -> Tensor:
        """(b, blocks) int64: the document of each block that is full, -1 where it is not."""
        found = torch.full((len(self.slot), (self.blocks + 1) * self.pool + 1), -1, device=self.slot.device)
        found = found.scatter(1, self._index(), self.run)
        return found[:, self.pool - 1 : self.blocks * self.pool : self.pool]

    def left_over(self, laid: Tensor) -> Tensor:
        """The samples of each row's unfinished block: (b, pool - 1, d), 0 where there is none yet."""
        places = self._last_block() * self.pool + torch.arange(self.pool - 1, device=laid.device)
        return take(laid, places).masked_fill(~self._before(self.next_phase())[..., None], 0.0)

    def next_phase(self) -> Tensor:
        """(b,) int64: samples of the unfinished block."""
        return (self.slot[:, -1] + 1) % self.pool

    def in_time(self, known: Tensor, documents: Tensor) -> Tensor:
        """What is known at each sample: the place of its own in the latest full block of its document, 0 before any.

        Args:
            known: (b, (1 + blocks) pool, d): what the state knows, and what became of each block.
            documents: (b, blocks) of :meth:`documents`.

        Returns:
            (b, l, d).
        """
        at = (
            self.slot + 1
        )  # a block is known from its last sample on: its places lie pool - 1 later, behind the state's
        own = _owners(documents).gather(1, at // self.pool) == self.run
        return take(known, at).masked_fill(~own[..., None], 0.0)

    def latest(self, known: Tensor, documents: Tensor) -> Tensor:
        """What is known at the end, (b, pool, d): of the last document's latest full block, 0 before any."""
        block = self._last_block()
        places = block * self.pool + torch.arange(self.pool, device=known.device)
        stale = _owners(documents).gather(1, block) != self.run[:, -1:]
        return take(known, places).masked_fill(stale[..., None], 0.0)

    def _last_block(self) -> Tensor:
        """(b, 1): the unfinished block."""
        return (self.slot[:, -1:] + 1) // self.pool

    def _before(self, count: Tensor) -> Tensor:
        """(b, pool - 1) bool: the first ``count`` (b,) places."""
        return torch.arange(self.pool - 1, device=count.device) < count[:, None]

    def _index(self) -> Tensor:
        """Where samples go; padding goes behind all slots."""
        return self.slot if self.real is None else torch.where(self.real, self.slot, (self.blocks + 1) * self.pool)


def _owners(documents: Tensor) -> Tensor:
    """The document of what the state knows, and of each block."""
    return torch.cat([torch.zeros_like(documents[:, :1]), documents], dim=1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """x (b, n, d) at index (b, k): (b, k, d)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
