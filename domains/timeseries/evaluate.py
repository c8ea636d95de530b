"""Walk-forward evaluation: a forecast at every row of the test part, the baselines beside it at the same cut-offs.

The model's weights are fixed and its state is carried on, row by row; baselines are fitted on everything before the
test part and walk on with their parameters fixed. Intervals are corrected from what was missed before (conformal), of
the outcomes that were known by then.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from domains.config import MANY, check_range
from domains.errors import UserError
from domains.hardware import choose_device
from domains.timeseries.baselines import Baseline, make_baselines
from domains.timeseries.calibration import recalibrate
from domains.timeseries.config import LEVELS, EvaluateConfig
from domains.timeseries.data import WARM_UP
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.history import History, cumulated
from domains.timeseries.report import Outcomes, Scores, lines_of, plain, score
from domains.timeseries.splits import Splits, splits_from_dict
from domains.timeseries.store import SeriesStore
from domains.timeseries.stream import forecasts, walk_series
from domains.timeseries.trained import LoadedModel, ModelRecord, load_model

MODEL, CALIBRATED, SHIPPED = "model", "model, calibrated", "model, as forecast"


@dataclass(frozen=True)
class Evaluation:
    """What came of an evaluation.

    Attributes:
        source: name of the table of series. model: sha256 of the weights.
        unit: what the table's numbers are in, for people; increments times ``factor`` are in it.
        outcomes: what was to be foretold.
        found: method to its forecasts, pooled over series as ``outcomes`` is.
        scores: method to its numbers, the model first.
        note: about cut-offs and series.
    """

    source: str
    model: str
    unit: str
    factor: float
    outcomes: Outcomes
    found: Mapping[str, Forecasts]
    scores: Mapping[str, Scores]
    note: str

    def table(self) -> str:
        """For people."""
        return "\n".join([f"{self.source}: {self.note}", *lines_of(self.scores, self.unit)])

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as plain values."""
        about = {"source": self.source, "model_sha256": self.model, "unit": self.unit, "factor": self.factor}
        return {**about, "note": self.note, "methods": plain(self.scores)}

    def metrics(self) -> dict[str, float]:
        """The numbers that MLflow is to show: ``test/<method>/<number>``."""
        return {
            f"test/{name.replace(', ', '_')}/{key}": value
            for name, one in self.scores.items()
            for key, value in one.overall.items()
            if np.isfinite(value)
        }


def evaluate(
    model_dir: Path | str, store: SeriesStore, config: EvaluateConfig, *, device: str = "auto", progress: bool = True
) -> Evaluation:
    """Score a model and the baselines on the part of the series that was held out from it.

    Raises:
        UserError: the series are not those of the training, or settings that make no sense.
    """
    check_config(config)
    loaded = load_model(model_dir, str(choose_device(device)))
    check_series(loaded, store)
    splits = splits_from_dict(store, loaded.splits, str(loaded.path / "data.json"))
    every = [store.history(i) for i in range(len(store))]
    rows = [test_cutoffs(splits, i, history, config) for i, history in enumerate(every)]
    wanted = {store.index(name) for name in config.series} or set(range(len(store)))
    kept = [i for i in range(len(store)) if len(rows[i]) and i in wanted]
    if not kept:
        which = "none of the series asked for" if config.series else "no series"
        raise UserError(f"{store.source_name}: {which} has rows in the test part and {WARM_UP} observations before it")
    begins, ends = splits.train_ends[kept], splits.validation_ends[kept]
    walk = Walk(kept, [every[i] for i in kept], [rows[i] for i in kept], begins, ends, splits.horizon)
    found = _model_forecasts(loaded, store, walk, config, progress)
    for baseline in make_baselines(config.baselines, config.max_statistical):
        if progress:
            print(f"baseline: {baseline.name}", file=sys.stderr)
        found[baseline.name] = _baseline_forecasts(baseline, walk)
    outcomes = Outcomes.of(walk.histories, walk.cutoffs, walk.ends, walk.horizon)
    factor, unit = unit_of(loaded.scaler.kind, config)
    scores = score(outcomes, found, factor, reference=next(iter(found)))
    count = len(outcomes.series)
    some = f"{len(kept):,} of " if len(kept) < len(store) else ""
    note = (
        f"{count:,} cut-off{'s' if count > 1 else ''} of {some}{len(store):,} series from {splits.to_dict()['test']}, "
        f"{walk.horizon} step{'s' if walk.horizon > 1 else ''} ahead"
    )
    return Evaluation(store.source_name, loaded.hash, unit, factor, outcomes, found, scores, note)


@dataclass(frozen=True)
class Walk:
    """Series to walk through, and where forecasts are made.

    Attributes:
        places: of the series in the store.
        histories: whole series. cutoffs: int64 rows of each at which it is forecast.
        begins: int64, the first row of each that the model was not trained on.
        ends: int64, rows of each before the test part, which baselines may be fitted on.
        horizon: steps ahead.
    """

    places: list[int]
    histories: list[History]
    cutoffs: list[np.ndarray]
    begins: np.ndarray
    ends: np.ndarray
    horizon: int


