"""Operations in eager mode without torch.library, which costs more than the kernels of a short sequence.

A registered operator is what torch.compile, functional transforms and dispatch modes can see through. Where none of
them looks, the very functions that are registered run as they are: alone without autograd, else in one
autograd.Function.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

_PLAIN = (Tensor, nn.Parameter)


def is_plain(tensor: Tensor) -> bool:
    """Whether nobody looks on: no tracing, no transform, no mode, no subclass of Tensor."""
    return (
        type(tensor) in _PLAIN
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def is_plain_projection(layer: nn.Module) -> bool:
    """Whether a layer is no more than its weight, so that an operation may take that and pass the layer by."""
    return (
        type(layer) is nn.Linear
        and layer.bias is None
        and type(layer.weight) in _PLAIN
        and "forward" not in layer.__dict__
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        and not _has_any_global_hook()
    )


class Seen:
    """Kinds of arguments that have passed an operation's checks, which then need not be made again."""

    _MOST = 1024

    def __init__(self) -> None:
        self._kinds: set[Any] = set()

    def knows(self, tensors: Sequence[Tensor | None], *options: Any) -> bool:
        """Whether plain tensors of these shapes, dtypes and devices have been :meth:`add`-ed, with these options."""
        return self._kind(tensors, options) in self._kinds

    def add(self, tensors: Sequence[Tensor | None], *options: Any) -> None:
        if len(self._kinds) >= self._MOST:
            self._kinds.clear()
        self._kinds.add(self._kind(tensors, options))

    @staticmethod
    def _kind(tensors: Sequence[Tensor | None], options: tuple[Any, ...]) -> Any:
        return (*[None if t is None else (t.shape, t.dtype, t.device) for t in tensors], *options)


def direct(
    forward: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    results: int | None = None,
) -> Callable[..., Any]:
    """The function that a call of the registered operator comes to, for plain tensors.

    Args:
        forward: the operator's implementation: tensors, None and numbers to a tensor or a tuple of them.
        setup_context, backward: as ``register_autograd`` takes them; ``backward`` calls implementations, not operators.
        results: how many of the tuple are results, which have gradients; what stands behind them is there for
            ``setup_context`` alone. None: all.
    """

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            setup_context(ctx, inputs, output)
            return output if results is None else output[:results]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            return once(ctx, *grads)

    once = once_differentiable(backward)

    def call(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
            return Direct.apply(*inputs)
        output = forward(*inputs)
        return output if results is None else output[:results]

    return call
