"""A classifier of log-mel spectrograms: patches in the order of time, scanned in both directions.

The vision family of Mamba (Zhu et al. 2024, arXiv:2401.09417) applied to sound (as in Audio Mamba, arXiv:2406.03344).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from domains.audio.models.parts import Head, Pool, Scan
from mamba_core import BackboneConfig, State
from mamba_core.blocks import RMSNorm
from mamba_core.mixers.base import check_sizes
from mamba_core.ops.arguments import working_dtype

_FLOOR = 1e-6  # of mel energies: -60 dB of full scale


@dataclass
class SpectrogramConfig:
    """The spectrogram, and what stands round the backbone. Sizes in samples suit 16 kHz: windows of 25 ms every 10."""

    window: int = 400
    hop: int = 160
    mels: int = 64
    patch_frames: int = 4  # of a patch, in time
    patch_mels: int = 16  # of a patch, in frequency
    dropout: float = 0.1  # of what is kept of a clip, in training

    def build(self, backbone: BackboneConfig, classes: int, rate: int) -> "SpectrogramClassifier":
        """The model round a backbone, for sound of so many samples a second.

        Raises:
            ValueError: sizes that do not fit together.
        """
        return SpectrogramClassifier(self, backbone, classes, rate)


class SpectrogramClassifier(nn.Module):
    """Samples in, logits out, with the face of :class:`domains.audio.models.classifier.WaveClassifier`; no streams.

    The patches of a moment follow each other from low to high, then comes the next moment. A patch counts if its
    frames lie within the clip; of a clip shorter than one patch, the silence behind it is heard as well.
    """

    streams = False

    def __init__(self, config: SpectrogramConfig, backbone: BackboneConfig, classes: int, rate: int) -> None:
        from torchaudio.transforms import MelSpectrogram

        super().__init__()
        check_sizes("spectrogram", window=config.window, hop=config.hop, mels=config.mels)
        check_sizes("spectrogram", patch_frames=config.patch_frames, patch_mels=config.patch_mels)
        if config.mels % config.patch_mels:
            raise ValueError(f"spectrogram.patch_mels={config.patch_mels}: must divide mels = {config.mels}")
        self.config = config
        self.mel = MelSpectrogram(
            rate, n_fft=config.window, hop_length=config.hop, n_mels=config.mels, center=False, power=2.0
        )
        self.high = config.mels // config.patch_mels  # patches of a moment
        self.embed = nn.Linear(config.patch_frames * config.patch_mels, backbone.d_model)
        self.place = nn.Parameter(torch.zeros(self.high, backbone.d_model))
        self.norm = RMSNorm(backbone.d_model, backbone.norm_eps)
        self.scan = Scan(backbone, bidirectional=True)
        self.pool = Pool(self.scan.width)
        self.head = Head(self.scan.width, classes, config.dropout)

    @property
    def stride(self) -> int:
        """Samples from one moment to the next."""
        return self.config.hop * self.config.patch_frames

    def forward(
        self, samples: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Hear whole clips.

        Args:
            samples: (b, l) floating.
            state: None.
            seq_idx: (b, l) int64, -1 at the padding behind each clip; None: there is none.

        Returns:
            logits (b, classes), and the empty state.

        Raises:
            ValueError: a state.
        """
        if state is not None:
            raise ValueError("a spectrogram classifier hears whole clips: it takes no state")
        if seq_idx is None:
            lengths = torch.full((len(samples),), samples.shape[1], device=samples.device)
        else:
            lengths = (seq_idx >= 0).sum(1)
            samples = samples.masked_fill(seq_idx < 0, 0.0)
        patches = self.patches(samples)  # (b, moments, high, patch)
        moments = self.moments(lengths)
        real = torch.arange(patches.shape[1], device=samples.device) < moments[:, None]
        real = real.repeat_interleave(self.high, dim=1)
        x = self.norm(self.embed(patches) + self.place).flatten(1, 2)
        y, _ = self.scan(x, seq_idx=torch.where(real, 0, -1))
        kept, _ = self.pool(y, real, self.pool.init_state(len(x), x.device, working_dtype(y)))
        return self.head(kept), State({})

    def moments(self, lengths: Tensor) -> Tensor:
        """Patches in time that lie within clips of so many samples, at least one: (b,) -> (b,) int64."""
        frames = (lengths - self.config.window).div(self.config.hop, rounding_mode="floor") + 1
        return frames.div(self.config.patch_frames, rounding_mode="floor").clamp(min=1)

    def patches(self, samples: Tensor) -> Tensor:
        """Log-mel energies (b, moments, high, patch_mels x patch_frames), about -1 to 1, in the weights' dtype."""
        config = self.config
        least = config.window + config.hop * (config.patch_frames - 1)
        samples = nn.functional.pad(samples, (0, max(0, least - samples.shape[1])))
        with torch.autocast(samples.device.type, enabled=False):
            energies = self.mel(samples.to(self.mel.mel_scale.fb.dtype))  # (b, mels, frames)
        moments = energies.shape[2] // config.patch_frames
        logs = energies[..., : moments * config.patch_frames].clamp(min=_FLOOR).log10() / 3 + 0.5
        patches = logs.unflatten(1, (self.high, -1)).unflatten(3, (moments, -1))  # (b, high, mels, moments, frames)
        return patches.permute(0, 3, 1, 2, 4).flatten(3).to(self.embed.weight.dtype)
