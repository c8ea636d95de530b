"""Mamba-2 between its projections on one slice of a sequence that lies on many ranks, on a GPU.

The kernels find the state that enters every part of a slice from what each part adds and keeps, in a pass so short that
it may be done twice: from a zero state, which gives what the other ranks are told, and from the state that enters. The
expensive kernels, before that pass and behind it, run once. The backward does the same from the other end: a pass from
a zero gradient gives what the state that enters gets from this slice; the exchange gives the gradient of the state that
leaves it, all later slices included; a pass from that goes on.

What the ranks exchange, and its gradient, is the small graph of :class:`mamba_core.mixers.split.Slice`.
"""

from typing import Any

import torch
from torch import Tensor

from mamba_core.mixers.split import Slice
from mamba_core.ops.results import complete, remember_results


def mamba2_inner_triton(
    own: Slice,
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    groups: int,
    norm_eps: float,
    dt_limit: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`mamba_core.mixers.split_ops.split_mamba2_inner`."""
    weights = (conv_weight, conv_bias, A, D, dt_bias, norm_weight)
    return _Split.apply(own, projected, *weights, conv_state, ssm_state, groups, norm_eps, dt_limit)


class _Passed:
    """One exchange: its leaves, and what entered this slice and came out behind the sequence, with their graph."""

    def __init__(self, pass_on: Any, before: Tensor, own: Tensor, *more: Any):
        with torch.enable_grad():
            self._leaves = tuple(tensor.detach().requires_grad_() for tensor in (before, own))
            self._results = pass_on(*self._leaves, *more)
        self.entering, self._after = (result.detach() for result in self._results)

    def take_after(self) -> Tensor:
        """The state behind the sequence, given away: kept here, an output of the function would hold its own graph."""
        after, self._after = self._after, None
        return after

    def backward(self, grad_entering: Tensor, grad_after: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of what was before the sequence, this rank's part, and of what this slice told, from all ranks."""
        before, own = torch.autograd.grad(self._results, self._leaves, (grad_entering, grad_after))
        return before, own


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Slice, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        from mamba_core.ops.mamba2_inner import triton  # late: there is no Triton on a Mac

        *tensors, conv_state, ssm_state, groups, eps, limit = arguments
        projected, conv_weight, conv_bias, A, D, dt_bias, norm_weight = tensors
        _, xBC, _ = projected.split([len(norm_weight), len(conv_weight), len(A)], dim=-1)
        ends, ctx.position = own.ends(xBC, conv_weight.shape[1] - 1)
        ctx.tail = _Passed(own.pass_tail, conv_state, ends, ctx.position)

        def exchange(final: Tensor, total: Tensor) -> Tensor:
            ctx.state = _Passed(own.pass_on, ssm_state, final, total[..., None, None])
            return ctx.state.entering

        y, _, _, before_norm, enter = triton.forward(
            projected, conv_weight, conv_bias, A, D, dt_bias, norm_weight,
            ctx.tail.entering, None, own.seq_idx, groups, eps, limit, False, exchange=exchange,
        )  # fmt: skip
        conv, ssm = ctx.tail.take_after(), ctx.state.take_after()
        remember_results(ctx, y, conv, ssm)
        ctx.save_for_backward(before_norm, *tensors, ctx.tail.entering, own.seq_idx, enter)
        ctx.options = groups, eps, limit
        ctx.dtypes = [tensor.dtype for tensor in (*tensors, conv_state, ssm_state)]
        return y, conv, ssm

    @staticmethod
    def backward(ctx: Any, *results: Tensor | None) -> tuple[Tensor | None, ...]:
        from mamba_core.ops.mamba2_inner import triton

        y, projected, conv_weight, conv_bias, A, D, dt_bias, norm_weight, tail, seq_idx, enter = ctx.saved_tensors
        groups, eps, limit = ctx.options
        grad, grad_conv, grad_ssm = complete(ctx, *results)
        if hasattr(ctx, "maybe_clear_saved_tensors"):  # y, unless the graph is to be kept
            ctx.maybe_clear_saved_tensors()
        grads, dnorm = triton.norm_backward(grad, y, projected, norm_weight, groups, eps)
        del y, grad
        of_state: list[Tensor] = []

        def exchange(read: Tensor) -> Tensor:
            before, own = ctx.state.backward(read, grad_ssm)
            of_state.append(before)
            return own

        weights = (conv_weight, conv_bias, A, D, dt_bias)
        inner = len(norm_weight)
        dw, db, dA, dD, dbias, dtail, _ = triton.scan_backward(
            grads, None, None, projected, *weights, tail, seq_idx, enter, inner, groups, limit, False,
            exchange=exchange,
        )  # fmt: skip
        dconv, dends = ctx.tail.backward(dtail, grad_conv)
        _add_to_ends(grads[..., inner : inner + len(conv_weight)], dends, ctx.position)
        found = zip((grads, dw, db, dA, dD, dbias, dnorm, dconv, *of_state), ctx.dtypes, strict=True)
        return (None, *(grad.to(dtype) for grad, dtype in found), None, None, None)


def _add_to_ends(grads: Tensor, of_ends: Tensor, position: Tensor | None) -> None:
    """Add the gradient of :meth:`Slice.ends` to that of its input (b, l, c), in place."""
    if position is None:
        grads[:, grads.shape[1] - of_ends.shape[1] :] += of_ends
        return
    at = position.clamp(min=0)[..., None].expand_as(of_ends)  # what is no end got no gradient
    grads.scatter_add_(1, at, of_ends.to(grads.dtype))
