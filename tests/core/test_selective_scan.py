"""The selective scan against its definition, in float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mamba_core.ops.selective_scan import chunked, selective_scan
from tests.core.helpers import assert_same, gradients, pack

ALONG_TIME = ("x", "dt", "B", "C", "z")
BLOCKS = [(1, 1), (1, 16), (3, 4), (8, 1), (16, 32)]  # chunks, steps


def inputs(length: int, groups: int = 1, channels: int = 8, d_state: int = 5, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = {
        "x": (batch, length, channels),
        "dt": (batch, length, channels),
        "A": (channels, d_state),
        "B": (batch, length, groups, d_state),
        "C": (batch, length, groups, d_state),
        "D": (channels,),
        "z": (batch, length, channels),
        "dt_bias": (channels,),
        "initial_state": (batch, channels, d_state),
    }
    tensors = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def cut(arguments: dict[str, Tensor], piece: slice) -> dict[str, Tensor]:
    return {name: t[:, piece] if name in ALONG_TIME else t for name, t in arguments.items()}


@pytest.fixture
def blocks_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int]], None]:
    """Make the chunked path use blocks of (chunks, steps)."""
    return lambda shape: monkeypatch.setattr(chunked, "plan", lambda *_: shape)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has written holds NaN (and algorithms must be deterministic)."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_reference_of_constant_parameters_is_a_convolution() -> None:
    arguments = {name: tensor.detach() for name, tensor in inputs(40).items() if name not in ("z", "dt_bias")}
    for name in ("dt", "B", "C"):
        arguments[name] = arguments[name][:, :1].expand_as(arguments[name])
    y, _ = selective_scan(**arguments, path="reference")
    x, dt, A, B, C, D, initial = arguments.values()
    step = torch.nn.functional.softplus(dt[:, 0])
    decay = step[..., None] * A  # (b, d, n), times the lag
    lag = torch.arange(40)
    kernel = torch.einsum("bn,bdnk,bn,bd->bkd", C[:, 0, 0], (decay[..., None] * lag).exp(), B[:, 0, 0], step)
    want = D * x + torch.einsum("bn,bdnk,bdn->bkd", C[:, 0, 0], (decay[..., None] * (lag + 1)).exp(), initial)
    for k in range(40):
        want[:, k:] += kernel[:, k, None] * x[:, : 40 - k]
    assert_same({"y": want}, {"y": y}, 1e-12)


@pytest.mark.parametrize("length", [1, 2, 63, 257, 1000])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_chunked_equals_reference(length: int, groups: int, packed: bool) -> None:
    arguments = inputs(length, groups)
    seq_idx = pack(length) if packed else None
    results = [gradients(selective_scan, arguments, seq_idx=seq_idx, path=path) for path in ("reference", "chunked")]
    assert_same(*results)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 2, 63, 257])
def test_every_block_shape(length: int, packed: bool, blocks_of: Callable[[tuple[int, int]], None]) -> None:
    arguments = inputs(length, groups=2)
    seq_idx = pack(length) if packed else None
    want = gradients(selective_scan, arguments, seq_idx=seq_idx, path="reference")
    for shape in BLOCKS:
        blocks_of(shape)
        with poisoned_memory():
            got = gradients(selective_scan, arguments, seq_idx=seq_idx)
        assert_same(want, got)


@pytest.mark.parametrize("left_out", ["D", "z", "dt_bias", "initial_state"])
def test_optional_arguments(left_out: str) -> None:
    arguments = {name: tensor for name, tensor in inputs(30).items() if name != left_out}
    assert_same(*(gradients(selective_scan, arguments, path=path) for path in ("reference", "chunked")))


@pytest.mark.parametrize("shape", [(1, 16), (4, 8)])
def test_gradient_of_one_output_alone(shape: tuple[int, int], blocks_of: Callable[[tuple[int, int]], None]) -> None:
    """The last state alone carries gradient to everything it depends on; so does y."""
    blocks_of(shape)
    for output, names in ((0, list(inputs(70))), (1, ["x", "dt", "A", "B", "dt_bias", "initial_state"])):
        results = []
        for path in ("reference", "chunked"):
            arguments = inputs(70)
            out = selective_scan(**arguments, path=path)[output]
            grads = torch.autograd.grad(out.square().sum(), [arguments[name] for name in names])
            results.append(dict(zip(names, grads, strict=True)))
        assert all(grad.norm() > 0 for grad in results[0].values())
        assert_same(*results)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.sampled_from(BLOCKS))
def test_any_split_equals_the_whole(lengths: list[int], shape: tuple[int, int]) -> None:
    """Outputs and gradients, when the state and its gradient travel between the calls."""
    arguments = inputs(sum(lengths), groups=2)

    def in_pieces(**tensors: Tensor) -> tuple[Tensor, Tensor]:
        state, parts, start = tensors["initial_state"], [], 0
        for length in lengths:
            y, state = selective_scan(**cut(tensors | {"initial_state": state}, slice(start, start + length)))
            parts.append(y)
            start += length
        return torch.cat(parts, dim=1), state

    whole = gradients(selective_scan, arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "plan", lambda *_: shape)
        assert_same(whole, gradients(in_pieces, arguments))


@pytest.mark.parametrize("shape", [(1, 16), (4, 8)])
def test_packed_batch_equals_documents_alone(
    shape: tuple[int, int], blocks_of: Callable[[tuple[int, int]], None]
) -> None:
    blocks_of(shape)
    arguments = inputs(90, batch=1)
    documents = [[*range(30), *range(35, 41)], list(range(41, 42)), list(range(42, 83))]  # 30..34 and 83.. are padding
    seq_idx = torch.full((1, 90), -1)
    for index, tokens in enumerate(documents):
        seq_idx[0, tokens] = 3 * index

    def alone(**tensors: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.zeros_like(tensors["x"])
        state = tensors["initial_state"]
        for tokens in documents:
            index = torch.tensor(tokens)
            one = {name: t[:, index] if name in ALONG_TIME else t for name, t in tensors.items()}
            out, final = selective_scan(**one | {"initial_state": state}, path="reference")
            y, state = y.index_copy(1, index, out), torch.zeros_like(state)
        return y, final

    assert_same(gradients(alone, arguments), gradients(selective_scan, arguments, seq_idx=seq_idx))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", [(1, 16), (4, 8)])
def test_padding_is_neither_read_nor_given_gradient(
    shape: tuple[int, int], gated: bool, blocks_of: Callable[[tuple[int, int]], None]
) -> None:
    blocks_of(shape)
    seq_idx = pack(63)
    arguments = {name: tensor for name, tensor in inputs(63).items() if gated or name != "z"}
    clean = gradients(selective_scan, arguments, seq_idx=seq_idx)
    along_time = [name for name in arguments if name in ALONG_TIME]
    with torch.no_grad():
        for name in along_time:
            arguments[name][seq_idx < 0] = float("nan")
    dirty = gradients(selective_scan, arguments, seq_idx=seq_idx)
    for name, tensor in clean.items():
        assert torch.equal(tensor, dirty[name]), name
    for name in ("output 0", *(f"gradient of {name}" for name in along_time)):
        assert dirty[name][seq_idx < 0].count_nonzero() == 0, name


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.0, 0.3), (0.2, 0.8)])
def test_limited_time_steps(limit: tuple[float, float], softplus: bool) -> None:
    options: dict[str, Any] = {"dt_limit": limit, "dt_softplus": softplus}
    results = [gradients(selective_scan, inputs(70), **options, path=path) for path in ("reference", "chunked")]
    assert_same(*results)
    raw = inputs(70)["dt"] + inputs(70)["dt_bias"]
    step = torch.nn.functional.softplus(raw) if softplus else raw
    outside = (step < limit[0]) | (step > limit[1])
    assert results[1]["gradient of dt"][outside].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1, 64), (8, 8)])
@pytest.mark.parametrize("case", ["fast decay", "huge steps", "threshold", "no decay", "zero A", "zeros"])
def test_hard_cases_stay_exact_and_finite(
    case: str, shape: tuple[int, int], dtype: torch.dtype, blocks_of: Callable[[tuple[int, int]], None]
) -> None:
    blocks_of(shape)
    arguments = {name: tensor.detach().to(dtype) for name, tensor in inputs(200).items()}
    if case == "fast decay":
        arguments["A"] *= 1e5
    elif case == "huge steps":
        arguments["dt"] += 1e6
    elif case == "threshold":  # from 20 on, softplus is the identity
        arguments["dt"].fill_(20.1)
        arguments["dt_bias"].zero_()
    elif case == "no decay":
        arguments["dt"] -= 200
    elif case == "zero A":
        arguments["A"].zero_()
        arguments["dt"] -= 3
    else:
        for name in ("x", "B", "C"):
            arguments[name].zero_()
    arguments = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
    results = [gradients(selective_scan, arguments, path=path) for path in ("reference", "chunked")]
    assert all(tensor.isfinite().all() for tensor in results[1].values())
    assert_same(*results, 1e-9 if dtype == torch.float64 else 1e-4)


def test_float32_and_bfloat16_inputs() -> None:
    exact = inputs(300, channels=16, d_state=16)
    reference = gradients(selective_scan, exact, path="reference")
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        low = {
            name: t.detach().to(dtype if name in ALONG_TIME else torch.float32).requires_grad_()
            for name, t in exact.items()
        }
        got = gradients(selective_scan, low)
        assert got["output 0"].dtype == dtype
        assert got["output 1"].dtype == torch.float32
        assert all(got[f"gradient of {name}"].dtype == t.dtype for name, t in low.items())
        assert_same(reference, got, tolerance)


@pytest.mark.parametrize("path", ["reference", "chunked"])
def test_autocast_changes_nothing(path: str) -> None:
    arguments = {name: tensor.detach().float().requires_grad_() for name, tensor in inputs(50).items()}
    plain = gradients(selective_scan, arguments, path=path)
    with torch.autocast("cpu", torch.bfloat16):
        under = gradients(selective_scan, arguments, path=path)
    for name, tensor in plain.items():
        assert torch.equal(tensor, under[name]), name


def test_strided_inputs() -> None:
    """Slices of projections and transposed tensors go in as they are."""
    wide = torch.randn(2, 100, 8 + 2 * 5, dtype=torch.float64)
    x, B, C = wide.split([8, 5, 5], dim=-1)
    arguments = inputs(100) | {"x": x, "B": B.unsqueeze(2), "C": C.unsqueeze(2)}
    arguments["z"] = arguments["z"].mT.contiguous().mT
    arguments["A"] = arguments["A"].mT.contiguous().mT
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
    dense = {name: tensor.detach().contiguous().requires_grad_() for name, tensor in arguments.items()}
    assert_same(gradients(selective_scan, dense), gradients(selective_scan, leaves), 1e-14)


class _LargestTensor(TorchDispatchMode):
    """The most elements that any operation inside returned in one tensor."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def test_expanded_state_never_exists_for_the_whole_sequence() -> None:
    length, channels, d_state = 20_000, 16, 16  # x: 0.3 million, its expanded states: 5.1 million
    tensors = {n: t.detach().float() for n, t in inputs(length, 1, channels, d_state, batch=1).items()}
    initial = tensors.pop("initial_state")
    options = (True, (0.0, float("inf")), *chunked.plan(1, channels, d_state, "cpu"))
    with _LargestTensor() as seen:
        y, final, borders = chunked.forward(*tensors.values(), initial, None, *options)  # type: ignore[arg-type]
        chunked.backward(y, final, *tensors.values(), None, borders, *options)  # type: ignore[arg-type]
    assert seen.elements == 2**20
    assert borders.numel() * 100 < y.numel()


