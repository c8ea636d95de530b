"""The MLflow model of annotation: a table with a column of sequences in, probabilities out.

MLflow runs this file when it loads the model. It imports only what travels with the model.
"""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext

from domains.genomics.annotation.labels import SITES
from domains.genomics.annotation.models import WindowClassifier
from domains.genomics.annotation.trained import load_annotator
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
        return pd.DataFrame([self._score(sequence) for sequence in model_input["sequence"]], index=model_input.index)

    @torch.inference_mode()
    def _score(self, sequence: str) -> dict[str, Any]:
        tokens = torch.from_numpy(encode(sequence).astype(np.int64))[None]
        model = self._loaded.model
        if isinstance(model, WindowClassifier):
            if tokens.shape[1] < model.window:
                raise ValueError(f"a sequence of {tokens.shape[1]} bases is shorter than the window of {model.window}")
            return {"probability": float(torch.sigmoid(model(tokens))[0])}
        said = model(tokens)
        classes, sites = torch.softmax(said.classes[0], -1).T.tolist(), torch.sigmoid(said.sites[0]).T.tolist()
        return dict(zip([*self._loaded.classes, *SITES], [*classes, *sites], strict=True))


mlflow.models.set_model(Annotator())
