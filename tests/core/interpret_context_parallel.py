"""The fused operator of Mamba-2 on slices that lie on two processes, against the float64 reference of the whole; run by
test_triton.py, as interpret_mamba2_inner.py is.
"""

import gc
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mamba_core.mixers.split import Ranks, Slice
from mamba_core.mixers.split_ops import split_mamba2_inner
from mamba_core.ops.mamba2_inner import mamba2_inner
from tests.core.helpers import assert_same, pack, poisoned
from tests.core.test_mamba2_inner import LIMITS, inner_arguments

PROCESSES = 2
CASES = [  # (batch, length, heads, headdim, groups, d_state, width), packed
    ((2, 62, 4, 16, 2, 24, 3), True),
    ((1, 540, 2, 16, 1, 16, 4), False),  # two of the kernels' segments to a slice
]


def measure(
    arguments: dict[str, Tensor], rank: int | None, seq_idx: Tensor | None, **options: object
) -> dict[str, Tensor]:
    """States, this process's outputs, and gradients of all arguments for one random direction of the outputs."""
    states = {name: arguments[name] for name in ("conv_state", "ssm_state")}
    index = torch.zeros(len(arguments["projected"]), dtype=torch.int64)
    length = arguments["projected"].shape[1]
    if rank is None:
        place = slice(0, length)
        outputs = mamba2_inner(**arguments, seq_idx=seq_idx, path="reference", **options)
    else:
        place = slice(rank * length // PROCESSES, (rank + 1) * length // PROCESSES)
        assert dist.group.WORLD is not None
        own = Slice(Ranks.of(dist.group.WORLD), None if seq_idx is None else seq_idx[:, place], index)
        part = arguments | {"projected": arguments["projected"][:, place]}
        outputs = split_mamba2_inner(own, **part, path="triton", **options)
    generator = torch.Generator().manual_seed(7)
    whole = (len(index), length, outputs[0].shape[2])
    directions = [torch.randn(s, generator=generator) for s in (whole, *(state.shape for state in states.values()))]
    shares = (1.0, *[1.0 if rank is None else 1 / PROCESSES] * 2)
    directions[0] = directions[0][:, place]
    loss = sum((out * d * share).sum() for out, d, share in zip(outputs, directions, shares, strict=True))
    grads = torch.autograd.grad(loss, list(arguments.values()))  # type: ignore[arg-type]
    for grad in grads if rank is not None else ():
        dist.all_reduce(grad)
    named = {f"gradient of {name}": grad for name, grad in zip(arguments, grads, strict=True)}
    return named | {"y": outputs[0].detach(), "conv": outputs[1].detach(), "ssm": outputs[2].detach()}


def work(rank: int, folder: str) -> None:
    """All cases in one of the processes."""
    warnings.simplefilter("ignore", RuntimeWarning)  # masked-out lanes overflow in numpy
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "meet"), PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    for number, (shape, packed) in enumerate(CASES):
        torch.manual_seed(0)
        arguments = inner_arguments(*shape, states=True)
        seq_idx = pack(shape[1], shape[0]) if packed else None
        options = {"groups": shape[4], "norm_eps": 1e-5, "dt_limit": LIMITS[number % 2]}
        want = measure(arguments, None, seq_idx, **options)
        size = shape[1] // PROCESSES
        want["y"] = want["y"][:, rank * size : (rank + 1) * size]
        low = {name: tensor.detach().float().requires_grad_() for name, tensor in arguments.items()}
        gc.disable()
        with poisoned():
            got = measure(low, rank, seq_idx, **options)
        assert not [x for x in gc.get_objects() if type(x).__name__ == "_SplitBackward"], "a graph holds itself"
        gc.enable()
        assert_same(want, got, 1e-4)
        if rank == 0:
            print(f"{shape} packed={packed}: same", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, (folder,), nprocs=PROCESSES, start_method="spawn")
    sys.exit(0)
