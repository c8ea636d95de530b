"""Every kernel of mamba_core is compiled for GPUs that need not be there; run by test_triton.py in its own process.

Triton's interpreter takes code that its compiler refuses. So layers and operations are called on a CPU as they are on a
GPU, and what would be a launch compiles the kernel for its arguments and does no more: results mean nothing here.

Triton decides at import whether it interprets, so this cannot share a process with anything that interprets.
"""

import importlib
import itertools
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

import mamba_core
from mamba_core import Mamba1Config, Mamba2Config, S4DConfig
from mamba_core.blocks import Block
from mamba_core.context_parallel import shard_sequence
from mamba_core.ops import decode, paths
from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.decode import triton as decode_kernels
from mamba_core.ops.gated_rms_norm import gated_rms_norm
from mamba_core.ops.gated_rms_norm import triton as norm_kernels
from mamba_core.ops.selective_scan import selective_scan
from mamba_core.ops.selective_scan import triton_backward as scan_gradients
from mamba_core.ops.ssd import ssd
from mamba_core.precision import to_bfloat16
from tests.core.helpers import gradients, pack, ssd_inputs
from tests.core.test_causal_conv1d import inputs as convolution_inputs
from tests.core.test_selective_scan import inputs as scan_inputs

WIDTH, LENGTH = 512, 300  # of layers


class Compiler:
    """Compiles what is launched, once for arguments of a kind, and keeps count."""

    def __init__(self) -> None:
        self.launched: set[JITFunction] = set()
        self.refused: dict[JITFunction, str] = {}
        self.variants = 0

    def launch(self, kernel: JITFunction, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        """In place of ``kernel[grid](*args, **options)``."""
        self.launched.add(kernel)
        if kernel in self.refused:
            return
        try:
            kernel.warmup(*args, grid=grid, **options)
        except Exception as error:
            traceback.print_exception(error, limit=0)
            self.refused[kernel] = f"sm_{driver.active.get_current_device()}"

    def announce(self, *, fn: Any, **_: Any) -> None:
        """Name a kernel before it is compiled: where the compiler crashes, this is all that is left."""
        self.variants += 1
        print(f"{full_name(fn.jit_function)} for sm_{driver.active.get_current_device()}", flush=True)


def full_name(kernel: JITFunction) -> str:
    return f"{kernel.__module__}.{kernel.__name__}"


def target(capability: int) -> SimpleNamespace:
    """All that the compiler asks of the driver of a GPU; what is compiled for one device is kept apart from others."""
    return SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: capability,
        get_current_stream=lambda device: 0,
    )


def kernels() -> set[JITFunction]:
    """What modules of mamba_core launch: their functions in Triton that no other one calls."""
    found: set[JITFunction] = set()
    for module in pkgutil.walk_packages(mamba_core.__path__, "mamba_core."):
        values = vars(importlib.import_module(module.name)).values()
        found |= {value for value in values if isinstance(value, JITFunction)}
    used = (kernel.fn.__globals__.get(word) for kernel in found for word in kernel.fn.__code__.co_names)
    return found - {value for value in used if isinstance(value, JITFunction)}


