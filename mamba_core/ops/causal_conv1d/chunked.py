"""Causal depthwise convolution over whole sequences in plain PyTorch, forward and backward by hand.

Without documents, the sequence behind its tail is worked off a block of tokens at a time, so that the several passes
over a block find it in cache; the backward goes from the last block to the first and hands on the gradients that reach
back over the border. With documents, each tap is gathered from the token that stands that many real tokens before, and
is 0 where that token belongs to another document.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.packing import document_runs

# Elements of a block: 1 MB stays in a CPU core's cache; a GPU wants large launches.
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**28}


def _blocks(x: Tensor) -> list[slice]:
    """The tokens of x (b, l, c), cut into blocks."""
    b, l, c = x.shape
    step = max(1, BLOCK_ELEMENTS.get(x.device.type, BLOCK_ELEMENTS["cuda"]) // (b * c))
    return [slice(start, min(start + step, l)) for start in range(0, l, step)]


def _with_tail(x: Tensor, tail: Tensor | None, width: int, work: torch.dtype) -> Tensor:
    """(b, l, c) behind the width - 1 inputs that came before it: (b, width - 1 + l, c)."""
    b, l, c = x.shape
    padded = torch.empty(b, width - 1 + l, c, dtype=work, device=x.device)
    if tail is None:
        padded[:, : width - 1] = 0
    else:
        padded[:, : width - 1] = tail
    padded[:, width - 1 :] = x
    return padded


def _correlate(padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Valid depthwise correlation along the length: (b, l + width - 1, c), (c, width) -> (b, l, c)."""
    width = weight.shape[1]
    if padded.device.type == "cpu" and padded.dtype == torch.float32:
        # As an image of height 1 in channels-last layout: the CPU library's fast path, without a transpose.
        image = padded.transpose(1, 2).unsqueeze(2)
        out = F.conv2d(image, weight[:, None, None, :], bias, groups=weight.shape[0])
        return out.squeeze(2).transpose(1, 2)
    length = padded.shape[1] - width + 1
    out = padded[:, :length] * weight[:, 0]
    for k in range(1, width):
        out.addcmul_(padded[:, k : k + length], weight[:, k])
    return out if bias is None else out.add_(bias)


class _Taps:
    """Where each tap of each token is found among the rows behind their tails, when documents are packed."""

    def __init__(self, seq_idx: Tensor, width: int):
        b = seq_idx.shape[0]
        real, run = document_runs(seq_idx)
        self.real = real
        ahead = torch.ones(b, width - 1, dtype=torch.bool, device=seq_idx.device)
        real = torch.cat([ahead, real], dim=1)
        run = torch.cat([torch.zeros_like(ahead, dtype=run.dtype), run], dim=1)
        position = torch.arange(real.shape[1], device=seq_idx.device).expand(b, -1)
        last_real = torch.where(real, position, -1).cummax(dim=1).values
        previous = torch.cat([torch.full_like(last_real[:, :1], -1), last_real[:, :-1]], dim=1)
        self.tokens = self._chain(position[:, width - 1 :], previous, run, width)
        self.tail = self._chain(last_real[:, -1:], previous, run, width - 1) if width > 1 else []

    @staticmethod
    def _chain(start: Tensor, previous: Tensor, run: Tensor, taps: int) -> list[tuple[Tensor, Tensor]]:
        """(index, whether it belongs to the same document), oldest tap first."""
        own, index, chain = run.gather(1, start), start, []
        for _ in range(taps):
            at = index.clamp(min=0)
            chain.append((at, (index >= 0) & (run.gather(1, at) == own)))
            index = previous.gather(1, at).where(index >= 0, -1)
        return chain[::-1]

    @staticmethod
    def read(padded: Tensor, tap: tuple[Tensor, Tensor]) -> Tensor:
        index, same = tap
        found = padded.gather(1, index[..., None].expand(-1, -1, padded.shape[2]))
        return found.masked_fill(~same[..., None], 0.0)  # not a product: 0 times infinity is not 0

    @staticmethod
    def write(grad_padded: Tensor, tap: tuple[Tensor, Tensor], grad: Tensor) -> None:
        index, same = tap
        grad_padded.scatter_add_(1, index[..., None].expand_as(grad), grad.masked_fill(~same[..., None], 0.0))


