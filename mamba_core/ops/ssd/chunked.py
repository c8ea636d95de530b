"""Chunked state-space dual operation in plain PyTorch, forward and backward by hand.

A chunk of Q tokens is one small attention (quadratic in Q) plus one read and one write of the state; the state passes
from chunk to chunk. Notation, for one head and one chunk, with a = dt A and its running sum c (c_0 = a_0):

    E[i, j] = exp(c_i - c_j) for j <= i        decay from token j to token i
    read[i] = exp(c_i)                         decay from the chunk's incoming state to token i
    write[j] = exp(c_last - c_j)               decay from token j to the chunk's outgoing state
    y_i  = sum_j (C_i . B_j) E[i, j] u_j + read[i] (C_i . S_in) + D x_i        with u = dt x
    S_out = exp(c_last) S_in + sum_j write[j] B_j (x) u_j

Every exponent is a sum of non-positive numbers over the tokens it spans, so nothing overflows and nothing is divided.
Exponents are kept in base 2: on a CPU exp2 is 4 times as fast as exp, and 100 times where the result is denormal.
Documents cut E, read, write and the chunk's decay where the run (:mod:`mamba_core.ops.packing`) changes.

Inside, a state is (n, heads of a group x headdim): then reading and writing it is one wide matrix product a group, and
x is used in the layout it comes in. The sequence is worked off a block of chunks at a time, so that the Q x Q matrices
of a block stay in cache and memory beyond inputs and outputs does not grow with length.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.packing import document_runs

CHUNK = 64  # tokens
_LOG2_E = math.log2(math.e)
# Elements of the Q x Q matrices worked on at a time: 512 KB stays in a CPU core's cache; a GPU wants large launches.
BLOCK_ELEMENTS = {"cpu": 2**17, "cuda": 2**26}


@dataclass
class _Chunks:
    """Inputs of one block of chunks, padded, in the working dtype; and the decays that both directions need."""

    x: Tensor  # (m, q, h, p), m = batch x chunks of the block
    u: Tensor  # (m, q, h, p) dt x
    dt: Tensor  # (m, q, h)
    B: Tensor  # (m, g, q, n)
    C: Tensor  # (m, g, q, n)
    E: Tensor  # (m, h, q, q)
    read: Tensor  # (m, q, h)
    write: Tensor  # (m, q, h)
    decay: Tensor  # (m, h) of the whole chunk


@dataclass
class _Layout:
    """Sizes, and the cut of a sequence into blocks of chunks."""

    batch: int
    length: int
    heads: int
    headdim: int
    groups: int
    d_state: int
    chunk: int
    block: int  # chunks at a time

    @staticmethod
    def of(x: Tensor, B: Tensor, chunk: int) -> "_Layout":
        batch, length, heads, headdim = x.shape
        budget = BLOCK_ELEMENTS.get(x.device.type, BLOCK_ELEMENTS["cuda"])
        block = max(1, budget // (batch * heads * chunk * chunk))
        return _Layout(batch, length, heads, headdim, B.shape[2], B.shape[3], chunk, block)

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """(first token, token after the last, chunks) of each block; the last one may end in a part of a chunk."""
        span = self.block * self.chunk
        for start in range(0, self.length, span):
            stop = min(start + span, self.length)
            yield start, stop, -(-(stop - start) // self.chunk)

    @property
    def chunks(self) -> int:
        return -(-self.length // self.chunk)

    def cut(self, tensor: Tensor, start: int, stop: int, chunks: int, dtype: torch.dtype) -> Tensor:
        """(b, l, ...) -> (b x chunks, q, ...) of one block, zero-padded to whole chunks."""
        part = tensor[:, start:stop].to(dtype)
        missing = chunks * self.chunk - (stop - start)
        if missing:
            part = F.pad(part, [0, 0] * (part.ndim - 2) + [0, missing])
        return part.reshape(self.batch * chunks, self.chunk, *part.shape[2:])

    def uncut(self, tensor: Tensor, start: int, stop: int) -> Tensor:
        """(b x chunks, q, ...) -> (b, tokens of the block, ...)."""
        return tensor.reshape(self.batch, -1, *tensor.shape[2:])[:, : stop - start]


def _log_decays(dt: Tensor, A: Tensor) -> Tensor:
    """Running sum of dt A log2(e) inside each chunk, in float64: (m, q, h) -> (m, h, q)."""
    return (dt * (A * _LOG2_E)).transpose(1, 2).cumsum(dim=-1, dtype=torch.float64)


def _differences(cum: Tensor, work: torch.dtype) -> Tensor:
    """cum_i - cum_j (m, h, q, q). After one large step small differences stand between large sums: to float32's last
    digits they come from the sums as two floats each, the first subtraction being exact where it matters."""
    high = cum.to(work)
    differences = high[..., :, None] - high[..., None, :]
    if work != cum.dtype:
        low = (cum - high).to(work)
        differences.add_(low[..., :, None]).sub_(low[..., None, :])
    return differences


def _decays(
    cum: Tensor, run: Tensor | None, run_in: Tensor | None, work: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E (m, h, q, q), read (m, q, h), write (m, q, h) and the chunk's decay (m, h) from running sums (m, h, q)."""
    q = cum.shape[-1]
    future = torch.ones(q, q, dtype=torch.bool, device=cum.device).triu(1)
    E = _differences(cum, work)
    if run is None:
        E.masked_fill_(future, -math.inf)
    else:
        E.masked_fill_((future | (run[:, :, None] != run[:, None, :]))[:, None], -math.inf)
    E.exp2_()
    read = cum.to(work).exp2()
    write = (cum[..., -1:] - cum).to(work).exp2()
    decay = read[..., -1]
    if run is not None and run_in is not None:
        read = read * (run == run_in[:, None])[:, None]
        write = write * (run == run[:, -1:])[:, None]
        decay = decay * (run[:, -1] == run_in)[:, None]
    return E, read.transpose(1, 2), write.transpose(1, 2), decay


