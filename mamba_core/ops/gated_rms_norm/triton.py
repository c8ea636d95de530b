"""Gated root-mean-square norm for GPUs, in Triton: forward and backward read and write each element once.

A program holds a group of channels and walks along a share of the rows. It has the next row in flight while it works on
one, and several rows at a time where groups are small. The backward computes the root mean square again: one reduction
gives it mean(u^2) and mean(u v), which are all that an element needs of the others (formulas: :mod:`.chunked`).

Groups too wide for the registers of a program are cut into pieces. The two means of each row and group are then
taken beforehand, which reads everything twice.

The gradient of the weight is summed by each program, then over programs in their order. How tensors are cut into
programs depends on their shapes alone.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_core.ops.kernels import inner_contiguous, on_device_of_first, power_of_two, sigmoid
from mamba_core.ops.tape import launch, taped

TILE = {"forward": 512, "backward": 256}  # elements of a warp: 16 a thread, and half as many where registers are short
WIDEST = 8192  # channels that a program holds, in 16 warps
PIECE = 2048  # channels at a time of wider groups
# Warps aimed at. The forward has several waves of them. The backward has one, 16 warps a multiprocessor of a large GPU
# (132 of them, 128 registers a thread): each of its programs writes a partial sum.
WARPS = {"forward": 32768, "backward": 2112}


@triton.jit
def _offsets(rows, length, by_batch, by_row, UNIT: tl.constexpr, FLAT: tl.constexpr):
    """Where rows begin, counted over batch and length; strides count in UNITs."""
    if FLAT:
        offsets = rows * by_row.to(tl.int64)
    else:
        length = length.to(tl.int64)
        offsets = (rows // length) * by_batch.to(tl.int64) + (rows % length) * by_row.to(tl.int64)
    return offsets * UNIT


@triton.jit
def _load(ptr, rows, last, cols, inside, length, by_batch, by_row, UNIT: tl.constexpr, FLAT: tl.constexpr):
    """(rows, cols) as they are stored; 0 outside the group and from row ``last`` on."""
    at = _offsets(rows, length, by_batch, by_row, UNIT, FLAT)[:, None] + cols[None, :]
    return tl.load(ptr + at, mask=(rows < last)[:, None] & inside[None, :], other=0.0)


@triton.jit
def _store(ptr, value, rows, last, cols, inside, length, by_batch, by_row, UNIT: tl.constexpr, FLAT: tl.constexpr):
    at = _offsets(rows, length, by_batch, by_row, UNIT, FLAT)[:, None] + cols[None, :]
    tl.store(ptr + at, value, mask=(rows < last)[:, None] & inside[None, :])


@triton.jit
def _gated(x, z, HAS_Z: tl.constexpr):
    """x silu(z) in fp32."""
    u = x.to(tl.float32)
    if HAS_Z:
        z = z.to(tl.float32)
        u = u * (z * sigmoid(z))
    return u


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def _block(pid, C: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Index of the share, group, columns, and which of them are in the group."""
    BLOCKS: tl.constexpr = (GROUP + BLOCK - 1) // BLOCK
    PARTS: tl.constexpr = C // GROUP * BLOCKS
    part = pid % PARTS
    group = part // BLOCKS
    cols = part % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    return pid // PARTS, group, group * GROUP + cols, cols < GROUP


