"""Chunked form of the diagonal state space: matrix products inside chunks of Q tokens, a scan over chunks.

For one channel, with V_k = exp(k dt A), B the discretised input weight, and S the state that enters a chunk::

    y_i   = sum_{j <= i} K_{i-j} x_j + 2 Re(C V_{i+1} S)        K_k = 2 Re(sum_n C B V_k), D added to K_0
    S_out = V_Q S + sum_j B V_{Q-1-j} x_j

The same matrices serve every chunk of every row, so each line is one product a channel. What enters the chunks is found
by a scan of pairs: 2 log2(chunks) launches, and twice the work of a loop.

Packed documents cut these products, and differently in every chunk. Padding moves to the ends of rows first; the
product inside chunks is then done for one document of each chunk at a time, and reads, writes and what is kept of the
state are masked where the document changes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.packing import document_runs
from mamba_core.ops.s4d.documents import s4d_documents
from mamba_core.ops.s4d.reference import as_complex, discretise

CHUNK = {"cpu": 64, "cuda": 128}  # a GPU has arithmetic to spare, and fewer chunks are fewer states to move


def s4d_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as :func:`mamba_core.ops.s4d.s4d`; ``chunk``: tokens of a chunk."""
    b, work = x.shape[0], working_dtype(x)
    initial = x.new_zeros(b, *A.shape, dtype=work) if initial_state is None else initial_state.to(work)
    initial = torch.view_as_complex(initial.contiguous())
    x_ = x.to(work)
    kernels = _Kernels(dt, A, C, D, chunk or CHUNK.get(x.device.type, CHUNK["cuda"]), initial.dtype)
    if seq_idx is None:
        y, final = _plain(x_, kernels, initial)
        return y.to(x.dtype), torch.view_as_real(final)
    order = (seq_idx < 0).byte().argsort(dim=1, stable=True)  # padding goes to the ends of rows
    index = order[..., None].expand_as(x)
    seq_idx = seq_idx.gather(1, order)
    padding = (seq_idx < 0)[..., None]
    y, final = _packed(x_.gather(1, index).masked_fill(padding, 0.0), kernels, initial, seq_idx)
    y = y.masked_fill(padding, 0.0)
    return torch.zeros_like(y).scatter(1, index, y).to(x.dtype), torch.view_as_real(final)


class _Kernels:
    """What is the same in every chunk, in the working dtype: exponents in complex128 first, then rounded."""

    def __init__(self, dt: Tensor, A: Tensor, C: Tensor, D: Tensor | None, chunk: int, dtype: torch.dtype):
        A_, C_ = as_complex(A), as_complex(C)
        B = discretise(dt.double(), A_)[1]
        ahead = torch.arange(chunk + 1, device=A.device)
        powers = torch.exp((dt.double()[:, None] * A_)[..., None] * ahead)  # (h, n, Q + 1)
        self.chunk = chunk
        self.powers = powers.to(dtype)
        taps = 2 * torch.einsum("hn,hnq->hq", C_ * B, powers[..., :-1]).real
        if D is not None:
            taps = taps + F.pad(D.double()[:, None], (0, chunk - 1))
        self.taps = taps.to(self.powers.real.dtype)  # (h, Q)
        write = torch.view_as_real((B[..., None] * powers[..., :-1].flip(-1)).to(dtype))  # (h, n, Q, 2)
        self.write = write.transpose(1, 2).flatten(2)  # (h, Q, 2 n)
        read = torch.view_as_real(2 * (C_[..., None] * powers[..., 1:]).conj().resolve_conj().to(dtype))
        self.read = read.transpose(2, 3).flatten(1, 2)  # (h, 2 n, Q): the real part of a product is x x' - y y'

    def toeplitz(self) -> Tensor:
        """(h, Q, Q): what token j (row) adds to token i (column) of its chunk."""
        return F.pad(self.taps, (self.chunk - 1, 0)).unfold(1, self.chunk, 1).flip(1)

    def states(self, x: Tensor) -> Tensor:
        """What tokens (h, ..., q), the last q of a chunk, write into the state behind them: (h, ..., n) complex."""
        written = torch.bmm(x.flatten(1, -2), self.write[:, self.chunk - x.shape[-1] :])
        return torch.view_as_complex(written.unflatten(-1, (-1, 2))).unflatten(1, x.shape[1:-1])

    def outputs(self, states: Tensor) -> Tensor:
        """What the tokens of chunks read from the states (h, m, b, n) that enter them: (h, m, b, Q)."""
        entering = torch.view_as_real(states).flatten(1, 2).flatten(2)
        return torch.bmm(entering, self.read).unflatten(1, states.shape[1:3])


