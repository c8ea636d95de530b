"""What a time series run leaves in MLflow: how its model loads there, and its plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from domains.timeseries.config import LEVELS
from pipelines.jobs import Report
from pipelines.plots import by_part, by_step, coverage_plot, fan_chart, pit_histogram, training_curve
from pipelines.recorder import ModelCard

if TYPE_CHECKING:
    from domains.timeseries.evaluate import Evaluation

CARD = ModelCard(
    code=Path(__file__).with_name("pyfunc.py"),
    inputs={},  # as the user's table has them; it may also be a Polars frame, which MLflow could not check
    outputs={
        "series": "string",
        "cutoff": "datetime",
        "step": "long",
        "stamp": "datetime",
        "last": "double",
        "centre": "double",
        "scale": "double",
        **{f"q{level:g}": "double" for level in LEVELS},
    },
    packages=("mamba_core", "domains"),
    requires=("torch", "lightning", "numpy", "pandas", "pyyaml", "safetensors", "scipy", "tqdm"),
)
_SHOWN = 120  # cut-offs of a fan chart
_METHODS = 4  # told apart in a plot


def draw_training(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss over training."""
    return training_curve(rows, training="train/loss", validation="validation/loss", label="loss")


def draw_evaluation(found: "Evaluation") -> dict[str, Figure]:
    """The plots of an evaluation, by file name without ending."""
    from domains.timeseries.report import pit

    first = next(iter(found.found))
    rivals = sorted(found.scores, key=lambda name: np.nan_to_num(found.scores[name].overall["crps"], nan=np.inf))
    shown = [first, *[name for name in rivals if name != first][: _METHODS - 1]]
    x = found.factor * found.outcomes.x
    plots = {"fan_chart": _fan(found, first)}
    kept = {name: [found.scores[name].overall[f"coverage_{100 * c:.0f}"] for c in _nominal(found)] for name in shown}
    plots["coverage"] = coverage_plot(_nominal(found), kept)
    scaled = {name: _scaled(found, name) for name in shown[:2]}
    plots["pit"] = pit_histogram(
        {name: np.histogram(_known(pit(x, f)), 20, (0, 1))[0].tolist() for name, f in scaled.items()}
    )
    steps = list(range(1, x.shape[1] + 1))
    if len(steps) > 1:
        plots["crps_by_step"] = by_step(
            steps, {name: found.scores[name].by_step["crps"] for name in shown}, label=f"CRPS ({found.unit})"
        )
    if len(found.outcomes.names) > 1:
        values = {name: list(found.scores[name].by_series.values()) for name in shown}
        plots["crps_by_series"] = by_part(list(found.outcomes.names), values, label=f"CRPS ({found.unit})")
    return plots


def _nominal(found: "Evaluation") -> list[float]:
    """The central intervals that were measured, as shares."""
    first = next(iter(found.scores.values())).overall
    return sorted(float(key.removeprefix("coverage_")) / 100 for key in first if key.startswith("coverage_"))


def _fan(found: "Evaluation", method: str) -> Figure:
    """The last cut-offs of the first series, one step ahead."""
    own = np.flatnonzero(found.outcomes.series == 0)[-_SHOWN:]
    forecasts = found.found[method]
    quantiles = found.factor * forecasts.quantiles[own, 0]
    levels = forecasts.levels
    bands = {}
    for low in (0.025, 0.1, 0.3):
        a, b = (int(np.argmin(np.abs(levels - level))) for level in (low, 1 - low))
        bands[f"{1 - 2 * low:.0%}"] = (quantiles[:, a].tolist(), quantiles[:, b].tolist())
    times = found.outcomes.later[own, 0].astype("datetime64[us]").astype(object).tolist()
    middle = quantiles[:, int(np.argmin(np.abs(levels - 0.5)))].tolist()
    observed = (found.factor * found.outcomes.x[own, 0]).tolist()
    title = f"{found.outcomes.names[0]}: {method}, one step ahead"
    return fan_chart(times, observed, bands, middle, label=found.unit, title=title)


def _scaled(found: "Evaluation", name: str) -> Any:
    from dataclasses import replace

    return replace(found.found[name], quantiles=found.factor * found.found[name].quantiles)


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


REPORT = Report(card=CARD, draw=draw_training)