@triton.jit(do_not_specialize=["total", "length", "gy_b", "gy_l", "x_b", "x_l", "z_b", "z_l"])
def _means(
    gy_ptr, x_ptr, z_ptr, w_ptr, mean_ptr, total, length, gy_b, gy_l, x_b, x_l, z_b, z_l,
    C: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr, FLAT: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_GRADIENT: tl.constexpr,
):  # fmt: skip
    """mean(u^2) of a row's group, and behind those of all, mean(u v)."""
    GROUPS: tl.constexpr = C // GROUP
    row, group = (tl.program_id(0) // GROUPS).to(tl.int64), tl.program_id(0) % GROUPS
    rows = row + tl.arange(0, 1)
    squares = tl.zeros((1, BLOCK), tl.float32)
    products = tl.zeros((1, BLOCK), tl.float32)
    for start in tl.range(0, GROUP, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        inside = cols < GROUP
        cols += group * GROUP
        x = _load(x_ptr, rows, row + 1, cols, inside, length, x_b, x_l, UNIT, FLAT)
        z = x
        if HAS_Z:
            z = _load(z_ptr, rows, row + 1, cols, inside, length, z_b, z_l, UNIT, FLAT)
        u = _gated(x, z, HAS_Z)
        squares += u * u
        if HAS_GRADIENT:
            gy = _load(gy_ptr, rows, row + 1, cols, inside, length, gy_b, gy_l, UNIT, FLAT)
            w = tl.load(w_ptr + cols, mask=inside, other=0.0).to(tl.float32)
            products += u * gy.to(tl.float32) * w[None, :]
    at = mean_ptr + rows * GROUPS + group
    tl.store(at, tl.sum(squares, 1) / GROUP)
    if HAS_GRADIENT:
        tl.store(at + total.to(tl.int64) * GROUPS, tl.sum(products, 1) / GROUP)


@triton.jit(do_not_specialize=["total", "share", "length", "x_b", "x_l", "z_b", "z_l", "y_b", "y_l"])
def _forward(
    x_ptr, z_ptr, w_ptr, mean_ptr, y_ptr, eps, total, share, length, x_b, x_l, z_b, z_l, y_b, y_l,
    C: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr,
    FLAT: tl.constexpr, HAS_Z: tl.constexpr,
):  # fmt: skip
    index, group, cols, inside = _block(tl.program_id(0), C, GROUP, BLOCK)
    first = index.to(tl.int64) * share
    last = tl.minimum(first + share, total.to(tl.int64))
    rows = first + tl.arange(0, ROWS)
    w = tl.load(w_ptr + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
    x = _load(x_ptr, rows, last, cols, inside, length, x_b, x_l, UNIT, FLAT)
    z = x
    if HAS_Z:
        z = _load(z_ptr, rows, last, cols, inside, length, z_b, z_l, UNIT, FLAT)
    for _ in tl.range(0, ((last - first + ROWS - 1) // ROWS).to(tl.int32)):
        after = rows + ROWS
        next_x = _load(x_ptr, after, last, cols, inside, length, x_b, x_l, UNIT, FLAT)
        next_z = next_x
        if HAS_Z:
            next_z = _load(z_ptr, after, last, cols, inside, length, z_b, z_l, UNIT, FLAT)
        u = _gated(x, z, HAS_Z)
        if GROUP <= BLOCK:
            square = tl.sum(u * u, 1) / GROUP
        else:
            square = tl.load(mean_ptr + rows * (C // GROUP) + group, mask=rows < last, other=0.0)
        y = u * tl.rsqrt(square + eps)[:, None] * w
        _store(y_ptr, y, rows, last, cols, inside, length, y_b, y_l, UNIT, FLAT)
        rows = after
        x = next_x
        z = next_z


@triton.jit(
    do_not_specialize=[
        "total", "share", "length", "gy_b", "gy_l", "x_b", "x_l", "z_b", "z_l", "dx_b", "dx_l", "dz_b", "dz_l",
    ]
)  # fmt: skip
def _backward(
    gy_ptr, x_ptr, z_ptr, w_ptr, mean_ptr, dx_ptr, dz_ptr, sum_ptr, eps, total, share, length,
    gy_b, gy_l, x_b, x_l, z_b, z_l, dx_b, dx_l, dz_b, dz_l,
    C: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr,
    FLAT: tl.constexpr, HAS_Z: tl.constexpr,
):  # fmt: skip
    index, group, cols, inside = _block(tl.program_id(0), C, GROUP, BLOCK)
    first = index.to(tl.int64) * share
    last = tl.minimum(first + share, total.to(tl.int64))
    rows = first + tl.arange(0, ROWS)
    w = tl.load(w_ptr + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
    dw = tl.zeros((ROWS, BLOCK), tl.float32)
    gy = _load(gy_ptr, rows, last, cols, inside, length, gy_b, gy_l, UNIT, FLAT)
    x = _load(x_ptr, rows, last, cols, inside, length, x_b, x_l, UNIT, FLAT)
    z = x
    if HAS_Z:
        z = _load(z_ptr, rows, last, cols, inside, length, z_b, z_l, UNIT, FLAT)
    for _ in tl.range(0, ((last - first + ROWS - 1) // ROWS).to(tl.int32)):
        after = rows + ROWS
        next_gy = _load(gy_ptr, after, last, cols, inside, length, gy_b, gy_l, UNIT, FLAT)
        next_x = _load(x_ptr, after, last, cols, inside, length, x_b, x_l, UNIT, FLAT)
        next_z = next_x
        if HAS_Z:
            next_z = _load(z_ptr, after, last, cols, inside, length, z_b, z_l, UNIT, FLAT)
        u = _gated(x, z, HAS_Z)
        v = gy.to(tl.float32) * w
        if GROUP <= BLOCK:
            square, product = tl.reduce((u * u, u * v), 1, _add_pairs)
            square = square / GROUP
            product = product / GROUP
        else:
            at = mean_ptr + rows * (C // GROUP) + group
            square = tl.load(at, mask=rows < last, other=0.0)
            product = tl.load(at + total.to(tl.int64) * (C // GROUP), mask=rows < last, other=0.0)
        r = tl.where(rows < last, tl.rsqrt(square + eps), 0.0)  # eps may be 0, and then 0 r is NaN
        normed = u * r[:, None]
        dw += gy.to(tl.float32) * normed
        du = r[:, None] * v - normed * (product * r * r)[:, None]
        if HAS_Z:
            gate = sigmoid(z.to(tl.float32))
            silu = z.to(tl.float32) * gate
            dz = du * x.to(tl.float32) * (gate + silu * (1.0 - gate))
            _store(dz_ptr, dz, rows, last, cols, inside, length, dz_b, dz_l, UNIT, FLAT)
            du = du * silu
        _store(dx_ptr, du, rows, last, cols, inside, length, dx_b, dx_l, UNIT, FLAT)
        rows = after
        gy = next_gy
        x = next_x
        z = next_z
    tl.store(sum_ptr + index.to(tl.int64) * C + cols, tl.sum(dw, 0), mask=inside)


def _rows(tensor: Tensor) -> Tensor:
    """As (b, l, c) with last stride 1: a view wherever strides allow it, else a copy."""
    tensor = inner_contiguous(tensor)
    return tensor.reshape(_shape(tensor))


def _shape(tensor: Tensor) -> tuple[int, int, int]:
    *leading, c = tensor.shape
    return math.prod(leading[:-1]), leading[-1] if leading else 1, c


def _strides(*tensors: Tensor) -> tuple[list[int], dict[str, int]]:
    """Batch and row strides of (b, l, c) tensors, in a unit that divides them all, and the constants that go with them.

    Triton looks for multiples of 16 only; rows of 8 bf16 numbers are aligned as well. Where one stride leads from each
    row to the next in every tensor (FLAT), rows need no division by l.
    """
    b, l, _ = tensors[0].shape
    if l == 1:
        strides = [(0, t.stride(0) if b > 1 else 0) for t in tensors]
    else:
        strides = [(t.stride(0) if b > 1 else t.stride(1) * l, t.stride(1)) for t in tensors]
    flat = l == 1 or all(by_batch == l * by_row for by_batch, by_row in strides)
    unit = math.gcd(16, *(stride for pair in strides for stride in pair))
    return [stride // unit for pair in strides for stride in pair], {"UNIT": unit, "FLAT": flat}


def _cut(direction: str, total: int, c: int, group: int) -> tuple[int, int, dict[str, int]]:
    """Programs, rows of each (all but the last), and the constants of their tiles."""
    block = power_of_two(group) if group <= WIDEST else PIECE
    warps = min(16, max(1, block // TILE[direction]))
    rows = max(1, TILE[direction] // block)
    parts = c // group * triton.cdiv(group, block)
    shares = max(1, WARPS[direction] // (warps * parts))
    share = max(1, triton.cdiv(total, shares * rows)) * rows
    options = {"C": c, "GROUP": group, "BLOCK": block, "ROWS": rows, "num_warps": warps}
    return triton.cdiv(total, share) * parts, share, options


def _means_of(
    gy: Tensor | None, x: Tensor, z: Tensor | None, weight: Tensor, group: int, options: dict[str, int]
) -> Tensor:
    """What programs that hold only a part of a group need of the rest, (1 or 2, b l, groups); tensors are (b, l, c)."""
    b, l, c = x.shape
    means = torch.empty(1 if gy is None else 2, b * l, c // group, dtype=torch.float32, device=x.device)
    g, gate = x if gy is None else gy, x if z is None else z
    strides, layout = _strides(g, x, gate)
    launch(_means, (b * l * (c // group),),
        g, x, gate, weight, means, b * l, l, *strides,
        C=c, GROUP=group, BLOCK=options["BLOCK"], num_warps=4,
        HAS_Z=z is not None, HAS_GRADIENT=gy is not None, **layout,
    )  # fmt: skip
    return means


@triton.jit(do_not_specialize=["rows"])
def _sum_rows(sum_ptr, out_ptr, rows, C: tl.constexpr, BLOCK: tl.constexpr):
    """(rows, C) -> (C,)."""
    ROWS: tl.constexpr = 64
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < C
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in tl.range(0, rows, ROWS):
        at = start + tl.arange(0, ROWS)
        from_ = at.to(tl.int64)[:, None] * C + cols[None, :]
        total += tl.load(sum_ptr + from_, mask=(at < rows)[:, None] & inside[None, :], other=0.0)
    tl.store(out_ptr + cols, tl.sum(total, 0), mask=inside)


@taped
@on_device_of_first
def forward(x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group: int, out: Tensor | None = None) -> Tensor:
    """y (..., c) in x's dtype.

    ``out`` (..., c) takes it where it is given: any floating dtype, last stride 1, leading dimensions that make one
    (b, l). It may be the very memory of x or z, with their dtype and strides; no other overlap.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    rows_x, rows_y, weight = _rows(x), y.view(_shape(y)), weight.contiguous()
    rows_z = None if z is None else _rows(z)
    b, l, c = rows_x.shape
    programs, share, options = _cut("forward", b * l, c, group)
    means = _means_of(None, rows_x, rows_z, weight, group, options) if group > options["BLOCK"] else weight
    gate = rows_x if rows_z is None else rows_z
    strides, layout = _strides(rows_x, gate, rows_y)
    launch(_forward, (programs,),
        rows_x, gate, weight, means, rows_y, eps, b * l, share, l, *strides,
        HAS_Z=z is not None, **layout, **options,
    )  # fmt: skip
    return y


@taped
@on_device_of_first
def backward(
    grad_y: Tensor,
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    eps: float,
    group: int,
    dx: Tensor | None = None,
    dz: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, z (..., c) and weight (c,) in their dtypes; z's is empty without a gate.

    ``dx`` and ``dz`` (..., c) take the first two where they are given: any floating dtype, last stride 1, leading
    dimensions that make one (b, l). Each may be the very memory of grad_y, x or z, with its dtype and strides; no other
    overlap.
    """
    if dx is None:
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if z is None:
        dz = torch.empty(0, dtype=x.dtype, device=x.device)
    elif dz is None:
        dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    rows_g, rows_x, weight = _rows(grad_y), _rows(x), weight.contiguous()
    rows_z = None if z is None else _rows(z)
    rows_dx = dx.view(_shape(dx))
    rows_dz = rows_dx if z is None else dz.view(_shape(dz))
    b, l, c = rows_x.shape
    programs, share, options = _cut("backward", b * l, c, group)
    means = _means_of(rows_g, rows_x, rows_z, weight, group, options) if group > options["BLOCK"] else weight
    sums = torch.empty(triton.cdiv(b * l, share), c, dtype=torch.float32, device=x.device)
    gate = rows_x if rows_z is None else rows_z
    strides, layout = _strides(rows_g, rows_x, gate, rows_dx, rows_dz)
    launch(_backward, (programs,),
        rows_g, rows_x, gate, weight, means, rows_dx, rows_dz, sums, eps, b * l, share, l, *strides,
        HAS_Z=z is not None, **layout, **options,
    )  # fmt: skip
    dw = torch.empty(c, dtype=weight.dtype, device=x.device)
    block = min(64, power_of_two(c))
    launch(_sum_rows, (triton.cdiv(c, block),), sums, dw, len(sums), C=c, BLOCK=block)
    return dx, dz, dw
