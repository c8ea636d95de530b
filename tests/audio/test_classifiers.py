"""Classifiers of sound: whole clips, padded batches and streams say the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from domains.audio.models.classifier import ClassifierConfig, Running, WaveClassifier
from domains.audio.models.costs import flops_per_sample
from domains.audio.models.front import FrontConfig
from domains.audio.models.spectrogram import SpectrogramClassifier, SpectrogramConfig
from mamba_core import BackboneConfig, Mamba2Config, State, StreamPool

BACKBONE = BackboneConfig(d_model=16, n_layers=1, mamba2=Mamba2Config(d_state=8, headdim=8))
FRONT = FrontConfig(strides=[4, 2], kernels=[9, 3], width=6)


def spoken(model: nn.Module) -> nn.Module:
    """In float64, with a head that says something."""
    nn.init.normal_(model.head.linear.weight)  # type: ignore[union-attr, arg-type]
    return model.double().eval()


def wave(bidirectional: bool = False) -> WaveClassifier:
    torch.manual_seed(0)
    model = spoken(ClassifierConfig(front=FRONT, bidirectional=bidirectional).build(BACKBONE, classes=3))
    assert isinstance(model, WaveClassifier)
    return model


def spectrogram() -> SpectrogramClassifier:
    torch.manual_seed(0)
    config = SpectrogramConfig(window=64, hop=16, mels=8, patch_frames=2, patch_mels=4)
    model = spoken(config.build(BACKBONE, classes=3, rate=4000))
    assert isinstance(model, SpectrogramClassifier)
    return model


def sounds(length: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, dtype=torch.float64, generator=torch.Generator().manual_seed(length))


def padded(clips: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Clips (l,) in one batch, with NaN behind them, and their seq_idx."""
    longest = max(map(len, clips)) + 3
    samples = torch.full((len(clips), longest), torch.nan, dtype=torch.float64)
    seq_idx = torch.full((len(clips), longest), -1)
    for row, clip in enumerate(clips):
        samples[row, : len(clip)] = clip
        seq_idx[row, : len(clip)] = 0
    return samples, seq_idx


@pytest.mark.parametrize("model", [wave(), wave(bidirectional=True), spectrogram()], ids=["one", "both", "spectrogram"])
def test_a_padded_clip_is_as_it_is_alone(model: nn.Module) -> None:
    clips = [sounds(n, batch=1)[0] for n in (400, 163, 96, 17)]
    samples, seq_idx = padded(clips)
    logits, _ = model(samples, seq_idx=seq_idx)
    assert logits.shape == (4, 3)
    for row, clip in enumerate(clips):
        assert (logits[row] - model(clip[None])[0][0]).abs().max() < 1e-10
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_any_split_equals_the_whole_file_at_any_time(lengths: list[int]) -> None:
    model, samples = wave(), sounds(sum(lengths))
    every, final = model.running(samples)
    state, at = None, 0
    for piece in samples.split(lengths, dim=1):
        before = state
        logits, state = model(piece, state)
        told, after = model.running(piece, before)
        at += piece.shape[1]
        whole, _ = model(samples[:, :at])
        assert (logits - whole).abs().max() < 1e-10
        assert (every[:, at - 1] - whole).abs().max() < 1e-10
        assert (told - every[:, at - piece.shape[1] : at]).abs().max() < 1e-10
        assert max((after[name] - state[name]).abs().max().item() for name in state) < 1e-12
    assert state is not None
    assert max((state[name] - final[name]).abs().max().item() for name in state) < 1e-10


def test_float32_streams_stay_within_1e_4() -> None:
    """Blocks of 20 ms against the whole, as they come from a microphone."""
    model, samples = wave().float(), sounds(8000, batch=1).float()
    with torch.no_grad():
        want, _ = model(samples)
        state: State | None = None
        for piece in samples.split(320, dim=1):
            logits, state = model(piece, state)
    assert (logits - want).abs().max() < 1e-4


