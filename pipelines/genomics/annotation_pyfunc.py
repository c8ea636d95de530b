"""The MLflow model of annotation: a table with a column of sequences in, probabilities out.

MLflow runs this file when it loads the model. It imports only what travels with the model.
"""

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from domains.genomics.annotation.trained import annotate_sequence, load_annotator
from domains.genomics.tokens import encode


class Annotator(PythonModel):
    """Whole sequences: of a classifier with the window in the middle, of a segmenter of any length."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model folder, on the CPU."""
        self._loaded = load_annotator(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each sequence: ``probability``, or for each class and site a list with one for each base."""
        rows = [annotate_sequence(self._loaded, encode(sequence)) for sequence in model_input["sequence"]]
        return pd.DataFrame(rows, index=model_input.index)


mlflow.models.set_model(Annotator())
