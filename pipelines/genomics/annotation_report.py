"""What runs of annotation leave in MLflow: how their models load there, and their plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from pipelines.jobs import Report
from pipelines.plots import by_part, calibration_plot, curves_plot, training_curve
from pipelines.plots_locus import locus_plot
from pipelines.recorder import ModelCard

if TYPE_CHECKING:
    from domains.genomics.annotation.evaluate import BaseEvaluation, WindowEvaluation

CARD = ModelCard(
    code=Path(__file__).with_name("annotation_pyfunc.py"),
    inputs={"sequence": "string"},
    outputs={},  # a classifier gives a column, a segmenter a column of lists for each class and site
    packages=("mamba_core", "domains"),
    requires=("torch", "lightning", "numpy", "pandas", "pyyaml", "safetensors", "tqdm"),
)


def draw_training(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The loss over training."""
    return training_curve(rows, training="train/loss", validation="validation/loss", label="loss (nats)")


def draw_evaluation(found: "WindowEvaluation | BaseEvaluation") -> dict[str, Figure]:
    """ROC and precision-recall curves, calibration, contigs one by one, and a stretch of a test contig."""
    names = [method.name for method in found.methods][:4]
    rows, score = found.by_contig, found.contig_score
    curves = found.curves.items()
    return {
        "roc": curves_plot(
            {name: _plain(one.roc) for name, one in curves},
            labels=("false positive rate", "true positive rate"),
            chance=((0, 1), (0, 1)),
        ),
        "precision_recall": curves_plot({name: _plain(one.pr) for name, one in curves}, labels=("recall", "precision")),
        "calibration": calibration_plot(
            {name: _plain((one.reliability.said, one.reliability.true)) for name, one in curves}
        ),
        "contigs": by_part(
            [row.contig for row in rows],
            {name: [row.scores[name] for row in rows] for name in names},
            label=f"{score} (higher is better)",
        ),
        "locus": locus_plot(found.locus),
    }


def _plain(points: tuple[Any, Any]) -> tuple[list[float], list[float]]:
    return points[0].tolist(), points[1].tolist()


REPORT = Report(card=CARD, draw=draw_training)
