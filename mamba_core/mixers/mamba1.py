"""Mamba-1: the selective state-space mixer (Gu & Dao 2023, arXiv:2312.00752)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_core.mixers.base import Capabilities, ProjectedMixer, check_ranges, check_sizes, enter, init_dt_bias
from mamba_core.mixers.split import Slice
from mamba_core.mixers.split_ops import split_conv1d, split_selective_scan
from mamba_core.ops.arguments import check_limit, working_dtype
from mamba_core.ops.causal_conv1d import causal_conv1d
from mamba_core.ops.decode import conv_step, selective_scan_step
from mamba_core.ops.direct import is_plain_projection
from mamba_core.ops.mamba1_inner import composed, mamba1_inner
from mamba_core.state import State


@dataclass
class Mamba1Config:
    """Sizes and initialisation of a Mamba-1 mixer."""

    d_state: int = 16
    expand: int = 2
    d_conv: int = 4
    dt_rank: int = 0  # 0: ceil(d_model / 16)
    dt_range: tuple[float, float] = (1e-3, 1e-1)
    dt_floor: float = 1e-4
    dt_limit: tuple[float, float] = (0.0, math.inf)

    def build(self, d_model: int, norm_eps: float) -> "Mamba1":
        """The mixer for a model of this width (it has no norm of its own, so norm_eps is not used)."""
        return Mamba1(d_model, self)


class Mamba1(ProjectedMixer):
    """in_proj -> [x, z]; causal convolution of x; x_proj -> [dt, B, C]; selective scan, gated by silu(z); out_proj.

    State: ``conv`` (b, d_conv - 1, d_inner), ``ssm`` (b, d_inner, d_state), ``seq_idx`` (b,).
    """

    capabilities = Capabilities(causal=True, streams=True, steps=True, packs=True, splits=True)

    def __init__(self, d_model: int, config: Mamba1Config):
        super().__init__()
        check_sizes("mamba1", d_state=config.d_state, expand=config.expand, d_conv=config.d_conv)
        check_ranges("mamba1", dt_range=config.dt_range)
        check_limit("mamba1", config.dt_limit)
        self.config = config
        self.d_inner = config.expand * d_model
        self.dt_rank = config.dt_rank or math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        bound = config.d_conv**-0.5
        self.conv_weight = nn.Parameter(torch.empty(self.d_inner, config.d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(self.d_inner).uniform_(-bound, bound))
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_bias = nn.Parameter(init_dt_bias(self.d_inner, *config.dt_range, config.dt_floor))
        self.A_log = nn.Parameter(torch.arange(1.0, config.d_state + 1).log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def inner(
        self, projected: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if self.ranks is not None:
            state = self.init_state(projected.shape[0], projected.device) if state is None else state
            return self._inner_split(projected, state, Slice(self.ranks, seq_idx, state["seq_idx"]))
        conv, ssm, last = enter(self, projected, state, seq_idx)
        convolution, scan = (self.conv_weight, self.conv_bias), (self.A_log, self.D, self.dt_bias)
        states, limit = (conv, ssm, seq_idx), self.config.dt_limit
        if is_plain_projection(self.x_proj) and is_plain_projection(self.dt_proj):
            weights = (self.x_proj.weight, self.dt_proj.weight)
            y, conv, ssm = mamba1_inner(projected, *convolution, *weights, *scan, *states, dt_limit=limit, log_A=True)
        else:  # layers of another kind, quantised ones for example
            y, conv, ssm = composed.mamba1_inner(projected, *convolution, self._select, *scan, *states, limit, True)
        return y, State({"conv": conv, "ssm": ssm, "seq_idx": last})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._step(x, state, in_place=False)

    @torch.no_grad()
    def step_(self, x: Tensor, state: State) -> Tensor:
        return self._step(x, state, in_place=True)[0]

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        device = device or self.A_log.device
        dtype = working_dtype(self.A_log)
        return State(
            {
                "conv": torch.zeros(batch, self.config.d_conv - 1, self.d_inner, dtype=dtype, device=device),
                "ssm": torch.zeros(batch, self.d_inner, self.config.d_state, dtype=dtype, device=device),
                "seq_idx": torch.full((batch,), -1, dtype=torch.int64, device=device),
            }
        )

    def inner_time_steps(self, projected: Tensor) -> Tensor:
        inner = projected.chunk(2, dim=-1)[0]
        inner, _ = causal_conv1d(inner, self.conv_weight, self.conv_bias)
        dt = self._select(inner)[0].to(self.dt_bias.dtype)
        return F.softplus(dt + self.dt_bias).clamp(*self.config.dt_limit)

    def _inner_split(self, projected: Tensor, state: State, own: Slice) -> tuple[Tensor, State]:
        """The same for this rank's slice of a sequence; the states are those of the whole."""
        inner, z = projected.chunk(2, dim=-1)
        inner, conv = split_conv1d(own, inner, self.conv_weight, self.conv_bias, state["conv"])
        dt, B, C = self._select(inner)
        y, ssm = split_selective_scan(
            own,
            inner,
            dt,
            -torch.exp(self.A_log),
            B.unsqueeze(2),
            C.unsqueeze(2),
            self.D,
            z,
            self.dt_bias,
            state["ssm"],
            self.config.dt_limit,
        )
        return y, State({"conv": conv, "ssm": ssm, "seq_idx": own.last})

    def _step(self, x: Tensor, state: State, in_place: bool) -> tuple[Tensor, State]:
        inner, z = self.in_proj(x).chunk(2, dim=-1)
        inner, conv = conv_step(inner, self.conv_weight, self.conv_bias, state["conv"], in_place=in_place)
        dt, B, C = self._select(inner)
        y, ssm, seq_idx = selective_scan_step(
            inner,
            dt,
            B,
            C,
            z,
            self.A_log,
            self.D,
            self.dt_bias,
            state["ssm"],
            state["seq_idx"],
            dt_limit=self.config.dt_limit,
            in_place=in_place,
        )
        return self.out_proj(y), State({"conv": conv, "ssm": ssm, "seq_idx": seq_idx})

    def _select(self, inner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw dt (..., d_inner), B and C (..., d_state) from the convolved input."""
        n = self.config.d_state
        dt, B, C = self.x_proj(inner).split([self.dt_rank, n, n], dim=-1)
        return self.dt_proj(dt), B, C
