"""What a genomics run leaves in MLflow: how its model loads there, and its plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from pipelines.jobs import Report
from pipelines.plots import by_part, training_curve
from pipelines.recorder import ModelCard

if TYPE_CHECKING:
    from domains.genomics.evaluate import Evaluation

CARD = ModelCard(
    code=Path(__file__).with_name("pyfunc.py"),
    inputs={"sequence": "string"},
    outputs={"bases": "long", "log_likelihood": "double", "bits_per_base": "double"},
    packages=("mamba_core", "domains"),
    requires=("torch", "lightning", "numpy", "pandas", "pyyaml", "safetensors", "tqdm"),
)


def draw_training(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bits per base over training."""
    return training_curve(
        rows, training="train/bits_per_base", validation="validation/bits_per_base", label="loss (bits per base)"
    )


def draw_evaluation(evaluation: "Evaluation") -> dict[str, Figure]:
    """Bits per base of each test contig: the model and the Markov model."""
    rows = evaluation.by_contig
    measures = {"model": [row.model for row in rows], f"Markov {evaluation.chosen_order}": [row.markov for row in rows]}
    figure = by_part([row.name for row in rows], measures, label="bits per base (lower is better)")
    return {"bits_per_base_by_contig": figure}


REPORT = Report(card=CARD, draw=draw_training)
