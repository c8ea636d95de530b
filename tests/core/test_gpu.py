"""The same operations and models on a GPU, against float64 on the CPU."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mamba_core import CausalLM
from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.selective_scan import selective_scan
from mamba_core.ops.ssd import ssd
from tests.core import helpers
from tests.core.helpers import assert_same, gradients, pack, small_lm

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Not by monkeypatch, which cannot take back an attribute that is computed."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def on_gpu(arguments: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.detach().to(helpers.DEVICE, dtype).requires_grad_() for name, t in arguments.items()}


def scan_inputs(op: str, length: int) -> dict[str, Tensor]:
    heads, headdim, d_state = 4, 16, 16
    channel = (heads, headdim) if op == "ssd" else (heads * headdim,)
    decay = (heads,) if op == "ssd" else (heads * headdim, d_state)
    per = channel[:1]
    shapes = {
        "x": (2, length, *channel),
        "dt": (2, length, *per),
        "A": decay,
        "B": (2, length, 2, d_state),
        "C": (2, length, 2, d_state),
        "D": per,
        "z": (2, length, *channel),
        "dt_bias": per,
        "initial_state": (2, *channel, d_state),
    }
    tensors = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@pytest.mark.parametrize("op", ["ssd", "selective_scan"])
@pytest.mark.parametrize("length", [1, 63, 257, 1000])
@pytest.mark.parametrize("packed", [False, True])
def test_scans(op: str, length: int, packed: bool) -> None:
    function = {"ssd": ssd, "selective_scan": selective_scan}[op]
    arguments, seq_idx = scan_inputs(op, length), pack(length) if packed else None
    want = gradients(function, arguments, seq_idx=seq_idx, path="reference")
    there = None if seq_idx is None else seq_idx.to(helpers.DEVICE)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        got = gradients(function, on_gpu(arguments, dtype), seq_idx=there, path="chunked")
        assert_same(want, {name: t.cpu() for name, t in got.items()}, tolerance)


@pytest.mark.parametrize("packed", [False, True])
def test_causal_conv1d(packed: bool) -> None:
    shapes = {"x": (2, 257, 24), "weight": (24, 4), "bias": (24,), "initial_state": (2, 3, 24)}
    arguments = {name: torch.randn(s, dtype=torch.float64, requires_grad=True) for name, s in shapes.items()}
    seq_idx = pack(257) if packed else None
    want = gradients(causal_conv1d, arguments, seq_idx=seq_idx, path="reference")
    there = None if seq_idx is None else seq_idx.to(helpers.DEVICE)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        got = gradients(causal_conv1d, on_gpu(arguments, dtype), seq_idx=there, path="chunked")
        assert_same(want, {name: t.cpu() for name, t in got.items()}, tolerance)


def tokens(length: int) -> Tensor:
    return torch.randint(0, 16, (2, length), generator=torch.Generator().manual_seed(length))


def results(lm: CausalLM, words: Tensor, seq_idx: Tensor | None) -> dict[str, Tensor]:
    """Logits, and the gradient of every parameter."""
    logits, _ = lm(words, seq_idx=seq_idx)
    grads = torch.autograd.grad(logits.square().sum(), list(lm.parameters()))
    return {"logits": logits.detach(), **dict(zip(dict(lm.named_parameters()), grads, strict=True))}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_models_in_float32(mixer: str, packed: bool) -> None:
    """On Triton, near float64 on a CPU; and a split changes nothing."""
    lm, words, seq_idx = small_lm(mixer), tokens(700), pack(700) if packed else None
    want = results(lm.double(), words, seq_idx)
    lm, words = small_lm(mixer).to(helpers.DEVICE), words.to(helpers.DEVICE)
    seq_idx = None if seq_idx is None else seq_idx.to(helpers.DEVICE)
    got = results(lm, words, seq_idx)
    assert_same(want, {name: t.cpu() for name, t in got.items()}, 1e-4)
    state, parts, start = None, [], 0
    with torch.no_grad():
        for length in (1, 64, 400, 235):
            piece = slice(start, start + length)
            out, state = lm(words[:, piece], state, seq_idx=None if seq_idx is None else seq_idx[:, piece])
            parts.append(out)
            start += length
    assert (torch.cat(parts, dim=1) - got["logits"]).abs().max() < 1e-5


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_models_under_autocast(mixer: str) -> None:
    lm, words = small_lm(mixer), tokens(700)
    with torch.no_grad():
        want, _ = lm(words)
    lm = lm.to(helpers.DEVICE)
    with torch.autocast(helpers.DEVICE, dtype=torch.bfloat16):
        low, state = lm(words.to(helpers.DEVICE))
        low.float().square().sum().backward()
    assert (low.float().cpu() - want).norm() < 2e-2 * want.norm()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lm.parameters())
    assert all(t.dtype == torch.float32 for name, t in state.items() if "seq_idx" not in name)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_models_on_a_gpu_that_is_not_the_current_one(mixer: str) -> None:
    lm, words = small_lm(mixer).to("cuda:1"), tokens(300).to("cuda:1")
    want, _ = small_lm(mixer)(words.cpu())
    with torch.cuda.device(0):
        got, state = lm(words)
        got.sum().backward()
        with torch.no_grad():
            lm.step_(words[:, 0], state)
    assert (got.cpu() - want).norm() < 1e-4 * want.norm()
