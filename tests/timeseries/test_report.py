"""From forecasts to numbers, on cases small enough to be computed another way."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from domains.timeseries.config import LEVELS
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.history import History
from domains.timeseries.report import Outcomes, Scores, _chi_squared_tail, pit, plain, score
from domains.timeseries.risk import christoffersen_coverage
from domains.timeseries.table import lines_of

DAY = 86_400_000_000
Z = stats.norm.ppf(LEVELS)


def normal(mean: np.ndarray, deviation: np.ndarray) -> Forecasts:
    """Normal forecasts, both (c, h)."""
    return Forecasts(np.array(LEVELS), mean[..., None] + deviation[..., None] * Z, mean, deviation**2)


def outcomes_of(x: np.ndarray, series: int = 1) -> Outcomes:
    """(c, h) outcomes a day apart, the cut-offs of ``series`` series of equal length; mean size 0.5 in training."""
    c, h = x.shape
    row = np.tile(np.arange(c // series), series)
    day = row[:, None] + np.arange(1, h + 1)
    which = np.repeat(np.arange(series), c // series)
    names = tuple(f"s{i}" for i in range(series))
    last = np.append(np.nan, x[:-1, 0])
    return Outcomes(names, which, row * DAY, day * DAY, day, x, np.full(x.shape, 0.5), last)


def one_by_one(x: np.ndarray, found: Forecasts) -> dict[str, float]:
    """Scores by loops over single forecasts, from their definitions."""
    crps, ticks, inside, qlikes = [], [], [], []
    for at in np.ndindex(x.shape):
        if math.isnan(x[at]) or math.isnan(found.mean[at]):
            continue
        losses = [
            (level - (x[at] < quantile)) * (x[at] - quantile)
            for level, quantile in zip(LEVELS, found.quantiles[at], strict=True)
        ]
        crps.append(2 * np.trapezoid([0, *losses, 0], [0, *LEVELS, 1]))
        ticks.append(losses[LEVELS.index(0.05)])
        low, high = found.quantiles[at][LEVELS.index(0.1)], found.quantiles[at][LEVELS.index(0.9)]
        inside.append(low <= x[at] <= high)
        qlikes.append(math.log(found.variance[at]) + (x[at] - found.mean[at]) ** 2 / found.variance[at])
    means = (float(np.mean(values)) for values in (crps, qlikes, inside, ticks))
    return dict(zip(("crps", "qlike", "coverage_80", "var_5_tick"), means, strict=True))


@pytest.fixture
def case() -> tuple[np.ndarray, Forecasts]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 2))
    x[3, 1] = x[7, 0] = np.nan
    return x, normal(0.2 * rng.standard_normal((40, 2)), rng.uniform(0.5, 1.5, (40, 2)))


def test_scores_are_those_of_their_definitions(case: tuple[np.ndarray, Forecasts]) -> None:
    x, found = case
    scores = score(outcomes_of(x), {"a": found}, 1.0, "a")["a"]
    for name, value in one_by_one(x, found).items():
        assert scores.overall[name] == pytest.approx(value, rel=1e-12), name
    known = ~np.isnan(x)
    middle = found.quantiles[..., LEVELS.index(0.5)]
    assert scores.overall["mase"] == pytest.approx(np.abs(x - middle)[known].mean() / 0.5)
    assert scores.overall["qlike_1"] == pytest.approx(one_by_one(x[:, :1], first_step(found))["qlike"])
    assert scores.by_step["crps"][0] == pytest.approx(one_by_one(x[:, :1], first_step(found))["crps"])
    assert scores.by_series == pytest.approx({"s0": scores.overall["crps"]})
    assert scores.covered == 1.0
    assert scores.overall["direction"] == pytest.approx(np.mean((x * middle)[known[:, 0], 0] > 0))
    turns = (x[1:, 0] * x[:-1, 0])[known[1:, 0] & known[:-1, 0]] < 0
    assert scores.overall["bounce"] == pytest.approx(turns.mean())
    low, high = (f"{100 * scores.overall[f'bounce_{end}']:.1f}%" for end in ("low", "high"))
    assert f"by the bounce (each move turns): {turns.mean():.1%}, {low} to {high}" in "\n".join(table({"a": scores}))


def first_step(found: Forecasts) -> Forecasts:
    return Forecasts(found.levels, found.quantiles[:, :1], found.mean[:, :1], found.variance[:, :1])


def test_one_forecast_by_hand() -> None:
    """Quantiles at -2 (1%), ..., outcome below all: every pinball loss is (1 - level) times the distance."""
    found = Forecasts(np.array(LEVELS), np.zeros((1, 1, len(LEVELS))), np.zeros((1, 1)), np.full((1, 1), 4.0))
    scores = score(outcomes_of(np.array([[-2.0]])), {"a": found}, 1.0, "a")["a"].overall
    trapezoids = np.trapezoid([0, *[2 * (1 - level) for level in LEVELS], 0], [0, *LEVELS, 1])
    assert scores["crps"] == pytest.approx(2 * trapezoids)
    assert scores["wql"] == pytest.approx(2 * np.mean([2 * (1 - level) for level in LEVELS]) / 2)
    assert scores["qlike"] == pytest.approx(math.log(4) + 1)
    assert scores["mase"] == 4.0
    assert scores["var_5_hits"] == scores["var_1_hits"] == 1.0
    assert scores["var_5_tick"] == pytest.approx(0.95 * 2)
    assert scores["coverage_98"] == 0.0


def test_the_unit_scales_what_has_one(case: tuple[np.ndarray, Forecasts]) -> None:
    x, found = case
    one, hundred = (score(outcomes_of(x), {"a": found}, factor, "a")["a"].overall for factor in (1.0, 100.0))
    for name in ("crps", "var_5_tick", "var_1_tick"):
        assert hundred[name] == pytest.approx(100 * one[name])
    assert hundred["qlike"] == pytest.approx(one["qlike"] + 2 * math.log(100))
    for name in ("wql", "mase", "coverage_80", "var_5_hits", "var_5_kupiec_p", "direction"):
        assert hundred[name] == pytest.approx(one[name]), name


@pytest.mark.parametrize("hits", [0, 3, 10, 30])
def test_kupiec(hits: int) -> None:
    """100 outcomes of which so many lie below the 5% quantile, against the likelihood ratio and scipy's chi-squared."""
    x = np.where(np.arange(100) % 100 < hits, -3.0, 0.5)[:, None]
    found = score(outcomes_of(x), {"a": normal(np.zeros((100, 1)), np.ones((100, 1)))}, 1.0, "a")["a"].overall
    ratio = 2 * (stats.binom.logpmf(hits, 100, hits / 100) - stats.binom.logpmf(hits, 100, 0.05))
    assert found["var_5_hits"] == hits / 100
    assert found["var_5_kupiec_p"] == pytest.approx(stats.chi2.sf(ratio, 1), rel=1e-9)