def check_config(config: EvaluateConfig) -> None:
    """Make sure that the values make sense; a UserError names the first that does not."""
    check_range("stride", config.stride, 1, MANY)
    check_range("chunk", config.chunk, 1, MANY)
    check_range("calibration_window", config.calibration_window, 1, MANY)
    check_range("max_statistical", config.max_statistical, 0, MANY)
    if config.max_cutoffs is not None:
        check_range("max_cutoffs", config.max_cutoffs, 1, MANY)
    if config.unit is not None and not 0 < config.unit < float("inf"):
        raise UserError(f"unit={config.unit}: must be more than 0, and finite")


def check_series(loaded: ModelRecord, store: SeriesStore) -> None:
    """Make sure that ``store`` holds the series that the model was trained on."""
    if store.fingerprint != loaded.fingerprint:
        raise UserError(
            f"{store.source_name}: does not hold the series that {loaded.path} was trained on ({loaded.source}); "
            "evaluate on those, or use forecast for other rows"
        )


def test_cutoffs(splits: Splits, series: int, history: History, config: EvaluateConfig) -> np.ndarray:
    """Rows of a series at which it is forecast, int64; none where baselines have next to nothing to be fitted on."""
    if not _ripe(history)[: splits.validation_ends[series]].any():
        return np.zeros(0, dtype=np.int64)
    found = splits.test_cutoffs(series, len(history))
    rows = np.arange(found.start, found.stop, config.stride)
    return rows if config.max_cutoffs is None else rows[-config.max_cutoffs :]


def _ripe(history: History) -> np.ndarray:
    """Whether a series has shown enough increments to be forecast by each of its rows, bool (n,)."""
    return np.cumsum(~np.isnan(history.x)) >= WARM_UP


def unit_of(kind: str, config: EvaluateConfig) -> tuple[float, str]:
    """What increments are multiplied by in the table, and what they are then."""
    factor = config.unit if config.unit is not None else (100.0 if kind == "price" else 1.0)
    what = {"price": "log returns", "return": "returns", "level": "changes"}[kind]
    if kind == "price" and factor in (100.0, 1e4):
        return factor, f"{what} in {'per cent' if factor == 100.0 else 'basis points'}"
    return factor, f"{what}{f' times {factor:g}' if factor != 1 else ''}"


def pooled(parts: Sequence[Forecasts]) -> Forecasts:
    """Forecasts of several series, one behind the other."""
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("quantiles", "mean", "variance")
    }
    return Forecasts(parts[0].levels, **joined)


def _model_forecasts(
    loaded: LoadedModel, store: SeriesStore, walk: Walk, config: EvaluateConfig, progress: bool
) -> dict[str, Forecasts]:
    """Of the model as it is; corrected by a trailing window of what was missed, from the validation part on; and
    corrected once, by the validation part, as the batch job writes it."""
    model, scaler, levels = loaded.model, loaded.scaler, np.array(LEVELS)
    rows: list[np.ndarray] = []
    found: list[Forecasts] = []
    for place, history, cutoffs, begin in tqdm(
        zip(walk.places, walk.histories, walk.cutoffs, walk.begins, strict=True),
        total=len(walk.places),
        desc="walking",
        unit="series",
        disable=not progress,
    ):
        first = max(int(begin), int(cutoffs[0]) - config.calibration_window * config.stride)
        before = np.arange(first + (int(cutoffs[0]) - first) % config.stride, cutoffs[0], config.stride)
        rows.append(np.concatenate([before[_ripe(history)[before]], cutoffs]))
        said = walk_series(model, scaler, store, place, rows[-1], config.chunk)
        found.append(forecasts(model, said, levels))
    wanted = [slice(len(all_rows) - len(cutoffs), None) for all_rows, cutoffs in zip(rows, walk.cutoffs, strict=True)]
    plain = pooled([_rows_of(one, part) for one, part in zip(found, wanted, strict=True)])
    if not config.calibrate:
        return {MODEL: plain}
    outcomes = [
        cumulated(history.x, history.kind, all_rows, walk.horizon)
        for history, all_rows in zip(walk.histories, rows, strict=True)
    ]
    corrected = recalibrate(
        levels,
        [one.quantiles for one in found],
        outcomes,
        rows,
        config.calibration_window,
        time=[history.time for history in walk.histories],
    )
    better = [
        _rows_of(replace(one, quantiles=quantiles), part)
        for one, quantiles, part in zip(found, corrected, wanted, strict=True)
    ]
    shipped = replace(plain, quantiles=loaded.calibration.apply(plain.quantiles))
    return {MODEL: plain, CALIBRATED: pooled(better), SHIPPED: shipped}


def _rows_of(found: Forecasts, rows: slice) -> Forecasts:
    return Forecasts(found.levels, found.quantiles[rows], found.mean[rows], found.variance[rows])


def _baseline_forecasts(baseline: Baseline, walk: Walk) -> Forecasts:
    """Of all series; NaN for those that the baseline does not cover."""
    levels = np.array(LEVELS)
    baseline.fit(walk.histories, walk.ends, walk.horizon)
    parts = []
    for i, (history, cutoffs) in enumerate(zip(walk.histories, walk.cutoffs, strict=True)):
        if baseline.covers(i):
            parts.append(baseline.forecast(i, history, cutoffs, walk.horizon, levels))
            continue
        nothing = np.full((len(cutoffs), walk.horizon), np.nan)
        parts.append(Forecasts(levels, np.full((*nothing.shape, len(levels)), np.nan), nothing, nothing))
    return pooled(parts)
