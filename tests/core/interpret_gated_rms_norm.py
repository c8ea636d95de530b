"""The Triton kernels of the gated norm on a CPU, against the float64 reference; run by test_triton.py in a process of
its own.

Triton decides at import whether it interprets, so this cannot share a process with anything that compiles.
"""

import sys
import warnings

import torch
from torch import Tensor

from mamba_core.ops.gated_rms_norm import gated_rms_norm, triton
from tests.core.helpers import assert_same, gradients, poisoned

CASES = [  # shape, groups, gate, warps in all, widest group of one program, channels at a time of wider ones
    ((24,), 1, True, 1, 8192, 2048),
    ((1, 40), 1, False, 1, 8192, 2048),
    ((63, 24), 3, True, 4, 8192, 2048),
    ((2, 63, 12), 3, False, 4, 8192, 2048),
    ((2, 37, 60), 1, True, 7, 8192, 2048),
    ((3, 1, 36), 3, True, 64, 8192, 2048),
    ((3, 5, 7, 20), 1, True, 2, 8192, 2048),
    ((2, 3, 900), 3, True, 12, 8192, 2048),
    ((2, 9, 150), 3, True, 4, 32, 16),
    ((1, 12, 100), 1, False, 16, 32, 16),
]


def room(shape: tuple[int, ...], before: int = 3, after: int = 8) -> tuple[Tensor, Tensor]:
    """Wider and more rows that hold NaN, and a slice of that shape in them."""
    more = [size + (2 if axis == len(shape) - 2 else 0) for axis, size in enumerate(shape)]
    wide = torch.full((*more[:-1], before + shape[-1] + after), float("nan"))
    rows = wide if len(shape) == 1 else wide[..., 1:-1, :]
    return wide, rows[..., before : before + shape[-1]]


def strided(tensor: Tensor) -> Tensor:
    """The same numbers as a slice of wider rows."""
    return room(tuple(tensor.shape))[1].copy_(tensor)


def in_place(low: dict[str, Tensor], want: dict[str, Tensor], group: int) -> None:
    """Results in the caller's memory, and in that of the arguments; nothing around them changes."""
    x, z, weight = low["x"].detach(), low["z"].detach() if "z" in low else None, low["weight"].detach()
    shape = tuple(x.shape)
    generator = torch.Generator().manual_seed(7)
    grad_y = torch.randn(shape, generator=generator, dtype=torch.float64).float()
    around, (y, dx, dz) = zip(*(room(shape, before) for before in (8, 5, 2)), strict=True)
    assert triton.forward(x, z, weight, 1e-5, group, out=y) is y
    *grads, dw = triton.backward(grad_y, x, z, weight, 1e-5, group, dx=dx, dz=dz)
    assert grads[0] is dx
    got = {"output 0": y, "gradient of x": dx, "gradient of weight": dw} | ({} if z is None else {"gradient of z": dz})
    assert dw.dtype == torch.float32
    assert_same(want, got, 1e-5)
    for wide in around[: 2 if z is None else 3]:
        assert wide.isfinite().sum() == x.numel()
    over_x, over_z = x.clone(), None if z is None else z.clone()
    *_, dw = triton.backward(grad_y, over_x, over_z, weight, 1e-5, group, dx=grad_y, dz=over_z)
    assert_same(want, got | {"gradient of x": grad_y, "gradient of weight": dw}, 1e-5)
    if over_z is not None:
        assert_same({"z": want["gradient of z"]}, {"z": over_z}, 1e-5)
    triton.forward(over_x, z, weight, 1e-5, group, out=over_x)
    assert_same({"y": want["output 0"]}, {"y": over_x}, 1e-5)


def main() -> int:
    warnings.simplefilter("ignore", RuntimeWarning)  # masked-out lanes overflow in numpy
    torch.manual_seed(0)
    for shape, groups, gate, warps, triton.WIDEST, triton.PIECE in CASES:
        triton.WARPS = {"forward": warps, "backward": warps}
        shapes = {"x": shape, "z": shape, "weight": shape[-1:]}
        if not gate:
            del shapes["z"]
        options: dict[str, object] = {"group_size": shape[-1] // groups} | ({} if gate else {"z": None})
        arguments = {name: torch.randn(s, dtype=torch.float64, requires_grad=True) for name, s in shapes.items()}
        want = gradients(gated_rms_norm, arguments, path="reference", **options)
        dense = {name: tensor.detach().float() for name, tensor in arguments.items()}
        for wide in (False, True):
            low = {name: strided(t) if wide and name != "weight" else t.clone() for name, t in dense.items()}
            low = {name: tensor.requires_grad_() for name, tensor in low.items()}
            assert_same(want, gradients(gated_rms_norm, low, path="triton", **options), 1e-5)
            in_place(low, want, shape[-1] // groups)
            print(f"{shape} groups={groups} gate={gate} strided={wide}: same", flush=True)
    return 0


if __name__ == "__main__":
    with poisoned():
        sys.exit(main())