def test_christoffersen_adds_up_over_series() -> None:
    """Hits that alternate in one series and cluster in the other: each its own transitions, none between them."""
    hits = [np.arange(60) % 10 == 0, np.arange(60) < 6]
    x = np.where(np.concatenate(hits), -3.0, 0.5)[:, None]
    found = score(outcomes_of(x, 2), {"a": normal(np.zeros((120, 1)), np.ones((120, 1)))}, 1.0, "a")["a"].overall
    total = sum(christoffersen_coverage(own, 0.05).statistic for own in hits)
    assert found["var_5_christoffersen_p"] == pytest.approx(stats.chi2.sf(total, 4), rel=1e-9)


@pytest.mark.parametrize("pairs", [1, 2, 5, 40])
@pytest.mark.parametrize("statistic", [0.0, 1e-9, 0.3, 2.0, 17.0, 90.0, 400.0])
def test_the_chi_squared_tail_is_scipys(pairs: int, statistic: float) -> None:
    assert _chi_squared_tail(statistic, pairs) == pytest.approx(stats.chi2.sf(statistic, 2 * pairs), rel=1e-9)


def test_what_is_worse_says_so() -> None:
    """Diebold and Mariano: losses of the wide forecast are larger, and 200 days are enough to tell."""
    x = np.random.default_rng(0).standard_normal((200, 1))
    good, wide = (normal(np.zeros((200, 1)), np.full((200, 1), size)) for size in (1.0, 2.5))
    found = score(outcomes_of(x), {"good": good, "wide": wide}, 1.0, "good")
    crps = [one_by_one(x, forecast)["crps"] for forecast in (good, wide)]
    assert found["wide"].overall["crps_worse_by"] == pytest.approx(crps[1] - crps[0])
    assert found["wide"].overall["crps_p"] < 1e-3
    assert "crps_worse_by" not in found["good"].overall
    turned = score(outcomes_of(x), {"wide": wide, "good": good}, 1.0, "wide")["good"].overall
    assert turned["crps_worse_by"] == pytest.approx(crps[0] - crps[1])
    assert turned["tick_5_worse_by"] < 0


