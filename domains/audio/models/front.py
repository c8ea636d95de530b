"""Strided causal convolutions: from samples to frames, one frame for each block of as many samples as they stride."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_core.blocks import RMSNorm
from mamba_core.mixers.base import check_sizes


@dataclass
class FrontConfig:
    """Convolutions from samples to frames: by default one frame of the last 7.5 ms for every 2 ms at 16 kHz."""

    strides: list[int] = field(default_factory=lambda: [8, 4])
    kernels: list[int] = field(default_factory=lambda: [32, 12])
    width: int = 64  # channels between convolutions; the last gives the backbone's


class Front(nn.Module):
    """Convolution, norm, gelu; again. Frame number j sees samples up to the end of block number j.

    Attributes:
        stride: samples of a block.
        tails: of each convolution, how many inputs before a call it sees, and their channels.
    """

    def __init__(self, config: FrontConfig, d_model: int, norm_eps: float) -> None:
        super().__init__()
        strides, kernels = config.strides, config.kernels
        check_sizes("front", width=config.width, strides=min(strides, default=0))
        if len(kernels) != len(strides) or any(k < s for k, s in zip(kernels, strides, strict=True)):
            raise ValueError(f"front.kernels={kernels}: must be as many as strides={strides}, and none shorter")
        widths = [1, *[config.width] * (len(strides) - 1), d_model]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(widths[i], widths[i + 1], kernels[i], strides[i]) for i in range(len(strides))
        )
        self.norms = nn.ModuleList(RMSNorm(width, norm_eps) for width in widths[1:])
        self.strides = list(strides)
        self.stride = math.prod(strides)
        self.tails = [(k - s, width) for k, s, width in zip(kernels, strides, widths, strict=False)]

    def forward(self, x: Tensor, tails: list[Tensor], full: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run whole blocks.

        Args:
            x: (b, blocks x stride, 1).
            tails: of each convolution, the inputs before x (b, ...).
            full: (b,) int64, how many blocks of each row count; frames of the others mean nothing.

        Returns:
            (b, blocks, d_model), and the tails behind the last block that counts.
        """
        after, inputs = [], self.stride
        for i, (conv, norm, tail) in enumerate(zip(self.convolutions, self.norms, tails, strict=True)):
            seen = torch.cat([tail.to(x.dtype), x], dim=1)
            places = full[:, None] * inputs + torch.arange(tail.shape[1], device=x.device)
            after.append(seen.gather(1, places[..., None].expand(-1, -1, x.shape[2])).to(tail.dtype))
            # Samples keep all their digits, whatever becomes of frames.
            with torch.autocast(x.device.type, enabled=i > 0 and torch.is_autocast_enabled(x.device.type)):
                y = conv(seen.transpose(1, 2)).transpose(1, 2)
            x, inputs = F.gelu(norm(y)), inputs // self.strides[i]
        return x, after
