"""The ssd operations as torch.library sees them: forward and backward of the chunked and of the Triton path."""

import torch
from torch import Tensor

from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.direct import direct
from mamba_core.ops.results import complete, remember_results
from mamba_core.ops.ssd import chunked
from mamba_core.ops.ssd.chunks import CHUNK


@torch.library.custom_op("mamba_core::ssd", mutates_args=())
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return chunked.forward(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, (dt_min, dt_max))


@ssd.register_fake
def _(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, dt_min, dt_max):  # type: ignore[no-untyped-def]
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    work = working_dtype(x)
    chunks = (l + CHUNK - 1) // CHUNK
    states = x.new_empty(b, chunks + 1, g, n, h // g * p, dtype=work)
    return x.new_empty(x.shape), x.new_empty(b, h, p, n, dtype=work), states


@torch.library.custom_op("mamba_core::ssd_backward", mutates_args=())
def ssd_backward(
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
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    limit = (dt_min, dt_max)
    dx, ddt, dA, dB, dC, dD, dbias, dstate = chunked.backward(
        grad_y, grad_final, x, dt, A, B, C, D, dt_bias, seq_idx, states, dt_softplus, limit
    )
    return dx.to(x.dtype), ddt.to(dt.dtype), dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), dD, dbias, dstate


@ssd_backward.register_fake
def _(grad_y, grad_final, x, dt, A, B, C, D, dt_bias, seq_idx, states, dt_softplus, dt_min, dt_max):  # type: ignore[no-untyped-def]
    h = x.shape[2]
    vector = x.new_empty(h, dtype=states.dtype)
    shaped = [t.new_empty(t.shape) for t in (x, dt, A, B, C)]
    return (*shaped, vector, torch.empty_like(vector), x.new_empty(grad_final.shape, dtype=states.dtype))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    """For both paths: same arguments; what the backward wants is returned behind y and the final state."""
    x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, dt_min, dt_max = inputs
    remember_results(ctx, *output[:2])
    ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, seq_idx, *output[2:])
    ctx.options = (dt_softplus, dt_min, dt_max)
    ctx.dtypes = tuple(None if t is None else t.dtype for t in (D, dt_bias, initial_state))


def _backward(ctx, grad_y, grad_final, _grad_states):  # type: ignore[no-untyped-def]
    grads = ssd_backward(*complete(ctx, grad_y, grad_final), *ctx.saved_tensors, *ctx.options)
    return _in_place_of_inputs(grads, ctx.dtypes)


def _in_place_of_inputs(grads, dtypes):  # type: ignore[no-untyped-def]
    """Gradients of x, dt, A, B, C as they are, those of D, dt_bias and initial_state where they were given."""
    optional = [None if dtype is None else g.to(dtype) for g, dtype in zip(grads[5:], dtypes, strict=True)]
    return (*grads[:5], *optional, None, None, None, None)


ssd.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("mamba_core::ssd_triton", mutates_args=())
def ssd_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from mamba_core.ops.ssd import triton  # late: there is no Triton on a Mac

    return triton.forward(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, (dt_min, dt_max))


@ssd_triton.register_fake
def _(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, dt_min, dt_max):  # type: ignore[no-untyped-def]
    from mamba_core.ops.ssd.triton import plan

    b, _, h, p = x.shape
    n = B.shape[3]
    segments = plan(x, B).segments
    enter = x.new_empty(b, segments + 1, h, n, p, dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(b, h, p, n, dtype=torch.float32), enter


@torch.library.custom_op("mamba_core::ssd_triton_backward", mutates_args=())
def ssd_triton_backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    enter: Tensor,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from mamba_core.ops.ssd import triton_backward

    limit = (dt_min, dt_max)
    dx, ddt, dA, dB, dC, dD, dbias, dstate = triton_backward.backward(
        grad_y, grad_final, x, dt, A, B, C, D, dt_bias, seq_idx, enter, dt_softplus, limit
    )
    return dx, ddt, dA, dB.to(B.dtype), dC.to(C.dtype), dD, dbias, dstate


@ssd_triton_backward.register_fake
def _(grad_y, grad_final, x, dt, A, B, C, D, dt_bias, seq_idx, enter, dt_softplus, dt_min, dt_max):  # type: ignore[no-untyped-def]
    vector = (x.shape[2],)
    shaped = [t.new_empty(t.shape) for t in (x, dt, A, B, C)]
    vectors = [x.new_empty(vector, dtype=torch.float32 if t is None else t.dtype) for t in (D, dt_bias)]
    b, _, h, n, p = enter.shape
    return (*shaped, *vectors, enter.new_empty(b, h, p, n))


def _backward_triton(ctx, grad_y, grad_final, _grad_enter):  # type: ignore[no-untyped-def]
    (grad_y,) = complete(ctx, grad_y)
    return _in_place_of_inputs(ssd_triton_backward(grad_y, grad_final, *ctx.saved_tensors, *ctx.options), ctx.dtypes)


ssd_triton.register_autograd(_backward_triton, setup_context=_setup_context)


def _forward_direct(*arguments):  # type: ignore[no-untyped-def]
    from mamba_core.ops.ssd import triton

    *tensors, dt_min, dt_max = arguments
    return triton.forward(*tensors, (dt_min, dt_max))


def _backward_direct(ctx, grad_y, grad_final):  # type: ignore[no-untyped-def]
    from mamba_core.ops.ssd import triton_backward

    (grad_y,) = complete(ctx, grad_y)
    softplus, dt_min, dt_max = ctx.options
    saved = ctx.saved_tensors  # once: checkpointing does not unpack twice
    dx, ddt, dA, dB, dC, *rest = triton_backward.backward(grad_y, grad_final, *saved, softplus, (dt_min, dt_max))
    _, _, _, B, C, *_ = saved
    return _in_place_of_inputs((dx, ddt, dA, dB.to(B.dtype), dC.to(C.dtype), *rest), ctx.dtypes)


ssd_triton_direct = direct(_forward_direct, _setup_context, _backward_direct, results=2)