def test_series_that_move_together_count_as_one() -> None:
    """Losses are summed by day: the same forecasts of the same outcomes, thrice, prove no more than once."""
    x = np.random.default_rng(1).standard_normal((60, 1))
    pair = [normal(np.zeros((60, 1)), np.full((60, 1), size)) for size in (1.0, 1.3)]
    once = score(outcomes_of(x), dict(zip("ab", pair, strict=True)), 1.0, "a")["b"].overall
    thrice = [normal(np.tile(one.mean, (3, 1)), np.sqrt(np.tile(one.variance, (3, 1)))) for one in pair]
    three = score(outcomes_of(np.tile(x, (3, 1)), 3), dict(zip("ab", thrice, strict=True)), 1.0, "a")["b"].overall
    assert three["crps_p"] == pytest.approx(once["crps_p"], rel=1e-9)
    assert three["crps_worse_by"] == pytest.approx(once["crps_worse_by"])


def test_a_method_without_forecasts_for_some_is_scored_on_the_rest(case: tuple[np.ndarray, Forecasts]) -> None:
    x, found = case
    half = replace(found, mean=np.where(np.arange(40)[:, None] < 10, np.nan, found.mean))
    half.quantiles[:10] = np.nan
    half.variance[:10] = np.nan
    scores = score(outcomes_of(x), {"all": normal(np.zeros((40, 2)), np.ones((40, 2))), "half": half}, 1.0, "all")
    rest = Forecasts(half.levels, half.quantiles[10:], half.mean[10:], half.variance[10:])
    for name, value in one_by_one(x[10:], rest).items():
        assert scores["half"].overall[name] == pytest.approx(value), name
    assert scores["half"].covered == pytest.approx((80 - 20) / 78, abs=0.01)
    assert any(line.startswith("half: of 7") and line.endswith("of the outcomes alone") for line in table(scores))


def test_a_method_without_any_forecast_has_no_numbers(case: tuple[np.ndarray, Forecasts]) -> None:
    x, found = case
    nothing = normal(np.full((40, 2), np.nan), np.full((40, 2), np.nan))
    scores = score(outcomes_of(x), {"a": found, "none": nothing}, 1.0, "a")
    assert scores["none"].covered == 0.0
    assert np.isnan(scores["none"].overall["crps"])
    line = next(line for line in table(scores) if line.startswith("none "))
    assert set(line.split()[1:]) == {"-"}
    text = json.dumps(plain(scores), allow_nan=False)
    assert json.loads(text)["none"]["overall"]["crps"] is None


def test_json_has_finite_numbers_alone() -> None:
    scores = {"a": Scores({"x": float("inf"), "y": float("nan"), "z": 1.0}, {"crps": [float("-inf")]}, {"s": 2.0})}
    assert plain(scores)["a"] == {
        "overall": {"x": None, "y": None, "z": 1.0},
        "by_step": {"crps": [None]},
        "by_series": {"s": 2.0},
        "covered": 1.0,
    }


