"""The model folder of a forecaster: beside weights, settings, data and metrics there are two more files.

::

    scaler.json        what was learned from the training part before any weight was: the clock, the names of the
                       covariates, whether there are rows on weekends
    calibration.json   at which levels to read quantiles, from what was missed in the validation part

Reading a folder runs no code from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from domains import model_folder
from domains.errors import UserError
from domains.folder import read_json, write_json
from domains.store_folder import META
from domains.timeseries.calibration import ENOUGH, Calibrator, pooled_scores, quantiles_at
from domains.timeseries.config import LEVELS, DataConfig, SourceConfig, TrainConfig
from domains.timeseries.history import cumulated
from domains.timeseries.model import Forecaster, build_model
from domains.timeseries.scaler import Scaler
from domains.timeseries.splits import Splits, validation_border
from domains.timeseries.store import SeriesStore
from domains.timeseries.stream import forecasts, walk_series

SCALER, CALIBRATION = "scaler.json", "calibration.json"
FILES = model_folder.model_files(SCALER, CALIBRATION)
_OUTCOMES = 20_000  # of the validation part that are looked at, for each step ahead
_SERIES, _ROWS = 1000, 4_000_000  # that are read for it, at most, but for one series however long
_CHUNK = 4096


@dataclass(frozen=True)
class Calibration:
    """At which levels to read the quantiles of the steps ahead.

    Attributes:
        scores: float64 (horizon, levels), normal scores to read :data:`domains.timeseries.config.LEVELS` at.
    """

    scores: np.ndarray

    @classmethod
    def fit(cls, model: Forecaster, scaler: Scaler, store: SeriesStore, splits: Splits) -> "Calibration":
        """From the forecasts of the validation part, all series pooled."""
        levels = np.array(LEVELS)
        calibrator = Calibrator(levels, scaler.shape.horizon, _OUTCOMES)
        chosen = _some_series(store, splits)
        stride = max(1, sum(len(splits.validation_cutoffs(i)) for i in chosen) // _OUTCOMES)
        for series in chosen:
            cutoffs = np.array(splits.validation_cutoffs(series))[::stride]
            said = walk_series(model, scaler, store, series, cutoffs, _CHUNK)
            found = forecasts(model, said, levels)
            history = store.history(series)
            x = cumulated(history.x[: splits.validation_ends[series]], history.kind, cutoffs, scaler.shape.horizon)
            for step in range(scaler.shape.horizon):
                calibrator.push(step + 1, x[said.ripe, step], found.quantiles[said.ripe, step])
        return cls(calibrator.adjusted_scores())

    def after(self, scores: np.ndarray) -> "Calibration":
        """What follows from outcomes since, with this table where they are too few.

        Args:
            scores: float (series, horizon, window), normal scores of outcomes
                (:func:`domains.timeseries.calibration.scores_of`); NaN where there is none. Their order does not count.
        """
        pooled = np.moveaxis(scores, 1, 0).reshape(scores.shape[1], -1).astype(np.float64)
        return Calibration(pooled_scores(pooled, np.array(LEVELS), self.scores, ENOUGH))

    def apply(self, quantiles: np.ndarray) -> np.ndarray:
        """Corrected quantiles: float64 (..., horizon, levels) to the same."""
        return quantiles_at(quantiles, np.array(LEVELS), self.scores)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"levels": list(LEVELS), "normal_scores": self.scores.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str, horizon: int) -> "Calibration":
        """What :meth:`to_dict` gave; a UserError when it is something else."""
        try:
            scores = np.asarray(values["normal_scores"], dtype=np.float64)
            fits = list(values["levels"]) == list(LEVELS) and scores.shape == (horizon, len(LEVELS))
            fits = fits and bool(np.isfinite(scores).all()) and bool((np.diff(scores) >= 0).all())
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise UserError(f"{where}: holds no calibration of {horizon} steps; restore the file or train again")
        return cls(scores)


@dataclass(frozen=True)
class ModelRecord:
    """What is known about a trained model.

    Attributes:
        path: the model folder.
        config: of the training run, without its paths.
        scaler: what was learned from the training part before training.
        splits: as :meth:`domains.timeseries.splits.Splits.to_dict` gives them.
        fingerprint, source: of the series that it was trained on.
        series: names of the series that it was trained on.
        metrics: what it reached in training.
        calibration: of its quantiles, from the validation part.
    """

    path: Path
    config: TrainConfig
    scaler: Scaler
    splits: dict[str, Any]
    fingerprint: str
    source: str
    series: tuple[str, ...]
    metrics: dict[str, Any]
    calibration: Calibration

    @property
    def unseen_from(self) -> int:
        """Stamp from which on no row was trained on: the begin of the validation part, microseconds."""
        return validation_border(self.splits)


@dataclass(frozen=True)
class LoadedModel(ModelRecord):
    """A trained model and what is known about it.

    Attributes:
        model: in evaluation mode.
        hash: sha256 of model.safetensors, hexadecimal.
    """

    model: Forecaster
    hash: str


def describe_data(store: SeriesStore, splits: Splits) -> dict[str, Any]:
    """What data.json and splits.json hold: the series and their parts."""
    return {
        "source": store.source_name,
        "fingerprint": store.fingerprint,
        "splits": splits.to_dict(),
        "series": list(store.names),
    }


def save_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: TrainConfig,
    data: Mapping[str, Any],
    metrics: Mapping[str, float],
    *,
    scaler: Scaler,
    store: SeriesStore,
    splits: Splits,
) -> None:
    """Calibrate on the validation part and write a model folder, which appears whole, in place of an earlier one."""
    model = build_model(scaler.shape, config)
    model.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()})
    calibration = Calibration.fit(model.eval(), scaler, store, splits)
    portable = replace(config, data=_portable(config.data, store, str(data["source"])))
    own: dict[str, Callable[[Path], None]] = {
        SCALER: lambda path: write_json(path, scaler.to_dict()),
        CALIBRATION: lambda path: write_json(path, calibration.to_dict()),
    }
    model_folder.write_model_folder(folder, weights, portable, data, metrics, own)


def read_record(folder: Path | str) -> ModelRecord:
    """Read all of a model folder but the weights; a UserError when a file is missing or damaged."""
    folder = Path(folder)
    model_folder.check_complete(folder, FILES)
    config = model_folder.read_config(folder, TrainConfig)
    scaler = Scaler.from_dict(read_json(folder / SCALER), str(folder / SCALER))

    def parse(data: dict[str, Any]) -> tuple[dict[str, Any], str, str, tuple[str, ...]]:
        validation_border(data["splits"])
        return dict(data["splits"]), str(data["fingerprint"]), str(data["source"]), tuple(map(str, data["series"]))

    parsed = model_folder.read_data(folder, parse)
    where = folder / CALIBRATION
    calibration = Calibration.from_dict(read_json(where), str(where), scaler.shape.horizon)
    return ModelRecord(folder, config, scaler, *parsed, model_folder.read_metrics(folder), calibration)


def load_model(folder: Path | str, device: str = "cpu") -> LoadedModel:
    """Read a model folder.

    Raises:
        UserError: a file is missing or damaged, or the weights do not fit the settings.
    """
    record = read_record(folder)
    model = build_model(record.scaler.shape, record.config, where=str(record.path / model_folder.CONFIG))
    sha256 = model_folder.load_weights(record.path, model)
    return LoadedModel(**vars(record), model=model.to(device).eval(), hash=sha256)


def _some_series(store: SeriesStore, splits: Splits) -> list[int]:
    """Series with a validation part, spread over the store: so many as can be read in a few minutes."""
    members = [i for i in range(len(store)) if len(splits.validation_cutoffs(i))]
    rows = int(splits.validation_ends[members].sum())
    return members[:: max(1, -(-len(members) // _SERIES), -(-rows // _ROWS))]


def _portable(data: DataConfig, store: SeriesStore, source: str) -> DataConfig:
    """The settings with the table by its name alone (the bundled series have none), and with the columns that the store
    was prepared with: who trains on a store need not name them, but who forecasts another table must know them."""
    columns = read_json(store.path / META)["settings"]
    return replace(
        data,
        path=source if data.path or data.store else "",
        store="",
        stores=SourceConfig.stores,
        kind=store.kind,
        past=store.past_names,
        future=store.future_names,
        static=store.static_names,
        **columns,
    )
