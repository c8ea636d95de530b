"""Root configurations of the audio commands: what each of them can be told."""

from dataclasses import dataclass, field

from domains.audio.config import EvaluateConfig, GenerateConfig, PredictConfig, SourceConfig, TrainConfig
from pipelines.config import REQUIRED, RunConfig, TrackingConfig


@dataclass
class PrepareRoot:
    """Without data.root and data.manifest: the bundled clips."""

    data: SourceConfig = field(default_factory=SourceConfig)


@dataclass
class TrainRoot(TrainConfig):
    """A training run. Without data.root and data.manifest: on the bundled clips."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str | None = None  # a run folder, or an MLflow run id


@dataclass
class WhereConfig:
    """Where clips are now; their rate is that of the training."""

    root: str = ""  # folder of clips
    manifest: str = ""  # CSV with path[,label][,group][,split]
    store: str = ""  # a prepared store; wins over both
    stores: str = "stores"  # folder in which prepared stores are kept and found again


@dataclass
class EvaluateRoot(EvaluateConfig):
    """Without data.*: on the clips that the model was trained on, found where they were then."""

    model: str = REQUIRED  # a model folder, or an MLflow run id
    out: str | None = None  # folder; None: evaluation/ beside the model folder
    device: str = "auto"  # auto | cpu | gpu
    data: WhereConfig = field(default_factory=WhereConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class RecordingsConfig:
    """Recordings that the user must name: by one of the two."""

    root: str = ""  # folder, or a file
    manifest: str = ""  # CSV with a column path


@dataclass
class PredictRoot(PredictConfig):
    """Labels of recordings."""

    model: str = REQUIRED  # a model folder, or an MLflow run id
    out: str = REQUIRED  # folder
    device: str = "auto"
    data: RecordingsConfig = field(default_factory=RecordingsConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class GenerateRoot(GenerateConfig):
    """Sounds into a folder."""

    model: str = REQUIRED  # a model folder, or an MLflow run id
    out: str = REQUIRED  # folder
    device: str = "auto"
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