def _time_steps(
    dt: Tensor, dt_bias: Tensor | None, softplus: bool, limit: tuple[float, float], padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Time steps (b, l, h) from raw ones, and their derivative; both 0 at padding."""
    raw = dt if dt_bias is None else dt + dt_bias
    step = F.softplus(raw) if softplus else raw
    slope = torch.sigmoid(raw) if softplus else torch.ones_like(raw)
    if limit != (0.0, math.inf) or not softplus:
        slope = slope * ((step >= limit[0]) & (step <= limit[1]))
        step = step.clamp(*limit)
    if padding is not None:
        step, slope = (tensor.masked_fill(padding[..., None], 0.0) for tensor in (step, slope))
    return step, slope


class _Sequence:
    """The inputs of one call, ready to be cut into chunks."""

    def __init__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        dt_bias: Tensor | None,
        seq_idx: Tensor | None,
        softplus: bool,
        limit: tuple[float, float],
        chunk: int,
    ):
        self.work = working_dtype(x)
        self.layout = _Layout.of(x, B, chunk)
        self.padding: Tensor | None = None
        self.run: Tensor | None = None
        if seq_idx is not None:
            real, self.run = document_runs(seq_idx)
            self.padding = ~real
        self.A = A.to(self.work)
        self.x, self.B, self.C = (self.without_padding(tensor) for tensor in (x, B, C))
        bias = None if dt_bias is None else dt_bias.to(self.work)
        self.dt, self.slope = _time_steps(dt.to(self.work), bias, softplus, limit, self.padding)

    def without_padding(self, tensor: Tensor) -> Tensor:
        """(b, l, ...) with 0 at padding, whatever stands there: 0 times NaN is not 0."""
        if self.padding is None:
            return tensor
        return tensor.masked_fill(self.padding.view(*self.padding.shape, *[1] * (tensor.ndim - 2)), 0.0)

    def runs(self, start: int, stop: int, chunks: int) -> tuple[Tensor | None, Tensor | None]:
        """Run of each token (m, q), and run of the token before each chunk (m,), of one block."""
        if self.run is None:
            return None, None
        part = self.run[:, start:stop]
        part = torch.cat([part, part[:, -1:].expand(-1, chunks * self.layout.chunk - part.shape[1])], dim=1)
        before = self.run[:, start - 1 : start] if start else torch.zeros_like(part[:, :1])
        last = part.view(self.layout.batch, chunks, -1)[:, :, -1]
        run_in = torch.cat([before, last[:, :-1]], dim=1)
        return part.reshape(-1, self.layout.chunk), run_in.reshape(-1)

    def chunks(self, start: int, stop: int, chunks: int) -> _Chunks:
        cut, work = self.layout.cut, self.work
        dt = cut(self.dt, start, stop, chunks, work)
        x = cut(self.x, start, stop, chunks, work)
        B = cut(self.B, start, stop, chunks, work).transpose(1, 2)
        C = cut(self.C, start, stop, chunks, work).transpose(1, 2)
        E, read, write, decay = _decays(_log_decays(dt, self.A), *self.runs(start, stop, chunks), work)
        return _Chunks(x, x * dt[..., None], dt, B, C, E, read, write, decay)


def _heads_first(tensor: Tensor) -> Tensor:
    """(m, q, h, p) -> (m x h, q, p), contiguous."""
    m, q, h, p = tensor.shape
    return tensor.transpose(1, 2).reshape(m * h, q, p)


def _by_group(tensor: Tensor, groups: int) -> Tensor:
    """(m, q, h, p) -> (m, g, q, heads of a group x p)."""
    m, q, h, p = tensor.shape
    return tensor.reshape(m, q, groups, (h // groups) * p).transpose(1, 2)


def _from_group(tensor: Tensor, heads: int) -> Tensor:
    """(m, g, q, heads of a group x p) -> (m, q, h, p)."""
    m, g, q, hp = tensor.shape
    return tensor.transpose(1, 2).reshape(m, q, heads, hp * g // heads)


def _scale(weight: Tensor, groups: int, headdim: int) -> Tensor:
    """(..., h) -> (..., g, 1, heads of a group x p), to scale states head by head."""
    per_group = weight.unflatten(-1, (groups, -1))  # (..., g, hg)
    return per_group.repeat_interleave(headdim, dim=-1).unsqueeze(-2)


def _scores(chunk: _Chunks) -> Tensor:
    """C_i . B_j of each group: (m, g, q, q)."""
    return chunk.C @ chunk.B.transpose(-1, -2)


def _times_groups(per_head: Tensor, per_group: Tensor) -> Tensor:
    """(m, h, q, q) x (m, g, q, q), each group's matrix for all of its heads."""
    m, h, q, _ = per_head.shape
    g = per_group.shape[1]
    return (per_head.view(m, g, h // g, q, q) * per_group[:, :, None]).view(m, h, q, q)


def to_inner(state: Tensor, groups: int) -> Tensor:
    """Public state (b, h, p, n) -> (b, g, n, heads of a group x p)."""
    b, h, p, n = state.shape
    return state.view(b, groups, h // groups * p, n).transpose(-1, -2).contiguous()


def to_public(state: Tensor, heads: int) -> Tensor:
    """(b, g, n, heads of a group x p) -> public state (b, h, p, n)."""
    b, g, n, hp = state.shape
    return state.transpose(-1, -2).contiguous().view(b, heads, hp * g // heads, n)


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    softplus: bool,
    limit: tuple[float, float],
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (b, l, h, p), final state (b, h, p, n), and the states between chunks (b, chunks + 1, g, n, hg p)."""
    seq = _Sequence(x, dt, A, B, C, dt_bias, seq_idx, softplus, limit, chunk)
    lay = seq.layout
    hp = lay.heads // lay.groups * lay.headdim
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    # Each chunk's incoming state, and the final one behind them.
    states = torch.empty(lay.batch, lay.chunks + 1, lay.groups, lay.d_state, hp, dtype=seq.work, device=x.device)
    states[:, 0] = 0 if initial_state is None else to_inner(initial_state.to(seq.work), lay.groups)
    done = 0
    for start, stop, chunks in lay.blocks():
        part = seq.chunks(start, stop, chunks)
        written = part.B.transpose(-1, -2) @ _by_group(part.u * part.write[..., None], lay.groups)
        written = written.view(lay.batch, chunks, *states.shape[2:])
        decay = _scale(part.decay.view(lay.batch, chunks, -1), lay.groups, lay.headdim)
        for k in range(chunks):
            torch.addcmul(written[:, k], states[:, done + k], decay[:, k], out=states[:, done + k + 1])
        incoming = states[:, done : done + chunks].reshape(-1, *states.shape[2:])
        out = _from_group(part.C @ incoming, lay.heads).mul_(part.read[..., None])
        mixed = torch.bmm(_times_groups(part.E, _scores(part)).flatten(0, 1), _heads_first(part.u))
        out += mixed.view(-1, lay.heads, chunk, lay.headdim).transpose(1, 2)
        if D is not None:
            out.addcmul_(part.x, D.to(seq.work)[:, None])
        y[:, start:stop] = lay.uncut(out, start, stop)
        done += chunks
    if seq.padding is not None:
        y.masked_fill_(seq.padding[..., None, None], 0.0)
    return y, to_public(states[:, -1], lay.heads), states


def backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    states: Tensor,
    softplus: bool,
    limit: tuple[float, float],
    chunk: int = CHUNK,
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C, D, dt_bias and the initial state (fp32, fp64 when x is), in their shapes."""
    seq = _Sequence(x, dt, A, B, C, dt_bias, seq_idx, softplus, limit, chunk)
    lay, work = seq.layout, seq.work
    grad_y = seq.without_padding(grad_y.to(work))
    dx = torch.empty(x.shape, dtype=work, device=x.device)
    ddt = torch.empty(dt.shape, dtype=work, device=x.device)
    dB = torch.empty(B.shape, dtype=work, device=x.device)
    dC = torch.empty(C.shape, dtype=work, device=x.device)
    dA = torch.zeros_like(seq.A)
    dD = torch.zeros_like(seq.A)
    skip = None if D is None else D.to(work)[:, None]
    grad_state = to_inner(grad_final.to(work), lay.groups)  # of the state that leaves the chunk at hand
    done = lay.chunks
    for start, stop, chunks in reversed(list(lay.blocks())):
        done -= chunks
        part = seq.chunks(start, stop, chunks)
        gy = lay.cut(grad_y, start, stop, chunks, work)
        incoming = states[:, done : done + chunks].reshape(-1, *states.shape[2:])
        gy_read = _by_group(gy * part.read[..., None], lay.groups)  # (m, g, q, hg p)
        reads = (part.C.transpose(-1, -2) @ gy_read).view(lay.batch, chunks, *states.shape[2:])
        decay = _scale(part.decay.view(lay.batch, chunks, -1), lay.groups, lay.headdim)
        # Gradients of the states between the chunks of the block: the first is what the block before it gets.
        grads = torch.empty(lay.batch, chunks + 1, *states.shape[2:], dtype=work, device=x.device)
        grads[:, chunks] = grad_state
        for k in reversed(range(chunks)):
            torch.addcmul(reads[:, k], grads[:, k + 1], decay[:, k], out=grads[:, k])
        grad_state, outgoing = grads[:, 0], grads[:, 1:].reshape_as(incoming)

        # Through the state: what each token wrote, and what it read.
        gu = _from_group(part.B @ outgoing, lay.heads).mul_(part.write[..., None])
        scratch = part.u * part.write[..., None]
        gB = _by_group(scratch, lay.groups) @ outgoing.transpose(-1, -2)  # (m, g, q, n)
        gC = gy_read @ incoming.transpose(-1, -2)
        from_write = torch.mul(gu, part.u, out=scratch).sum(-1)  # (m, q, h)
        from_read = _from_group((part.C @ incoming).mul_(gy_read), lay.heads).sum(-1)
        kept = (outgoing * incoming).sum(-2).unflatten(-1, (-1, lay.headdim)).sum(-1).flatten(1) * part.decay  # (m, h)

        # Inside the chunk.
        scores = _scores(part)
        u_heads, gy_heads = _heads_first(part.u), _heads_first(gy)
        g_mix = torch.bmm(gy_heads, u_heads.transpose(1, 2)).view_as(part.E)
        mix = _times_groups(part.E, scores)
        gu += torch.bmm(mix.flatten(0, 1).mT, gy_heads).view(-1, lay.heads, chunk, lay.headdim).transpose(1, 2)
        mix *= g_mix
        mix.diagonal(dim1=-2, dim2=-1).zero_()  # a token's decay to itself is 1
        pairs = mix.sum(-1) - mix.sum(-2)  # (m, h, q)
        g_scores = g_mix.mul_(part.E).unflatten(1, (lay.groups, -1)).sum(2)  # (m, g, q, q)
        gB += g_scores.transpose(-1, -2) @ part.C
        gC += g_scores @ part.B

        # a_k takes part in every decay that spans token k: pairs and reads that end at k or later, writes before k.
        spans = (pairs.transpose(1, 2) + from_read).flip(1).cumsum(1).flip(1)
        spans += from_write.cumsum(1) - from_write + kept[:, None]
        dA += (spans * part.dt).sum((0, 1))
        gdt = torch.mul(gu, part.x, out=scratch).sum(-1).addcmul_(spans, seq.A)
        gx = gu.mul_(part.dt[..., None])
        if skip is not None:
            gx.addcmul_(gy, skip)
            dD += torch.mul(gy, part.x, out=scratch).sum((0, 1, 3))
        dx[:, start:stop] = lay.uncut(gx, start, stop)
        ddt[:, start:stop] = lay.uncut(gdt, start, stop)
        dB[:, start:stop] = lay.uncut(gB.transpose(1, 2), start, stop)
        dC[:, start:stop] = lay.uncut(gC.transpose(1, 2), start, stop)
    ddt *= seq.slope
    return dx, ddt, dA, dB, dC, dD, ddt.sum((0, 1)), to_public(grad_state, lay.heads)
