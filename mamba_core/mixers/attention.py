"""Causal attention (Vaswani et al. 2017, arXiv:1706.03762) whose keys and values are its state.

With a window, the state is the tail of the last ``window - 1`` keys and values: it has a fixed size, so the layer
streams, steps and trains in segments as a state-space layer does. Without one, the state is all that was read.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from mamba_core.mixers.base import Capabilities, Mixer, check_sizes, resume
from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.packing import document_runs
from mamba_core.state import State


@dataclass
class AttentionConfig:
    """Sizes of an attention mixer."""

    headdim: int = 64
    kv_heads: int = 0  # heads of keys and values, each shared by a group of queries (arXiv:2305.13245); 0: no sharing
    window: int = 0  # tokens that a token sees, itself included; 0: all before it, and a state that grows
    rotary: bool = True  # rotary positions (arXiv:2104.09864); False: none, beside layers that know the order
    rotary_base: float = 10_000.0

    def build(self, d_model: int, norm_eps: float) -> "Attention":
        """The mixer for a model of this width (it has no norm of its own, so norm_eps is not used)."""
        return Attention(d_model, self)


class _Places(NamedTuple):
    """Where the tokens of a call stand; of packed rows, after padding has moved to their ends."""

    position: Tensor  # (b, l) int64, in its document
    after: Tensor  # (b,) int64: position of the row's next token
    run: Tensor | None  # (b, l) documents numbered from 0, which is that of the state; None: all are 0
    real: Tensor | None  # (b,) how many are real; None: all


class Attention(Mixer):
    """in_proj -> [q, k, v]; rotary positions of q and k; softmax attention of each token to those before it; out_proj.

    State: ``k`` and ``v`` (b, n, kv_heads, headdim), keys rotated, the latest last; ``position`` (b,), tokens of the
    document so far, of which the last ``min(position, n)`` entries hold the latest and the others 0; ``seq_idx``
    (b,). n is window - 1, or grows. Angles are computed in float64 from the position in the document, so positions of
    10^6 and more cost no digit, and no caller's split changes one.

    Memory is O(l) for a sequence without documents and window (a flash kernel), O(l window) with a window, and O(l^2)
    bits of mask for packed documents without a window.
    """

    def __init__(self, d_model: int, config: AttentionConfig):
        super().__init__()
        check_sizes("attention", headdim=config.headdim)
        if d_model % config.headdim or config.headdim % 2:
            raise ValueError(
                f"attention.headdim={config.headdim}: must be even and divide d_model = {d_model}, the heads' sizes "
                "together"
            )
        self.heads = d_model // config.headdim
        self.kv_heads = config.kv_heads or self.heads
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"attention.kv_heads={config.kv_heads}: must divide the {self.heads} heads")
        if config.window < 0:
            raise ValueError(f"attention.window={config.window}: must be at least 1, or 0 for no window")
        if config.rotary_base <= 1:
            raise ValueError(f"attention.rotary_base={config.rotary_base}: must be greater than 1")
        self.config = config
        self.window = config.window
        bounded = config.window > 0
        self.capabilities = Capabilities(causal=True, streams=True, steps=bounded, packs=True, constant_state=bounded)
        self.in_proj = nn.Linear(d_model, (self.heads + 2 * self.kv_heads) * config.headdim, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        plain = state is None and seq_idx is None
        state, last = resume(self.init_state(x.shape[0], x.device) if state is None else state, seq_idx)
        if seq_idx is None:
            y, after = self._mix(x, state, _places(state["position"], x.shape[1], None), plain)
            return y, State({**after, "seq_idx": last})
        # Padding goes to the end of its row, so that tokens which see each other are neighbours, and back again.
        order = (seq_idx < 0).byte().argsort(dim=1, stable=True)
        index = order[..., None].expand_as(x)
        seq_idx = seq_idx.gather(1, order)
        padding = (seq_idx < 0)[..., None]
        x = x.gather(1, index).masked_fill(padding, 0.0)
        y, after = self._mix(x, state, _places(state["position"], x.shape[1], seq_idx), plain)
        y = y.masked_fill(padding, 0.0)
        return torch.zeros_like(y).scatter(1, index, y), State({**after, "seq_idx": last})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.forward(x[:, None], state)
        return y[:, 0], state

    @torch.no_grad()
    def step_(self, x: Tensor, state: State) -> Tensor:
        if not self.capabilities.constant_state:
            raise ValueError("attention without a window has a state that grows: call step, or set attention.window")
        return super().step_(x, state)

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        weight = self.in_proj.weight
        device = device or weight.device
        shape = (batch, max(self.window - 1, 0), self.kv_heads, self.config.headdim)
        return State(
            {
                "k": torch.zeros(shape, dtype=working_dtype(weight), device=device),
                "v": torch.zeros(shape, dtype=working_dtype(weight), device=device),
                "position": torch.zeros(batch, dtype=torch.int64, device=device),
                "seq_idx": torch.full((batch,), -1, dtype=torch.int64, device=device),
            }
        )

    def _mix(self, x: Tensor, state: State, places: _Places, plain: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows without padding but at their ends; ``plain``: nothing stands before them."""
        q, k, v = (
            self.in_proj(x)
            .unflatten(-1, (-1, self.config.headdim))
            .split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        )
        if self.config.rotary:
            cos, sin = _angles(places.position, self.config, working_dtype(x))
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        if plain and (not self.window or x.shape[1] <= self.window):
            y = _attention(q, k, v)
        else:
            keys, values = (torch.cat([state[name].to(new.dtype), new], dim=1) for name, new in (("k", k), ("v", v)))
            y = self._attend(q, keys, values, state["position"], places.run)
        dtype = state["k"].dtype
        after = {name: self._keep(state[name], new.to(dtype), places) for name, new in (("k", k), ("v", v))}
        return self.out_proj(y.flatten(2)), {**after, "position": places.after}

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, known: Tensor, run: Tensor | None) -> Tensor:
        """Queries (b, l, h, p) against n entries of the state, of which the last ``known`` (b,) count, and l keys."""
        b, l = q.shape[:2]
        n = k.shape[1] - l
        if run is None and not self.window and _all_count(known, n, l):
            return _attention(q, k, v, causal_lower_right(l, n + l))
        entry = torch.arange(n, device=q.device)
        queries = q.new_zeros((b, l), dtype=torch.int64) if run is None else run
        keys = torch.cat([torch.where(entry >= n - known[:, None], 0, -1), queries], dim=1)
        if self.window and l > self.window:
            return self._attend_in_blocks(q, k, v, queries, keys, alike=run is None)
        return _attention(q, k, v, self._visible(l, n + l, q.device) & _same(queries, keys))

    def _attend_in_blocks(self, q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, alike: bool) -> Tensor:
        """Blocks of ``window`` queries, each against the keys of its own block and the one before.

        ``queries`` (b, l) and ``keys`` (b, n + l) number the documents; ``alike``: from the second block on there is
        one document alone, so one mask serves all blocks.
        """
        w, l = self.window, q.shape[1]
        blocks = -(-l // w)
        end = blocks * w - l
        q = F.pad(q, (0, 0, 0, 0, 0, end)).unflatten(1, (blocks, w))
        k, v = (_pairs(F.pad(t, (0, 0, 0, 0, 1, end)), w) for t in (k, v))  # (b, blocks, 2 w, kv_heads, p)
        queries = F.pad(queries, (0, end), value=-2).unflatten(1, (blocks, w))
        keys = _pairs(F.pad(F.pad(keys, (1, 0), value=-1), (0, end), value=-2), w)
        band = self._visible(w, 2 * w, q.device)
        if alike:
            first = _attention(q[:, 0], k[:, 0], v[:, 0], band & _same(queries[:, 0], keys[:, 0]))
            rest = _attention(q[:, 1:].flatten(0, 1), k[:, 1:].flatten(0, 1), v[:, 1:].flatten(0, 1), band)
            y = torch.cat([first[:, None], rest.unflatten(0, (-1, blocks - 1))], dim=1)
        else:
            mask = band & _same(queries.flatten(0, 1), keys.flatten(0, 1))
            y = _attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask).unflatten(0, (-1, blocks))
        return y.flatten(1, 2)[:, :l]

    def _visible(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """(queries, keys) bool: the key is neither behind its query nor out of the window; both end with one token."""
        at = torch.arange(keys - queries, keys, device=device)
        distance = at[:, None] - torch.arange(keys, device=device)
        return (distance >= 0) & (distance < self.window) if self.window else distance >= 0

    def _keep(self, past: Tensor, new: Tensor, places: _Places) -> Tensor:
        """The entries (b, n, kv_heads, p) of the next state: the latest real tokens of each row's last document."""
        count, n = places.real, past.shape[1]
        if count is None:
            # A copy: as a slice, the tail would hold on to the memory of the whole sequence.
            return torch.cat([past, new], dim=1) if not self.window else _tail(past, new).clone()
        entries = torch.cat([past, new], dim=1)
        size = n
        if not self.window:
            size = entries.shape[1] if torch.compiler.is_compiling() else int(places.after.max())
        entry = torch.arange(size, device=new.device)
        index = ((n - size + count)[:, None] + entry).clamp(min=0)
        kept = entries.gather(1, index[..., None, None].expand(-1, -1, *new.shape[2:]))
        return kept.masked_fill((entry < size - places.after[:, None])[..., None, None], 0.0)


def _places(position: Tensor, length: int, seq_idx: Tensor | None) -> _Places:
    """Number tokens by document, from ``position`` (b,) on; padding of ``seq_idx`` (b, l) is at the ends of rows."""
    token = torch.arange(length, device=position.device)
    if seq_idx is None:
        return _Places(position[:, None] + token, position + length, None, None)
    real, run = document_runs(seq_idx)
    begins = run.diff(dim=1, prepend=run[:, :1]) > 0
    first = torch.where(begins, token, 0).cummax(dim=1).values
    at = token - first + torch.where(run == 0, position[:, None], 0)
    count = real.sum(dim=1)
    after = at.gather(1, (count - 1).clamp(min=0)[:, None]).squeeze(1) + 1
    return _Places(at, torch.where(count > 0, after, position), run, count)


def _angles(position: Tensor, config: AttentionConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine (b, l, 1, headdim / 2) of each pair's angle, position base^(-2 i / headdim)."""
    pairs = config.headdim // 2
    rate = (torch.arange(pairs, device=position.device).double() * (-math.log(config.rotary_base) / pairs)).exp()
    angle = (position[..., None].double() * rate)[:, :, None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + p / 2}) of (b, l, h, p) by its angle; arithmetic in the dtype of the angles."""
    a, b = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(p)) v: q (b, l, h, p), k and v (b, n, kv_heads, p), mask bool; without one, causal."""
    group = q.shape[2] // k.shape[2]
    if mask is not None and group > 1:  # the kernels that take a mask know no groups
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
        group = 1
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=group > 1)
    return y.transpose(1, 2)


def _same(queries: Tensor, keys: Tensor) -> Tensor:
    """(b, 1, l, n) bool: query (b, l) and key (b, n) are of one document."""
    return (queries[:, :, None] == keys[:, None, :])[:, None]


def _pairs(x: Tensor, size: int) -> Tensor:
    """Blocks along dimension 1, each behind the one before it: (b, (m + 1) size, ...) -> (b, m, 2 size, ...)."""
    blocks = x.unflatten(1, (-1, size))
    return torch.cat([blocks[:, :-1], blocks[:, 1:]], dim=2)


def _tail(past: Tensor, new: Tensor) -> Tensor:
    """The last entries of both, as many as ``past`` (b, n, ...) has."""
    n, l = past.shape[1], new.shape[1]
    return new[:, l - n :] if l >= n else torch.cat([past[:, l:], new], dim=1)


def _all_count(known: Tensor, entries: int, queries: int) -> bool:
    """Whether every entry of a state counts in every row: then a GPU needs no mask, which would be large.

    Asking waits for the GPU, so it is left alone for a single query, whose mask is small, and where a graph is traced.
    """
    return queries > 1 and known.is_cuda and not torch.compiler.is_compiling() and bool((known == entries).all())
