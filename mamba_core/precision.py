"""Weights in fewer bits, for inference: bfloat16 everywhere, or int8 in the projections on a CPU.

Decoding reads every weight for every token, so its speed on a machine that does nothing else is the size of the
weights. The state stays in float32, and so does what decides how long it is kept: A_log, D and the biases of the time
steps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_core.mixers.base import Mixer

KEPT = ("A_log", "A_imag", "log_dt", "D", "dt_bias")  # parameters of mixers that decide the decay
FEW = 16  # rows up to which a product with int8 weights is faster than making floats of them first


def to_bfloat16(model: nn.Module) -> nn.Module:
    """Parameters in bfloat16, in place, but for those in KEPT; so activations are bfloat16, and arithmetic between
    projections and states float32. Returns the model."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] not in KEPT:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


class Int8Linear(nn.Module):
    """A linear map without bias whose weights are int8 with one scale for each output: a quarter of float32.

    The largest weight of each output becomes 127, and the error of a weight is at most a 254th of that. Activations are
    rounded to bfloat16, sums are float32.

    Args:
        linear: the map in floating point.

    Raises:
        ValueError: it has a bias, or is not on a CPU.
    """

    weight: Tensor  # (out, in) int8
    scale: Tensor  # (out,) float32

    def __init__(self, linear: nn.Linear):
        super().__init__()
        if linear.bias is not None:
            raise ValueError("Int8Linear: a map with a bias is not what it is for")
        if linear.weight.device.type != "cpu":
            raise ValueError("Int8Linear: for CPUs; on a GPU take bfloat16")
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("low_scale", scale.to(torch.bfloat16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) any floating dtype -> (..., out) in the same."""
        rows = x.numel() // x.shape[-1]
        if rows > FEW:
            return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        y = torch.ops.aten._weight_int8pack_mm(x.reshape(rows, -1).to(torch.bfloat16), self.weight, self.low_scale)
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def to_int8(model: nn.Module) -> nn.Module:
    """The projections of all mixers as :class:`Int8Linear`, in place; embeddings, heads, norms stay. Returns the model.

    For a model on a CPU that is not trained any more.
    """
    for mixer in [module for module in model.modules() if isinstance(module, Mixer)]:
        for name, child in list(mixer.named_children()):
            if isinstance(child, nn.Linear) and child.bias is None:
                setattr(mixer, name, Int8Linear(child))
    return model
