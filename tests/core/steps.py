"""Arguments and results of the decode operations, for their tests."""

import torch
from torch import Tensor


def conv_step_arguments(batch: int, channels: int, width: int) -> dict[str, Tensor]:
    """Random float64 arguments of decode.conv_step, the inputs a slice of something wider."""
    return {
        "x": torch.randn(batch, channels + 5, dtype=torch.float64)[:, 2:-3],
        "weight": torch.randn(channels, width, dtype=torch.float64),
        "bias": torch.randn(channels, dtype=torch.float64),
        "tail": torch.randn(batch, width - 1, channels, dtype=torch.float64),
    }


def selective_scan_step_arguments(batch: int, channels: int, d_state: int) -> dict[str, Tensor]:
    """Random arguments of decode.selective_scan_step, float64; B, C and z are slices, as in a mixer."""
    wide = torch.randn(batch, 3 + 2 * d_state + channels, dtype=torch.float64)
    _, B, C, z = wide.split([3, d_state, d_state, channels], dim=-1)
    shapes = {"A_log": (channels, d_state), "D": (channels,), "dt_bias": (channels,), "ssm": (batch, channels, d_state)}
    rest = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    x, dt = torch.randn(2, batch, channels, dtype=torch.float64)
    return {"x": x, "dt": dt, "B": B, "C": C, "z": z, **rest, "seq_idx": torch.arange(batch) - 1}


def mamba2_step_arguments(
    batch: int, heads: int, headdim: int, groups: int, d_state: int, width: int
) -> dict[str, Tensor]:
    """Random arguments of decode.mamba2_step, float64; ``projected`` has rows with a gap between."""
    inner = heads * headdim
    channels = inner + 2 * groups * d_state
    shapes = {
        "projected": (batch, 2 * inner + 2 * groups * d_state + heads + 3),
        "conv_weight": (channels, width),
        "conv_bias": (channels,),
        "A_log": (heads,),
        "D": (heads,),
        "dt_bias": (heads,),
        "norm_weight": (inner,),
        "conv": (batch, width - 1, channels),
        "ssm": (batch, heads, headdim, d_state),
    }
    arguments = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    arguments["projected"] = arguments["projected"][:, :-3]
    return {**arguments, "seq_idx": torch.arange(batch) - 1}


def s4d_step_arguments(batch: int, channels: int, pairs: int) -> dict[str, Tensor]:
    """Random float64 arguments of decode.s4d_step, the inputs a slice of something wider; slow and fast poles."""
    return {
        "x": torch.randn(batch, channels + 3, dtype=torch.float64)[:, 1:-2],
        "log_dt": torch.rand(channels, dtype=torch.float64) * 4 - 7,
        "A_log": torch.randn(channels, pairs, dtype=torch.float64),
        "A_imag": torch.arange(pairs, dtype=torch.float64).mul(3).repeat(channels, 1),
        "C": torch.randn(channels, pairs, 2, dtype=torch.float64),
        "D": torch.randn(channels, dtype=torch.float64),
        "ssm": torch.randn(batch, channels, pairs, 2, dtype=torch.float64),
        "seq_idx": torch.arange(batch) - 1,
    }


STEP_RESULTS = {
    "s4d_step": ("y", "ssm", "seq_idx"),
    "conv_step": ("y", "tail"),
    "selective_scan_step": ("y", "ssm", "seq_idx"),
    "mamba2_step": ("y", "conv", "ssm", "seq_idx"),
}


def named(op: str, results: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The results of a decode step, by name."""
    return dict(zip(STEP_RESULTS[op], results, strict=True))
