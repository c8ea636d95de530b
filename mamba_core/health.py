"""Is the model well? The numbers that go wrong first when training a state-space model."""

from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from mamba_core.mixers.base import Mixer

_QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}
_MAX_SAMPLES = 2**16  # torch.quantile sorts; more tells no more


def _mixers(model: nn.Module) -> list[Mixer]:
    """Those of the layers; a mixer that is made of others is one."""
    found: list[Mixer] = []
    parts: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, Mixer) and module not in parts:
            found.append(module)
            parts.update(module.modules())
    return found


class HealthProbe:
    """Watches one forward pass of a model: the largest final \\|state\\| and the quantiles of dt, layer by layer.

    A layer without them (attention, an MLP) has no such numbers.

    ::

        with HealthProbe(model) as probe:
            model(tokens)
        probe.summary()  # {"layer00/state_max": 3.1, "layer00/dt_p05": 0.002, ...}
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._seen: dict[str, float] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "HealthProbe":
        for i, mixer in enumerate(_mixers(self._model)):
            self._hooks.append(mixer.register_forward_hook(self._watch(f"layer{i:02d}")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def _watch(self, layer: str) -> Callable[..., None]:
        @torch.no_grad()
        def hook(mixer: Mixer, args: tuple[Tensor, ...], output: tuple[Tensor, "dict[str, Tensor]"]) -> None:
            _, state = output
            if states := [tensor for name, tensor in state.items() if name.split(".")[-1] == "ssm"]:
                self._seen[f"{layer}/state_max"] = max(tensor.abs().max().item() for tensor in states)
            dt = mixer.time_steps(args[0])
            if dt is None:
                return
            dt = dt.float().flatten()
            dt = dt[:: max(1, dt.numel() // _MAX_SAMPLES)]
            for name, q in _QUANTILES.items():
                self._seen[f"{layer}/dt_{name}"] = torch.quantile(dt, q).item()

        return hook

    def summary(self) -> dict[str, float]:
        """Numbers by name; dt is in tokens, the state in the units of its inputs."""
        return dict(self._seen)


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Euclidean norm of the gradients of each mixer's parameters, ``layerNN/grad_norm``; 0 before any backward."""
    norms = {}
    for i, mixer in enumerate(_mixers(model)):
        grads = [p.grad.float().norm() for p in mixer.parameters() if p.grad is not None]
        norms[f"layer{i:02d}/grad_norm"] = torch.stack(grads).norm().item() if grads else 0.0
    return norms
