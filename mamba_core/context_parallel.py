"""One sequence over many GPUs: every process holds a slice of it, and the model runs over the whole.

::

    ranks = shard_sequence(model, group)  # in every process of a torch.distributed group
    own = own_tokens(length, ranks.rank, ranks.size)
    logits, state = model(take(tokens, own))  # this rank's slice
    loss = ...  # this rank's part of the sum
    loss.backward()
    sum_gradients(model.parameters(), group)

The state that goes in and the state that comes out are those of the whole sequence, the same on every rank: a sequence
in segments is called segment after segment, each split over the ranks (``segment`` of :func:`own_tokens`). What the
mixers exchange, and why it is exact, stands in :mod:`mamba_core.mixers.split`.

What a rank tells each other rank, a row of a batch and a layer, in the forward and again in the backward: the last
d_conv - 1 inputs of the convolution in the dtype of the activations, its final state and its total decay in float32.
Mamba-2 with d_model 1024 and a state of 128: 14 KB in bf16, 1 MB and 128 bytes, whatever the length.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mamba_core.mixers.base import Mixer
from mamba_core.mixers.split import Ranks


def shard_sequence(model: nn.Module, group: dist.ProcessGroup) -> Ranks:
    """Let every mixer of ``model`` take its input for this rank's slice of a sequence that lies on all of ``group``.

    All ranks then call the model alike: the same number of times, with slices of one shape.

    Raises:
        ValueError: a mixer that cannot, by name.
    """
    check_splits(model)
    ranks = Ranks.of(group)
    for module in model.modules():
        if isinstance(module, Mixer):
            module.ranks = ranks
    return ranks


def unshard_sequence(model: nn.Module) -> None:
    """Let every mixer take its input for a whole sequence again."""
    for module in model.modules():
        if isinstance(module, Mixer):
            module.ranks = None


def check_splits(model: nn.Module) -> None:
    """Make sure that every mixer of a model can work on a slice of a sequence.

    Raises:
        ValueError: one cannot; the message names the first such.
    """
    for name, module in model.named_modules():
        if isinstance(module, Mixer) and not module.capabilities.splits:
            raise ValueError(f"{name} ({type(module).__name__}) cannot work on a sequence that lies on many ranks")


def own_tokens(length: int, rank: int, size: int, segment: int | None = None) -> list[slice]:
    """Where the tokens of one rank stand in a sequence.

    Args:
        length: of the whole sequence.
        rank: 0 to size - 1.
        size: ranks that the sequence is split over.
        segment: tokens that a rank works on in one call; the sequence is then cut into segments of ``size * segment``,
            the last of what is left, and each segment is split. None: one segment.

    Raises:
        ValueError: a length that ``size`` does not divide.
    """
    if length % size:
        raise ValueError(f"a sequence of {length} tokens cannot be split evenly over {size} ranks")
    whole = length if segment is None else size * segment
    own = []
    for start in range(0, length, whole):
        part = min(whole, length - start) // size
        own.append(slice(start + rank * part, start + (rank + 1) * part))
    return own


def take(sequence: Tensor, own: Sequence[slice]) -> Tensor:
    """Those tokens of (b, length, ...)."""
    return torch.cat([sequence[:, part] for part in own], dim=1)


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Replace each gradient by its sum over the group, with one all-reduce for all gradients of a dtype."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for grads in by_dtype.values():
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat, group=group)
        for grad, total in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(total.view_as(grad))