def test_a_row_goes_on_with_its_sound_or_begins_another() -> None:
    model, samples = wave(), sounds(60)
    _, state = model(samples[:, :27], seq_idx=torch.zeros(2, 27, dtype=torch.int64))
    index = torch.tensor([[0], [1]]).expand(2, 33)
    logits, _ = model(samples[:, 27:], state, seq_idx=index)
    assert (logits[0] - model(samples[:1])[0][0]).abs().max() < 1e-10
    assert (logits[1] - model(samples[1:, 27:])[0][0]).abs().max() < 1e-10


def test_many_streams_in_one_pool() -> None:
    model = wave()
    clips = {name: sounds(n, batch=1)[0] for name, n in (("a", 90), ("b", 55), ("c", 20))}
    pool = StreamPool(Running(model), slots=3, length=64)  # type: ignore[arg-type]
    for name in clips:
        pool.open(name)
    told: dict[object, Tensor] = {}
    for start, stop in ((0, 1), (1, 2), (2, 30), (30, 90)):
        chunks = {name: clip[start:stop] for name, clip in clips.items() if len(clip) > start}
        told |= {name: y[-1] for name, y in pool.feed(chunks).items()}
    for name, clip in clips.items():
        assert (told[name] - model(clip[None])[0][0]).abs().max() < 1e-10


def test_before_a_frame_is_full_nothing_is_said_but_the_bias() -> None:
    model = wave()
    logits, _ = model(sounds(model.stride - 1))
    assert torch.equal(logits, model.head.linear.bias.expand(2, -1))


def test_what_does_not_stream_says_so() -> None:
    both = wave(bidirectional=True)
    state = both(sounds(40))[1]
    assert len(state) == 0
    for model in (both, spectrogram()):
        with pytest.raises(ValueError, match="whole clips"):
            model(sounds(200), state)
    with pytest.raises(ValueError, match="whole clips"):
        both.running(sounds(40))
    with pytest.raises(ValueError, match="does not stream"):
        Running(both)


def test_two_sounds_in_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="one sound"):
        wave()(sounds(40), seq_idx=(torch.arange(40) >= 9).long().expand(2, -1))


def test_patches_follow_time() -> None:
    """A click is heard in the patches that its windows belong to, and in no other."""
    model = spectrogram()
    samples = torch.zeros(1, 400, dtype=torch.float64)
    silent = model.patches(samples)
    samples[0, 200] = 1.0
    loud = (model.patches(samples) != silent).any(-1)[0]  # (moments, high)
    frames = [frame for frame in range(22) if frame * 16 <= 200 < frame * 16 + 64]
    assert sorted({frame // 2 for frame in frames}) == loud.any(1).nonzero().flatten().tolist()
    assert silent.shape == (1, 11, 2, 8)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (ClassifierConfig(front=FrontConfig(kernels=[2, 8], strides=[4, 4])), "none shorter"),
        (ClassifierConfig(front=FrontConfig(kernels=[8], strides=[4, 4])), "as many"),
        (ClassifierConfig(front=FrontConfig(kernels=[], strides=[])), "strides"),
        (ClassifierConfig(dropout=1.0), "dropout"),
    ],
)
def test_nonsense_is_named(config: ClassifierConfig, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        config.build(BACKBONE, classes=3)
    with pytest.raises(ValueError, match="patch_mels"):
        SpectrogramConfig(mels=64, patch_mels=15).build(BACKBONE, 3, 16000)
    with pytest.raises(ValueError, match="classes=1"):
        SpectrogramConfig().build(BACKBONE, 1, 16000)


def test_costs_count_each_part_at_its_rate() -> None:
    model = wave()
    first, second = model.front.convolutions
    numbers = [sum(p.numel() for p in part.parameters()) for part in (first, second, model.scan)]
    ssm = model.scan.ahead.init_state(1)["layers.0.ssm"].numel()
    want = 3 * (2 * numbers[0] / 4 + 2 * numbers[1] / 8 + (2 * numbers[2] + 5 * ssm) / 8)
    assert flops_per_sample(model) == pytest.approx(want)
    both = wave(bidirectional=True)
    assert flops_per_sample(both) - flops_per_sample(model) == pytest.approx(3 * (2 * numbers[2] + 5 * ssm) / 8)
    assert flops_per_sample(spectrogram()) > 0
