"""The Triton kernels of the convolution on a GPU, against the chunked path in float64.

One test goes through all cases that share compiled kernels: compiling takes longer than running.
"""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mamba_core.ops.causal_conv1d import causal_conv1d
from tests.core import helpers
from tests.core.helpers import (
    assert_equal,
    assert_same,
    compare,
    documents,
    gradients,
    large,
    leaves,
    rounded,
    strided,
)

pytestmark = pytest.mark.gpu


def inputs(
    length: int, dtype: torch.dtype = torch.float32, batch: int = 2, channels: int = 288, width: int = 4
) -> dict[str, Tensor]:
    """x in ``dtype``, the others in float32."""
    generator = torch.Generator().manual_seed(length)
    shapes = {
        "x": (batch, length, channels),
        "weight": (channels, width),
        "bias": (channels,),
        "initial_state": (batch, width - 1, channels),
    }
    tensors = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    return rounded(tensors, dtype, ("x",))


def check(low: dict[str, Tensor], seq_idx: Tensor | None = None, **options: object) -> dict[str, Tensor]:
    return compare(causal_conv1d, low, seq_idx, padded=("x",), **options)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lengths(packed: bool, dtype: torch.dtype) -> None:
    for length in (1, 2, 63, 257, 4097):
        check(inputs(length, dtype), documents(length, packed))
    if dtype != torch.float16:
        check(inputs(65537, dtype, batch=1), documents(65537, packed, 1))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("width", "activation"), [(1, True), (2, False), (3, True), (4, False)])
def test_widths(width: int, activation: bool, packed: bool) -> None:
    """Also without silu, and with channels that fill no whole block."""
    for length in (1, 300):
        check(inputs(length, channels=70, width=width), documents(length, packed), activation=activation)


def test_optional_arguments() -> None:
    for left_out in (("bias",), ("initial_state",), ("bias", "initial_state")):
        for seq_idx in (None, documents(150, True)):
            check({name: tensor for name, tensor in inputs(150).items() if name not in left_out}, seq_idx)


def test_zeros() -> None:
    low = inputs(257)
    check(low | {"x": torch.zeros_like(low["x"]), "bias": torch.zeros_like(low["bias"])})


