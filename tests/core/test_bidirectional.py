"""Mixers that scan from both ends: the sum of two plain mixers with the same projections, whatever is packed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mamba_core import AttentionConfig, BackboneConfig, CausalLM, Mamba1Config, Mamba2Config, MaskedLM
from mamba_core.context_parallel import check_splits
from mamba_core.health import HealthProbe, gradient_norms
from mamba_core.mixers import Bidirectional, Mixer
from mamba_core.segments import check_streams
from tests.core.helpers import assert_same, pack

MIXERS = ["mamba1", "mamba2"]


def config(mixer: str, **settings: object) -> BackboneConfig:
    return BackboneConfig(
        d_model=16,
        n_layers=2,
        pattern=[mixer],
        mamba1=Mamba1Config(d_state=4),
        mamba2=Mamba2Config(d_state=8, headdim=8, groups=2),
        attention=AttentionConfig(headdim=8),
        **settings,  # type: ignore[arg-type]
    )


def masked(mixer: str, **settings: object) -> MaskedLM:
    torch.manual_seed(0)
    return MaskedLM(16, config(mixer, bidirectional=True, **settings)).double()


def layer(mixer: str) -> Bidirectional:
    return masked(mixer).backbone.layers[0].mixer


def plain_pair(mixer: str, both: Bidirectional) -> tuple[Mixer, Mixer]:
    """Two mixers in one direction, each whole, with the weights of ``both``."""
    pair = []
    for direction in ("ahead", "back"):
        single = config(mixer).build_mixer(0).double()
        weights = {
            name.removeprefix(f"{direction}."): tensor
            for name, tensor in both.state_dict().items()
            if name.startswith((direction, "in_proj", "out_proj"))
        }
        single.load_state_dict(weights)
        pair.append(single)
    return pair[0], pair[1]


def tokens(length: int, batch: int = 2) -> Tensor:
    return torch.randint(0, 16, (batch, length), generator=torch.Generator().manual_seed(length))


def graded(run: Callable[[Tensor], Tensor], x: Tensor, modules: list[nn.Module]) -> dict[str, Tensor]:
    """Output, and gradients by input and by parameters of ``modules``, those of one name added up."""
    x = x.clone().requires_grad_()
    y = run(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).sin().view_as(y)).sum().backward()
    assert x.grad is not None
    found = {"y": y.detach(), "x": x.grad}
    for module in modules:
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            found[name] = found.get(name, torch.zeros(())) + parameter.grad
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mixer", MIXERS)
def test_is_the_sum_of_two_plain_mixers_with_the_same_projections(mixer: str, packed: bool) -> None:
    both = layer(mixer)
    ahead, back = plain_pair(mixer, both)
    x = torch.randn(2, 37, 16, dtype=torch.float64)
    seq_idx = pack(37) if packed else None
    turned = None if seq_idx is None else seq_idx.flip(1)

    def expected(x: Tensor) -> Tensor:
        return ahead(x, seq_idx=seq_idx)[0] + back(x.flip(1), seq_idx=turned)[0].flip(1)

    want = graded(expected, x, [ahead, back])
    got = graded(lambda x: both(x, seq_idx=seq_idx)[0], x, [both])
    for name in ("in_proj.weight", "out_proj.weight", "x", "y"):
        assert_same({name: want[name]}, got, 1e-10)
    for direction, single in (("ahead", ahead), ("back", back)):
        own = {
            f"{direction}.{name}": p.grad for name, p in single.named_parameters() if "proj.weight" not in name[-15:]
        }
        assert own
        assert_same({name: grad for name, grad in own.items() if grad is not None and name in got}, got, 1e-10)


@pytest.mark.parametrize("mixer", MIXERS)
def test_projections_stand_once(mixer: str) -> None:
    both, single = layer(mixer), config(mixer).build_mixer(0)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    shared = single.in_proj.weight.numel() + single.out_proj.weight.numel()
    assert count(both) == 2 * count(single) - shared
    stored = both.state_dict().values()
    assert len({tensor.data_ptr() for tensor in stored}) == len(stored)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_token_hears_of_every_other(mixer: str) -> None:
    lm = masked(mixer)
    x = lm.embedding(tokens(30)).detach().requires_grad_()
    for position in (0, 13, 29):
        (grad,) = torch.autograd.grad(lm.backbone(x)[0][:, position].square().sum(), x)
        assert (grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_packed_documents_equal_the_documents_alone(mixer: str) -> None:
    lm = masked(mixer)
    documents = [tokens(n, batch=1) for n in (5, 1, 17, 30)]
    seq_idx = torch.cat([torch.full((1, d.shape[1]), i) for i, d in enumerate(documents)], dim=1)
    together = lm(torch.cat(documents, dim=1), seq_idx=seq_idx)
    assert (together - torch.cat([lm(document) for document in documents], dim=1)).abs().max() < 1e-10


@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_changes_nothing(mixer: str) -> None:
    lm, words = masked(mixer), tokens(20)
    index = torch.zeros(2, 20, dtype=torch.int64)
    index[0, 15:] = -1
    index[1, :4] = -1
    index[1, 9:12] = -1
    logits = lm(words, seq_idx=index)
    for row in range(2):
        kept = index[row] >= 0
        assert (logits[row, kept] - lm(words[row : row + 1, kept])[0]).abs().max() < 1e-10
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    mixed, _ = lm.backbone.layers[0].mixer(x, seq_idx=index)
    assert (mixed[index < 0] == 0).all()
    assert mixed[index >= 0].abs().min() > 0


@pytest.mark.parametrize("mixer", MIXERS)
def test_compiles_as_one_graph(mixer: str) -> None:
    lm, words = masked(mixer), tokens(33)
    compiled = torch.compile(lm, fullgraph=True, backend="aot_eager")
    for seq_idx in (None, (torch.arange(33) >= 20).long().expand(2, -1)):
        want = torch.autograd.grad(lm(words, seq_idx=seq_idx).square().sum(), list(lm.parameters()))
        got = torch.autograd.grad(compiled(words, seq_idx=seq_idx).square().sum(), list(lm.parameters()))
        for a, b in zip(want, got, strict=True):
            assert (a - b).norm() <= 1e-10 * a.norm()


@pytest.mark.parametrize("mixer", MIXERS)
def test_runs_in_bfloat16(mixer: str) -> None:
    lm, words = masked(mixer).float(), tokens(40)
    want = lm(words)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = lm(words)
        got.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lm.parameters())
    assert (got - want).norm() < 3e-2 * want.norm()


def test_says_what_it_cannot_do() -> None:
    lm = masked("mamba2")
    flags = lm.backbone.capabilities
    assert (flags.causal, flags.streams, flags.steps, flags.splits, flags.packs) == (False, False, False, False, True)
    with pytest.raises(ValueError, match=r"layers.0.mixer \(Bidirectional\) is not causal"):
        check_streams(lm)
    with pytest.raises(ValueError, match=r"layers.0.mixer \(Bidirectional\) cannot work on a sequence"):
        check_splits(lm)
    state = lm.backbone.init_state(2)
    x = torch.zeros(2, 3, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match="goes on from no state"):
        lm.backbone(x, state)
    with pytest.raises(ValueError, match="no single steps"):
        lm.backbone.step(x[:, 0], state)
    with pytest.raises(ValueError, match="reads in one direction"):
        CausalLM(16, config("mamba2", bidirectional=True))
    for mixer in ("attention", "s4d"):
        with pytest.raises(ValueError, match=f"bidirectional=true: {mixer} scans one way"):
            masked(mixer)
    with pytest.raises(ValueError, match="sees both sides"):
        MaskedLM(16, config("mamba2"))


def test_multilayer_perceptrons_stand_between_as_they_are() -> None:
    settings = config("mamba2", bidirectional=True)
    settings.pattern = ["mamba2", "mlp"]
    layers = [type(block.mixer).__name__ for _, block in MaskedLM(16, settings).backbone.blocks()]
    assert layers == ["Bidirectional", "MLP"]


@pytest.mark.parametrize("mixer", MIXERS)
def test_health_tells_layers_not_directions(mixer: str) -> None:
    lm = masked(mixer).float()
    with HealthProbe(lm) as probe:
        lm(tokens(25)).sum().backward()
    seen = probe.summary()
    assert {name.partition("/")[0] for name in seen} == {"layer00", "layer01"}
    assert set(gradient_norms(lm)) == {"layer00/grad_norm", "layer01/grad_norm"}
    x = lm.embedding(tokens(25))
    first = lm.backbone.layers[0]
    dt = first.mixer.time_steps(first.norm(x))
    ahead, back = plain_pair(mixer, first.mixer.double())
    single = [m.float().time_steps(t) for m, t in ((ahead, first.norm(x)), (back, first.norm(x).flip(1)))]
    assert torch.allclose(dt.double(), torch.cat([single[0], single[1].flip(1)], -1).double(), rtol=1e-4)
    assert seen["layer00/state_max"] > 0