def _cut(x: Tensor, chunk: int) -> Tensor:
    """(b, l, h) -> (h, chunks, b, Q), zeros behind the end."""
    b, l, h = x.shape
    m = -(-l // chunk)
    return F.pad(x, (0, 0, 0, m * chunk - l)).view(b, m, chunk, h).permute(3, 1, 0, 2).contiguous()


def _uncut(y: Tensor, length: int) -> Tensor:
    """(h, chunks, b, Q) -> (b, l, h)."""
    return y.permute(2, 1, 3, 0).flatten(1, 2)[:, :length]


def _plain(x: Tensor, kernels: _Kernels, initial: Tensor) -> tuple[Tensor, Tensor]:
    """One document a row: outputs (b, l, h), final state (b, h, n) complex."""
    q, l = kernels.chunk, x.shape[1]
    chunks = _cut(x, q)  # (h, m, b, Q)
    m = chunks.shape[1]
    entering = _carry(initial, chunks[:, :-1], kernels, None)
    y = torch.baddbmm(kernels.outputs(entering).flatten(1, 2), chunks.flatten(1, 2), kernels.toeplitz())
    rest = l - (m - 1) * q
    final = kernels.powers[..., rest] * entering[:, -1].transpose(0, 1)
    final = final + kernels.states(chunks[:, -1, :, :rest].contiguous()).transpose(0, 1)
    return _uncut(y.unflatten(1, (m, -1)), l), final


def _packed(x: Tensor, kernels: _Kernels, initial: Tensor, seq_idx: Tensor) -> tuple[Tensor, Tensor]:
    """Documents behind each other, padding (0) at the ends of rows."""
    q, l = kernels.chunk, x.shape[1]
    real, run = document_runs(seq_idx)
    chunks = _cut(x, q)  # (h, m, b, Q)
    m = chunks.shape[1]
    beyond = run[:, -1:].expand(-1, m * q - l)
    runs = torch.cat([run, beyond], dim=1).unflatten(1, (m, q)).transpose(0, 1)  # (m, b, Q)
    owner = F.pad(runs[:-1, :, -1], (0, 0, 1, 0))  # (m, b): the document of the state that enters; 0 is the initial's
    reads = runs == owner[..., None]
    writes = chunks[:, :-1].masked_fill(runs[:-1] != runs[:-1, :, -1:], 0.0)
    kept = owner[1:] == owner[:-1]
    entering = _carry(initial, writes, kernels, kept)
    number = (runs - runs[..., :1]).flatten(0, 1)
    inside = s4d_documents(chunks.flatten(1, 2), kernels.toeplitz(), number).unflatten(1, (m, -1))
    y = inside + kernels.outputs(entering).masked_fill(~reads, 0.0)
    # The final state of a row: what enters its last chunk, and that chunk's tokens, moved to the chunk's end.
    count = real.sum(dim=1)
    last = (count - 1).clamp(min=0) // q  # (b,)
    own = run.gather(1, (count - 1).clamp(min=0)[:, None])  # (b, 1)
    at = count[:, None] - q + torch.arange(q, device=x.device)  # (b, Q)
    near = (at >= last[:, None] * q) & (run.gather(1, at.clamp(min=0)) == own)
    ends = x.gather(1, at.clamp(min=0)[..., None].expand(-1, -1, x.shape[2])).masked_fill(~near[..., None], 0.0)
    rows = torch.arange(len(x), device=x.device)
    before = entering[:, last, rows].transpose(0, 1)  # (b, h, n)
    before = before.masked_fill((owner[last, rows] != own[:, 0])[:, None, None], 0.0)
    decay = kernels.powers.permute(2, 0, 1)[count - last * q]
    return _uncut(y, l), decay * before + kernels.states(ends.permute(2, 0, 1).contiguous()).transpose(0, 1)


def _carry(initial: Tensor, writes: Tensor, kernels: _Kernels, kept: Tensor | None) -> Tensor:
    """The states that enter the chunks: S_0 initial, S_k = V_Q S_{k-1} (if kept) + what chunk k - 1 wrote.

    Args:
        initial: (b, h, n) complex.
        writes: (h, m - 1, b, Q), the tokens that do.
        kernels: of this chunk size.
        kept: (m - 1, b) bool; None: all.

    Returns:
        (h, m, b, n) complex.
    """
    first = initial.permute(1, 0, 2)[:, None]
    if not writes.shape[1]:
        return first
    written = kernels.states(writes.contiguous())
    entering: Tensor = _Carry.apply(
        torch.cat([first, written], dim=1), kernels.powers[..., kernels.chunk][:, None, None], kept
    )
    return entering


class _Carry(torch.autograd.Function):
    """S_k = decay S_{k-1} + v_k along dimension 1, with a backward that keeps S alone."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, decay: Tensor, kept: Tensor | None) -> Tensor:
        states = _scan(v, decay, kept)
        ctx.save_for_backward(states, decay, kept)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        states, decay, kept = ctx.saved_tensors
        dv = _scan(grad.flip(1), decay.conj(), None if kept is None else kept.flip(0)).flip(1)
        passed = dv[:, 1:] if kept is None else dv[:, 1:].masked_fill(~kept[..., None], 0.0)
        ddecay = (passed * states[:, :-1].conj()).sum((1, 2))[:, None, None]
        return dv, ddecay, None


def _scan(v: Tensor, decay: Tensor, kept: Tensor | None) -> Tensor:
    """Scan (h, m, b, n) by pairs: first what two chunks do together, then the chunks between.

    ``kept`` (m - 1, b) says whether chunk k + 1 keeps what chunk k left.
    """
    m = v.shape[1]
    if m == 1:
        return v
    out = torch.empty_like(v)
    even, odd = v[:, 0::2], v[:, 1::2]
    pairs = odd + decay * _where_kept(even[:, : m // 2], kept, 0)
    both = None if kept is None else kept[1::2][: m // 2 - 1] & kept[2::2]
    out[:, 1::2] = _scan(pairs, decay * decay, both)
    out[:, 0] = v[:, 0]
    out[:, 2::2] = even[:, 1:] + decay * _where_kept(out[:, 1 : m - 1 : 2], kept, 1)
    return out


def _where_kept(states: Tensor, kept: Tensor | None, first: int) -> Tensor:
    """Every other state, from number ``first`` on, or 0 where the next chunk does not keep it."""
    return states if kept is None else states.masked_fill(~kept[first::2][: states.shape[1], :, None], 0.0)