def test_rows_of_padding() -> None:
    """One row of nothing else, which keeps its state, and one that begins with it."""
    seq_idx = torch.zeros(3, 257, dtype=torch.int64, device=helpers.DEVICE)
    seq_idx[1] = -1
    seq_idx[2, :100] = -1
    low = inputs(257, batch=3)
    got = check(low, seq_idx)
    assert_equal({"state": low["initial_state"][1]}, {"state": got["output 1"][1]})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(dtype: torch.dtype, packed: bool) -> None:
    """Rows that are not aligned go in as they are, what else is not dense as copies. Other code may round otherwise."""
    seq_idx = documents(260, packed)
    dense = inputs(260, dtype)
    sliced = dense | {"x": strided(dense["x"]), "weight": dense["weight"].mT.contiguous().mT}
    copied = dense | {name: dense[name].mT.contiguous().mT for name in ("x", "initial_state")}
    want, *others = (
        gradients(causal_conv1d, leaves(side), seq_idx=seq_idx, path="triton") for side in (dense, sliced, copied)
    )
    for got in others:
        assert_same(want, got, 1e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_over_gradients(dtype: torch.dtype, packed: bool) -> None:
    """Those of x take the place of those of y, and y a place that is given.

    However often, no bit changes. Apart and in place are two programs, which may round to 16 bits in two ways.
    """
    from mamba_core.ops.causal_conv1d import triton, triton_backward

    low, seq_idx = inputs(4097, dtype), documents(4097, packed)
    tensors = (*low.values(), seq_idx, True)
    y, final = triton.forward(*tensors)
    place = strided(torch.zeros_like(y))
    triton.forward(*tensors, out=place)
    assert_equal({"y": y}, {"y": place})
    grad_y, grad_final = strided(torch.randn_like(y)), torch.randn_like(final)
    names = ("dx", "dw", "db", "ds")
    apart = dict(zip(names, triton_backward.backward(grad_y, grad_final, *tensors), strict=True))
    runs = []
    for _ in range(3):
        over = strided(grad_y)
        got = triton_backward.backward(over, grad_final, *tensors, dx=over)
        assert got[0] is over
        runs.append(dict(zip(names, got, strict=True)))
        assert_equal(runs[0], runs[-1])
    assert_same(apart, runs[0], 1e-4 if dtype == torch.bfloat16 else 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    low = leaves(inputs(4097, dtype))
    for seq_idx in (None, documents(4097, True)):
        first, second = (gradients(causal_conv1d, low, seq_idx=seq_idx, path="triton") for _ in range(2))
        assert_equal(first, second)


def test_segments_equal_the_whole() -> None:
    low = inputs(4097)
    want, final = causal_conv1d(**low, path="triton")
    state, parts = low["initial_state"], []
    for piece in low["x"].split([1, 2, 61, 2000, 2033], dim=1):
        y, state = causal_conv1d(**low | {"x": piece, "initial_state": state}, path="triton")
        parts.append(y)
    assert_same({"y": want, "state": final}, {"y": torch.cat(parts, dim=1), "state": state}, 1e-5)


def test_every_tensor_may_have_its_own_dtype() -> None:
    low = inputs(100)
    half = {"x": torch.bfloat16, "weight": torch.float16, "bias": torch.bfloat16, "initial_state": torch.float16}
    for seq_idx in (None, documents(100, True)):
        check(low | {name: low[name].to(dtype) for name, dtype in half.items()}, seq_idx)


def test_opcheck() -> None:
    low = leaves(inputs(70))
    for seq_idx in (None, documents(70, True)):
        for wanted in (tuple(low), ("x", "weight")):
            tensors = [low[name] if name in wanted else None for name in low]
            torch.library.opcheck(torch.ops.mamba_core.causal_conv1d_triton.default, (*tensors, seq_idx, True))


def test_compiles_whole() -> None:
    low = leaves(inputs(70))
    compiled = torch.compile(causal_conv1d, fullgraph=True)
    for seq_idx in (None, documents(70, True)):
        want, got = (gradients(f, low, seq_idx=seq_idx, path="triton") for f in (causal_conv1d, compiled))
        assert_same(want, got, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_no_bit(dtype: torch.dtype) -> None:
    low, again = leaves(inputs(257, dtype)), partial(checkpoint, causal_conv1d, use_reentrant=False)
    assert_equal(*(gradients(f, low, path="triton") for f in (causal_conv1d, again)))


def test_more_rows_than_blocks_in_a_grid() -> None:
    """A grid has at most 65,535 blocks along its second and third dimension."""
    check(inputs(2, torch.bfloat16, batch=70_000))


@large(24)
def test_more_than_2_to_the_31_elements() -> None:
    """The end of the sequence equals the operation on that end alone, which takes over the state.

    The input is a slice of a projection, and no copy of it is made.
    """
    length, channels, end, device = 500_000, 4352, 5_000, helpers.DEVICE
    x = torch.randn(1, length, 4384, dtype=torch.bfloat16, device=device)[..., 32:]
    weight, bias = torch.randn(channels, 4, device=device), torch.randn(channels, device=device)
    grads = (
        torch.randn(1, length, channels, dtype=torch.bfloat16, device=device),
        torch.randn(1, 3, channels).to(device),
    )

    def run(start: int, state: Tensor | None) -> dict[str, Tensor]:
        part = x[:, start:].detach().requires_grad_()
        y, final = causal_conv1d(part, weight, bias, state, path="triton")
        (dx,) = torch.autograd.grad((y, final), (part,), (grads[0][:, start:], grads[1]))
        return {"y": y[:, -end:].detach().clone(), "state": final.detach(), "dx": dx[:, -end:].clone()}

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    whole = run(0, None)
    assert torch.cuda.max_memory_allocated() - before < 2.2 * grads[0].nbytes
    assert_same(run(length - end, x[:, -end - 3 : -end].float()), whole, 1e-2)
