"""The face that every sequence mixer shows, and what they share."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mamba_core.mixers.split import Ranks
from mamba_core.ops.packing import first_and_last_index
from mamba_core.state import State


@dataclass(frozen=True)
class Capabilities:
    """What a mixer can do; callers ask here before they build on it."""

    causal: bool  # y_t depends on x_1 .. x_t alone
    streams: bool  # state in, state out: any split into calls equals the whole
    steps: bool  # one token at a time in constant time and memory
    packs: bool  # seq_idx keeps documents apart
    constant_state: bool = True  # the state is as large after any number of tokens; else it streams, but it grows
    splits: bool = False  # one sequence may lie on many ranks (mamba_core.context_parallel)


class Mixer(nn.Module, ABC):
    """A sequence mixer: ``(b, l, d_model) -> (b, l, d_model)``, with a state that carries on where the call ended."""

    capabilities: Capabilities
    out_proj: nn.Linear  # the last projection, which a backbone scales by its depth
    ranks: Ranks | None = None  # those that x is one slice of many on; mamba_core.context_parallel sets it

    @abstractmethod
    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        """Mix a whole sequence.

        Args:
            x: (b, l, d_model).
            state: where an earlier call ended; a fresh one when None.
            seq_idx: (b, l) integer document index, -1 at padding (y = 0, state unchanged). A row whose first index
                differs from the one its state ended with starts fresh, an equal one continues. None continues.

        Returns:
            y (b, l, d_model), and the state after the last real token.
        """

    @abstractmethod
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Mix one token of each row, x (b, d_model), in constant time: equals :meth:`forward` on one token."""

    @torch.no_grad()
    def step_(self, x: Tensor, state: State) -> Tensor:
        """As :meth:`step` without gradients, to the bit, but ``state`` is overwritten and keeps its storage."""
        y, after = self.step(x, state)
        state.copy_(after)
        return y

    def step_around(
        self, x: Tensor, norm_weight: Tensor, norm_eps: float, state: State, in_place: bool, chained: bool = False
    ) -> tuple[Tensor, State] | None:
        """``x + step(norm(x))`` in fewer launches, for a root-mean-square norm; None where there is no kernel for that.

        With ``in_place`` the state that is returned is ``state``, written over. ``chained`` promises that between two
        steps with one state some other kernel runs, which waits for all before it: then the first launch need not.
        """
        return None

    @abstractmethod
    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """The state before any token: float32 (float64 for a float64 model), zeros."""

    def time_steps(self, x: Tensor) -> Tensor | None:
        """The time steps dt that the mixer chooses on x (b, l, d_model), for inspection: (b, l, heads or channels).

        None for a mixer that chooses none.
        """
        return None


class ProjectedMixer(Mixer):
    """A mixer between two projections: ``out_proj(inner(in_proj(x)))``.

    Both are linear and take each token alone, so two mixers that scan in opposite directions can share them.
    """

    in_proj: nn.Linear

    @abstractmethod
    def inner(
        self, projected: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """What stands between the projections: in_proj(x) (b, l, ...) -> y (b, l, d_inner), 0 at padding, and the
        state; otherwise as :meth:`forward`."""

    @abstractmethod
    def inner_time_steps(self, projected: Tensor) -> Tensor:
        """The time steps dt chosen on in_proj(x): (b, l, heads or channels)."""

    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        y, state = self.inner(self.in_proj(x), state, seq_idx=seq_idx)
        return self.out_proj(y), state

    def time_steps(self, x: Tensor) -> Tensor:
        return self.inner_time_steps(self.in_proj(x))


def check_sizes(where: str, **sizes: float) -> None:
    """A ValueError that names the first of the sizes that is not at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{where}.{name}={size}: must be at least 1")


def check_ranges(where: str, **ranges: tuple[float, float]) -> None:
    """A ValueError that names the first range that is not (low, high) with 0 < low <= high."""
    for name, (low, high) in ranges.items():
        if not 0 < low <= high:
            raise ValueError(f"{where}.{name}={[low, high]}: must be [low, high] with 0 < low <= high")


class MixerConfig(Protocol):
    """The configuration of one kind of mixer builds it."""

    def build(self, d_model: int, norm_eps: float) -> Mixer:
        """The mixer for a model of this width; ``norm_eps`` is for mixers with a norm inside."""


def resume(state: State, seq_idx: Tensor | None) -> tuple[State, Tensor]:
    """Clear the rows of a state whose document has ended.

    Returns:
        The state to start from, and the last document index of each row (b,) once ``seq_idx`` has been worked off.
    """
    if seq_idx is None:
        return state, state["seq_idx"].clamp(min=0)  # a sequence without indices is document 0
    first, last = first_and_last_index(seq_idx, default=state["seq_idx"])
    ended = first != state["seq_idx"]
    kept = {
        name: tensor.masked_fill(ended.view(-1, *[1] * (tensor.ndim - 1)), 0.0)
        for name, tensor in state.items()
        if name != "seq_idx"
    }
    return State({**kept, "seq_idx": state["seq_idx"]}), last


def enter(
    mixer: Mixer, x: Tensor, state: State | None, seq_idx: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """``conv`` and ``ssm`` that x (b, l, ...) starts from, None for zeros, and its rows' last document index (b,)."""
    if state is None and seq_idx is None:
        return None, None, torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    state = mixer.init_state(x.shape[0], x.device) if state is None else state
    state, last = resume(state, seq_idx)
    return state["conv"], state["ssm"], last


def init_dt_bias(size: int, dt_min: float, dt_max: float, dt_floor: float) -> Tensor:
    """(size,) biases b with softplus(b) log-uniform in [dt_min, dt_max], at least dt_floor (arXiv:2312.00752, 3.6)."""
    log_dt = torch.rand(size) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
    dt = log_dt.exp().clamp(min=dt_floor)
    return dt + torch.log(-torch.expm1(-dt))  # inverse of softplus
