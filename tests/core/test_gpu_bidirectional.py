"""Masked models on a GPU: the kernels from both ends, against the chunked path in float64."""

import pytest
import torch

from mamba_core import BackboneConfig, Mamba1Config, Mamba2Config, MaskedLM
from tests.core.helpers import DEVICE, assert_same, documents

pytestmark = pytest.mark.gpu

COMPLEMENT = [0, 1, 2, 3, 7, 6, 5, 4]


def masked(mixer: str, symmetric: bool) -> MaskedLM:
    torch.manual_seed(0)
    backbone = BackboneConfig(
        d_model=64,
        n_layers=2,
        pattern=[mixer],
        bidirectional=True,
        reverse_complement=symmetric,
        mamba1=Mamba1Config(),
        mamba2=Mamba2Config(d_state=32, headdim=32),
    )
    return MaskedLM(8, backbone, COMPLEMENT).to(DEVICE)


def graded(lm: MaskedLM, words: torch.Tensor, seq_idx: torch.Tensor | None) -> dict[str, torch.Tensor]:
    lm.zero_grad()
    logits = lm(words, seq_idx=seq_idx)
    if seq_idx is not None:
        logits = logits[seq_idx >= 0]
    torch.nn.functional.cross_entropy(logits.flatten(0, -2).double(), _targets(words, seq_idx)).backward()
    found = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
    return found | {"logits": logits.detach()}


def _targets(words: torch.Tensor, seq_idx: torch.Tensor | None) -> torch.Tensor:
    return (words if seq_idx is None else words[seq_idx >= 0]).flatten()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_kernels_agree_with_the_chunked_path(mixer: str, symmetric: bool, packed: bool) -> None:
    lm = masked(mixer, symmetric)
    words = torch.randint(0, 8, (2, 517), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    seq_idx = documents(517, packed)
    got = graded(lm, words, seq_idx)
    want = graded(lm.double(), words, seq_idx)
    assert_same(want, got, 2e-3)


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_a_step_in_bfloat16_is_near_one_in_float32(mixer: str) -> None:
    lm = masked(mixer, symmetric=True)
    words = torch.randint(0, 8, (2, 1024), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    want = graded(lm, words, None)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        got = graded(lm, words, None)
    assert_same({"logits": want["logits"]}, got, 3e-2)
    assert all(torch.isfinite(grad).all() for grad in got.values())


def test_equivariant_in_bfloat16_to_its_rounding() -> None:
    """The same kernels on the same rows: sums differ in order alone."""
    lm = masked("mamba2", symmetric=True)
    words = torch.randint(0, 8, (2, 1024), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    turned = torch.tensor(COMPLEMENT, device=DEVICE)[words.flip(1)]
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        logits, other = lm(words), lm(turned)
    assert_same({"logits": logits.float()}, {"logits": other.flip(1)[..., COMPLEMENT].float()}, 1e-2)


def test_compiles() -> None:
    lm = masked("mamba2", symmetric=True)
    words = torch.randint(0, 8, (2, 300), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    compiled = torch.compile(lm, fullgraph=True)
    assert_same({"logits": lm(words).detach()}, {"logits": compiled(words).detach()}, 1e-4)