def table(scores: dict[str, Scores]) -> list[str]:
    return lines_of(scores, "log returns in per cent")


def test_the_table_shows_what_was_computed(case: tuple[np.ndarray, Forecasts]) -> None:
    x, found = case
    scores = score(outcomes_of(x), {"model": found, "naive": normal(np.zeros((40, 2)), np.ones((40, 2)))}, 1.0, "model")
    lines = table(scores)
    assert lines[0].startswith("scores in log returns in per cent")
    first, second = (next(line for line in lines if line.startswith(name)).split() for name in ("model", "naive"))
    assert first[1:3] == [f"{scores['model'].overall['crps']:.4f}", "-"]
    assert second[1:3] == [f"{scores['naive'].overall['crps']:.4f}", f"{scores['naive'].overall['crps_p']:.3f}"]
    steps = lines.index("CRPS by steps ahead")
    assert lines[steps + 2].split() == ["1", "2"]
    assert lines[steps + 3].split() == ["model", *(f"{value:.4f}" for value in scores["model"].by_step["crps"])]
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(("horizon", "shown"), [(1, 0), (12, 12), (48, 12)])
def test_a_table_stays_narrow_however_far_is_looked_ahead(horizon: int, shown: int) -> None:
    x = np.random.default_rng(0).standard_normal((60, horizon))
    lines = table(score(outcomes_of(x), {"a": normal(np.zeros(x.shape), np.ones(x.shape))}, 1.0, "a"))
    if not shown:
        assert "CRPS by steps ahead" not in lines
        return
    columns = lines[lines.index("CRPS by steps ahead") + 2].split()
    assert len(columns) == shown
    assert (columns[0], columns[-1]) == ("1", str(horizon))


def test_outcomes_by_hand() -> None:
    """A level that moves by 1, 2, ...; a zone two hours ahead, so that 23:00 UTC is the next day."""
    y = np.array([0.0, 1.0, 3.0, 6.0, np.nan, 15.0, 21.0])
    time = np.arange(7) * DAY + 23 * DAY // 24
    found = Outcomes.of(
        [History.of("a", "level", time, np.full(7, 7200, np.int32), y)], [np.array([2, 4])], np.array([3]), 2
    )
    assert np.array_equal(found.x, [[3.0, np.nan], [9.0, 15.0]], equal_nan=True)
    assert found.size.tolist() == [[1.5, 1.5]] * 2  # mean of 1, 2: errors of the naive forecast a step ahead
    assert found.day.tolist() == [[4, 5], [6, 7]]
    assert found.later.tolist() == [[time[3], time[4]], [time[5], time[6]]]


def test_a_series_that_stood_still_in_training_has_no_scaled_error() -> None:
    y = np.array([5.0] * 6 + [6.0, 5.0, 7.0])
    history = History.of("still", "level", np.arange(9) * DAY, np.zeros(9, np.int32), y)
    found = Outcomes.of([history], [np.array([5, 6, 7])], np.array([6]), 1)
    scores = score(found, {"a": normal(np.zeros((3, 1)), np.ones((3, 1)))}, 1.0, "a")["a"]
    assert np.isnan(scores.overall["mase"])
    assert np.isfinite(scores.overall["crps"])


def test_pit_is_linear_between_quantiles() -> None:
    found = normal(np.zeros((5, 1)), np.ones((5, 1)))
    between = 0.5 * (Z[3] + Z[4])
    got = pit(np.array([[Z[3]], [between], [0.0], [np.nan], [50.0]]), found)[:, 0]
    assert np.allclose(got[:3], [0.1, 0.15, 0.5])
    assert np.isnan(got[3])
    assert 0.99 <= got[4] <= 1.0
    assert pit(np.array([[-50.0]] * 5), found).max() <= 0.01
