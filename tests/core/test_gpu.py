"""The same operations on a GPU, against the float64 reference on the CPU."""

import pytest
import torch
from torch import Tensor

from mamba_core import BackboneConfig, CausalLM, Mamba1Config, Mamba2Config
from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.selective_scan import selective_scan
from mamba_core.ops.ssd import ssd
from tests.core.helpers import assert_same, gradients, pack

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_gpu(arguments: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.detach().to("cuda", dtype).requires_grad_() for name, t in arguments.items()}


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


def ssd_inputs(batch: int, length: int, heads: int, headdim: int, groups: int, d_state: int) -> dict[str, Tensor]:
    """Random float64 arguments of ssd, all with gradients."""
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
    tensors = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@pytest.mark.parametrize("length", [1, 63, 257, 4097])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_ssd_triton(length: int, packed: bool, dtype: torch.dtype, tolerance: float) -> None:
    """x, dt, B, C and z in ``dtype``; the exact side gets the same rounded numbers."""
    exact = ssd_inputs(2, length, 4, 64, 1, 128)
    rounded = ("x", "dt", "B", "C", "z")
    low = {n: t.detach().to("cuda", dtype if n in rounded else torch.float32) for n, t in exact.items()}
    exact = {n: t.double().cpu().requires_grad_() for n, t in low.items()}
    seq_idx = pack(length) if packed else None
    want = gradients(ssd, exact, seq_idx=seq_idx, path="chunked")
    there = None if seq_idx is None else seq_idx.cuda()
    got = gradients(ssd, {n: t.requires_grad_() for n, t in low.items()}, seq_idx=there, path="triton")
    assert_same(want, {n: t.cpu() for n, t in got.items()}, tolerance)


@pytest.mark.parametrize("op", ["ssd", "selective_scan"])
@pytest.mark.parametrize("length", [1, 63, 257, 1000])
@pytest.mark.parametrize("packed", [False, True])
def test_scans(op: str, length: int, packed: bool) -> None:
    function = {"ssd": ssd, "selective_scan": selective_scan}[op]
    arguments, seq_idx = scan_inputs(op, length), pack(length) if packed else None
    want = gradients(function, arguments, seq_idx=seq_idx, path="reference")
    there = None if seq_idx is None else seq_idx.cuda()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        got = gradients(function, on_gpu(arguments, dtype), seq_idx=there, path="chunked")
        assert_same(want, {name: t.cpu() for name, t in got.items()}, tolerance)


@pytest.mark.parametrize("packed", [False, True])
def test_causal_conv1d(packed: bool) -> None:
    shapes = {"x": (2, 257, 24), "weight": (24, 4), "bias": (24,), "initial_state": (2, 3, 24)}
    arguments = {name: torch.randn(s, dtype=torch.float64, requires_grad=True) for name, s in shapes.items()}
    seq_idx = pack(257) if packed else None
    want = gradients(causal_conv1d, arguments, seq_idx=seq_idx, path="reference")
    there = None if seq_idx is None else seq_idx.cuda()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        got = gradients(causal_conv1d, on_gpu(arguments, dtype), seq_idx=there, path="chunked")
        assert_same(want, {name: t.cpu() for name, t in got.items()}, tolerance)


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_models(mixer: str) -> None:
    """Logits and gradients of a model in float32, bf16 autocast near them, and a split that changes nothing."""
    torch.manual_seed(0)
    config = BackboneConfig(
        d_model=64, n_layers=2, pattern=[mixer], mamba1=Mamba1Config(), mamba2=Mamba2Config(d_state=32, headdim=32)
    )
    lm = CausalLM(16, config)
    tokens = torch.randint(0, 16, (2, 700))
    want, _ = lm(tokens)
    lm, tokens = lm.cuda(), tokens.cuda()
    got, _ = lm(tokens)
    assert (got.cpu() - want).norm() < 1e-5 * want.norm()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        low, state = lm(tokens)
        low.float().square().sum().backward()
    assert (low.cpu() - want).norm() < 2e-2 * want.norm()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lm.parameters())
    assert all(t.dtype == torch.float32 for name, t in state.items() if "seq_idx" not in name)
    state, parts = None, []
    with torch.no_grad():
        for piece in tokens.split([1, 64, 400, 235], dim=1):
            out, state = lm(piece, state)
            parts.append(out)
    assert (torch.cat(parts, dim=1) - got).abs().max() < 1e-5
