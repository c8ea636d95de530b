"""What the tests of the operations share."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def pack(length: int, batch: int = 2) -> Tensor:
    """A (batch, length) seq_idx: several documents, padding inside one document and at the end of a row."""
    generator = torch.Generator().manual_seed(length)
    seq_idx = torch.randint(0, 4, (batch, length), generator=generator).sort(dim=1).values
    if length > 2:
        seq_idx[0, length // 3 : length // 3 + 5] = -1
        seq_idx[-1, -(length // 8) - 1 :] = -1
    return seq_idx


def gradients(
    function: Callable[..., tuple[Tensor, Tensor] | Tensor], arguments: Mapping[str, Tensor], **options: object
) -> dict[str, Tensor]:
    """Outputs of a function, and the gradient of each of its arguments for one fixed random direction."""
    results = function(**arguments, **options)
    outputs = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)).sum() for out in outputs
    )
    grads = torch.autograd.grad(loss, list(arguments.values()))  # type: ignore[arg-type]
    named = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    return named | {f"gradient of {name}": grad for name, grad in zip(arguments, grads, strict=True)}


def assert_same(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    """Relative error norm(got - expected) / norm(expected) of each tensor, absolute where the expected one is 0."""
    for name, want in expected.items():
        assert got[name].shape == want.shape, name
        error = (got[name].double() - want.double()).norm() / want.double().norm().clamp(min=1e-12)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"
