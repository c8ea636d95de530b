"""An outside truth: the same weights in transformers' models give the same logits and gradients."""

import pytest
import torch
from torch import nn
from transformers import Mamba2Config as HfMamba2Config
from transformers import Mamba2ForCausalLM, MambaForCausalLM
from transformers import MambaConfig as HfMamba1Config

from mamba_core import BackboneConfig, CausalLM, Mamba1Config, Mamba2Config

LENGTH = 70


def mamba1() -> tuple[CausalLM, nn.Module]:
    ours = CausalLM(16, BackboneConfig(d_model=32, n_layers=2, pattern=["mamba1"], mamba1=Mamba1Config(d_state=8)))
    theirs = MambaForCausalLM(
        HfMamba1Config(
            vocab_size=16,
            hidden_size=32,
            state_size=8,
            num_hidden_layers=2,
            tie_word_embeddings=False,
            use_mambapy=False,
        )
    )
    return ours, theirs


def mamba2() -> tuple[CausalLM, nn.Module]:
    ours = CausalLM(
        16,
        BackboneConfig(
            d_model=32, n_layers=2, pattern=["mamba2"], mamba2=Mamba2Config(d_state=8, headdim=16, groups=2)
        ),
    )
    theirs = Mamba2ForCausalLM(
        HfMamba2Config(
            vocab_size=16,
            hidden_size=32,
            state_size=8,
            num_hidden_layers=2,
            num_heads=4,
            head_dim=16,
            n_groups=2,
            chunk_size=16,
            tie_word_embeddings=False,
        )
    )
    return ours, theirs


def names(layers: int) -> dict[str, str]:
    """Our parameter names -> theirs."""
    pairs = {
        "embedding.weight": "backbone.embeddings.weight",
        "backbone.norm.weight": "backbone.norm_f.weight",
        "head.weight": "lm_head.weight",
    }
    renamed = {"conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "norm_weight": "norm.weight"}
    parts = ["in_proj.weight", "conv_weight", "conv_bias", "x_proj.weight", "dt_proj.weight", "dt_bias", "A_log", "D"]
    for i in range(layers):
        pairs[f"backbone.layers.{i}.norm.weight"] = f"backbone.layers.{i}.norm.weight"
        for part in [*parts, "norm_weight", "out_proj.weight"]:
            pairs[f"backbone.layers.{i}.mixer.{part}"] = f"backbone.layers.{i}.mixer.{renamed.get(part, part)}"
    return pairs


@pytest.mark.parametrize("build", [mamba1, mamba2])
def test_logits_and_gradients(build) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    ours, theirs = build()
    outside = dict(theirs.named_parameters())
    pairs = names(layers=2)
    if build is mamba1:  # they keep the time-step bias inside the projection
        pairs |= {f"backbone.layers.{i}.mixer.dt_bias": f"backbone.layers.{i}.mixer.dt_proj.bias" for i in range(2)}
    mine = dict(ours.named_parameters())
    assert {pairs[name] for name in mine} == set(outside)
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + parameter)
            outside[pairs[name]].copy_(parameter.view_as(outside[pairs[name]]))
    tokens = torch.randint(0, 16, (2, LENGTH))
    target = torch.randn(2, LENGTH, 16)
    want = theirs(tokens, use_cache=False).logits
    got, _ = ours(tokens)
    assert (got - want).norm() < 1e-4 * want.norm()
    (want * target).sum().backward()
    (got * target).sum().backward()
    for name, parameter in mine.items():
        grad = outside[pairs[name]].grad
        assert grad is not None
        assert parameter.grad is not None
        assert (parameter.grad - grad.view_as(parameter)).norm() <= 1e-4 * grad.norm(), name
