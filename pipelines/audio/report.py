"""What an audio run leaves in MLflow: how its model loads there, its plots, and its sounds to be played."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from pipelines.audio.players import write_players
from pipelines.jobs import Report
from pipelines.plots import by_context, by_part, confusion_plot, training_curve
from pipelines.recorder import ModelCard

if TYPE_CHECKING:
    from domains.audio.bits import BitsEvaluation
    from domains.audio.evaluate import Evaluation
    from domains.audio.naming import NamingEvaluation

SAMPLES = "samples"  # in a run folder: sounds that were drawn from its model; and the artifacts that are made of them

CARD = ModelCard(
    code=Path(__file__).with_name("pyfunc.py"),
    inputs={},  # a column path of strings, or samples of arrays, which MLflow's columns cannot say
    outputs={"seconds": "double"},  # and what the kind of model has to say: see pyfunc.py
    packages=("mamba_core", "domains"),
    requires=("torch", "torchaudio", "lightning", "numpy", "pandas", "pyyaml", "safetensors", "soundfile", "tqdm"),
)


def draw_training(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bits per sample over training, or a classifier's loss."""
    bits = any("train/bits_per_sample" in row for row in rows)
    measure, label = ("bits_per_sample", "loss (bits per sample)") if bits else ("loss", "loss (nats)")
    return training_curve(rows, training=f"train/{measure}", validation=f"validation/{measure}", label=label)


def draw_evaluation(found: "Evaluation") -> dict[str, Figure]:
    """The plots of an evaluation, by file name without ending."""
    from domains.audio.bits import BitsEvaluation

    return _draw_bits(found) if isinstance(found, BitsEvaluation) else _draw_naming(found)


def _draw_naming(found: "NamingEvaluation") -> dict[str, Figure]:
    """Confusion matrices of the model and of the best baseline, and F1 of each class."""
    model, *others = found.methods
    best = max(others, key=lambda name: found.methods[name].balanced_accuracy)
    f1 = {name: [row.f1 for row in naming.to_rows()] for name, naming in found.methods.items()}
    return {
        "confusion_model": confusion_plot(found.labels, found.methods[model].confusion.tolist(), title=model),
        "confusion_baseline": confusion_plot(found.labels, found.methods[best].confusion.tolist(), title=best),
        "f1_by_class": by_part(found.labels, f1, label="F1 (higher is better)"),
    }


def _draw_bits(found: "BitsEvaluation") -> dict[str, Figure]:
    """Bits per sample of each clip, by how much of the clip was heard before, and by what may be remembered."""

    def measures(rows: Sequence[Any]) -> dict[str, list[float]]:
        names = {"model": "model", "linear": found.linear_name, "context": found.context_name}
        return {name: [getattr(row, key) for row in rows] for key, name in names.items()}

    label = "bits per sample (lower is better)"
    total, *clips = found.rows
    heard = [row.span for row in found.by_context]
    plots = {
        "bits_by_clip": by_part([row.name for row in clips], measures(clips), label=label),
        "bits_by_samples_heard": by_part(heard, measures(found.by_context), label=label),
    }
    if found.forgetting:
        contexts, bits = list(found.forgetting), list(found.forgetting.values())
        values = {"forgetting": bits, "never": [total.model] * len(bits)}
        plots["bits_by_context"] = by_context(contexts, values, label=label, x="samples after which all is forgotten")
    return plots


def find_extras(run_dir: Path) -> dict[str, list[Path]]:
    """Sounds in a run folder, with what it takes to play them: artifact folder to files."""
    folder = run_dir / SAMPLES
    sounds = sorted(folder.glob("*.wav"))
    return {SAMPLES: write_players(folder, sounds)} if sounds else {}


REPORT = Report(card=CARD, draw=draw_training, extras=find_extras)
