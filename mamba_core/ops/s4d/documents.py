"""The product inside chunks that hold several documents, as an operator: how many passes it takes depends on the data.

A pass treats the first document of every chunk, the next the second, and so on; most chunks hold one or two.
"""

import torch
from torch import Tensor


def _passes(number: Tensor) -> range:
    return range(int(number.max()) + 1)


@torch.library.custom_op("mamba_core::s4d_documents", mutates_args=())
def s4d_documents(x: Tensor, toeplitz: Tensor, number: Tensor) -> Tensor:
    """Causal convolution inside chunks, within documents.

    Args:
        x: (h, m, Q), m chunks of Q tokens.
        toeplitz: (h, Q, Q), what token j (row) adds to token i (column), 0 for j > i.
        number: (m, Q) int64, documents of a chunk, from 0.

    Returns:
        (h, m, Q).
    """
    y = torch.zeros_like(x)
    for k in _passes(number):
        own = number == k
        y += torch.bmm(x.masked_fill(~own, 0.0), toeplitz).masked_fill_(~own, 0.0)
    return y


@s4d_documents.register_fake
def _(x, toeplitz, number):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


@torch.library.custom_op("mamba_core::s4d_documents_backward", mutates_args=())
def s4d_documents_backward(grad: Tensor, x: Tensor, toeplitz: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    dx, dtoeplitz = torch.zeros_like(x), torch.zeros_like(toeplitz)
    for k in _passes(number):
        own = number == k
        masked = grad.masked_fill(~own, 0.0)
        dx += torch.bmm(masked, toeplitz.mT).masked_fill_(~own, 0.0)
        dtoeplitz.baddbmm_(x.masked_fill(~own, 0.0).mT, masked)
    return dx, dtoeplitz


@s4d_documents_backward.register_fake
def _(grad, x, toeplitz, number):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), torch.empty_like(toeplitz)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    return *s4d_documents_backward(grad.contiguous(), *ctx.saved_tensors), None


s4d_documents.register_autograd(_backward, setup_context=_setup_context)
