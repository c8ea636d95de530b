"""The one place that decides which implementation of an operation runs."""

import logging
from functools import cache
from typing import Literal

import torch

Path = Literal["reference", "chunked", "triton"]

_log = logging.getLogger("mamba_core")


@cache
def _announce(op: str, path: str, device: str) -> None:
    _log.info("%s on %s runs the %s path", op, device, path)


def choose_path(
    op: str, device_type: str, forced: Path | None = None, known: tuple[Path, ...] = ("reference", "chunked")
) -> Path:
    """Return the path that ``op`` takes on a device; ``forced`` wins. The choice is logged once.

    Raises:
        ValueError: ``forced`` is not a path of this operation.
    """
    if forced is not None and forced not in known:
        raise ValueError(f"{op}: unknown path {forced!r}; choose one of {', '.join(known)}")
    path: Path = forced or "chunked"
    if not torch.compiler.is_compiling():
        _announce(op, path, device_type)
    return path
