"""Walk-forward evaluation: a forecast at every row of the test part, the baselines beside it at the same cut-offs.

The model's weights are fixed and its state is carried on, row by row; baselines are fitted on everything before the
test part and walk on with their parameters fixed. With ``refit_every`` the baselines, and if asked for the model, are
fitted anew on the way (:mod:`domains.timeseries.refit`). Intervals are corrected from what was missed before
(conformal), of the outcomes that were known by then.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from domains.config import MANY, check_range
from domains.errors import UserError
from domains.hardware import choose_device
from domains.timeseries.baselines import Baseline, make_baselines
from domains.timeseries.calibration import ENOUGH, recalibrate, recalibrate_together
from domains.timeseries.config import CALIBRATION_WINDOW, LEVELS, EvaluateConfig, ForecastConfig
from domains.timeseries.data import WARM_UP
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.history import POWERS, History, cumulated
from domains.timeseries.refit import Block, blocks_of, refitted
from domains.timeseries.report import Outcomes, Scores, plain, score
from domains.timeseries.splits import Splits, splits_from_dict
from domains.timeseries.states import shard_count, shard_of
from domains.timeseries.store import SeriesStore
from domains.timeseries.stream import forecasts, walk_series
from domains.timeseries.table import lines_of
from domains.timeseries.trained import LoadedModel, ModelRecord, load_model
from domains.words import counted

MODEL, CALIBRATED, SHIPPED = "model", "model, calibrated", "model, as forecast"
_EVER = int(np.iinfo(np.int64).min)


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
        lines = [f"{self.source}: {self.note}", *lines_of(self.scores, self.unit)]
        if SHIPPED in self.scores:
            lines += ["", f"{SHIPPED}: corrected as forecast does by default when it is run at each cut-off"]
        return "\n".join(lines)

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
    chosen = str(choose_device(device))
    loaded = load_model(model_dir, chosen)
    check_series(loaded, store)
    splits = splits_from_dict(store, loaded.splits, str(loaded.path / "data.json"))
    every = [store.history(i) for i in range(len(store))]
    rows = [test_cutoffs(splits, i, history, config) for i, history in enumerate(every)]
    wanted = {store.index(name) for name in config.series} or set(range(len(store)))
    kept = [i for i in range(len(store)) if len(rows[i]) and i in wanted]
    if not kept:
        which = "none of the series asked for" if config.series else "no series"
        raise UserError(f"{store.source_name}: {which} has rows in the test part and {WARM_UP} observations before it")
    blocks = blocks_of([every[i] for i in kept], [rows[i] for i in kept], config.refit_every)

    def walk_of(members: list[int]) -> Walk:
        own = [every[i] for i in members], [rows[i] for i in members]
        return Walk(members, *own, splits.train_ends[members], splits.validation_ends[members], splits.horizon, blocks)

    walk = walk_of(kept)
    beside = [i for i in _shard_mates(store, kept) if len(rows[i])] if config.calibrate else []
    with refitted(loaded, store, splits, blocks, chosen) as models:
        those = models if config.refit_model else iter([loaded])
        found = _model_forecasts(those, store, walk_of(kept + beside), len(kept), config, progress)
    for baseline in make_baselines(config.baselines, config.max_statistical, loaded.scaler.kind):
        if progress:
            print(f"baseline: {baseline.name}", file=sys.stderr)
        found[baseline.name] = _baseline_forecasts(baseline, walk)
    outcomes = Outcomes.of(walk.histories, walk.cutoffs, walk.ends, walk.horizon)
    factor, unit = unit_of(loaded.scaler.kind, config)
    scores = score(outcomes, found, factor, next(iter(found)), POWERS.get(loaded.scaler.kind))
    count = len(outcomes.series)
    some = f"{len(kept):,} of " if len(kept) < len(store) else ""
    note = (
        f"{counted(count, 'cut-off')} of {some}{len(store):,} series from {splits.to_dict()['test']}, "
        f"{counted(walk.horizon, 'step')} ahead"
    )
    if config.refit_every is not None:
        note += f", {'all' if config.refit_model else 'baselines'} fitted anew every {config.refit_every:,} cut-offs"
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
        blocks: the cut-offs in time; what is fitted anew is so at the start of each but the first.
    """

    places: list[int]
    histories: list[History]
    cutoffs: list[np.ndarray]
    begins: np.ndarray
    ends: np.ndarray
    horizon: int
    blocks: list[Block]


def check_config(config: EvaluateConfig) -> None:
    """Make sure that the values make sense; a UserError names the first that does not."""
    check_range("stride", config.stride, 1, MANY)
    check_range("chunk", config.chunk, 1, MANY)
    check_range("calibration_window", config.calibration_window, 1, MANY)
    check_range("max_statistical", config.max_statistical, 0, MANY)
    if config.refit_every is not None:
        check_range("refit_every", config.refit_every, 1, MANY)
    elif config.refit_model:
        raise UserError("refit_model=true: say after how many cut-offs, with refit_every")
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


def _shard_mates(store: SeriesStore, kept: Sequence[int]) -> list[int]:
    """Other series that the batch job would keep in one file with these, and correct together with them."""
    shards = shard_count(len(store), ForecastConfig.series_per_shard)
    numbers = [shard_of(name, shards) for name in store.names]
    wanted = {numbers[i] for i in kept}
    return [i for i in range(len(store)) if numbers[i] in wanted and i not in set(kept)]


