"""What the tests of the operations share."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from mamba_core import BackboneConfig, CausalLM, Mamba1Config, Mamba2Config

DEVICE = "cuda"  # of the tests that need a GPU
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}  # of the Triton kernels


def pack(length: int, batch: int = 2) -> Tensor:
    """A (batch, length) seq_idx: several documents, padding inside one document and at the end of a row."""
    generator = torch.Generator().manual_seed(length)
    seq_idx = torch.randint(0, 4, (batch, length), generator=generator).sort(dim=1).values
    if length > 2:
        seq_idx[0, length // 3 : length // 3 + 5] = -1
        seq_idx[-1, -(length // 8) - 1 :] = -1
    return seq_idx


def documents(length: int, packed: bool, batch: int = 2) -> Tensor | None:
    """:func:`pack` on the GPU, or None."""
    return pack(length, batch).to(DEVICE) if packed else None


def ssd_inputs(batch: int, length: int, heads: int, headdim: int, groups: int, d_state: int) -> dict[str, Tensor]:
    """Random float64 arguments of ssd, all with gradients.

    The gradients of A, D and dt_bias are sums over all tokens. Among the seeds this one gives none that cancels so far
    that the rounding of 16-bit inputs alone comes to more than 1 part in 100 of it.
    """
    generator = torch.Generator().manual_seed(length + 151)
    shapes = {
        "x": (batch, length, heads, headdim),
        "dt": (batch, length, heads),
        "A": (heads,),
        "B": (batch, length, groups, d_state),
        "C": (batch, length, groups, d_state),
        "D": (heads,),
        "z": (batch, length, heads, headdim),
        "dt_bias": (heads,),
        "initial_state": (batch, heads, headdim, d_state),
    }
    tensors = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def small_lm(mixer: str) -> CausalLM:
    """Two layers over a vocabulary of 16."""
    torch.manual_seed(0)
    config = BackboneConfig(
        d_model=64, n_layers=2, pattern=[mixer], mamba1=Mamba1Config(), mamba2=Mamba2Config(d_state=32, headdim=32)
    )
    return CausalLM(16, config)


def gradients(
    function: Callable[..., tuple[Tensor, ...] | Tensor],
    arguments: Mapping[str, Tensor],
    rounding: Sequence[torch.dtype] = (torch.float64, torch.float64),
    **options: object,
) -> dict[str, Tensor]:
    """Outputs of a function, and the gradient of each of its arguments for one fixed random direction.

    ``rounding`` gives dtypes that hold the direction exactly, one for each output.
    """
    results = function(**arguments, **options)
    outputs = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype).to(out)).sum()
        for out, dtype in zip(outputs, rounding, strict=False)
    )
    grads = torch.autograd.grad(loss, list(arguments.values()))  # type: ignore[arg-type]
    named = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    return named | {f"gradient of {name}": grad for name, grad in zip(arguments, grads, strict=True)}


def assert_same(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    """Relative error norm(got - expected) / norm(expected) of each tensor, absolute where the expected one is 0."""
    for name, want in expected.items():
        assert got[name].shape == want.shape, name
        error = (got[name].double() - want.double()).norm() / want.double().norm().clamp(min=1e-12)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


def assert_equal(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    """To the bit."""
    for name, want in expected.items():
        assert torch.equal(want, got[name]), name


def rounded(arguments: Mapping[str, Tensor], dtype: torch.dtype, names: Collection[str]) -> dict[str, Tensor]:
    """The arguments on the GPU: those of these names in ``dtype``, the others in float32."""
    return {name: t.detach().to(DEVICE, dtype if name in names else torch.float32) for name, t in arguments.items()}


def leaves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same memory, layout included, each tensor with a gradient of its own."""
    return {name: t.detach().requires_grad_() for name, t in tensors.items()}


def strided(tensor: Tensor) -> Tensor:
    """The same numbers as a slice of something wider; neither its start nor its rows are aligned."""
    wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 11), torch.nan)
    wide[..., 3:-8] = tensor
    return wide[..., 3:-8]


def every_other(tensor: Tensor) -> Tensor:
    """The same numbers with NaN between them."""
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)[..., 0]


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""

    def fill(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(*args: Any, **options: Any) -> Tensor:
            out = create(*args, **options)
            if out.is_floating_point():
                out.detach().fill_(torch.nan)
            return out

        return filled

    with (
        patch.object(torch, "empty", fill(torch.empty)),
        patch.object(torch, "empty_like", fill(torch.empty_like)),
        patch.object(torch.Tensor, "new_empty", fill(torch.Tensor.new_empty)),
    ):
        yield


def compare(
    function: Callable[..., tuple[Tensor, ...]],
    low: Mapping[str, Tensor],
    seq_idx: Tensor | None = None,
    padded: Collection[str] = (),
    exact: str = "chunked",
    tolerance: float | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Check outputs, gradients and dtypes of the Triton path against another path in float64 on the same numbers.

    Padding of the tensors named ``padded`` holds NaN on the Triton side. The first output has the dtype of the first
    argument, which decides the tolerance unless one is given; the others, states, are in float32.
    """
    dtype = next(iter(low.values())).dtype
    rounding = (dtype, torch.float32, torch.float32)
    doubles = leaves({name: t.double() for name, t in low.items()})
    want = gradients(function, doubles, rounding, seq_idx=seq_idx, path=exact, **options)
    if seq_idx is not None:
        low = dict(low)
        for name in low.keys() & set(padded):
            padding = (seq_idx < 0).view(*seq_idx.shape, *[1] * (low[name].ndim - 2))
            low[name] = low[name].masked_fill(padding, torch.nan)
    with poisoned():
        got = gradients(function, leaves(low), rounding, seq_idx=seq_idx, path="triton", **options)
    assert all(got[name].dtype == rounding[i] for i, name in enumerate(name for name in got if "output" in name))
    assert all(got[f"gradient of {name}"].dtype == t.dtype for name, t in low.items())
    assert_same(want, got, tolerance or TOLERANCE[dtype])
    return got


def large(gigabytes: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """For a test that wants so much GPU memory: skipped where there is less, and what it took is handed back."""

    def decorate(test: Callable[[], None]) -> Callable[[], None]:
        @wraps(test)
        def run() -> None:
            if torch.cuda.get_device_properties(0).total_memory < gigabytes * 1e9:
                pytest.skip(f"needs {gigabytes} GB of GPU memory")
            try:
                test()
            finally:
                torch.cuda.empty_cache()

        return run

    return decorate
