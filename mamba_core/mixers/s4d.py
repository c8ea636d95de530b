"""S4D: a diagonal, complex state space that is the same at every token (Gu et al. 2022, arXiv:2206.11893)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_core.mixers.base import Capabilities, Mixer, check_ranges, check_sizes, resume
from mamba_core.ops.arguments import working_dtype
from mamba_core.ops.decode import s4d_step
from mamba_core.ops.s4d import s4d
from mamba_core.state import State

INITS = ("lin", "inv")


@dataclass
class S4DConfig:
    """Size and initialisation of an S4D mixer."""

    d_state: int = 64  # real numbers a channel: half as many complex ones, each standing for a conjugate pair
    init: str = "lin"  # imaginary parts of the poles: "lin", pi n; "inv", N / pi (N / (2 n + 1) - 1)
    dt_range: tuple[float, float] = (1e-3, 1e-1)

    def build(self, d_model: int, norm_eps: float) -> "S4D":
        """The mixer for a model of this width (it has no norm of its own, so norm_eps is not used)."""
        return S4D(d_model, self)


class S4D(Mixer):
    """State space of each channel with a skip; gelu; out_proj to twice the width, half of which gates the other.

    State: ``ssm`` (b, d_model, d_state / 2, 2), real and imaginary parts; ``seq_idx`` (b,).
    """

    capabilities = Capabilities(causal=True, streams=True, steps=True, packs=True)

    def __init__(self, d_model: int, config: S4DConfig):
        super().__init__()
        check_sizes("s4d", d_state=config.d_state)
        check_ranges("s4d", dt_range=config.dt_range)
        if config.d_state % 2:
            raise ValueError(f"s4d.d_state={config.d_state}: must be even, for its poles come in conjugate pairs")
        if config.init not in INITS:
            raise ValueError(f"s4d.init={config.init}: must be one of {', '.join(INITS)}")
        self.config = config
        pairs = config.d_state // 2
        low, high = (math.log(bound) for bound in config.dt_range)
        self.log_dt = nn.Parameter(torch.rand(d_model) * (high - low) + low)
        self.A_log = nn.Parameter(torch.full((d_model, pairs), math.log(0.5)))
        self.A_imag = nn.Parameter(_imaginary(config).repeat(d_model, 1))
        self.C = nn.Parameter(torch.randn(d_model, pairs, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.ones(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0], x.device) if state is None else state
        state, last = resume(state, seq_idx)
        y, ssm = s4d(x, self.log_dt.double().exp(), self.poles(), self.C, self.D, state["ssm"], seq_idx)
        return self._gated(F.gelu(y)), State({"ssm": ssm, "seq_idx": last})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._step(x, state, in_place=False)

    @torch.no_grad()
    def step_(self, x: Tensor, state: State) -> Tensor:
        return self._step(x, state, in_place=True)[0]

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        device = device or self.A_log.device
        return State(
            {
                "ssm": torch.zeros(batch, *self.C.shape, dtype=working_dtype(self.A_log), device=device),
                "seq_idx": torch.full((batch,), -1, dtype=torch.int64, device=device),
            }
        )

    def poles(self) -> Tensor:
        """A of each channel's pairs, real and imaginary parts: (d_model, d_state / 2, 2)."""
        return torch.stack([-self.A_log.exp(), self.A_imag], dim=-1)

    def _step(self, x: Tensor, state: State, in_place: bool) -> tuple[Tensor, State]:
        y, ssm, seq_idx = s4d_step(
            x,
            self.log_dt,
            self.A_log,
            self.A_imag,
            self.C,
            self.D,
            state["ssm"],
            state["seq_idx"],
            in_place=in_place,
        )
        return self._gated(y), State({"ssm": ssm, "seq_idx": seq_idx})

    def _gated(self, y: Tensor) -> Tensor:
        return F.glu(self.out_proj(y), dim=-1)


def _imaginary(config: S4DConfig) -> Tensor:
    """(d_state / 2,) imaginary parts of the poles at the start (equations 8 and 9)."""
    n = torch.arange(config.d_state // 2)
    if config.init == "lin":
        return math.pi * n
    return config.d_state / math.pi * (config.d_state / (2 * n + 1) - 1)
