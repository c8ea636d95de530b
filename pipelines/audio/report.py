"""What an audio run leaves in MLflow: how its model loads there, its plots, and its sounds to be played."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipelines.jobs import Report
from pipelines.plots import by_context, by_part, confusion_plot, training_curve
from pipelines.recorder import ModelCard

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


def draw_evaluation(found: Any) -> dict[str, Figure]:
    """The plots of an evaluation, by file name without ending."""
    return _draw_naming(found) if hasattr(found, "methods") else _draw_bits(found)


def _draw_naming(found: Any) -> dict[str, Figure]:
    """Confusion matrices of the model and of the best baseline, and F1 of each class."""
    scores = found.methods
    plots = {"confusion_model": confusion_plot(found.labels, scores["model"].confusion.tolist(), title="model")}
    others = {name: score for name, score in scores.items() if name != "model"}
    if others:
        best = max(others, key=lambda name: others[name].balanced_accuracy)
        plots["confusion_baseline"] = confusion_plot(found.labels, others[best].confusion.tolist(), title=best)
    f1 = {name: [row.f1 for row in score.to_rows()] for name, score in scores.items()}
    plots["f1_by_class"] = by_part(found.labels, f1, label="F1 (higher is better)")
    return plots


def _draw_bits(found: Any) -> dict[str, Figure]:
    """Bits per sample of each clip, and by how many samples came before."""

    def measures(rows: Sequence[Any]) -> dict[str, list[float]]:
        names = {"model": "model", "linear": found.linear_name, "context": found.context_name}
        return {name: [getattr(row, key) for row in rows] for key, name in names.items()}

    label = "bits per sample (lower is better)"
    clips = [row for row in found.rows if row.name != "all"]
    plots = {"bits_by_clip": by_part([row.name for row in clips], measures(clips), label=label)}
    if len(found.by_context) > 1:
        before = [row.before for row in found.by_context]
        plots["bits_by_context"] = by_context(before, measures(found.by_context), label=label, x="samples known before")
    return plots


REPORT = Report(card=CARD, draw=draw_training)