def train(config: Mamba1Config | Mamba2Config, packed: bool = False, group: dist.ProcessGroup | None = None) -> None:
    """A layer under autocast, forward and backward, on all of a sequence or on this rank's slice of it. A packed one
    starts from a state, and the state behind it has a gradient."""
    block = Block(WIDTH, config.build(WIDTH, 1e-5), 1e-5)
    if group is not None:
        shard_sequence(block, group)
    x = torch.randn(1, LENGTH, WIDTH, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = block(x, seq_idx=pack(LENGTH, 1) if packed else None)
    results = [y, state["conv"], state["ssm"]] if packed else [y]
    torch.autograd.backward(results, [torch.randn_like(result) for result in results])


@torch.no_grad()
def stream() -> None:
    """Layers in bfloat16 that go on from a state."""
    for config in (Mamba1Config(d_conv=2), Mamba2Config()):
        block = to_bfloat16(Block(WIDTH, config.build(WIDTH, 1e-5), 1e-5))
        block(torch.randn(1, LENGTH, WIDTH, dtype=torch.bfloat16), block.mixer.init_state(1))


def step() -> None:
    """A token in layers in bfloat16: few rows, more, and as many as fill a GPU; states of both dtypes."""
    configs = (Mamba1Config(), Mamba2Config(), S4DConfig())
    sizes = ((decode.MOST_ROWS, decode_kernels.FULL), (decode.MOST_ROWS + 1, decode_kernels.FULL), (64, 1))
    for config, (rows, full), dtype in itertools.product(configs, sizes, (torch.float32, torch.bfloat16)):
        block = to_bfloat16(Block(WIDTH, config.build(WIDTH, 1e-5), 1e-5))
        with patch.object(decode_kernels, "FULL", full):
            block.step_(torch.randn(rows, WIDTH, dtype=torch.bfloat16), block.mixer.init_state(rows).scans_in(dtype))


def operate(function: Callable[..., Any], arguments: Mapping[str, Tensor], **options: Any) -> None:
    """An operation in float32, forward and backward."""
    gradients(function, {name: t.detach().float().requires_grad_() for name, t in arguments.items()}, **options)


def norms() -> None:
    """Gated norms of a width that a program holds, and of one that it does not."""
    for channels in (WIDTH, 2 * norm_kernels.WIDEST):
        sizes = {"x": (3, channels), "z": (3, channels), "weight": (channels,)}
        operate(gated_rms_norm, {name: torch.randn(size) for name, size in sizes.items()})


def operations() -> None:
    """What no layer asks for: arguments left out, limits, groups, gradients of many chunks in several goes."""

    def some(arguments: Mapping[str, Tensor], *left_out: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in arguments.items() if name not in left_out}

    operate(ssd, some(ssd_inputs(1, LENGTH, 4, 16, 2, 16), "D", "z", "dt_bias"), dt_limit=(0.2, 0.8))
    operate(causal_conv1d, some(convolution_inputs(LENGTH, width=2), "bias", "initial_state"), activation=False)
    with patch.multiple(scan_gradients, SCRATCH=0, AT_ONCE=1):
        operate(selective_scan, some(scan_inputs(LENGTH, 2, 80, 16), "D", "z", "dt_bias"), dt_softplus=False)


def training() -> None:
    """Layers, packed and not. The convolution is the same in both mixers; with fewer taps it compiles faster."""
    for packed in (False, True):
        train(Mamba2Config(), packed)
        train(Mamba1Config(d_conv=2), packed)
    train(Mamba2Config(d_conv=2), True, dist.group.WORLD)


CASES = {80: (step, norms), 90: (step, norms, operations, stream, training)}  # by compute capability; 8.0 is the least


def main() -> str | int:
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    compiler = Compiler()
    knobs.runtime.jit_cache_hook = compiler.announce
    with (
        patch.object(JITFunction, "__getitem__", lambda kernel, grid: partial(compiler.launch, kernel, grid)),
        patch.object(paths, "takes_triton", lambda x: True),
        patch.object(decode_kernels, "starts_early", lambda x: driver.active.get_current_device() >= 90),
    ):
        for capability, cases in CASES.items():
            driver.set_active(target(capability))
            for case in cases:
                case()
    dist.destroy_process_group()
    print(f"{len(compiler.launched)} kernels, {compiler.variants} variants")
    wrong = [f"{full_name(kernel)} does not compile for {where}" for kernel, where in compiler.refused.items()]
    wrong += [f"{kernel} is never launched here" for kernel in sorted(map(full_name, kernels() - compiler.launched))]
    return "\n".join(wrong) or 0


if __name__ == "__main__":
    sys.exit(main())