def test_saved_for_backward_is_inputs_and_border_states() -> None:
    arguments = {name: t.detach().float().requires_grad_() for name, t in inputs(4096, channels=64, d_state=16).items()}
    own = {tensor.untyped_storage().data_ptr() for tensor in arguments.values()}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        selective_scan(**arguments)
    extra = sum(t.numel() for t in saved if t.untyped_storage().data_ptr() not in own)
    assert 0 < extra <= arguments["x"].numel() // 2


@pytest.mark.parametrize(
    ("batch", "channels", "d_state"), [(1, 1, 1), (1, 16, 16), (1, 128, 16), (1, 256, 16), (8, 2048, 128)]
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_plan_bounds_memory(batch: int, channels: int, d_state: int, device: str) -> None:
    chunks, steps = chunked.plan(batch, channels, d_state, device)
    assert chunks >= 1
    assert batch * channels * d_state / (chunks * steps) <= batch * channels / 2  # border states, per token of x


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("optional", [False, True])
def test_opcheck(packed: bool, optional: bool) -> None:
    arguments = inputs(9, groups=2)
    tensors = [t if optional or name in ("x", "dt", "A", "B", "C") else None for name, t in arguments.items()]
    seq_idx = pack(9) if packed else None
    torch.library.opcheck(
        torch.ops.mamba_core.selective_scan.default, (*tensors, seq_idx, True, 0.0, float("inf"), 2, 3)
    )


def test_compiles_whole() -> None:
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    for seq_idx in (None, pack(40)):
        assert_same(
            gradients(selective_scan, inputs(40), seq_idx=seq_idx), gradients(compiled, inputs(40), seq_idx=seq_idx), 0
        )


@pytest.mark.parametrize("name", ["dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"])
def test_shapes_and_dtypes_are_checked(name: str) -> None:
    arguments = inputs(5)
    with pytest.raises(ValueError, match=f"{name} must be .* got"):
        selective_scan(**arguments | {name: arguments[name][:-1]})
    with pytest.raises(ValueError, match=f"{name} must be of a real floating dtype"):
        selective_scan(**arguments | {name: arguments[name].long()})


def test_other_mistakes_are_named() -> None:
    arguments = inputs(5)
    with pytest.raises(ValueError, match="no token"):
        selective_scan(**cut(arguments, slice(0)))
    with pytest.raises(ValueError, match="3 groups of B and C must divide the 8 channels"):
        selective_scan(**arguments | {name: arguments[name].expand(-1, -1, 3, -1) for name in ("B", "C")})
    with pytest.raises(ValueError, match=r"x must be \(b, l, d\)"):
        selective_scan(**arguments | {"x": arguments["x"][0]})
    with pytest.raises(ValueError, match="seq_idx must hold integers"):
        selective_scan(**arguments, seq_idx=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="seq_idx must be"):
        selective_scan(**arguments, seq_idx=torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="dt_limit"):
        selective_scan(**arguments, dt_limit=(0.5, 0.1))
    with pytest.raises(ValueError, match="unknown path"):
        selective_scan(**arguments, path="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="z is on meta"):
        selective_scan(**arguments | {"z": arguments["z"].to("meta")})
