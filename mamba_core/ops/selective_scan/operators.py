"""The selective_scan operations as torch.library sees them: forward and backward of the chunked and Triton paths."""

import torch
from torch import Tensor

from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.direct import direct
from mamba_core.ops.results import complete, remember_results
from mamba_core.ops.selective_scan import chunked


@torch.library.custom_op("mamba_core::selective_scan", mutates_args=())
def selective_scan(
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
    dt_min: float,
    dt_max: float,
    chunks: int,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    limit = (dt_min, dt_max)
    return chunked.forward(x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dt_softplus, limit, chunks, steps)


@selective_scan.register_fake
def _(x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dt_softplus, dt_min, dt_max, chunks, steps):  # type: ignore[no-untyped-def]
    batch, length, channels = x.shape
    groups, n = B.shape[2:]
    work, size = working_dtype(x), chunks * steps
    borders = x.new_empty((length + size - 1) // size, batch, groups, n, channels // groups, dtype=work)
    return x.new_empty(x.shape), x.new_empty(batch, channels, n, dtype=work), borders


@torch.library.custom_op("mamba_core::selective_scan_backward", mutates_args=())
def selective_scan_backward(
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
    dt_min: float,
    dt_max: float,
    chunks: int,
    steps: int,
) -> list[Tensor]:
    tensors = (x, dt, A, B, C, D, z, dt_bias, seq_idx, borders)
    grads = chunked.backward(grad_y, grad_final, *tensors, dt_softplus, (dt_min, dt_max), chunks, steps)
    return [x.new_empty(0) if grad is None else grad for grad in grads]


@selective_scan_backward.register_fake
def _(grad_y, grad_final, x, dt, A, B, C, D, z, dt_bias, seq_idx, borders, dt_softplus, dt_min, dt_max, chunks, steps):  # type: ignore[no-untyped-def]
    return _fake_gradients(x, dt, A, B, C, z, grad_final.shape, borders.dtype)


def _fake_gradients(x, dt, A, B, C, z, state_shape, work):  # type: ignore[no-untyped-def]
    dx, ddt, dB, dC = (t.new_empty(t.shape) for t in (x, dt, B, C))
    dz = x.new_empty(0) if z is None else z.new_empty(z.shape)
    vector = (x.shape[2],)
    dA, dD, dbias, dstate = (x.new_empty(s, dtype=work) for s in (A.shape, vector, vector, state_shape))
    return [dx, ddt, dA, dB, dC, dD, dz, dbias, dstate]


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    """For both paths: same tensors first; what the backward wants is returned behind y and the final state."""
    *tensors, initial_state, seq_idx = inputs[:10]
    remember_results(ctx, *output[:2])
    ctx.save_for_backward(*tensors, seq_idx, *output[2:])
    ctx.options = inputs[10:]
    ctx.dtypes = [None if t is None else t.dtype for t in (*tensors, initial_state)]


def _in_place_of_inputs(ctx, grads):  # type: ignore[no-untyped-def]
    """The gradients, where their arguments were given, in the dtypes of these."""
    grads = [None if dtype is None else grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)]
    return (*grads, None, *[None for _ in ctx.options])


def _backward(ctx, grad_y, grad_final, _grad_borders):  # type: ignore[no-untyped-def]
    grads = selective_scan_backward(*complete(ctx, grad_y, grad_final), *ctx.saved_tensors, *ctx.options)
    return _in_place_of_inputs(ctx, grads)


selective_scan.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("mamba_core::selective_scan_triton", mutates_args=())
def selective_scan_triton(
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
    dt_min: float,
    dt_max: float,
    log: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx)
    return _forward_direct(*tensors, dt_softplus, dt_min, dt_max, log)


def _forward_direct(*arguments):  # type: ignore[no-untyped-def]
    from mamba_core.ops.selective_scan import triton  # late: there is no Triton on a Mac

    *tensors, dt_softplus, dt_min, dt_max, log = arguments
    return triton.forward(*tensors, dt_softplus, (dt_min, dt_max), log)


@selective_scan_triton.register_fake
def _(x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dt_softplus, dt_min, dt_max, log):  # type: ignore[no-untyped-def]
    from mamba_core.ops.selective_scan.triton import plan

    batch, _, channels = x.shape
    cut, (groups, n) = plan(x, B), B.shape[2:]
    shapes = ((batch, channels, n), (batch, cut.chunks + 1, n, cut.wide), (batch, cut.chunks, cut.wide))
    y, *states = (x.new_empty(x.shape), *[x.new_empty(shape, dtype=torch.float32) for shape in shapes])
    weights = B.new_empty(2, batch, groups, n, cut.padded, dtype=B.dtype if B.dtype == C.dtype else torch.float32)
    return y, *states, weights, x.new_empty(n, cut.wide, dtype=torch.float32)


@torch.library.custom_op("mamba_core::selective_scan_triton_backward", mutates_args=())
def selective_scan_triton_backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    enter: Tensor,
    total: Tensor,
    weights: Tensor,
    A2: Tensor,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    log: bool,
) -> list[Tensor]:
    tensors = (x, dt, A, B, C, D, z, dt_bias, seq_idx, enter, total, weights, A2)
    grads = _gradients(True, grad_y, grad_final, *tensors, dt_softplus, dt_min, dt_max, log)
    return [x.new_empty(0) if grad is None else grad for grad in grads]


def _gradients(wants_state, *arguments):  # type: ignore[no-untyped-def]
    from mamba_core.ops.selective_scan import triton_backward

    *tensors, dt_softplus, dt_min, dt_max, log = arguments
    return triton_backward.backward(*tensors, dt_softplus, (dt_min, dt_max), log, wants_state)


@selective_scan_triton_backward.register_fake
def _(grad_y, grad_final, x, dt, A, B, C, D, z, dt_bias, *_rest):  # type: ignore[no-untyped-def]
    batch, _, channels = x.shape
    grads = _fake_gradients(x, dt, A, B, C, z, (batch, channels, A.shape[1]), torch.float32)
    for place, given in ((2, A), (5, D), (7, dt_bias)):
        if given is not None:
            grads[place] = given.new_empty(given.shape)
    return grads


def _backward_triton(ctx, grad_y, grad_final, *_grads):  # type: ignore[no-untyped-def]
    (grad_y,) = complete(ctx, grad_y)
    grads = selective_scan_triton_backward(grad_y, grad_final, *ctx.saved_tensors, *ctx.options)
    return _in_place_of_inputs(ctx, grads)


def _backward_direct(ctx, grad_y, grad_final):  # type: ignore[no-untyped-def]
    (grad_y,) = complete(ctx, grad_y)
    wants_state = ctx.dtypes[-1] is not None
    grads = _gradients(wants_state, grad_y, grad_final, *ctx.saved_tensors, *ctx.options)
    return _in_place_of_inputs(ctx, grads)


selective_scan_triton.register_autograd(_backward_triton, setup_context=_setup_context)
selective_scan_triton_direct = direct(_forward_direct, _setup_context, _backward_direct, results=2)
