"""What a genomics job can be told."""

from dataclasses import dataclass, field

from domains.config import TrainerConfig
from mamba_core.backbone import BackboneConfig


@dataclass
class DataConfig:
    """A genome, how it is split, and how windows are drawn from it."""

    fasta: str = ""  # FASTA (plain, gzip, bgzip) or GenBank; empty: the bundled genome
    store: str = ""  # a prepared store; wins over fasta
    stores: str = "stores"  # folder in which prepared stores are kept and found again
    test: list[str] | None = None  # contigs held out; None: by test_fraction
    validation: list[str] | None = None
    test_fraction: float = 0.1  # of the bases, in whole contigs
    validation_fraction: float = 0.05
    window: int = 4096  # bases
    tokens_per_step: int = 32768  # bases per batch, constant while the length warms up
    window_warmup: list[int] = field(default_factory=list)  # shorter windows first, e.g. [512, 2048]
    window_warmup_fraction: float = 0.25  # of max_steps spent on all the shorter windows together
    reverse_complement: bool = True  # each training window is flipped with probability 1/2
    soft_mask_weight: float = 1.0  # weight of lower-case (repeat-masked) bases in the training loss
    validation_tokens: int = 262144  # bases scored at each validation
    workers: int = 0  # data loader processes
    annotation: str = ""  # of classify and segment: GFF3, GTF, BED or GenBank, or prepared; empty: the bundled genes
    positive: str = "CDS"  # classify: the type of feature to be told from the rest
    min_overlap: float = 0.5  # classify: a positive window has this share of its bases in such features, or more
    negatives: str = "matched"  # classify: windows outside them: matched (in GC content) | balanced (in number) | all
    stride: int | None = None  # classify: bases between the starts of windows; None: the window
    context: int | None = None  # classify: bases that the model sees, the window amid them; None: the window alone
    label_fraction: float = 1.0  # of the labelled training windows that are learned from


@dataclass
class TaskConfig:
    """What is learned."""

    kind: str = "causal"  # causal | mlm | classify | segment
    mask_fraction: float = 0.15  # of mlm: of the known bases, those that are hidden and asked for
    pretrained: str = ""  # model folder whose embedding and backbone classify and segment start from
    freeze: bool = False  # train the head alone, on a backbone that stays as it was pre-trained


@dataclass
class TrainConfig:
    """Everything that decides a training run; written beside the weights as config.yaml."""

    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0


@dataclass
class WindowsConfig:
    """How a masked model, which sees both sides, reads a contig: in windows that overlap by their halos."""

    length: int = 16384  # bases of a window that are scored
    halo: int = 2048  # bases on either side of them that are read as well


@dataclass
class EvaluateConfig:
    """Which bases are scored, and against which Markov models; of masked models, against two-sided k-mer models."""

    max_order: int = 10  # largest Markov order considered; the order is chosen on validation
    max_bases: int | None = None  # score at most this many bases, from the start of the test regions
    both_strands: bool = True
    context: int | None = None  # bases after which every model forgets what it has read; None: never within a contig
    chunk: int = 16384  # bases per call while streaming; does not change the result
    mask_fraction: float | None = None  # of a masked model: how many bases are hidden; None: as many as in training
    windows: WindowsConfig = field(default_factory=WindowsConfig)  # of a masked model
    locus: str = ""  # of annotation models, contig:start-end (0-based) to draw; empty: one amid the test regions
    baselines: bool = True  # of annotation models: also fit and score what they must beat


@dataclass
class DivisionConfig:
    """Who does a batch job. What comes out does not depend on it."""

    engine: str = "local"  # local: threads of this process | ray: actors on a cluster
    workers: int = 2  # actors of engine=ray
    shards: int | None = None  # split the job over so many processes ...
    shard: int | None = None  # ... of which this is one, from 0; None: SLURM_ARRAY_TASK_ID


@dataclass
class PredictConfig(DivisionConfig):
    """Per-base log-likelihood of every contig of a genome, or what a model of annotation says of it.

    The latter takes ``tracks``, ``block`` and who does the job, and nothing else; none of them changes what it says.
    """

    both_strands: bool = False
    chunk: int = 16384  # bases per call; does not change the result
    mask_every: int = 8  # of a masked model: each reading hides every so many-th base, so there are so many readings
    windows: WindowsConfig = field(default_factory=WindowsConfig)  # of a masked model
    tracks: list[str] = field(default_factory=lambda: ["bedgraph"])  # for genome browsers: bedgraph, bigwig
    block: int | None = None  # cut longer contigs into blocks of so many bases, which do not know of each other
    warmup: int = 0  # bases read before each block, and before the start of circular contigs


@dataclass
class EmbedConfig(DivisionConfig):
    """Hidden states of a genome, a row for each window, base or region."""

    per: str = "window"  # window | base | region
    window: int = 1000  # bases of a window
    layer: int | None = None  # residual stream behind so many layers; None: what the head sees
    both_strands: bool = True  # mean of both strands
    dtype: str = "float32"  # float32 | float16
    context: int = 8192  # bases read before a region on each strand, or on both its sides by a masked model
    chunk: int = 16384  # bases per call
    block: int | None = None  # cut longer contigs into blocks of so many bases, which do not know of each other
    warmup: int = 0  # bases read before each block, and before the start of circular contigs
    windows: WindowsConfig = field(default_factory=WindowsConfig)  # of a masked model


@dataclass
class ScoreConfig:
    """Log-likelihood ratios of variants, the mean of both strands."""

    context: int = 2048  # bases read before a variant, on each strand; by a masked model on both sides of it
    window: int = 512  # bases of reference and alternative that are compared, from the first that differs on, at most
    chunk: int = 65536  # bases a call, of all windows together; does not change the result


@dataclass
class GenerateConfig:
    """Sampling from a causal model."""

    prompt: str = ""  # bases; empty: from the model's start token
    length: int = 1000  # bases sampled after the prompt
    count: int = 1
    temperature: float = 1.0
    top_k: int = 4  # of A, C, G, T
    precision: str = "float32"  # of the weights: float32 | bf16 | int8 (on a CPU)
    seed: int = 0
