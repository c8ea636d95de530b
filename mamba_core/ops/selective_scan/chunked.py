"""The selective scan in plain PyTorch: fast on a few CPU cores, and on any device.

The expanded state, one number for each (token, channel, state index), never exists for the whole sequence. An outer
loop walks over blocks of tokens and keeps one block of it in buffers made once, small enough to stay in cache. The
forward pass returns the state at each block's left border; the backward pass walks over the blocks from the right and
works each out again from its border.

Inside a block the tokens form K chunks of S tokens, laid out (S, K, b, g, n, p) with p = d // g channels a group: a
step is one operation on contiguous memory that moves all K chunks on by one token. With more than one chunk the
recurrence runs twice: from zero, to learn what each chunk adds to the state (a short loop over the chunks then gives
the state that enters each of them), and again from those states. So every factor is the exponential of a non-positive
number, nothing is divided, and the second run is the sequential definition itself. With one chunk, the choice where
one token is wide enough to keep a core busy, the first run falls away.

Sums over n, p and time are written as products and sums, never as matrix products: those would obey the caller's
settings for TF32, bf16 and autocast, and small ones are no faster.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops.selective_scan.tokens import Block, Tokens, mask

# Numbers of the expanded state to one step, and to one block. On the CPU a step is worth its 1.5 us of Python and
# dispatch, and a block's three buffers stay in the last-level cache; elsewhere a step outweighs its kernel launch.
_STEP, _STEP_ELSEWHERE = 2**13, 2**21
_BLOCK, _BLOCK_ELSEWHERE = 2**20, 2**26


def plan(batch: int, channels: int, d_state: int, device_type: str) -> tuple[int, int]:
    """Chunks to a block and steps to a chunk. The length has no say, so a block border depends on position alone."""
    token = max(1, batch * channels * d_state)
    step, block = (_STEP, _BLOCK) if device_type == "cpu" else (_STEP_ELSEWHERE, _BLOCK_ELSEWHERE)
    chunks = min(step // token, 256)
    if chunks < 4:  # the steps saved do not pay for running the recurrence twice
        chunks = 1
    # At least 2 n tokens, so that the saved border states take at most half the memory of x.
    return chunks, max(block // (token * chunks), 2 * d_state)


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    chunks: int,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (b, l, d), final state (b, d, n), and the state at each block's left border (blocks, b, g, n, p)."""
    tokens = Tokens(x, dt, B, C, D, z, dt_bias, seq_idx, dt_softplus, dt_limit)
    scan = _Scan(A, tokens, chunks, steps)
    state = scan.state_from(initial_state)
    spans = tokens.spans(chunks * steps)
    borders = state.new_empty(len(spans), *state.shape)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for border, span in zip(borders, spans, strict=True):
        border.copy_(state)
        block = tokens.block(span)
        scan.run(block, state)
        state = scan.states[-1, -1].clone()
        out = block.skip(scan.read_out())
        y[:, span] = out if block.z is None else out * F.silu(block.z)
    return y, scan.state_to(state), borders


def backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    borders: Tensor,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    chunks: int,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and the initial state; D and dt_bias count as given."""
    tokens = Tokens(x, dt, B, C, D, z, dt_bias, seq_idx, dt_softplus, dt_limit)
    scan = _Scan(A, tokens, chunks, steps)
    dx, ddt, dB, dC = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, dt, B, C))
    dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    dD, dbias = (x.new_zeros(x.shape[2], dtype=tokens.work) for _ in range(2))
    carry = scan.state_from(grad_final)  # gradient of the state that leaves the block
    for border, span in reversed(list(zip(borders, tokens.spans(chunks * steps), strict=True))):
        block = tokens.block(span)
        dy = mask(grad_y[:, span].to(tokens.work), block.pad)
        scan.run(block, border)
        if dz is not None and block.z is not None:
            out = block.skip(scan.read_out())
            dz[:, span] = torch.ops.aten.silu_backward(dy * out, block.z)
            dy = dy * F.silu(block.z)
        carry, d_step, d_input, dB[:, span], dC[:, span] = scan.run_back(dy, carry)
        dD += (dy * block.x).sum(dim=(0, 1))
        dx[:, span] = d_input * block.dt + (0.0 if block.D is None else block.D * dy)
        d_raw = block.step_backward(d_step + d_input * block.x)
        dbias += d_raw.sum(dim=(0, 1))
        ddt[:, span] = d_raw
    return dx, ddt, scan.dA(), dB, dC, dD, dz, dbias, scan.state_to(carry)


class _Scan:
    """The recurrence over one block at a time, in buffers shared by all blocks; tensors are (S, K, b, g, n, p)."""

    decay: Tensor  # exp(dt A), 0 where a document starts
    states: Tensor  # h
    adjoint: Tensor  # gradient of h

    def __init__(self, A: Tensor, tokens: Tokens, chunks: int, steps: int):
        batch, length, channels = tokens.x.shape
        groups, n = tokens.B.shape[2:]
        self.chunks = min(chunks, length)
        steps = min(steps, math.ceil(length / self.chunks))
        self.A = A.to(tokens.work).reshape(groups, channels // groups, n).mT.contiguous()  # (g, n, p)
        # exp2 and not exp: on the CPU it is vectorised and four times faster.
        self.A_log2e = self.A * math.log2(math.e)
        self._dA = torch.zeros_like(self.A)
        shape = (steps, self.chunks, batch, *self.A.shape)
        self._buffers = [self.A.new_empty(shape) for _ in range(3)]
        self._steps = [buffer.unbind(0) for buffer in self._buffers]  # views made once, not at every step

    def state_from(self, state: Tensor | None) -> Tensor:
        """(b, d, n), or None for zeros, to the layout of the scan (b, g, n, p)."""
        groups, n, p = self.A.shape
        batch = self._buffers[0].shape[2]
        if state is None:
            return self.A.new_zeros(batch, groups, n, p)
        return state.to(self.A.dtype).reshape(batch, groups, p, n).mT.contiguous()

    def state_to(self, state: Tensor) -> Tensor:
        return state.mT.flatten(1, 2).clone(memory_format=torch.contiguous_format)

    def dA(self) -> Tensor:
        return self._dA.mT.flatten(0, 1).clone(memory_format=torch.contiguous_format)

    def run(self, block: Block, state: Tensor) -> None:
        """Fill ``decay`` and ``states`` from the state (b, g, n, p) at the block's left border."""
        self._length = block.x.shape[1]
        self._size = math.ceil(self._length / self.chunks)
        self.decay, self.states, self.adjoint = (buffer[: self._size] for buffer in self._buffers)
        self._dt, self._dtx = self._channels(block.dt), self._channels(block.dt * block.x)
        self._B, self._C = (_tile(t, self.chunks).unsqueeze(-1) for t in (block.B, block.C))  # (S, K, b, g, n, 1)
        torch.mul(self._dt, self.A_log2e, out=self.decay).exp2_()
        torch.mul(self._dtx, self._B, out=self.states)
        if block.keep is not None:
            keep = _tile(block.keep, self.chunks, fill=1.0)[..., None, None, None]
            self.decay *= keep
        decays, values = (views[: self._size] for views in self._steps[:2])
        self.entering = state.unsqueeze(0)
        if self.chunks > 1:
            self._through = torch.exp2(self._dt.sum(dim=0) * self.A_log2e)  # (K, b, g, n, p), the decay over a chunk
            if block.keep is not None:
                self._through *= keep.amin(dim=0)
            self.entering = _chain(self._through, _last(values, decays[1:]), state)
        _recur_(values, decays[1:], decays[0] * self.entering)

    def read_out(self) -> Tensor:
        """After :meth:`run`: C h, (b, m, d). Uses ``adjoint`` as scratch."""
        return _untile(torch.mul(self.states, self._C, out=self.adjoint).sum(dim=-2), self._length).flatten(2)

    def run_back(self, dy: Tensor, carry: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """After :meth:`run`: from the gradients of C h and of the state that leaves the block to those of the state
        that enters it, of dt (by way of the decay), of dt x, of B and of C. Adds to that of A. Uses up the buffers."""
        dy = self._channels(dy)
        torch.mul(dy, self._C, out=self.adjoint)
        decays, values = (self._steps[i][: self._size][::-1] for i in (0, 2))
        arriving = carry.unsqueeze(0)
        if self.chunks > 1:
            leaving = decays[-1] * _last(values, decays[:-1])
            arriving = _chain(self._through.flip(0), leaving.flip(0), carry).flip(0)
        _recur_(values, decays[:-1], arriving)
        carry = self.decay[0, 0] * self.adjoint[0, 0]

        # From here each buffer is overwritten where it is read for the last time. The first to go is the decay, for
        # the gradient of dt A.
        self.decay[0].mul_(self.entering)  # an index with *= would copy the result once more
        self.decay[1:].mul_(self.states[:-1])
        grad_decay = self.decay.mul_(self.adjoint)
        dC = self.states.mul_(dy).sum(dim=-1)
        d_input = torch.mul(self.adjoint, self._B, out=self.states).sum(dim=-2)
        dB = self.adjoint.mul_(self._dtx).sum(dim=-1)
        d_step = torch.mul(grad_decay, self.A, out=self.adjoint).sum(dim=-2)
        self._dA += grad_decay.mul_(self._dt).sum(dim=(0, 1, 2))
        d_step, d_input, dB, dC = (_untile(t, self._length) for t in (d_step, d_input, dB, dC))
        return carry, d_step.flatten(2), d_input.flatten(2), dB, dC

    def _channels(self, t: Tensor) -> Tensor:
        """(b, m, d) to (S, K, b, g, 1, p)."""
        groups, _, p = self.A.shape
        return _tile(t, self.chunks).unflatten(-1, (groups, p)).unsqueeze(-2)


def _tile(t: Tensor, chunks: int, fill: float = 0.0) -> Tensor:
    """(b, m, ...) to (S, K, b, ...), filled up at the end. A filled-up token has a step of 0 and changes nothing."""
    batch, length, *rest = t.shape
    steps = math.ceil(length / chunks)
    if length < chunks * steps:
        t = torch.cat([t, t.new_full((batch, chunks * steps - length, *rest), fill)], dim=1)
    return t.reshape(batch, chunks, steps, *rest).transpose(0, 2).contiguous()


def _untile(t: Tensor, length: int) -> Tensor:
    """(S, K, b, ...) back to (b, m, ...)."""
    steps, chunks, batch, *rest = t.shape
    return t.transpose(0, 2).reshape(batch, chunks * steps, *rest)[:, :length]


def _recur_(values: Sequence[Tensor], decays: Sequence[Tensor], first: Tensor) -> None:
    """In place: v[0] += first, v[s] += decay[s - 1] v[s - 1]."""
    before = values[0].add_(first)
    for value, decay in zip(values[1:], decays, strict=True):
        before = value.addcmul_(decay, before)


def _last(values: Sequence[Tensor], decays: Sequence[Tensor]) -> Tensor:
    """The last value that the same recurrence would reach from zero."""
    last = values[0].clone()
    for value, decay in zip(values[1:], decays, strict=True):
        torch.addcmul(value, decay, last, out=last)
    return last


def _chain(through: Tensor, adds: Tensor, first: Tensor) -> Tensor:
    """What enters each chunk (K, ...), when a chunk turns what enters it into through * it + adds."""
    entering = torch.empty_like(adds)
    entering[0] = first
    for k in range(1, len(adds)):
        torch.addcmul(adds[k - 1], through[k - 1], entering[k - 1], out=entering[k])
    return entering
