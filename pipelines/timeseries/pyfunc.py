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
from domains.timeseries.forecast_shard import load_for_job
from domains.timeseries.frame import forecast_columns


class SeriesForecaster(PythonModel):
    """Forecasts behind the last row of every series."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model folder, on the CPU."""
        self._loaded = load_for_job(context.artifacts["model"], "cpu")

    # MLflow knows what to make of this type hint, and says nothing. A Polars frame is passed on as it is.
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each series and step ahead; see :func:`domains.timeseries.frame.forecast_columns`.

        Raises:
            UserError: a column, a name or a stamp is missing, two rows of a series have the same stamp, or a value
                cannot be used; the line names column, row and series.
        """
        data, shape = self._loaded.config.data, self._loaded.scaler.shape
        names = [*shape.past, *shape.future, *shape.static]
        frame = _to_pandas(model_input, [data.time, *data.target, *names], data.id)
        try:
            stamps, offset = _clock(frame[data.time], _zone(model_input[data.time]))
        except (ValueError, TypeError) as error:
            raise UserError(f"column {data.time}: holds what is no stamp ({error})") from None
        covariates = {name: frame[name].to_numpy() for name in names}
        parts = []
        for target in data.target:
            series = frame[data.id].astype(str) + (f"/{target}" if len(data.target) > 1 else "")
            y = frame[target].to_numpy()
            found = forecast_columns(self._loaded, series.to_numpy(object), stamps, y, covariates, offset, target)
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
    frame = frame.assign(**{name: given[name].to_numpy() if name in given.columns else "series"})
    for column in (name, columns[0]):
        if frame[column].isna().any():
            raise UserError(f"column {column}: row {int(frame[column].isna().argmax()) + 1} is empty; take the row out")
    return frame


def _zone(column: Any) -> str | None:
    """The zone of a typed column of stamps, of pandas or Polars; None when it has none."""
    zone = getattr(column.dtype, "tz", None) or getattr(column.dtype, "time_zone", None)
    return None if zone is None else str(zone)


def _clock(column: pd.Series, zone: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Stamps in microseconds UTC, and seconds that the clock that they are written on is ahead of UTC, int64 (n,)."""
    if column.dtype == object:  # text, or Python's datetimes: each may have an offset of its own
        offsets = [stamp.utcoffset() for stamp in map(pd.Timestamp, column)]
        offset = np.array([0 if one is None else int(one.total_seconds()) for one in offsets], dtype=np.int64)
    time = pd.to_datetime(column, utc=True)
    if column.dtype != object:
        local = time.dt.tz_convert(zone or "UTC").dt.tz_localize(None)
        offset = (_microseconds(local) - _microseconds(time.dt.tz_localize(None))) // 1_000_000
    return _microseconds(time.dt.tz_localize(None)), offset


def _microseconds(stamps: pd.Series) -> np.ndarray:
    return stamps.to_numpy("datetime64[us]").astype(np.int64)


mlflow.models.set_model(SeriesForecaster())
