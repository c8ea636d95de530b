"""The MLflow model of a forecaster: a long table with series, stamps and observations in, their forecasts out.

MLflow runs this file when it loads the model. It imports only what travels with the model. A table is a pandas or a
Polars frame with the column names of the training; the series are read whole, so with ``spark_udf`` group the rows of a
series into one batch.
"""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from domains.timeseries.frame import forecast_columns
from domains.timeseries.trained import load_model


class SeriesForecaster(PythonModel):
    """Forecasts behind the last row of every series."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model folder, on the CPU."""
        self._loaded = load_model(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each series and step ahead; see :func:`domains.timeseries.frame.forecast_columns`."""
        frame = model_input if isinstance(model_input, pd.DataFrame) else _to_pandas(model_input)
        data, shape = self._loaded.config.data, self._loaded.scaler.shape
        names = frame[data.id].to_numpy() if data.id in frame else np.full(len(frame), "series")
        stamps = pd.to_datetime(frame[data.time], utc=True).to_numpy(dtype="datetime64[us]").astype(np.int64)
        covariates = {name: frame[name].to_numpy() for name in (*shape.past, *shape.future, *shape.static)}
        values = frame[data.target[0]].to_numpy(dtype=np.float64)
        table = pd.DataFrame(forecast_columns(self._loaded, names, stamps, values, covariates))
        for column in ("cutoff", "stamp"):
            table[column] = pd.to_datetime(table[column], unit="us")
        return table


def _to_pandas(frame: Any) -> pd.DataFrame:
    """A Polars frame column by column, so that neither library has to know the other."""
    return pd.DataFrame({name: frame[name].to_numpy() for name in frame.columns})


mlflow.models.set_model(SeriesForecaster())
