"""The smallest settings that train, for the tests."""

from domains.audio.config import DataConfig, TaskConfig, TrainConfig
from domains.audio.models.classifier import ClassifierConfig
from domains.audio.models.front import FrontConfig
from domains.audio.models.generator import GeneratorConfig
from domains.audio.models.spectrogram import SpectrogramConfig
from domains.config import OptimizerConfig, TrainerConfig
from mamba_core import BackboneConfig, Mamba2Config, S4DConfig


def small_config(kind: str, stores: str = "stores", steps: int = 6) -> TrainConfig:
    """A run of a few steps on the bundled clips."""
    return TrainConfig(
        data=DataConfig(
            stores=stores,
            window=512,
            tokens_per_step=2048 if kind == "generate" else 40_000,
            validation_tokens=4096,
            max_seconds=0.25,
        ),
        task=TaskConfig(
            kind=kind,
            generator=GeneratorConfig(widths=[8, 8], pool=[4, 2], layers=2, s4d=S4DConfig(d_state=8)),
            classifier=ClassifierConfig(front=FrontConfig(strides=[16, 8], kernels=[32, 8], width=8)),
            spectrogram=SpectrogramConfig(mels=32, patch_mels=16),
        ),
        backbone=BackboneConfig(d_model=16, n_layers=1, mamba2=Mamba2Config(d_state=8, headdim=8)),
        trainer=TrainerConfig(
            max_steps=steps,
            accelerator="cpu",
            threads=1,
            log_every=1,
            health_every=3,
            validate_every=3,
            checkpoint_every=2,
            optimizer=OptimizerConfig(learning_rate=1e-2),
        ),
    )
