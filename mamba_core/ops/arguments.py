"""What the operations ask of their arguments, in one place."""

from collections.abc import Mapping

import torch
from torch import Tensor

Wanted = Mapping[str, tuple[Tensor | None, tuple[int, ...]]]


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype of an operation's arithmetic and states: float32, or float64 for float64 inputs."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_arguments(op: str, device: torch.device, wanted: Wanted) -> None:
    """Make sure that each tensor that is given has its shape, a sensible dtype, and the device of the others.

    Raises:
        ValueError: the first that has not, by name; or a sequence without a token or a batch without a row.
    """
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{op}: {name} must be {shape} beside the others; got {tuple(tensor.shape)}")
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, the others on {device}")
        if name == "seq_idx":
            if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
                raise ValueError(f"{op}: seq_idx must hold integers, got {tensor.dtype}")
        elif not tensor.is_floating_point():
            raise ValueError(f"{op}: {name} must be of a real floating dtype, got {tensor.dtype}")


def check_extent(op: str, batch: int, length: int) -> None:
    """A ValueError when there is nothing to work on."""
    if length == 0:
        raise ValueError(f"{op}: the sequence has no token")
    if batch == 0:
        raise ValueError(f"{op}: the batch has no row")


def check_limit(op: str, dt_limit: tuple[float, float]) -> None:
    """A ValueError when dt_limit is no interval of non-negative numbers."""
    low, high = dt_limit
    if not 0 <= low <= high:
        raise ValueError(f"{op}: dt_limit must be (low, high) with 0 <= low <= high, got {dt_limit}")
