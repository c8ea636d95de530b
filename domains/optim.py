"""The optimizer of every domain: AdamW that leaves the state-space parameters undecayed, warm-up and cosine."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from domains.config import OptimizerConfig

# Decay pulls towards zero, which for these is no neutral value: A_log = 0 is a time constant, D = 0 cuts the skip.
UNDECAYED = frozenset({"A_log", "A_imag", "D", "dt_bias"})


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split the trainable parameters of ``model`` into a decayed and an undecayed group.

    Undecayed are A_log, A_imag, D, dt_bias, and everything with fewer than two dimensions (norms and biases).
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in UNDECAYED
            (undecayed if exempt else decayed).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def warmup_cosine(max_steps: int, warmup_fraction: float, final_fraction: float) -> Callable[[int], float]:
    """Learning-rate factor of a step (counted from 0): linear up to 1, then a cosine down to ``final_fraction``."""
    warmup = round(max_steps * warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, max_steps - warmup))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, max_steps: int, device: torch.device
) -> tuple[AdamW, LambdaLR]:
    """AdamW and its schedule; on a GPU the update is one fused kernel a group."""
    groups = parameter_groups(model, config.weight_decay)
    fused = True if device.type == "cuda" else None  # None: PyTorch's choice
    optimizer = AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)
    schedule = LambdaLR(optimizer, warmup_cosine(max_steps, config.warmup_fraction, config.final_fraction))
    return optimizer, schedule
