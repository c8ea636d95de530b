"""Both strands get one answer: proven in float64, of causal, bidirectional and strand-sharing backbones."""

import pytest
import torch

from domains.genomics.annotation.models import BothStrands, Segmenter, WindowClassifier
from domains.genomics.tokens import BOS, COMPLEMENT
from mamba_core import BackboneConfig, CausalLM, Mamba2Config

BACKBONES = {
    "causal": {},
    "bidirectional": {"bidirectional": True},
    "shared": {"bidirectional": True, "reverse_complement": True},
}


def backbone(**changed):
    return BackboneConfig(d_model=16, n_layers=2, mamba2=Mamba2Config(d_state=8, headdim=8), **changed)


def sequences(rows=3, length=75):
    return torch.randint(7, 12, (rows, length), generator=torch.Generator().manual_seed(0))


def turned(tokens):
    return torch.tensor(COMPLEMENT)[tokens.flip(1)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_window_and_its_reverse_complement_get_one_answer(kind):
    model = WindowClassifier(backbone(**BACKBONES[kind]), window=25).double()
    tokens = sequences()
    with torch.no_grad():
        one, other = model(tokens), model(turned(tokens))
    assert one.shape == (3,)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert one.std() > 1e-4  # it is not silent


@pytest.mark.parametrize("kind", BACKBONES)
def test_bases_of_both_strands_get_one_answer_each(kind):
    model = Segmenter(backbone(**BACKBONES[kind]), classes=3).double()
    tokens = sequences()
    with torch.no_grad():
        one, other = model(tokens), model(turned(tokens))
    assert one.classes.shape == (3, 75, 3)
    assert one.sites.shape == (3, 75, 4)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b.flip(1), rtol=0, atol=1e-10)
        assert a.std() > 1e-4


def test_a_causal_backbone_knows_both_sides_of_a_base_and_the_context_of_a_window():
    model = WindowClassifier(backbone(), window=25).double()
    tokens = sequences(1)
    with torch.no_grad():
        before = model(tokens)
        for place in (0, 24, 37, 74):  # the context on either side, the window's edge, its middle
            changed = tokens.clone()
            changed[0, place] = 7 + (tokens[0, place] - 6) % 4
            assert (model(changed) - before).abs().item() > 1e-8, place


def test_states_are_those_of_the_pre_training_model():
    config = backbone()
    language, encoder = CausalLM(16, config), BothStrands(config)
    weights = {name: value for name, value in language.state_dict().items() if name != "head.weight"}
    encoder.trunk.load_state_dict(weights)
    tokens = sequences(1)
    with torch.no_grad():
        own, other = encoder(tokens)
        logits, _ = language(torch.cat([torch.tensor([[BOS]]), tokens], dim=1))
        back, _ = language(torch.cat([torch.tensor([[BOS]]), turned(tokens)], dim=1))
    torch.testing.assert_close(language.head(own), logits[:, 1:])
    torch.testing.assert_close(language.head(other), back[:, 1:].flip(1))


def test_a_frozen_backbone_gets_no_gradient_and_the_head_does():
    model = Segmenter(backbone(), classes=3, freeze=True)
    found = model(sequences())
    (found.classes.sum() + found.sites.sum()).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
