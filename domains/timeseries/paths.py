"""Sampled futures: each step is drawn from the distribution one step ahead, and read like an observation."""

import numpy as np
import torch

from domains.config import MANY, check_range
from domains.timeseries.stream import Carried, Stretch, stream
from domains.timeseries.trained import LoadedModel
from domains.timeseries.transforms import Rows, Running, next_stamps

_CHUNK = 2048


def sample_paths(loaded: LoadedModel, rows: Rows, steps: int, count: int, seed: int = 0) -> np.ndarray:
    """Draw paths of a series behind its last row.

    The history is read once. Its state is then copied ``count`` times, and each copy goes on by itself, so a step costs
    the same whatever the length of the history. Unlike the forecasts of the horizon, paths may be longer than what was
    trained, and tell how steps hang together: of a sum, a maximum, a barrier.

    Args:
        loaded: the model.
        rows: the series; at least 16 increments observed.
        steps: length of the paths. Stamps go on as is usual (:func:`domains.timeseries.transforms.next_stamps`);
            covariates are missing there.
        count: how many paths.
        seed: of the random numbers.

    Returns:
        float64 (count, steps): observations to come, in units of ``rows.y``.

    Raises:
        UserError: steps or count make no sense.
        ValueError: the series has shown too little, or nothing.
    """
    check_range("steps", steps, 1, MANY)
    check_range("count", count, 1, MANY)
    model, scaler = loaded.model, loaded.scaler
    ahead = steps + scaler.shape.horizon
    stamps, offsets = next_stamps(rows.time, rows.offset, ahead, scaler.weekends)
    whole = rows.extended(stamps, offsets)
    start = Carried.start(model, scaler, 1)
    said, carried = stream(model, scaler, [Stretch(whole, len(rows), np.array([len(rows) - 1]))], start, _CHUNK)
    if not said[0].ripe[0]:
        raise ValueError("the series has shown too few increments to go on from")
    running: tuple[Running, ...] = carried.running * count
    carried = Carried(running, carried.state.rows([0] * count))
    raw, spread = said[0].raw.repeat(count, 1, 1), np.repeat(said[0].spread, count, axis=0)
    generator = torch.Generator().manual_seed(seed)
    found = np.empty((count, steps))
    for step in range(steps):
        drawn = model.distribution(raw[:, 0].double()).sample(generator).numpy() * spread[:, 0]
        last = np.array([one.y for one in carried.running])
        found[:, step] = {"price": last * np.exp(drawn), "level": last + drawn, "return": drawn}[scaler.kind]
        if step + 1 == steps:
            break
        now = whole.part(slice(len(rows) + step, len(rows) + step + 1 + scaler.shape.horizon))
        stretches = [Stretch(_observed(now, y), 1, np.array([0])) for y in found[:, step]]
        answers, carried = stream(model, scaler, stretches, carried, _CHUNK)
        raw = torch.cat([answer.raw for answer in answers])
        spread = np.concatenate([answer.spread for answer in answers])
    return found


def _observed(rows: Rows, y: float) -> Rows:
    """With an observation in the first row."""
    values = rows.y.copy()
    values[0] = y
    return Rows(rows.time, rows.offset, values, rows.past, rows.future, rows.static)
