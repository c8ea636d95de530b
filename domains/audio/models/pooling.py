"""A stage of a multi-scale model: layers at the rate of its samples, round an inner stage that sees blocks of them.

In the manner of SaShiMi (Goel et al. 2022, arXiv:2202.09729)::

    x  ->  blocks of p samples, one wide vector each  ->  inner stage  ->  p vectors for each block
       ->  added to x where they are known            ->  outer layers

A block is known once its last sample has come, so what the inner stage makes of it is added to that sample and to the
p - 1 behind it: y at t depends on x up to t alone, and the inner stage is never late by more than it must.
"""

import torch
from torch import Tensor, nn

from domains.audio.models.slots import Slots
from mamba_core import Backbone, Capabilities, State
from mamba_core.mixers.base import resume
from mamba_core.ops.arguments import working_dtype


class Pooled(nn.Module):
    """(b, l, width) -> (b, l, width), the face of a :class:`mamba_core.Backbone`.

    Any length, any split into calls and any packing of documents gives the same; each document's blocks begin with it.
    Calls that begin at a border of blocks and end at one, without ``seq_idx``, take a shorter way.

    State: ``down`` (b, p - 1, width), the samples of the unfinished block, ``phase`` (b,) of them; ``up`` (b, p,
    width), what the inner stage made of the last block; ``seq_idx`` (b,); and those of ``inner`` and ``outer``, whose
    documents are numbered anew by each call inside.

    Args:
        pool: samples of a block, p.
        inner: takes blocks.
        inner_width: of its vectors.
        outer: layers at the rate of the samples.
    """

    def __init__(self, pool: int, inner: "Backbone | Pooled", inner_width: int, outer: Backbone) -> None:
        super().__init__()
        if pool < 2:
            raise ValueError(f"pool={pool}: must be at least 2")
        width = outer.config.d_model
        self.pool = pool
        self.width = width
        self.total: int = pool * (inner.total if isinstance(inner, Pooled) else 1)  # samples of an innermost block
        self.down = nn.Linear(pool * width, inner_width)
        self.inner = inner
        self.up = nn.Linear(inner_width, pool * width)
        self.outer = outer

    @property
    def capabilities(self) -> Capabilities:
        """What the inner and the outer layers can do together; one sequence on many ranks is not among it."""
        inner, outer = self.inner.capabilities, self.outer.capabilities
        flags = {name: getattr(inner, name) and getattr(outer, name) for name in vars(inner)}
        return Capabilities(**{**flags, "splits": False})

    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        """Run a whole sequence; see :meth:`mamba_core.mixers.Mixer.forward` for state and seq_idx."""
        if seq_idx is None and x.shape[1] % self.pool == 0 and (state is None or not bool(state["phase"].any())):
            return self._forward_aligned(x, state)
        state = self.init_state(x.shape[0], x.device) if state is None else state
        state, last = resume(state, seq_idx)
        slots = Slots.of(state["phase"], x.shape[1], self.pool, seq_idx)
        laid, documents = slots.lay(x, state["down"]), slots.documents()
        blocks = laid[:, : slots.blocks * self.pool]
        z, inner = self._run_inner(blocks, state.child("inner"), documents, slots.run[:, -1])
        known = torch.cat([state["up"].to(z.dtype), z], dim=1)
        y, outer = self.outer(x + slots.in_time(known, documents), state.child("outer"), seq_idx=seq_idx)
        own_state = {
            "down": slots.left_over(laid).to(state["down"].dtype),
            "up": slots.latest(known, documents).to(state["up"].dtype),
            "phase": slots.next_phase(),
            "seq_idx": last,
        }
        return y, _joined(own_state, inner, outer)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One sample of each row, x (b, width), whatever blocks the rows are in.

        On a GPU the inner stage runs at every step, for it does not ask whether a block is full; :meth:`step_` with a
        position does not.
        """
        phase, before = state["phase"][:, None], state.child("inner")
        place = torch.arange(self.pool - 1, device=x.device)
        down = torch.where((place == phase)[..., None], x[:, None].to(state["down"].dtype), state["down"])
        full = phase == self.pool - 1
        up, inner = state["up"], before
        if x.is_cuda or bool(full.any()):
            z, inner = self.inner.step(self._down(down, x), before)
            up = torch.where(full[..., None], self._up(z).to(up.dtype), up)
            inner = State({name: _choose(full[:, 0], tensor, before[name]) for name, tensor in inner.items()})
        after = (phase + 1) % self.pool
        known = up.gather(1, after[..., None].expand(-1, -1, self.width))[:, 0]
        y, outer = self.outer.step(x + known.to(x.dtype), state.child("outer"))
        own_state = {
            "down": down.masked_fill(full[..., None], 0.0),
            "up": up,
            "phase": after[:, 0],
            "seq_idx": state["seq_idx"].clamp(min=0),
        }
        return y, _joined(own_state, inner, outer)

    @torch.no_grad()
    def step_(self, x: Tensor, state: State, position: int | None = None) -> Tensor:
        """As :meth:`step` without gradients, to the bit, but ``state`` is overwritten and keeps its storage.

        With ``position``, samples that every row has read so far (modulo ``total`` at least), the inner stage runs
        when its turn has come, and nothing waits for a GPU: a CUDA graph can hold the steps of a block.
        """
        if position is None:
            y, stepped = self.step(x, state)
            state.copy_(stepped)
            return y
        phase = position % self.pool
        if phase < self.pool - 1:
            state["down"][:, phase] = x.to(state["down"].dtype)
        else:
            blocks, inner = self._down(state["down"], x), state.child("inner")
            further = (position // self.pool,) if isinstance(self.inner, Pooled) else ()
            z = self.inner.step_(blocks, inner, *further)
            state["up"].copy_(self._up(z))
            state["down"].zero_()
        after = (phase + 1) % self.pool
        state["phase"].fill_(after)
        state["seq_idx"].clamp_(min=0)
        return self.outer.step_(x + state["up"][:, after].to(x.dtype), state.child("outer"))

    def position(self, state: State) -> Tensor:
        """(b,) int64: samples that each row has read, modulo ``total``."""
        inner = self.inner.position(state.child("inner")) if isinstance(self.inner, Pooled) else 0
        return state["phase"] + self.pool * inner

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """The state before any sample."""
        weight = self.down.weight
        device, dtype = device or weight.device, working_dtype(weight)
        own_state = {
            "down": torch.zeros(batch, self.pool - 1, self.width, dtype=dtype, device=device),
            "up": torch.zeros(batch, self.pool, self.width, dtype=dtype, device=device),
            "phase": torch.zeros(batch, dtype=torch.int64, device=device),
            "seq_idx": torch.full((batch,), -1, dtype=torch.int64, device=device),
        }
        return _joined(own_state, self.inner.init_state(batch, device), self.outer.init_state(batch, device))

    def _forward_aligned(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Whole blocks of one document, from a border on."""
        l, before = x.shape[1], self.init_state(x.shape[0], x.device) if state is None else state
        z, inner = self.inner(
            self.down(x.unflatten(1, (-1, self.pool)).flatten(2)), None if state is None else state.child("inner")
        )
        z = self.up(z).unflatten(2, (self.pool, -1)).flatten(1, 2)
        known = torch.cat([before["up"].to(z.dtype), z], dim=1)
        y, outer = self.outer(x + known[:, 1 : l + 1], None if state is None else state.child("outer"))
        own_state = {
            "down": before["down"],
            "up": known[:, l:].to(before["up"].dtype),
            "phase": before["phase"],
            "seq_idx": before["seq_idx"].clamp(min=0),
        }
        return y, _joined(own_state, inner, outer)

    def _run_inner(self, laid: Tensor, state: State, documents: Tensor, last: Tensor) -> tuple[Tensor, State]:
        """The inner stage over blocks of which those of document -1 are not full.

        Its state is that of document 0 before, and behind it that of document ``last`` (b,): fresh where that document
        has filled no block yet.
        """
        z, after = self.inner(
            self.down(laid.unflatten(1, (-1, self.pool)).flatten(2)), _renumbered(state), seq_idx=documents
        )
        reached = documents.amax(dim=1).clamp(min=0)
        after = State({name: _choose(reached == last, t, torch.zeros_like(t)) for name, t in after.items()})
        return self.up(z).unflatten(2, (self.pool, -1)).flatten(1, 2), _renumbered(after)

    def _down(self, begun: Tensor, x: Tensor) -> Tensor:
        """A block, from its first samples (b, pool - 1, width) and its last (b, width): (b, inner width)."""
        return self.down(torch.cat([begun.to(x.dtype), x[:, None]], dim=1).flatten(1))

    def _up(self, z: Tensor) -> Tensor:
        return self.up(z).unflatten(1, (self.pool, -1))


def _joined(own: dict[str, Tensor], inner: State, outer: State) -> State:
    return State({**own, **State.nest({"inner": inner, "outer": outer})})


def _choose(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Row by row (b,)."""
    return torch.where(rows.view(-1, *[1] * (yes.ndim - 1)), yes, no)


def _renumbered(state: State) -> State:
    """Every row is in document 0."""
    return State(
        {name: torch.zeros_like(t) if name.rpartition(".")[2] == "seq_idx" else t for name, t in state.items()}
    )
