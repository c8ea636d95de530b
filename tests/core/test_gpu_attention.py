"""Attention on a GPU: which of PyTorch's kernels it reaches, and that they agree with float64 on the CPU."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mamba_core import AttentionConfig, BackboneConfig, CausalLM, GraphedStep
from mamba_core.mixers import Attention
from tests.core.helpers import DEVICE, pack

pytestmark = pytest.mark.gpu
D_MODEL, HEADDIM = 256, 64


def attention(window: int, kv_heads: int = 2) -> Attention:
    torch.manual_seed(0)
    return Attention(D_MODEL, AttentionConfig(HEADDIM, kv_heads, window))


def run(mixer: Attention, x: Tensor, seq_idx: Tensor | None, pieces: list[int]) -> dict[str, Tensor]:
    """Output, and the gradients of input and weights, in calls of these lengths."""
    leaf, state, parts = x.detach().requires_grad_(), None, []
    for i, piece in enumerate(leaf.split(pieces, dim=1)):
        own = None if seq_idx is None else seq_idx.split(pieces, dim=1)[i]
        y, state = mixer(piece, state, seq_idx=own)
        parts.append(y)
    y = torch.cat(parts, dim=1)
    grads = torch.autograd.grad(y.float().square().mean(), [leaf, *mixer.parameters()])
    return {"y": y.detach(), "x": grads[0], "in_proj": grads[1], "out_proj": grads[2]}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pieces", [[777], [300, 1, 476]])
def test_equals_the_cpu(dtype: torch.dtype, tolerance: float, window: int, packed: bool, pieces: list[int]) -> None:
    mixer = attention(window).to(dtype)
    x = torch.randn(2, 777, D_MODEL, generator=torch.Generator().manual_seed(1)).to(dtype)
    index = pack(777) if packed else None
    got = run(mixer.to(DEVICE), x.to(DEVICE), None if index is None else index.to(DEVICE), pieces)
    want = run(mixer.double().cpu(), x.double(), index, [777])
    for name, tensor in want.items():
        assert (got[name].double().cpu() - tensor).norm() < tolerance * tensor.norm(), name


@pytest.mark.parametrize("kv_heads", [0, 1])
def test_plain_attention_in_bfloat16_is_one_flash_kernel(kv_heads: int) -> None:
    mixer, x = attention(0, kv_heads).to(DEVICE), torch.randn(1, 4096, D_MODEL, device=DEVICE, requires_grad=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast("cuda", dtype=torch.bfloat16):
        first, state = mixer(x[:, :3000])
        second, _ = mixer(x[:, 3000:], state)  # a grown state needs no mask either
        whole, _ = mixer(x)
        whole.float().square().mean().backward()
    cut = torch.cat([first, second], dim=1)
    assert (cut - whole).float().norm() < 1e-2 * whole.float().norm()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_window_takes_the_memory_of_its_length() -> None:
    """Four times the sequence, four times the memory; scores of 2^17 tokens squared would take 34 GB a head."""
    mixer, peaks = attention(1024).to(DEVICE), []
    for length in (2**15, 2**17):
        x = torch.randn(1, length, D_MODEL, device=DEVICE, requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION), torch.autocast("cuda", dtype=torch.bfloat16):
            y, _ = mixer(x)
            y.float().square().mean().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del y
    assert peaks[1] < 4.5 * peaks[0]
    assert peaks[1] < 8e9


def test_a_graphed_step_with_a_window_equals_step_to_the_bit() -> None:
    torch.manual_seed(0)
    config = BackboneConfig(d_model=D_MODEL, n_layers=4, pattern=["attention", "mlp", "mamba2"])
    config.attention.window = 8
    lm = CausalLM(16, config).to(DEVICE)
    words = torch.randint(0, 16, (2, 12), device=DEVICE)
    state = lm.init_state(2)
    graphed = GraphedStep(lm, state.clone())
    with torch.no_grad():
        for t in range(12):
            want, state = lm.step(words[:, t], state)
            assert torch.equal(graphed.step(words[:, t]), want)
    assert all(torch.equal(graphed.state[name], state[name]) for name in state)


def test_a_state_that_grows_is_stepped_without_a_graph() -> None:
    torch.manual_seed(0)
    lm = CausalLM(16, BackboneConfig(d_model=D_MODEL, n_layers=2, pattern=["attention", "mlp"])).to(DEVICE)
    words = torch.randint(0, 16, (2, 12), device=DEVICE)
    with torch.no_grad():
        want, _ = lm(words)
    graphed = GraphedStep(lm, lm.init_state(2))
    for t in range(12):
        assert (graphed.step(words[:, t]) - want[:, t]).abs().max() < 1e-4
    assert graphed.state["layers.0.k"].shape[1] == 12
