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

from domains.errors import UserError
from domains.timeseries.frame import forecast_columns
from domains.timeseries.trained import load_model


class SeriesForecaster(PythonModel):
    """Forecasts behind the last row of every series."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model folder, on the CPU."""
        self._loaded = load_model(context.artifacts["model"])

    # MLflow knows what to make of this type hint, and says nothing. A Polars frame is passed on as it is.
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each series and step ahead; see :func:`domains.timeseries.frame.forecast_columns`.

        Raises:
            UserError: a column is missing, or two rows of a series have the same stamp.
        """
        data, shape = self._loaded.config.data, self._loaded.scaler.shape
        names = [*shape.past, *shape.future, *shape.static]
        frame = _to_pandas(model_input, [data.time, *data.target, *names], data.id)
        stamps = pd.to_datetime(frame[data.time], utc=True).dt.tz_localize(None).to_numpy("datetime64[us]")
        covariates = {name: frame[name].to_numpy() for name in names}
        parts = []
        for target in data.target:
            series = frame[data.id].astype(str) + (f"/{target}" if len(data.target) > 1 else "")
            y = frame[target].to_numpy(np.float64)
            found = forecast_columns(self._loaded, series.to_numpy(object), stamps.astype(np.int64), y, covariates)
            parts.append(pd.DataFrame(found))
        table = pd.concat(parts, ignore_index=True)
        return table.assign(**{name: pd.to_datetime(table[name], unit="us") for name in ("cutoff", "stamp")})


def _to_pandas(given: Any, columns: list[str], name: str) -> pd.DataFrame:
    """The columns of a pandas or Polars frame, taken one by one so that neither library has to know the other. A table
    without the column of series' names is one series."""
    for column in columns:
        if column not in given.columns:
            raise UserError(f"the table has no column {column!r}; the model was trained with {', '.join(columns)}")
    frame = pd.DataFrame({column: given[column].to_numpy() for column in columns})
    return frame.assign(**{name: given[name].to_numpy() if name in given.columns else "series"})


mlflow.models.set_model(SeriesForecaster())
