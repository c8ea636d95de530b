"""What an audio job can be told."""

from dataclasses import dataclass, field

from domains.audio.endpoints import EndpointConfig
from domains.audio.models.classifier import ClassifierConfig
from domains.audio.models.generator import GeneratorConfig
from domains.audio.models.spectrogram import SpectrogramConfig
from domains.config import TrainerConfig
from mamba_core.backbone import BackboneConfig


@dataclass
class SourceConfig:
    """Clips, and what they are brought to."""

    root: str = ""  # folder of clips, label/[group/]clip.wav; empty, and no manifest: bundled clips
    manifest: str = ""  # CSV with path[,label][,group][,split], paths within root, or else within the CSV's folder
    sample: str = ""  # which of the bundled clips: prompts (to predict) | arrow (to classify); empty: by the task
    store: str = ""  # a prepared store; wins over root and manifest
    stores: str = "stores"  # folder in which prepared stores are kept and found again
    rate: int = 16000  # samples per second
    min_seconds: float = 0.05  # shorter clips are kept aside


@dataclass
class AugmentConfig:
    """What is done to a waveform in training; each is drawn for each clip and epoch, and off at 0."""

    gain_db: float = 0.0  # louder or softer by up to this
    noise: float = 0.0  # probability of white noise
    snr_db: float = 20.0  # lowest ratio of signal to noise; up to 20 dB above it is drawn
    speed: float = 0.0  # faster or slower, and higher or lower, by up to this share
    shift_seconds: float = 0.0  # earlier or later by up to this; what leaves the clip is lost
    band_limit: float = 0.0  # probability of a low or a high cut
    mix: float = 0.0  # probability that another clip sounds along; the label is shared as the sound is


@dataclass
class DataConfig(SourceConfig):
    """Clips, how they are split, and how batches are drawn from them."""

    test: list[str] | None = None  # groups held out, or clips where there are no groups; None: by test_fraction
    validation: list[str] | None = None
    test_fraction: float = 0.2  # of the clips, in whole groups where there are groups
    validation_fraction: float = 0.1
    window: int = 16384  # samples that a generator sees at once in training
    max_seconds: float = 10.0  # a classifier sees this much of a longer clip in training, from a place drawn anew
    tokens_per_step: int = 65536  # samples per batch, padding included
    validation_tokens: int = 1048576  # samples scored at each validation
    level_db: float | None = None  # RMS in dBFS that each clip is brought to; None: as recorded
    balance: bool = True  # classes weigh the same in a classifier's loss, however many clips they have
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of classifiers, in training alone
    workers: int = 0  # data loader processes


@dataclass
class TaskConfig:
    """What is learned, and what stands round the backbone for it; of the three models the one of ``kind`` is built."""

    kind: str = "generate"  # generate | classify | spectrogram
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    spectrogram: SpectrogramConfig = field(default_factory=SpectrogramConfig)
    label_smoothing: float = 0.0  # share of each label that is spread over all, in a classifier's training
    pretrained: str = ""  # of a generator: model folder of one to go on from, with its sizes


@dataclass
class TrainConfig:
    """Everything that decides a training run; written beside the weights as config.yaml."""

    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        data = self.data
        if not (data.sample or data.root or data.manifest or data.store):
            data.sample = "prompts" if self.task.kind == "generate" else "arrow"


@dataclass
class EvaluateConfig:
    """What is scored, and against what."""

    max_seconds: float = 60.0  # of a clip to be named, from its beginning; the baseline hears no more either
    max_samples: int | None = None  # predict at most this many, of the first test clips; None: all
    contexts: list[int] = field(default_factory=list)  # predict once more, forgetting all every so many samples
    chunk: int = 65536  # samples per call; changes results by rounding alone
    resamples: int = 2000  # of the bootstrap


@dataclass
class PredictConfig(EndpointConfig):
    """How recordings are named; of sounds in streams see :class:`domains.audio.endpoints.EndpointConfig`."""

    mode: str = "auto"  # stream: sounds in recordings of any length | clips: one label each | auto: stream if it can
    frames: bool = False  # also the probabilities every 10 ms, a table for each recording; of streams
    table: str = "csv"  # csv | parquet
    streams: int = 16  # recordings that are heard side by side; changes results by rounding alone
    clip_seconds: float = 60.0  # a model in both directions holds a whole clip in memory: longer ones are kept aside


@dataclass
class GenerateConfig:
    """What is drawn from a generator."""

    prompt: str = ""  # a sound file to go on from; none: from silence
    prompt_seconds: float | None = None  # of its end that are read; None: all
    seconds: float = 5.0  # to draw
    count: int = 1  # sounds, drawn side by side
    temperature: float = 1.0  # below 1 prefers what the model holds likely
    top_p: float = 1.0  # the likeliest levels whose probabilities reach this sum are left
    seed: int = 0
