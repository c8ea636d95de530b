"""NHITS of neuralforecast at the cut-offs of an evaluation, scored like every other method there.

It is trained once on the rows before the test part, for as many steps as were best on the validation part in a run
before (early stopping alone keeps the last weights, not the best, and its three million parameters soon know such
series by heart), and then forecasts at every cut-off from the rows before, as ``cross_validation(refit=False)`` does.
One step ahead its target is the increment; several steps ahead, where quantiles of a sum are wanted, the logarithm of a
price, or the level. Its input is the last 256 rows, its loss the quantile loss at the levels of the table. Missing
observations, which it does not know, repeat the one before. It says nothing of a variance: QLIKE is left out, and the
centre is its median.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domains.timeseries.config import LEVELS, EvaluateConfig
from domains.timeseries.evaluate import MODEL, evaluate, test_cutoffs
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.history import History, is_logarithmic
from domains.timeseries.report import Scores, score
from domains.timeseries.splits import splits_from_dict
from domains.timeseries.store import SeriesStore
from domains.timeseries.trained import load_model

INPUT, STEPS, CHECK = 256, 300, 10


def nhits_forecasts(
    histories: Sequence[History], rows: Sequence[np.ndarray], validation: int, horizon: int, levels: np.ndarray
) -> Forecasts:
    """Forecasts at the last ``len(rows[i])`` cut-offs of every series, which must be as many for each.

    Args:
        histories: the series. rows: int64 cut-offs of each, successive, the last of them ``horizon`` before its end.
        validation: rows before the test part that decide when training stops.
        horizon: steps ahead.
        levels: float64 (q,).
    """
    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import NHITS

    (count,) = {len(own) for own in rows}
    targets = [_target(history, horizon) for history in histories]
    frames = [
        pd.DataFrame({"unique_id": one.name, "ds": np.arange(len(y)), "y": y})
        for one, y in zip(histories, targets, strict=True)
    ]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}

    def walk(steps: int) -> tuple[Any, Any]:
        model = NHITS(
            h=horizon,
            input_size=INPUT,
            loss=MQLoss(quantiles=list(levels)),
            scaler_type="standard",
            max_steps=steps,
            val_check_steps=CHECK,
            random_seed=0,
            **quiet,
        )
        models = NeuralForecast(models=[model], freq=1)
        sizes = {"val_size": validation, "test_size": count + horizon - 1}
        found = models.cross_validation(pd.concat(frames), n_windows=None, step_size=1, refit=False, **sizes)
        return found, models.models[0].valid_trajectories

    _, trajectory = walk(STEPS)
    best, loss = min(trajectory, key=lambda pair: pair[1])
    print(f"NHITS: best on the validation part after {best + 1} of {STEPS} steps ({loss:.4g})")
    found, _ = walk(best + 1)
    if "unique_id" not in found:
        found = found.reset_index()
    columns = [name for name in found.columns if name.startswith("NHITS")]
    assert len(columns) == len(levels)
    parts = []
    for history, y, own in zip(histories, targets, rows, strict=True):
        one = found[found["unique_id"] == history.name].sort_values(["cutoff", "ds"])
        assert np.array_equal(one["cutoff"].to_numpy().reshape(count, horizon)[:, 0], own)
        quantiles = np.sort(one[columns].to_numpy(np.float64), axis=1).reshape(count, horizon, len(levels))
        parts.append(quantiles if _is_increment(history, horizon) else quantiles - y[own][:, None, None])
    quantiles = np.concatenate(parts)
    median = quantiles[..., int(np.searchsorted(levels, 0.5))]
    return Forecasts(levels, quantiles, median, np.full(median.shape, np.nan))


def _is_increment(history: History, horizon: int) -> bool:
    return history.kind == "return" or horizon == 1


def _target(history: History, horizon: int) -> np.ndarray:
    """What NHITS is trained on, float64 (n,)."""
    if _is_increment(history, horizon):
        return np.nan_to_num(history.x)
    y = np.log(history.y) if is_logarithmic(history.kind) else history.y
    last = np.maximum.accumulate(np.where(np.isnan(y), 0, np.arange(len(y))))  # of the rows that were observed
    return np.nan_to_num(y[last], nan=y[int(np.flatnonzero(~np.isnan(y))[0])])


def nhits_beside(model_dir: Path, store: SeriesStore, series: list[str], factor: float) -> dict[str, Scores]:
    """Its scores on the test part of the series, of all if none is named, compared with the model's."""
    config = EvaluateConfig(series=series, baselines=["naive"], calibrate=False)
    found = evaluate(model_dir, store, config, device="cpu", progress=False)
    splits = splits_from_dict(store, load_model(model_dir).splits, str(model_dir))
    places = [store.index(name) for name in found.outcomes.names]
    histories = [store.history(i) for i in places]
    rows = [test_cutoffs(splits, i, one, config) for i, one in zip(places, histories, strict=True)]
    validation = int((splits.validation_ends - splits.train_ends)[places[0]])
    own = nhits_forecasts(histories, rows, validation, splits.horizon, np.array(LEVELS))
    both = {MODEL: found.found[MODEL], "nhits": own}
    return {"nhits": score(found.outcomes, both, factor, reference=MODEL)["nhits"]}
