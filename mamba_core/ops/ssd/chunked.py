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

import torch
from torch import Tensor

from mamba_core.ops.ssd.chunks import CHUNK, Chunks, Layout, Sequence


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


def _scores(chunk: Chunks) -> Tensor:
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
    seq = Sequence(x, dt, A, B, C, dt_bias, seq_idx, softplus, limit, chunk)
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
    seq = Sequence(x, dt, A, B, C, dt_bias, seq_idx, softplus, limit, chunk)
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

        gu, gB, gC, spans = _through_state(part, gy, gy_read, incoming, outgoing, lay)
        spans += _inside_chunk(part, gy, gu, gB, gC, lay)
        dA += (spans * part.dt).sum((0, 1))
        scratch = gu * part.x
        gdt = scratch.sum(-1).addcmul_(spans, seq.A)
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


def _through_state(
    part: Chunks, gy: Tensor, gy_read: Tensor, incoming: Tensor, outgoing: Tensor, lay: Layout
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a chunk wrote into the state, and what it read from it.

    Args:
        part: the chunks.
        gy: (m, q, h, p) gradient of the outputs; gy_read: (m, g, q, hg p), the same times ``read``.
        incoming: (m, g, n, hg p), state that enters each chunk.
        outgoing: (m, g, n, hg p), gradient of the state that leaves it.
        lay: sizes.

    Returns:
        Gradients of u (m, q, h, p), B and C (m, g, q, n), and of each token's log-decay (m, q, h): it takes part in
        reads at its own place or later, in writes before it, and in what the chunk keeps of the state.
    """
    gu = _from_group(part.B @ outgoing, lay.heads).mul_(part.write[..., None])
    scratch = part.u * part.write[..., None]
    gB = _by_group(scratch, lay.groups) @ outgoing.transpose(-1, -2)
    gC = gy_read @ incoming.transpose(-1, -2)
    from_write = torch.mul(gu, part.u, out=scratch).sum(-1)  # (m, q, h)
    from_read = _from_group((part.C @ incoming).mul_(gy_read), lay.heads).sum(-1)
    kept = (outgoing * incoming).sum(-2).unflatten(-1, (-1, lay.headdim)).sum(-1).flatten(1) * part.decay  # (m, h)
    spans = _from_here_on(from_read) + (from_write.cumsum(1) - from_write + kept[:, None])
    return gu, gB, gC, spans


def _inside_chunk(part: Chunks, gy: Tensor, gu: Tensor, gB: Tensor, gC: Tensor, lay: Layout) -> Tensor:
    """What the tokens of a chunk read from each other, added to the gradients of u, B and C.

    Returns:
        The gradient of each token's log-decay (m, q, h): it takes part in every pair that spans it.
    """
    u_heads, gy_heads = _heads_first(part.u), _heads_first(gy)
    g_mix = torch.bmm(gy_heads, u_heads.mT).view_as(part.E)
    mix = _times_groups(part.E, _scores(part))
    gu += torch.bmm(mix.flatten(0, 1).mT, gy_heads).view(-1, lay.heads, lay.chunk, lay.headdim).transpose(1, 2)
    mix *= g_mix
    mix.diagonal(dim1=-2, dim2=-1).zero_()  # a token's decay to itself is 1
    pairs = mix.sum(-1) - mix.sum(-2)  # (m, h, q)
    g_scores = g_mix.mul_(part.E).unflatten(1, (lay.groups, -1)).sum(2)  # (m, g, q, q)
    gB += g_scores.transpose(-1, -2) @ part.C
    gC += g_scores @ part.B
    return _from_here_on(pairs.transpose(1, 2))


def _from_here_on(ends: Tensor) -> Tensor:
    """Sum over each token and those behind it in its chunk: (m, q, h) -> (m, q, h)."""
    return ends.flip(1).cumsum(1).flip(1)
