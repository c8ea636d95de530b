"""The state-space dual operation against its definition, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mamba_core.ops.packing import document_runs
from mamba_core.ops.ssd import chunked, chunks, ssd
from tests.core.helpers import assert_same, gradients, pack


def inputs(length: int, groups: int = 1, heads: int = 4, headdim: int = 3, d_state: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = {
        "x": (2, length, heads, headdim),
        "dt": (2, length, heads),
        "A": (heads,),
        "B": (2, length, groups, d_state),
        "C": (2, length, groups, d_state),
        "D": (heads,),
        "z": (2, length, heads, headdim),
        "dt_bias": (heads,),
        "initial_state": (2, heads, headdim, d_state),
    }
    tensors = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@pytest.mark.parametrize("length", [1, 2, 63, 257, 1000])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_chunked_equals_reference(length: int, groups: int, packed: bool) -> None:
    arguments = inputs(length, groups)
    seq_idx = pack(length) if packed else None
    results = [gradients(ssd, arguments, seq_idx=seq_idx, path=path) for path in ("reference", "chunked")]
    assert_same(*results)


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 128])
@pytest.mark.parametrize("packed", [False, True])
def test_every_chunk_size(chunk: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that blocks of chunks hand on their states: a budget of 1 works off one chunk at a time."""
    monkeypatch.setitem(chunks.BLOCK_ELEMENTS, "cpu", 1)
    arguments = {name: tensor.detach() for name, tensor in inputs(63).items() if name != "z"}
    seq_idx = pack(63) if packed else None

    def run(**tensors: Tensor) -> dict[str, Tensor]:
        x, dt, A, B, C, D, dt_bias, initial = tensors.values()
        options = (True, (0.0, float("inf")), chunk)
        y, final, states = chunked.forward(x, dt, A, B, C, D, dt_bias, initial, seq_idx, *options)
        grad_y, grad_final = torch.ones_like(y), torch.ones_like(final)
        grads = chunked.backward(grad_y, grad_final, x, dt, A, B, C, D, dt_bias, seq_idx, states, *options)
        return dict(enumerate((y, final, *grads)))  # type: ignore[arg-type]

    leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
    y, final = ssd(**leaves, seq_idx=seq_idx, path="reference")
    grads = torch.autograd.grad(y.sum() + final.sum(), list(leaves.values()))
    with torch.no_grad():
        assert_same(dict(enumerate((y, final, *grads))), run(**arguments))  # type: ignore[arg-type]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.booleans())
def test_any_split_equals_the_whole(lengths: list[int], packed: bool) -> None:
    total = sum(lengths)
    tensors = {name: tensor.detach() for name, tensor in inputs(total).items()}
    seq_idx = pack(total) if packed else None
    want, final = ssd(**tensors, seq_idx=seq_idx)
    state, parts, start = tensors["initial_state"], [], 0
    for length in lengths:
        piece = slice(start, start + length)
        cut = {name: t[:, piece] if name in ("x", "dt", "B", "C", "z") else t for name, t in tensors.items()}
        cut["initial_state"] = state
        if seq_idx is not None and start:  # an operation's initial state belongs to the first document of its call
            real, run = document_runs(seq_idx)
            for row in range(2):
                ahead = real[row, piece].nonzero()
                if len(ahead) and run[row, piece][ahead[0, 0]] != run[row, start - 1]:
                    cut["initial_state"] = cut["initial_state"].clone()
                    cut["initial_state"][row] = 0
        y, state = ssd(**cut, seq_idx=None if seq_idx is None else seq_idx[:, piece])
        parts.append(y)
        start += length
    assert_same({"y": want, "final": final}, {"y": torch.cat(parts, dim=1), "final": state})


@pytest.mark.parametrize("limit", [(0.0, 0.3), (0.2, 0.8)])
def test_limited_time_steps(limit: tuple[float, float]) -> None:
    results = [gradients(ssd, inputs(70), dt_limit=limit, path=path) for path in ("reference", "chunked")]
    assert_same(*results)


