"""Causal depthwise convolution of the Mamba mixers: the public function and the choice of path."""

from collections.abc import Callable

from torch import Tensor

from mamba_core.ops import paths
from mamba_core.ops.arguments import Wanted, check_arguments, check_extent
from mamba_core.ops.causal_conv1d import operators
from mamba_core.ops.causal_conv1d.reference import causal_conv1d_reference
from mamba_core.ops.direct import Seen, is_plain

__all__ = ["causal_conv1d"]

_seen = Seen()


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    activation: bool = True,
    path: paths.Path | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own short causal filter, then silu.

    ``y_t = silu(bias + sum_k weight[:, width - 1 - k] x_{t-k})``, with the inputs before the first from the state.

    Args:
        x: (b, l, c) any floating dtype; may be strided.
        weight: (c, width), the newest input's weight last. bias: (c,).
        initial_state: (b, width - 1, c), the last inputs before x, oldest first; zeros when None.
        seq_idx: (b, l) integer document index; taps do not cross a change, -1 is padding (y = 0, tail unchanged).
        activation: whether silu follows.
        path: force "triton", "chunked" or "reference"; see :mod:`mamba_core.ops.paths`.

    Returns:
        y: (b, l, c) in x's dtype, and the final tail (b, width - 1, c) in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, an empty sequence, or a path that does not
            exist.
    """
    given = (x, weight, bias, initial_state, seq_idx)
    plain = is_plain(x)
    if not (plain and _seen.knows(given)):
        _check(*given)
        if plain:
            _seen.add(given)
    chosen = paths.choose_path("causal_conv1d", x, path)
    if chosen == "reference":
        return causal_conv1d_reference(*given, activation=activation)
    op: Callable[..., tuple[Tensor, Tensor]] = operators.causal_conv1d
    if chosen == "triton":
        op = operators.causal_conv1d_direct if plain else operators.causal_conv1d_triton
    return op(*given, activation)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, seq_idx: Tensor | None
) -> None:
    if x.ndim != 3 or weight.ndim != 2:
        found = f"{tuple(x.shape)}, {tuple(weight.shape)}"
        raise ValueError(f"causal_conv1d: x must be (b, l, c) and weight (c, width); got {found}")
    b, l, c = x.shape
    width = weight.shape[-1]
    check_extent("causal_conv1d", b, l)
    wanted: Wanted = {
        "x": (x, (b, l, c)),
        "weight": (weight, (c, width)),
        "bias": (bias, (c,)),
        "initial_state": (initial_state, (b, width - 1, c)),
        "seq_idx": (seq_idx, (b, l)),
    }
    check_arguments("causal_conv1d", x.device, wanted)
