"""How many bits the weights of a model have while it generates: a choice between speed and a hundredth of a bit."""

from typing import TypeVar

import torch
from torch import nn

from domains.errors import UserError
from mamba_core.precision import to_bfloat16, to_int8

Model = TypeVar("Model", bound=nn.Module)

PRECISIONS = ("float32", "bf16", "int8")


def check_precision(precision: str, device: torch.device | None = None) -> None:
    """A UserError for an unknown word, or for int8 on what is no CPU."""
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision}: must be one of {', '.join(PRECISIONS)}")
    if precision == "int8" and device is not None and device.type != "cpu":
        raise UserError("precision=int8 is for CPUs; take precision=bf16, or device=cpu")


def to_precision(model: Model, precision: str) -> Model:
    """The model, its weights changed in place; see :mod:`mamba_core.precision`. The state is float32 in any case."""
    if precision == "bf16":
        to_bfloat16(model)
    elif precision == "int8":
        to_int8(model)
    return model