@pytest.mark.parametrize("case", ["fast decay", "no decay", "zeros"])
def test_hard_cases_stay_exact_and_finite(case: str) -> None:
    arguments = inputs(200)
    with torch.no_grad():
        if case == "fast decay":
            arguments["A"] *= 1e3
            arguments["dt"] += 5
        elif case == "no decay":
            arguments["dt"] -= 30
        else:
            for name in ("x", "B", "C"):
                arguments[name].zero_()
    results = [gradients(ssd, arguments, path=path) for path in ("reference", "chunked")]
    assert all(tensor.isfinite().all() for tensor in results[1].values())
    assert_same(*results)


def test_float32_and_bfloat16_inputs() -> None:
    exact = inputs(300, headdim=16, d_state=16)
    reference = gradients(ssd, exact, path="reference")
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        low = {
            name: t.detach().to(dtype if name in ("x", "dt", "B", "C", "z") else torch.float32).requires_grad_()
            for name, t in exact.items()
        }
        got = gradients(ssd, low)
        assert got["output 0"].dtype == dtype
        assert got["output 1"].dtype == torch.float32
        assert_same(reference, got, tolerance)


def test_strided_inputs() -> None:
    """Slices of one projection go in as they are."""
    wide = torch.randn(2, 100, 4 * 3 + 2 * 5, dtype=torch.float64)
    x, B, C = wide.split([12, 5, 5], dim=-1)
    arguments = inputs(100) | {"x": x.unflatten(-1, (4, 3)), "B": B.unsqueeze(2), "C": C.unsqueeze(2)}
    y, final = ssd(**arguments)
    dense, dense_final = ssd(**{name: tensor.contiguous() for name, tensor in arguments.items()})
    assert torch.equal(y, dense)
    assert torch.equal(final, dense_final)


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed: bool) -> None:
    arguments = inputs(9)
    arguments.pop("z")
    seq_idx = pack(9) if packed else None
    torch.library.opcheck(torch.ops.mamba_core.ssd.default, (*arguments.values(), seq_idx, True, 0.0, float("inf")))


def test_padding_may_hold_anything() -> None:
    arguments, seq_idx = inputs(70), pack(70)
    with torch.no_grad():
        for name in ("x", "dt", "B", "C"):
            arguments[name][seq_idx < 0] = float("nan")
    arguments.pop("z")
    clean = inputs(70)
    clean.pop("z")
    want = gradients(ssd, clean, seq_idx=seq_idx, path="chunked")
    got = gradients(ssd, arguments, seq_idx=seq_idx, path="chunked")
    assert all(tensor.isfinite().all() for tensor in got.values())
    assert_same(want, got)


def test_a_huge_step_costs_the_steps_behind_it_no_digits() -> None:
    arguments = inputs(200)
    with torch.no_grad():
        arguments["A"].fill_(-16.0)
        arguments["dt"] -= 4
        arguments["dt"][:, 5] = 2000.0
        arguments["dt_bias"].zero_()
    want = gradients(ssd, arguments, path="reference")
    low = {name: tensor.detach().float().requires_grad_() for name, tensor in arguments.items()}
    assert_same({"y": want["output 0"]}, {"y": gradients(ssd, low)["output 0"]}, 2e-6)


@pytest.mark.parametrize("name", ["dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state", "seq_idx"])
def test_shapes_are_checked(name: str) -> None:
    arguments = inputs(5) | {"seq_idx": torch.zeros(2, 5, dtype=torch.int64)}
    wrong = arguments[name][..., :1] if name not in ("B", "C") else arguments[name][:, :1]
    with pytest.raises(ValueError, match=name):
        ssd(**arguments | {name: wrong})


def test_nonsense_is_refused() -> None:
    arguments = inputs(5)
    with pytest.raises(ValueError, match="no token"):
        ssd(**{name: t[:, :0] if name in ("x", "dt", "B", "C", "z") else t for name, t in arguments.items()})
    with pytest.raises(ValueError, match="integers"):
        ssd(**arguments, seq_idx=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="dt_limit"):
        ssd(**arguments, dt_limit=(2.0, 1.0))
    with pytest.raises(ValueError, match="divide"):
        ssd(**inputs(5, groups=3))
    with pytest.raises(ValueError, match="float32"):
        ssd(**arguments, path="triton")
    with pytest.raises(ValueError, match="unknown path"):
        ssd(**arguments, path="fast")
