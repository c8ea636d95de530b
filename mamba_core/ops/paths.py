"""The one place that decides which implementation of an operation runs."""

import logging
import os
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Path = Literal["reference", "chunked", "triton"]
PATHS: tuple[Path, ...] = ("reference", "chunked", "triton")

_log = logging.getLogger("mamba_core")
_HAS_TRITON = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"  # Triton, too, decides at import


@cache
def _announce(op: str, path: str, device: str) -> None:
    _log.info("%s on %s runs the %s path", op, device, path)


@cache
def gpu_capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@torch.compiler.assume_constant_result
def _gpu_can(index: int) -> bool:
    """Triton's matrix products in bf16 want compute capability 8.0 (A100) or later. Nobody has tried AMD's GPUs."""
    return torch.version.hip is None and gpu_capability(index) >= (8, 0)


def _triton_obstacle(x: Tensor) -> str | None:
    """Why the kernels cannot work on ``x``, or None when they can."""
    if x.dtype == torch.float64:
        return "it works in float32, and these are float64"
    if not _HAS_TRITON:
        return "the package triton is not installed"
    if _INTERPRETED or (x.is_cuda and _gpu_can(x.get_device())):
        return None
    return f"it needs an NVIDIA GPU of compute capability 8.0 or later, and these are on {x.device}"


def takes_triton(x: Tensor) -> bool:
    """Whether x runs in Triton kernels where nothing else is asked for."""
    return x.is_cuda and _triton_obstacle(x) is None


def choose_path(op: str, x: Tensor, forced: Path | None = None, otherwise: Path = "chunked") -> Path:
    """The path that ``op`` takes for ``x``: Triton on a GPU, ``otherwise`` elsewhere. ``forced`` wins. Logged once.

    Raises:
        ValueError: ``forced`` is no path, or the Triton path is forced where it cannot run.
    """
    known = [path for path in PATHS if path in ("reference", otherwise, "triton")]
    if forced is not None and forced not in known:
        raise ValueError(f"{op}: unknown path {forced!r}; choose one of {', '.join(known)}")
    if forced == "triton" and (obstacle := _triton_obstacle(x)):
        rest = " or ".join(repr(path) for path in known if path != "triton")
        raise ValueError(f"{op}: the triton path cannot run here: {obstacle}; take {rest}")
    path: Path = forced or ("triton" if takes_triton(x) else otherwise)
    if not torch.compiler.is_compiling():
        _announce(op, path, x.device.type)
    return path
