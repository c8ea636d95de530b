"""The MLflow model of a DNA language model: a table with a column of sequences in, their scores out.

MLflow runs this file when it loads the model. It imports only what travels with the model.
"""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from domains.genomics.masked_windows import score_any_sequence
from domains.genomics.model import load_model
from domains.genomics.tokens import encode


class DnaScorer(PythonModel):
    """Scores whole sequences; columns as :data:`pipelines.genomics.report.CARD` declares them."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model folder, on the CPU."""
        self._model = load_model(context.artifacts["model"]).model

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each sequence: known bases, their log-likelihood in nats (forward strand), bits per base.

        Of a masked model it is the pseudo-log-likelihood: each base given those around it.
        """
        return pd.DataFrame([self._score(sequence) for sequence in model_input["sequence"]], index=model_input.index)

    def _score(self, sequence: str) -> dict[str, float]:
        scores = score_any_sequence(self._model, encode(sequence)).astype(np.float64)
        known = int(np.isfinite(scores).sum())
        total = float(np.nansum(scores))
        return {
            "bases": known,
            "log_likelihood": total,
            "bits_per_base": -total / known / np.log(2) if known else float("nan"),
        }


mlflow.models.set_model(DnaScorer())
