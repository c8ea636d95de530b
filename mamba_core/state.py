"""The state of a mixer, and of a whole backbone: one type, a batch of named tensors.

A state-space model is a function ``y, state = f(x, state)``. Whoever owns the state decides what the model does:
stream a chromosome, decode a sample at a time, train in segments, or keep one row per series between two batch jobs.
"""

from collections.abc import Callable, Iterator, Mapping
from os import PathLike

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class State(Mapping[str, Tensor]):
    """Named tensors whose first dimension is the batch. Immutable as a mapping; methods return new states.

    Nested states (a layer inside a backbone) are flat names with a dot: ``layers.3.ssm``.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        sizes = {name: tensor.shape[0] for name, tensor in tensors.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"every tensor of a state has the batch as its first dimension; got sizes {sizes}")
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"State({', '.join(f'{name}: {tuple(t.shape)} {t.dtype}' for name, t in self.items())})"

    @property
    def batch(self) -> int:
        """Number of rows."""
        return next(iter(self.values())).shape[0]

    @staticmethod
    def nest(children: Mapping[str, "State"]) -> "State":
        """One state out of several: tensor ``t`` of child ``c`` is named ``c.t``."""
        return State({f"{child}.{name}": tensor for child, state in children.items() for name, tensor in state.items()})

    def child(self, name: str) -> "State":
        """The state that :meth:`nest` put in under ``name``."""
        prefix = f"{name}."
        return State({key[len(prefix) :]: tensor for key, tensor in self.items() if key.startswith(prefix)})

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """A new state with ``function`` applied to every tensor."""
        return State({name: function(tensor) for name, tensor in self.items()})

    def rows(self, index: Tensor | slice | list[int]) -> "State":
        """The rows of the batch that ``index`` selects (a slice, a list of row numbers, or an index tensor)."""
        return self.map(lambda tensor: tensor[index])

    @staticmethod
    def cat(states: "list[State]") -> "State":
        """Stack states of the same model along the batch.

        Of tensors that have grown along dimension 1 (keys and values: the latest last), the shorter get zeros in front.
        """
        return State({name: torch.cat(_equally_long([state[name] for state in states])) for name in states[0]})

    def to(self, device: torch.device | str) -> "State":
        """Move to a device; dtypes stay as they are."""
        return self.map(lambda tensor: tensor.to(device))

    def detach(self) -> "State":
        """Cut the graph: what comes after sends no gradient to what came before."""
        return self.map(Tensor.detach)

    def scans_in(self, dtype: torch.dtype) -> "State":
        """With the states of scans, named ``ssm``, in another dtype; what else there is stays as it is.

        Steps (:meth:`mamba_core.mixers.Mixer.step`) keep it: the arithmetic is float32 whatever the dtype, and the
        state is rounded once a token. bfloat16 halves what a large batch reads and writes, and forgets inputs smaller
        than a 256th of what is there: ``benchmarks/drift.py`` measures what that costs. A call on a sequence gives
        float32.
        """
        return State({name: t.to(dtype) if name.split(".")[-1] == "ssm" else t for name, t in self.items()})

    def clone(self) -> "State":
        """A copy with its own memory."""
        return self.map(Tensor.clone)

    def copy_(self, other: "State") -> None:
        """Overwrite every tensor in place with that of ``other``; storage and names stay."""
        for name, tensor in self.items():
            tensor.copy_(other[name])

    def save(self, path: str | PathLike[str]) -> None:
        """Write to a safetensors file."""
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in self.items()}, path)

    @staticmethod
    def load(path: str | PathLike[str], device: str = "cpu") -> "State":
        """Read a safetensors file written by :meth:`save`; the same bits come back."""
        return State(load_file(path, device=device))


def _equally_long(tensors: list[Tensor]) -> list[Tensor]:
    """Zeros in front of those that are shorter than others along dimension 1."""
    longest = max(tensor.shape[1] if tensor.ndim > 1 else 0 for tensor in tensors)
    return [
        torch.cat([t.new_zeros(t.shape[0], longest - t.shape[1], *t.shape[2:]), t], dim=1)
        if t.ndim > 1 and t.shape[1] < longest
        else t
        for t in tensors
    ]