def unit_of(kind: str, config: EvaluateConfig) -> tuple[float, str]:
    """What increments are multiplied by in the table, and what they are then."""
    factor = config.unit if config.unit is not None else (100.0 if kind == "price" else 1.0)
    what = {"price": "log returns", "return": "returns", "level": "changes"}.get(kind, f"log changes of the {kind}")
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
    models: Iterator[LoadedModel], store: SeriesStore, walk: Walk, scored: int, config: EvaluateConfig, progress: bool
) -> dict[str, Forecasts]:
    """Of the model as it is; corrected by a trailing window of what was missed, from the validation part on; and as the
    batch job writes it, with its defaults and a row at a time: by a shorter window of each series, pooled over those of
    a file of states, or by the validation part where these hold too few outcomes.

    With ``stride`` the outcomes of the rows between are not there, and with ``refit_model`` the windows go on from the
    model before, where the job would begin anew.

    Args:
        models: one for each block, or one for all.
        scored: how many series of the walk, the first ones, are given back; the others only correct them.
    """
    levels = np.array(LEVELS)
    before = [_calibration_rows(walk, i, config) for i in range(len(walk.places))]
    rows = [np.concatenate(pair) for pair in zip(before, walk.cutoffs, strict=True)]
    parts: list[list[Forecasts]] = [[] for _ in rows]
    shipped: list[list[np.ndarray]] = [[] for _ in rows]  # as the validation part corrects them
    blocks = walk.blocks if config.refit_model else [replace(walk.blocks[0], end=walk.blocks[-1].end)]
    for number, (block, loaded) in enumerate(zip(blocks, models, strict=True)):
        what = f"walking, model {number + 1} of {len(blocks)}" if config.refit_model else "walking"
        for i in tqdm(range(len(rows)), desc=what, unit="series", disable=not progress):
            own = rows[i][block.part(walk.histories[i].time[rows[i]], since=None if number else _EVER)]
            if len(own):
                said = walk_series(loaded.model, loaded.scaler, store, walk.places[i], own, config.chunk)
                parts[i].append(forecasts(loaded.model, said, levels))
                shipped[i].append(loaded.calibration.apply(parts[i][-1].quantiles))
    found = [pooled(own) for own in parts]
    wanted = [slice(len(one), None) for one in before[:scored]]
    plain = pooled([_rows_of(one, part) for one, part in zip(found[:scored], wanted, strict=True)])
    if not config.calibrate:
        return {MODEL: plain}
    outcomes = [cumulated(one.x, one.kind, own, walk.horizon) for one, own in zip(walk.histories, rows, strict=True)]
    times = [history.time for history in walk.histories]
    given = [[one.quantiles for one in found], outcomes, rows, times]
    quantiles, known, at, clocks = (part[:scored] for part in given)
    trailing = recalibrate(levels, quantiles, known, at, config.calibration_window, time=clocks)
    job = _as_the_job(store, [history.name for history in walk.histories], given, list(map(np.concatenate, shipped)))
    return {MODEL: plain} | {
        name: replace(plain, quantiles=np.concatenate([q[part] for q, part in zip(corrected, wanted, strict=True)]))
        for name, corrected in ((CALIBRATED, trailing), (SHIPPED, job[:scored]))
    }


def _as_the_job(
    store: SeriesStore, names: Sequence[str], given: Sequence[list[np.ndarray]], otherwise: list[np.ndarray]
) -> list[np.ndarray]:
    """Quantiles of each series as the batch job corrects them; ``given`` as :func:`recalibrate_together` takes it."""
    shards = shard_count(len(store), ForecastConfig.series_per_shard)
    numbers = np.array([shard_of(name, shards) for name in names])
    corrected = list(otherwise)
    for number in np.unique(numbers):
        members = np.flatnonzero(numbers == number)
        q, x, rows, time, table = ([part[i] for i in members] for part in (*given, otherwise))
        made = recalibrate_together(np.array(LEVELS), q, x, rows, time, table, CALIBRATION_WINDOW, ENOUGH)
        for i, quantiles in zip(members, made, strict=True):
            corrected[i] = quantiles
    return corrected


def _calibration_rows(walk: Walk, i: int, config: EvaluateConfig) -> np.ndarray:
    """Rows of series i before its cut-offs, at their stride, whose forecasts the first corrections rest on."""
    cutoff, window = int(walk.cutoffs[i][0]), max(config.calibration_window, CALIBRATION_WINDOW)
    first = max(int(walk.begins[i]), cutoff - window * config.stride)
    rows = np.arange(first + (cutoff - first) % config.stride, cutoff, config.stride)
    return rows[_ripe(walk.histories[i])[rows]]


def _rows_of(found: Forecasts, rows: slice) -> Forecasts:
    return Forecasts(found.levels, found.quantiles[rows], found.mean[rows], found.variance[rows])


def _baseline_forecasts(baseline: Baseline, walk: Walk) -> Forecasts:
    """Of all series; NaN for those that the baseline does not cover."""
    levels = np.array(LEVELS)
    parts: list[list[Forecasts]] = [[] for _ in walk.places]
    for number, block in enumerate(walk.blocks):
        ends = np.array([block.known(history) for history in walk.histories]) if number else walk.ends
        baseline.fit(walk.histories, ends, walk.horizon)
        for i, (history, cutoffs) in enumerate(zip(walk.histories, walk.cutoffs, strict=True)):
            own = cutoffs[block.part(history.time[cutoffs])]
            if baseline.covers(i):
                parts[i].append(baseline.forecast(i, history, own, walk.horizon, levels))
                continue
            nothing = np.full((len(own), walk.horizon), np.nan)
            parts[i].append(Forecasts(levels, np.full((*nothing.shape, len(levels)), np.nan), nothing, nothing))
    return pooled([pooled(own) for own in parts])
