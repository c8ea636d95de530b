"""Root configurations of the genomics commands: what each of them can be told."""

from dataclasses import dataclass, field

from domains.genomics.config import EmbedConfig, EvaluateConfig, GenerateConfig, PredictConfig, ScoreConfig, TrainConfig
from pipelines.config import REQUIRED, RunConfig, TrackingConfig


@dataclass
class SourceConfig:
    """A genome."""

    fasta: str = ""  # FASTA (plain, gzip, bgzip) or GenBank
    store: str = ""  # a prepared store; wins over fasta
    stores: str = "stores"  # folder in which prepared stores are kept and found again


@dataclass
class RequiredSource:
    """A genome that the user must name."""

    fasta: str = REQUIRED  # FASTA (plain, gzip, bgzip) or GenBank
    stores: str = "stores"


@dataclass
class PrepareRoot:
    """Without data.fasta: the bundled genome."""

    data: SourceConfig = field(default_factory=SourceConfig)


@dataclass
class TrainRoot(TrainConfig):
    """A training run. Without data.fasta: on the bundled genome."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str | None = None  # a run folder, or an MLflow run id


@dataclass
class TrainingSource(SourceConfig):
    """What a model was trained on."""

    annotation: str = ""  # GFF3, GTF, BED or GenBank, or a prepared annotation


@dataclass
class EvaluateRoot(EvaluateConfig):
    """Without data.*: on the genome that the model was trained on, found where it was then."""

    model: str = REQUIRED  # a model folder, or an MLflow run id
    out: str | None = None  # folder; None: evaluation/ beside the model folder
    device: str = "auto"  # auto | cpu | gpu
    data: TrainingSource = field(default_factory=TrainingSource)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class PredictRoot(PredictConfig):
    """Every contig of a file is scored."""

    model: str = REQUIRED  # a model folder, or an MLflow run id
    out: str = REQUIRED  # folder
    device: str = "auto"
    data: RequiredSource = field(default_factory=RequiredSource)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class RegionSource(RequiredSource):
    """A genome and, if wanted, regions of it."""

    regions: str = ""  # BED, GFF3 or GTF (plain, gzip, bgzip): every row is a region


@dataclass
class EmbedRoot(EmbedConfig):
    """Windows, bases or regions of a genome as vectors."""

    model: str = REQUIRED  # a model folder, or an MLflow run id
    out: str = REQUIRED  # folder
    device: str = "auto"
    data: RegionSource = field(default_factory=RegionSource)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class VariantSource(RequiredSource):
    """A genome and variants of it."""

    vcf: str = REQUIRED  # VCF (plain, gzip, bgzip) or BCF


@dataclass
class ScoreRoot(ScoreConfig):
    """Every alternative allele of a VCF is scored."""

    model: str = REQUIRED  # a model folder, or an MLflow run id
    out: str = REQUIRED  # VCF file; its table and index stand beside it
    device: str = "auto"
    data: VariantSource = field(default_factory=VariantSource)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class GenerateRoot(GenerateConfig):
    """Sequences into a FASTA file."""

    model: str = REQUIRED  # a model folder, or an MLflow run id
    out: str = REQUIRED  # FASTA file
    device: str = "auto"
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
