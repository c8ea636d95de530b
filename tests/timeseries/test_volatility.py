"""Series that are volatilities themselves: positive like prices, scored as variances, beside a model made for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from domains.errors import UserError
from domains.timeseries.baselines import VOLATILITY, make_baselines
from domains.timeseries.calibration import normal_scores
from domains.timeseries.config import LEVELS, EvaluateConfig
from domains.timeseries.evaluate import evaluate
from domains.timeseries.history import History, cumulated
from domains.timeseries.metrics import qlike_of_target
from domains.timeseries.store import prepare_store
from domains.timeseries.train import train
from tests.timeseries.conftest import small_config
from tests.timeseries.jobs import contents, forecasts_in, make_model, make_rows, make_store, paths_in, run

LEVEL = np.array(LEVELS)
NORMAL = normal_scores(LEVEL)
DAY = 86_400_000_000


def parkinson(start: str, end: str) -> pl.DataFrame:
    """Daily variance of the S&P 500 from its range (Parkinson 1980), as a long table."""
    from arch.data import sp500

    days = sp500.load().loc[start:end]  # type: ignore[misc]
    variance = np.log(days["High"] / days["Low"]).to_numpy() ** 2 / (4 * np.log(2))
    stamps = days.index.to_numpy().astype("datetime64[us]")
    return pl.DataFrame({"unique_id": "SP500", "ds": stamps, "y": 1e4 * variance})


def test_qlike_of_a_variance_is_lowest_at_its_expectation() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0.3, 0.5, 20_000)  # log changes of a variance
    quantiles = np.broadcast_to(0.3 + 0.5 * NORMAL, (len(x), len(LEVEL)))
    expectation = 0.3 + 0.5**2 / 2
    ratio = np.exp(x - expectation)
    found = qlike_of_target(x, quantiles, LEVEL, 1.0)
    np.testing.assert_allclose(found, ratio - np.log(ratio) - 1, atol=2e-2)
    for shift in (-0.2, 0.2):
        assert qlike_of_target(x, quantiles + shift, LEVEL, 1.0).mean() > found.mean() + 0.01
    # A standard deviation whose logarithm moves half as much is the same variance.
    np.testing.assert_allclose(qlike_of_target(x / 2, quantiles / 2, LEVEL, 2.0), found, rtol=1e-9)
    gaps = qlike_of_target(np.array([np.nan, 0.1]), np.stack([quantiles[0], quantiles[0] * np.nan]), LEVEL, 1.0)
    assert np.isnan(gaps).all()


def test_har_finds_its_own_coefficients() -> None:
    """Least squares on the means of the last day, week and month, step by step; missing days are passed over."""
    rng, n = np.random.default_rng(1), 6000
    log = np.zeros(n)
    for i in range(22, n):
        log[i] = 0.4 * log[i - 1] + 0.3 * log[i - 5 : i].mean() + 0.2 * log[i - 22 : i].mean() + 0.5 * rng.normal()
    history = History.of("a", "variance", np.arange(n) * DAY, np.zeros(n, np.int32), np.exp(log))
    (har,) = make_baselines(["har"], kind="variance")
    har.fit([history], np.array([n - 500]), 2)
    cutoffs = np.arange(n - 501, n - 2)
    found = har.forecast(0, history, cutoffs, 2, LEVEL)
    week, month = (np.array([log[c - k + 1 : c + 1].mean() for c in cutoffs]) for k in (5, 22))
    expected = 0.4 * log[cutoffs] + 0.3 * week + 0.2 * month - log[cutoffs]
    assert np.abs(found.mean[:, 0] - expected).mean() < 0.05
    assert found.variance[0] == pytest.approx([0.25, 0.25 * (1 + 0.47**2)], rel=0.1)
    x = cumulated(history.x, "variance", cutoffs, 2)
    for step in (0, 1):
        assert np.mean(x[:, step] < found.quantiles[:, step, LEVELS.index(0.1)]) == pytest.approx(0.1, abs=0.04)
    changed = replace(history, y=history.y.copy(), x=history.x.copy())
    changed.y[cutoffs[100] + 1 :] *= 3.0
    again = har.forecast(0, changed, cutoffs[:101], 2, LEVEL)
    assert np.array_equal(again.quantiles, found.quantiles[:101])
    y = np.exp(log)
    y[rng.random(n) < 0.1] = np.nan
    y[0] = 1.0
    gaps = History.of("a", "variance", history.time, history.offset, y)
    har.fit([gaps], np.array([n - 500]), 2)
    assert np.isfinite(har.forecast(0, gaps, cutoffs, 2, LEVEL).quantiles).all()
    young = History.of("b", "variance", history.time[:40], history.offset[:40], y[:40])
    har.fit([young], np.array([30]), 2)
    early = har.forecast(0, young, np.arange(29, 40), 2, LEVEL)
    assert not early.mean.any()
    assert np.isfinite(early.quantiles).all()
    with pytest.raises(UserError, match="there is none named 'har'; choose among naive"):
        make_baselines(["har"])


def test_a_variance_is_forecast_and_scored(tmp_path: Path) -> None:
    """Real daily variances, from the table to the evaluation: HAR beside the others, QLIKE of the variance."""
    parkinson("2011-01-01", "2014-06-30").write_parquet(tmp_path / "variance.parquet")
    config = small_config(tmp_path / "variance.parquet")
    data = replace(config.data, kind="variance", test="2014-01-01", validation="2013-10-01")
    model = train(replace(config, data=data), tmp_path / "run", progress=False).model_dir
    store = prepare_store(data, progress=False)
    names = ["naive", "drift", *VOLATILITY]
    found = evaluate(model, store, EvaluateConfig(baselines=names), device="cpu", progress=False)
    har, naive = (found.scores[name].overall for name in ("har", "naive"))
    assert har["qlike_target"] < 0.8 * naive["qlike_target"]
    assert har["crps"] < 0.9 * naive["crps"]
    assert 0 <= har["qlike_target_p"] <= 1
    table = found.table()
    assert "scores in log changes of the variance;" in table
    assert "QLIKE: of the variance V itself and its expectation F" in table
    assert f"{har['qlike_target']:.4f}" in next(line for line in table.splitlines() if line.startswith("har "))
    assert "value at risk" not in table


@pytest.mark.parametrize("kind", ["variance", "volatility"])
def test_the_job_treats_it_as_a_positive_series(kind: str, tmp_path: Path) -> None:
    rows = pl.concat([make_rows("a", 120, 1, 0.1), make_rows("b", 100, 2)])
    for name in (kind, "price"):
        run(make_model(tmp_path / f"{name}-model", kind=name), tmp_path / name, rows, {"kind": name}, paths=2)
    assert forecasts_in(tmp_path / kind / "out").equals(forecasts_in(tmp_path / "price" / "out"))
    assert paths_in(tmp_path / kind / "out").equals(paths_in(tmp_path / "price" / "out"))
    assert contents(tmp_path / kind / "out").keys() == contents(tmp_path / "price" / "out").keys()
    zero = rows.with_columns(pl.when(pl.int_range(pl.len()) == 5).then(0.0).otherwise(pl.col("y")).alias("y"))
    assert make_store(tmp_path / "zero", zero, kind=kind).rejects == {f"y is not a positive {kind}": 1}
