"""What a genomics run leaves in MLflow: how its model loads there, and its plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from pipelines.jobs import Report
from pipelines.plots import by_part, histogram, save_figure, training_curve
from pipelines.recorder import ModelCard, Recorder

if TYPE_CHECKING:
    from domains.genomics.evaluate import Evaluation
    from domains.genomics.masked_evaluate import MaskedEvaluation
    from domains.genomics.variants.score import Scores

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


def draw_masked_evaluation(evaluation: "MaskedEvaluation") -> dict[str, Figure]:
    """Bits and shares told right of each test contig: the model and its baselines."""
    rows, names = evaluation.by_contig, list(evaluation.rows[0].bits)
    contigs = [row.name for row in rows]
    bits = {name: [row.bits[name] for row in rows] for name in names}
    shares = {name: [row.accuracy[name] for row in rows] for name in names}
    return {
        "bits_per_base_by_contig": by_part(contigs, bits, label="bits per hidden base (lower is better)"),
        "accuracy_by_contig": by_part(contigs, shares, label="share of hidden bases told right"),
    }


def record_scores(scores: "Scores", listener: Recorder) -> None:
    """How many variants have a score, why others have none, and how the scores lie by kind of variant."""
    import pyarrow.parquet as pq

    counts = {"alleles": sum(scores.scored.values()), "records": scores.records, **scores.scored}
    counts |= {f"unscored/{reason}": count for reason, count in scores.unscored.items()}
    listener.results({f"score/{name}": float(count) for name, count in counts.items()})
    table = pq.read_table(scores.table, columns=["kind", "llr"]).to_pandas()
    values = {str(kind): rows.llr.dropna().tolist() for kind, rows in table.groupby("kind", observed=True)}
    if any(values.values()):
        figure = histogram(values, label="log-likelihood ratio, nats (below 0: unlikelier than the reference)")
        listener.files([save_figure(figure, scores.folder / "scores_by_kind.png")], "plots")


REPORT = Report(card=CARD, draw=draw_training)
