"""What the genomics commands do with models of annotation.

What is slow to import is imported where it is used, so that a mistake in the configuration is told at once.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from domains.genomics.annotation.pretrained import KINDS as KINDS  # of task.kind
from domains.genomics.config import DataConfig, EvaluateConfig
from pipelines.genomics.roots import TrainingSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from domains.genomics.annotation.evaluate import BaseEvaluation, WindowEvaluation
    from domains.genomics.annotation.table import FeatureTable
    from domains.genomics.store import GenomeStore
    from pipelines.places import ModelPlace

    Evaluation = WindowEvaluation | BaseEvaluation


def measure(
    place: "ModelPlace", store: "GenomeStore", source: TrainingSource, config: EvaluateConfig, device: str
) -> "Evaluation":
    """A model beside k-mer regression and Markov log-odds, or codon models, on what was held out from it."""
    from domains.genomics.annotation import evaluate as evaluation

    table = _training_annotation(place, source)
    return evaluation.evaluate(place.folder, store, table, config, device=device)


def draw(found: "Evaluation") -> "dict[str, Figure]":
    """The plots of an evaluation."""
    from pipelines.genomics.annotation_report import draw_evaluation

    return draw_evaluation(found)


def _training_annotation(place: "ModelPlace", source: TrainingSource) -> "FeatureTable":
    """The annotation that a model learned from: where the user says, or where it is found."""
    from domains.genomics.annotation.table import FeatureTable
    from domains.genomics.annotation.train import open_annotation
    from domains.genomics.annotation.trained import read_annotator
    from pipelines.places import find_training_data

    if source.annotation:
        return open_annotation(DataConfig(annotation=source.annotation, stores=source.stores))
    trained = read_annotator(place.folder)
    learned = replace(trained, fingerprint=trained.annotation["fingerprint"], source=trained.annotation["source"])
    return find_training_data(place, learned, source.stores, open_annotation, FeatureTable.open, key="data.annotation")
