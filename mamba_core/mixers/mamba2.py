"""Mamba-2: the state-space dual mixer (Dao & Gu 2024, arXiv:2405.21060)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_core.mixers.base import Capabilities, ProjectedMixer, check_ranges, check_sizes, enter, init_dt_bias
from mamba_core.mixers.split import Slice
from mamba_core.mixers.split_ops import split_mamba2_inner
from mamba_core.ops.arguments import check_limit, working_dtype
from mamba_core.ops.decode import layer_step_runs, mamba2_layer_step, mamba2_step
from mamba_core.ops.mamba2_inner import mamba2_inner
from mamba_core.state import State


@dataclass
class Mamba2Config:
    """Sizes and initialisation of a Mamba-2 mixer."""

    d_state: int = 128
    expand: int = 2
    d_conv: int = 4
    headdim: int = 64
    groups: int = 1
    A_range: tuple[float, float] = (1.0, 16.0)  # -A of each head is drawn from here
    dt_range: tuple[float, float] = (1e-3, 1e-1)
    dt_floor: float = 1e-4
    dt_limit: tuple[float, float] = (0.0, math.inf)

    def build(self, d_model: int, norm_eps: float) -> "Mamba2":
        """The mixer for a model of this width."""
        return Mamba2(d_model, self, norm_eps)


class Mamba2(ProjectedMixer):
    """in_proj -> [z, x, B, C, dt]; causal convolution of x, B, C; state space; norm of y silu(z); out_proj.

    State: ``conv`` (b, d_conv - 1, d_inner + 2 groups d_state), ``ssm`` (b, heads, headdim, d_state), ``seq_idx`` (b,).
    """

    capabilities = Capabilities(causal=True, streams=True, steps=True, packs=True, splits=True)

    def __init__(self, d_model: int, config: Mamba2Config, norm_eps: float = 1e-5):
        super().__init__()
        check_sizes(
            "mamba2",
            d_state=config.d_state,
            expand=config.expand,
            d_conv=config.d_conv,
            headdim=config.headdim,
            groups=config.groups,
        )
        check_ranges("mamba2", dt_range=config.dt_range, A_range=config.A_range)
        check_limit("mamba2", config.dt_limit)
        self.config = config
        self.norm_eps = norm_eps
        self.d_inner = config.expand * d_model
        if self.d_inner % config.headdim or (self.d_inner // config.headdim) % config.groups:
            raise ValueError(
                f"mamba2: expand x d_model = {self.d_inner} must be a multiple of headdim = {config.headdim}, "
                f"and the heads a multiple of groups = {config.groups}"
            )
        self.heads = self.d_inner // config.headdim
        self.conv_dim = self.d_inner + 2 * config.groups * config.d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + self.conv_dim + self.heads, bias=False)
        bound = config.d_conv**-0.5
        self.conv_weight = nn.Parameter(torch.empty(self.conv_dim, config.d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(self.conv_dim).uniform_(-bound, bound))
        self.dt_bias = nn.Parameter(init_dt_bias(self.heads, *config.dt_range, config.dt_floor))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(*config.A_range).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm_weight = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def inner(
        self, projected: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, State]:
        groups, eps, limit = self.config.groups, self.norm_eps, self.config.dt_limit
        if self.ranks is not None:
            state = self.init_state(projected.shape[0], projected.device) if state is None else state
            weights = (self.conv_weight, self.conv_bias, -torch.exp(self.A_log), self.D, self.dt_bias, self.norm_weight)
            own = Slice(self.ranks, seq_idx, state["seq_idx"])
            tensors = (projected, *weights, state["conv"], state["ssm"])
            y, conv, ssm = split_mamba2_inner(own, *tensors, groups=groups, norm_eps=eps, dt_limit=limit)
            return y, State({"conv": conv, "ssm": ssm, "seq_idx": own.last})
        before, entering, last = enter(self, projected, state, seq_idx)
        y, conv, ssm = mamba2_inner(
            projected,
            self.conv_weight,
            self.conv_bias,
            self.A_log,
            self.D,
            self.dt_bias,
            self.norm_weight,
            before,
            entering,
            seq_idx,
            groups=groups,
            norm_eps=eps,
            dt_limit=limit,
            log_A=True,
        )
        return y, State({"conv": conv, "ssm": ssm, "seq_idx": last})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._step(x, state, in_place=False)

    @torch.no_grad()
    def step_(self, x: Tensor, state: State) -> Tensor:
        return self._step(x, state, in_place=True)[0]

    def step_around(
        self, x: Tensor, norm_weight: Tensor, norm_eps: float, state: State, in_place: bool, chained: bool = False
    ) -> tuple[Tensor, State] | None:
        projections = (self.in_proj, self.out_proj)
        if self.config.groups > 1 or not layer_step_runs(x, norm_weight, projections):
            return None
        names = ("conv", "ssm", "seq_idx")
        y, *after = mamba2_layer_step(
            x,
            norm_weight,
            self.in_proj.weight,
            self.conv_weight,
            self.conv_bias,
            self.A_log,
            self.D,
            self.dt_bias,
            self.norm_weight,
            self.out_proj.weight,
            *(state[name] for name in names),
            norm_eps=norm_eps,
            gate_eps=self.norm_eps,
            dt_limit=self.config.dt_limit,
            in_place=in_place,
            chained=chained,
        )
        return y, State(dict(zip(names, after, strict=True)))

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        device = device or self.A_log.device
        dtype = working_dtype(self.A_log)
        config = self.config
        return State(
            {
                "conv": torch.zeros(batch, config.d_conv - 1, self.conv_dim, dtype=dtype, device=device),
                "ssm": torch.zeros(batch, self.heads, config.headdim, config.d_state, dtype=dtype, device=device),
                "seq_idx": torch.full((batch,), -1, dtype=torch.int64, device=device),
            }
        )

    def inner_time_steps(self, projected: Tensor) -> Tensor:
        dt = projected[..., -self.heads :].to(self.dt_bias.dtype)
        return F.softplus(dt + self.dt_bias).clamp(*self.config.dt_limit)

    def _step(self, x: Tensor, state: State, in_place: bool) -> tuple[Tensor, State]:
        y, conv, ssm, seq_idx = mamba2_step(
            self.in_proj(x),
            self.conv_weight,
            self.conv_bias,
            self.A_log,
            self.D,
            self.dt_bias,
            self.norm_weight,
            state["conv"],
            state["ssm"],
            state["seq_idx"],
            norm_eps=self.norm_eps,
            dt_limit=self.config.dt_limit,
            in_place=in_place,
        )
        return self.out_proj(y), State({"conv": conv, "ssm": ssm, "seq_idx": seq_idx})
