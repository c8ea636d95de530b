"""Reverse-complement parameter sharing: equivariant to the last digits, and what the paper writes."""

import pytest
import torch
from torch import Tensor

from mamba_core import BackboneConfig, CausalLM, Mamba1Config, Mamba2Config, MaskedLM
from tests.core.helpers import pack

COMPLEMENT = [0, 1, 2, 3, 7, 6, 5, 4]  # four special tokens, and A C G T


def model(mixer: str = "mamba2", bidirectional: bool = True, norm_eps: float = 1e-5) -> MaskedLM:
    torch.manual_seed(0)
    backbone = BackboneConfig(
        d_model=16,
        n_layers=3,
        pattern=[mixer, "mlp"],
        norm_eps=norm_eps,
        bidirectional=bidirectional,
        reverse_complement=True,
        mamba1=Mamba1Config(d_state=4),
        mamba2=Mamba2Config(d_state=8, headdim=8),
    )
    return MaskedLM(8, backbone, COMPLEMENT).double()


def tokens(length: int, batch: int = 2) -> Tensor:
    return torch.randint(0, 8, (batch, length), generator=torch.Generator().manual_seed(length))


def turned(words: Tensor) -> Tensor:
    return torch.tensor(COMPLEMENT)[words.flip(1)]


def trained(lm: MaskedLM) -> MaskedLM:
    """Away from the symmetry that fresh weights may have by chance."""
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    for step in range(10):
        words = tokens(40 + step)
        loss = torch.nn.functional.cross_entropy(lm(words).flatten(0, 1), words.roll(1, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lm


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
@pytest.mark.parametrize("train", [False, True])
def test_logits_of_the_reverse_complement_are_those_of_the_sequence(
    mixer: str, bidirectional: bool, train: bool
) -> None:
    lm = model(mixer, bidirectional)
    lm = trained(lm) if train else lm
    words = tokens(41)
    with torch.no_grad():
        logits, other = lm(words), lm(turned(words))
        hidden, hidden_other = lm.hidden(words), lm.hidden(turned(words))
    assert (other - logits.flip(1)[..., COMPLEMENT]).abs().max() < 1e-10
    assert (logits.flip(1) - logits).abs().max() > 1e-3  # nothing that holds of any model
    own, opposite = hidden.flip(1).chunk(2, dim=-1)
    assert (hidden_other - torch.cat([opposite, own], dim=-1)).abs().max() < 1e-10
    assert hidden.shape == (2, 41, lm.width)


def test_is_what_the_paper_writes() -> None:
    """Embedding, blocks and head on a tensor of two halves, the second reversed along length and channels."""
    lm, words = trained(model()), tokens(23)

    def flip(half: Tensor) -> Tensor:
        return half.flip(1, 2)

    def shared(x: Tensor, layer: torch.nn.Module) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([layer(first), flip(layer(flip(second)))], dim=-1)

    with torch.no_grad():
        x = torch.cat([lm.embedding(words), flip(lm.embedding(turned(words)))], dim=-1)
        for _, block in lm.backbone.blocks():
            x = x + shared(shared(x, block.norm), lambda half, block=block: block.mixer(half)[0])
        x = shared(x, lm.backbone.norm)
        first, second = x.chunk(2, dim=-1)
        want = lm.head(first) + (second.flip(-1) @ lm.head.weight.T)[..., COMPLEMENT]
        assert (lm(words) - want).abs().max() < 1e-12
        assert (lm.hidden(words) - torch.cat([first, second.flip(-1)], dim=-1)).abs().max() < 1e-12


def test_packed_documents_and_padding_are_turned_with_their_tokens() -> None:
    lm, words, seq_idx = model(), tokens(50), pack(50)
    logits = lm(words, seq_idx=seq_idx)
    other = lm(turned(words), seq_idx=seq_idx.flip(1))
    real = seq_idx >= 0
    assert (other.flip(1)[..., COMPLEMENT] - logits)[real].abs().max() < 1e-10
    for row in range(2):
        for document in seq_idx[row][real[row]].unique():
            kept = seq_idx[row] == document
            alone = lm(words[row : row + 1, kept])
            assert (logits[row, kept] - alone[0]).abs().max() < 1e-10


def test_parameters_are_those_of_one_strand_and_compile() -> None:
    lm = model()
    assert sum(p.numel() for p in lm.backbone.parameters()) == sum(p.numel() for p in model().backbone.parameters())
    assert not any("strands" in name for name in lm.state_dict())
    words = tokens(33)
    compiled = torch.compile(lm, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(lm(words).square().sum(), list(lm.parameters()))
    got = torch.autograd.grad(compiled(words).square().sum(), list(lm.parameters()))
    assert all((a - b).norm() <= 1e-10 * a.norm() for a, b in zip(want, got, strict=True))


def test_needs_tokens_that_have_a_complement() -> None:
    settings = BackboneConfig(d_model=16, n_layers=1, bidirectional=True, reverse_complement=True)
    for complement in (None, [0, 1, 2]):
        with pytest.raises(ValueError, match="have no complement"):
            MaskedLM(8, settings, complement)
    with pytest.raises(ValueError, match="its own inverse"):
        MaskedLM(3, settings, [1, 2, 0])
    settings.bidirectional = False
    with pytest.raises(ValueError, match="masked models of DNA alone"):
        CausalLM(8, settings)
