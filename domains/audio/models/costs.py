"""What a model of sound costs a sample: its parts run at different rates."""

from collections.abc import Iterator

from torch import nn

from domains.audio.models.classifier import WaveClassifier
from domains.audio.models.generator import Generator
from domains.audio.models.pooling import Pooled
from domains.audio.models.spectrogram import SpectrogramClassifier
from mamba_core.mixers import Mixer

Model = Generator | WaveClassifier | SpectrogramClassifier


def flops_per_sample(model: Model) -> float:
    """FLOPs of forward and backward for one sample, as the model's definition asks for them.

    Forward 2 for each parameter and 5 for each element of a recurrent state (see :func:`domains.task.scan_flops`) each
    time that a part runs; three times that with the backward pass.
    """
    return 3 * sum(_flops(part) / samples for part, samples in _parts(model))


def _flops(part: nn.Module) -> float:
    parameters = sum(parameter.numel() for parameter in part.parameters())
    states = [m.init_state(1, "meta") for m in part.modules() if isinstance(m, Mixer)]
    return 2.0 * parameters + 5.0 * sum(state["ssm"].numel() for state in states if "ssm" in state)


def _parts(model: Model) -> Iterator[tuple[nn.Module, float]]:
    """Parts of a model, and the samples for which each runs once."""
    if isinstance(model, Generator):
        yield model.head, 1
        yield from _stages(model.stages, 1)
    elif isinstance(model, WaveClassifier):
        samples = 1
        for conv, stride in zip(model.front.convolutions, model.front.strides, strict=True):
            samples *= stride
            yield conv, samples
        yield model.scan, samples
    else:
        for part in (model.embed, model.scan):
            yield part, model.stride / model.high


def _stages(stage: nn.Module, samples: int) -> Iterator[tuple[nn.Module, float]]:
    if not isinstance(stage, Pooled):
        yield stage, samples
        return
    yield stage.outer, samples
    yield from ((part, samples * stage.pool) for part in (stage.down, stage.up))
    yield from _stages(stage.inner, samples * stage.pool)