def _packed(padded: Tensor, weight: Tensor, bias: Tensor | None, taps: _Taps) -> Tensor:
    out = sum(_Taps.read(padded, tap) * weight[:, k] for k, tap in enumerate(taps.tokens))
    assert isinstance(out, Tensor)
    return out if bias is None else out + bias


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    activation: bool,
) -> tuple[Tensor, Tensor]:
    """Outputs (b, l, c) and the final tail (b, width - 1, c)."""
    width, work = weight.shape[1], working_dtype(x)
    padded = _with_tail(x, initial_state, width, work)
    weight, bias = weight.to(work), None if bias is None else bias.to(work)
    if seq_idx is not None:
        taps = _Taps(seq_idx, width)
        y = _packed(padded, weight, bias, taps)
        y = (F.silu(y) if activation else y).masked_fill(~taps.real[..., None], 0.0)
        tail = torch.cat([_Taps.read(padded, tap) for tap in taps.tail], dim=1) if taps.tail else padded[:, :0].clone()
        return y.to(x.dtype), tail
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for block in _blocks(x):
        out = _correlate(padded[:, block.start : block.stop + width - 1], weight, bias)
        y[:, block] = F.silu(out, inplace=True) if activation else out
    return y, padded[:, x.shape[1] :].clone()


def backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    activation: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (in its dtype), and of weight, bias and the initial state in the working dtype."""
    work = working_dtype(x)
    padded = _with_tail(x, initial_state, weight.shape[1], work)
    weight, bias = weight.to(work), None if bias is None else bias.to(work)
    grad_final = grad_final.to(work)
    if seq_idx is not None:
        taps = _Taps(seq_idx, weight.shape[1])
        return _backward_packed(grad_y.to(work), grad_final, x, padded, weight, bias, taps, activation)
    return _backward_blocks(grad_y, grad_final, x, padded, weight, bias, activation)


def _backward_blocks(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    padded: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width, work = weight.shape[1], padded.dtype
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dw, db = torch.zeros_like(weight), weight.new_zeros(weight.shape[0])
    backwards = weight.flip(1)
    ahead = padded.new_zeros(
        x.shape[0], width - 1, x.shape[2]
    )  # gradients before silu of the next block's first tokens
    for block in reversed(_blocks(x)):
        window = padded[:, block.start : block.stop + width - 1]
        grad = grad_y[:, block].to(work)
        if activation:
            grad = torch.ops.aten.silu_backward(grad, _correlate(window, weight, bias))
        product = torch.empty_like(grad)  # one buffer for all taps stays in cache
        for k in range(width):
            dw[:, k] += torch.mul(grad, window[:, k : k + grad.shape[1]], out=product).sum((0, 1))
        db += grad.sum((0, 1))
        grad = torch.cat([grad, ahead], dim=1)
        dx[:, block] = _correlate(grad, backwards, None)
        ahead = grad[:, : width - 1]
    if width == 1:
        return dx, dw, db, ahead  # there is no tail
    dtail = _correlate(torch.cat([torch.zeros_like(ahead), ahead], dim=1), backwards, None)[:, : width - 1]
    # The final tail is the end of [tail, x].
    own = min(x.shape[1], width - 1)
    if own:
        dx[:, x.shape[1] - own :] += grad_final[:, width - 1 - own :].to(dx.dtype)
        dtail[:, own:] += grad_final[:, : width - 1 - own]
    return dx, dw, db, dtail.contiguous()


def _backward_packed(
    grad: Tensor,
    grad_final: Tensor,
    x: Tensor,
    padded: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: _Taps,
    activation: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = weight.shape[1]
    if activation:
        grad = torch.ops.aten.silu_backward(grad, _packed(padded, weight, bias, taps))
    grad = grad.masked_fill(~taps.real[..., None], 0.0)
    grad_padded = torch.zeros_like(padded)
    for k, tap in enumerate(taps.tokens):
        _Taps.write(grad_padded, tap, grad * weight[:, k])
    for k, tap in enumerate(taps.tail):
        _Taps.write(grad_padded, tap, grad_final[:, k : k + 1])
    padding = ~taps.real[..., None]
    dw = torch.stack(
        [(grad * _Taps.read(padded, tap).masked_fill(padding, 0.0)).sum((0, 1)) for tap in taps.tokens], dim=1
    )
    dx = grad_padded[:, width - 1 :].to(x.dtype).clone()
    return dx, dw, grad.sum((0, 1)), grad_padded[:, : width - 1].clone()
