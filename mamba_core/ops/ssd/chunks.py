"""How a sequence is cut into chunks for ``chunked.py``, and the decays inside and between them."""

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
class Chunks:
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
class Layout:
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
    def of(x: Tensor, B: Tensor, chunk: int) -> "Layout":
        batch, length, heads, headdim = x.shape
        budget = BLOCK_ELEMENTS.get(x.device.type, BLOCK_ELEMENTS["cuda"])
        block = max(1, budget // (batch * heads * chunk * chunk))
        return Layout(batch, length, heads, headdim, B.shape[2], B.shape[3], chunk, block)

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


class Sequence:
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
        self.layout = Layout.of(x, B, chunk)
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

    def chunks(self, start: int, stop: int, chunks: int) -> Chunks:
        cut, work = self.layout.cut, self.work
        dt = cut(self.dt, start, stop, chunks, work)
        x = cut(self.x, start, stop, chunks, work)
        B = cut(self.B, start, stop, chunks, work).transpose(1, 2)
        C = cut(self.C, start, stop, chunks, work).transpose(1, 2)
        E, read, write, decay = _decays(_log_decays(dt, self.A), *self.runs(start, stop, chunks), work)
        return Chunks(x, x * dt[..., None], dt, B, C, E, read, write, decay)
