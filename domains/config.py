"""Configuration that every domain shares. Plain dataclasses: Hydra fills them, so does a YAML file on a cluster."""

import math
from dataclasses import dataclass, field

from domains.errors import UserError

MANY = 10**9  # the most that a count may be: more is a slip of the keyboard, and its products would leave 64 bits

# Settings of TrainerConfig that a resumed run may be told anew, because they decide no number of it.
FREE_TRAINER_KEYS = frozenset(
    {
        "trainer.accelerator",
        "trainer.threads",
        "trainer.max_minutes",
        "trainer.checkpoint_every",
        "trainer.border_states",
    }
)


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay. No weight decay on A_log, D, dt_bias, norms and biases."""

    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_fraction: float = 0.1  # of max_steps
    final_fraction: float = 0.05  # of learning_rate, where the cosine ends


@dataclass
class TrainerConfig:
    """How long, how fast and on what to train."""

    max_steps: int = 1000
    accumulate: int = 1  # batches per optimizer step
    gradient_clip: float = 1.0
    segment_length: int | None = None  # train through a window in segments of this many tokens, with its exact gradient
    truncate_every: int | None = None  # cut the gradient every n segments: truncated backpropagation, which is biased
    border_states: str = "device"  # where the states between segments wait for the backward pass: device | cpu
    devices: int = 1  # processes that train together, one a GPU; torchrun starts them
    context_parallel: int = 1  # of them, how many split a sequence by length; the groups so made split a batch by rows
    accelerator: str = "auto"  # auto | cpu | gpu
    precision: str = "auto"  # auto: bf16-mixed on GPU, 32-true on CPU
    threads: int = 0  # CPU threads; 0 leaves PyTorch's choice
    max_minutes: float | None = None  # stop, and save, after this long
    log_every: int = 10  # steps
    health_every: int = 100  # steps between state-health probes
    validate_every: int = 200  # steps
    checkpoint_every: int = 200  # steps
    keep: str = "best"  # weights that go into the model folder: best (on validation) | last
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


def check_range(name: str, value: float, lowest: float, highest: float = math.inf, why: str = "") -> None:
    """Make sure that a setting is finite and lies between ``lowest`` and ``highest``, both allowed.

    Raises:
        UserError: it does not; the message names it, and says the bound, and ``why`` it is the upper one.
    """
    if not value >= lowest:
        raise UserError(f"{name}={value}: must be at least {lowest}")
    if value == math.inf:
        raise UserError(f"{name}={value}: must be finite")
    if value > highest:
        raise UserError(f"{name}={value}: must be at most {highest:,}{why and f', {why}'}")


def check_seed(seed: int) -> None:
    """Make sure that a seed fits into 64 bits, as random number generators want it."""
    if not -(2**63) <= seed < 2**63:
        raise UserError(f"seed={seed}: must lie between -2**63 and 2**63 - 1")
