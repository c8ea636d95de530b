"""Root configurations of the time series commands: what each of them can be told."""

from dataclasses import dataclass, field
from typing import Any

from domains.timeseries.config import EvaluateConfig, ForecastConfig, SourceConfig, TrainConfig
from pipelines.config import REQUIRED, RunConfig, TrackingConfig


@dataclass
class PrepareRoot:
    """Without data.path: the bundled series."""

    data: SourceConfig = field(default_factory=SourceConfig)


@dataclass
class TrainRoot(TrainConfig):
    """A training run. Without data.path: on the bundled series."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str | None = None  # a run folder, or an MLflow run id


@dataclass
class WhereConfig:
    """Where a table is now; its columns are those of the training."""

    path: str = ""  # CSV or Parquet: a file, a folder or a glob
    store: str = ""  # a prepared store; wins over path
    stores: str = "stores"  # folder in which prepared stores are kept and found again


@dataclass
class EvaluateRoot(EvaluateConfig):
    """Without data.*: on the series that the model was trained on, found where they were then."""

    model: str = REQUIRED  # a model folder, or an MLflow run id
    out: str | None = None  # folder; None: evaluation/ beside the model folder
    device: str = "auto"  # auto | cpu | gpu
    data: WhereConfig = field(default_factory=WhereConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class NewRows:
    """A table of new rows. None: as the table that the model was trained on."""

    path: str = REQUIRED
    stores: str = "stores"
    time: str | None = None
    id: str | None = None
    target: Any = None
    past: list[str] | None = None
    future: list[str] | None = None
    static: list[str] | None = None
    zone: str | None = None


@dataclass
class ForecastRoot(ForecastConfig):
    """The batch job."""

    model: str = REQUIRED  # a model folder, or an MLflow run id
    out: str = REQUIRED  # folder
    state: str = REQUIRED  # folder
    device: str = "auto"
    data: NewRows = field(default_factory=NewRows)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
