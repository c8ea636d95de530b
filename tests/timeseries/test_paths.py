"""Sampled paths: a function of the seed, spread as the forecasts say, each step read like an observation."""

from pathlib import Path

import numpy as np
import pytest

from domains.timeseries.config import LEVELS
from domains.timeseries.data import read_rows
from domains.timeseries.paths import sample_paths
from domains.timeseries.store import SeriesStore
from domains.timeseries.stream import Carried, Stretch, forecasts, stream
from domains.timeseries.trained import load_model
from domains.timeseries.transforms import next_stamps


def test_the_first_step_is_distributed_as_forecast(trained: Path, store: SeriesStore) -> None:
    loaded = load_model(trained)
    rows = read_rows(store, 0, 0, 300)
    paths = sample_paths(loaded, rows, 1, 4000, seed=3)
    whole = rows.extended(*next_stamps(rows.time, rows.offset, 2, loaded.scaler.weekends))
    start = Carried.start(loaded.model, loaded.scaler, 1)
    said, _ = stream(loaded.model, loaded.scaler, [Stretch(whole, 300, np.array([299]))], start, 64)
    quantiles = forecasts(loaded.model, said[0], np.array(LEVELS)).quantiles[0, 0]
    drawn = np.log(paths[:, 0] / rows.y[~np.isnan(rows.y)][-1])
    share = (drawn[:, None] <= quantiles).mean(axis=0)
    assert np.abs(share - np.array(LEVELS)).max() < 4 * 0.5 / np.sqrt(4000)


def test_each_step_is_read_like_an_observation(trained: Path, store: SeriesStore) -> None:
    """What a path goes on from is what a history with its first step in it would go on from."""
    loaded = load_model(trained)
    rows = read_rows(store, 1, 0, 200)
    paths = sample_paths(loaded, rows, 2, 2, seed=1)
    stamp, offset = next_stamps(rows.time, rows.offset, 1, loaded.scaler.weekends)
    longer = rows.extended(stamp, offset)
    longer.y[-1] = paths[0, 0]
    spread = sample_paths(loaded, longer, 1, 3000, seed=2)
    z = np.log(paths[0, 1] / paths[0, 0]) / np.log(spread[:, 0] / paths[0, 0]).std()
    assert abs(z) < 6
    again = sample_paths(loaded, rows, 2, 2, seed=1)
    assert np.array_equal(paths, again)
    assert not np.array_equal(paths, sample_paths(loaded, rows, 2, 2, seed=2))
    assert paths.shape == (2, 2)
    assert (paths > 0).all()


def test_a_series_that_has_shown_nothing_is_refused(trained: Path, store: SeriesStore) -> None:
    with pytest.raises(ValueError, match="too few increments"):
        sample_paths(load_model(trained), read_rows(store, 0, 0, 5), 2, 2)
