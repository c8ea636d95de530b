"""Configuration that every domain shares. Plain dataclasses: Hydra fills them, so does a YAML file on a cluster."""

from dataclasses import dataclass, field


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
