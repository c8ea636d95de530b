"""What a time series job can be told."""

from dataclasses import dataclass, field
from typing import Any

from domains.config import TrainerConfig
from mamba_core.backbone import BackboneConfig

CALIBRATION_WINDOW = 250  # outcomes of each series that a new state folder keeps, unless told otherwise
# Levels of the quantiles that forecasts carry: tails for value at risk, deciles between.
LEVELS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99)


@dataclass
class SourceConfig:
    """A long table of series, and what its columns are."""

    path: str = ""  # CSV or Parquet, a file, a folder or a glob; empty: the bundled series
    store: str = ""  # a prepared store; wins over path
    stores: str = "stores"  # folder in which prepared stores are kept and found again
    time: str = "ds"  # column of stamps
    id: str = "unique_id"  # column that names the series; where it is missing, the table is one series
    target: Any = "y"  # a column or a list of columns; each column of each id becomes a series
    past: list[str] = field(default_factory=list)  # covariates known up to now
    future: list[str] = field(default_factory=list)  # covariates known in advance
    static: list[str] = field(default_factory=list)  # numbers that do not change within a series
    zone: str = ""  # time zone whose clock the features read; empty: as the stamps are written
    # price (log returns are modelled) | return (as it is) | level (differences are modelled) | variance or volatility
    # (measured ones: log changes are modelled, and the variance itself is scored)
    kind: str = "price"
    min_rows: int = 64  # series with fewer observations, or constant, are kept aside; 0 keeps all

    def __post_init__(self) -> None:
        if isinstance(self.target, str):
            self.target = [self.target]
        if not isinstance(self.target, list) or not all(isinstance(name, str) for name in self.target):
            raise ValueError(f"target must be a column or a list of columns, not {self.target!r}")


@dataclass
class DataConfig(SourceConfig):
    """Series, how they are split in time, and how windows are drawn from them."""

    test: str = "0.2"  # where the test part starts: a stamp (2000-01-01), or the share of all rows that comes last
    validation: str = "0.1"  # likewise, of what comes before the test part
    horizon: int = 1  # steps ahead
    embargo: int = 0  # steps left out behind each border, beyond the horizon that is purged before it
    window: int = 1024  # steps that the model sees at once in training; evaluation carries the state instead
    tokens_per_step: int = 16384  # steps per batch
    validation_tokens: int = 262144  # steps scored at each validation
    workers: int = 0  # data loader processes


@dataclass
class HeadConfig:
    """What is said about the future, and how it is scored in training."""

    kind: str = "student_t"  # student_t | mixture | quantiles | normal (volatility)
    loss: str = "nll"  # nll | crps | qlike (normal alone); quantiles: pinball, always
    components: int = 3  # of the mixture
    mean: bool = True  # False: the centre stays at 0, as of returns that nobody can foretell


@dataclass
class TrainConfig:
    """Everything that decides a training run; written beside the weights as config.yaml."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0


@dataclass
class EvaluateConfig:
    """Which cut-offs are scored, against what."""

    series: list[str] = field(default_factory=list)  # names of those that are scored; empty: all
    stride: int = 1  # every how many steps a forecast is made
    max_cutoffs: int | None = None  # a series, the last ones
    calibrate: bool = True  # conformal intervals from a trailing window of what was missed before
    calibration_window: int = 2000  # cut-offs
    refit_every: int | None = None  # cut-offs after which baselines are fitted anew on all that is known; None: never
    refit_model: bool = False  # the model too, which takes as long as its training did, each time
    baselines: list[str] = field(default_factory=list)  # names; empty: all
    max_statistical: int = 50  # series that AutoARIMA and AutoETS, which take long, are fitted on
    unit: float | None = None  # increments are multiplied by it in the table; None: 100 for prices (per cent), else 1
    chunk: int = 4096  # steps per call while streaming; does not change the result


@dataclass
class ForecastConfig:
    """The batch job: what is read at once, what is kept, and what is written."""

    series_per_shard: int = 500  # of a new state folder
    rows_at_once: int = 262144  # rows of all series that the model reads together
    chunk: int = 2048  # steps per call while streaming; changes results by rounding alone
    reread: bool = False  # states of another model or window are dropped: data.path holds whole histories
    compare_rows: int = 256  # the last ones of each series, which can come again in any part; may grow
    calibrate: str = "trailing"  # intervals corrected by the last outcomes, 1,000 or more | validation (once) | none
    calibration_window: int | None = None  # outcomes of each series and step; None: as the states have it, or 250
    paths: int = 0  # sampled futures of each series that are written too; never corrected by calibrate
    path_steps: int = 20  # their length
    seed: int = 0  # of their random numbers
    engine: str = "local"  # local | ray
    workers: int = 2  # of engine=ray
