import warnings

import numpy as np
import pytest
from scipy.stats import norm, t

from domains.errors import UserError
from domains.timeseries.baselines import BASELINES, make_baselines
from domains.timeseries.baselines.simple import season
from domains.timeseries.baselines.statistical import AutoArima, AutoEts, Innovations
from domains.timeseries.baselines.volatility import FilteredHistorical, _clock_variance
from domains.timeseries.history import History, cumulated

LEVELS = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
HOUR = 3_600_000_000
DAY = 24 * HOUR
MONDAY = 4 * DAY  # 5 January 1970
DAYS = np.arange(10_000)
WEEKDAYS = MONDAY + DAYS[DAYS % 7 < 5] * DAY


def series(y, kind="price", time=None):
    time = WEEKDAYS[: len(y)] if time is None else time
    return History.of("a", kind, time, np.zeros(len(y), dtype=np.int32), np.asarray(y, dtype=np.float64))


def random_series(rows, kind, seed=0, missing=0.05):
    """Student's t increments, each with a share of the one before, whose size changes slowly; some are missing."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(5, rows) * 0.01 * np.exp(np.sin(np.arange(rows) / 40))
    x[1:] += 0.6 * x[:-1]
    y = {"price": 100 * np.exp(np.cumsum(x)), "level": np.cumsum(x), "return": x}[kind]
    return series(np.where(rng.random(rows) < missing, np.nan, y), kind)


def fitted(name, history, end, horizon):
    (baseline,) = make_baselines([name])
    baseline.fit([history], np.array([end]), horizon)
    return baseline


def forecast(name, history, end, cutoffs, horizon=1, levels=LEVELS):
    return fitted(name, history, end, horizon).forecast(0, history, np.asarray(cutoffs), horizon, levels)


def numbers(forecasts):
    return [forecasts.quantiles, forecasts.mean, forecasts.variance]


def check_forecasts(forecasts, cutoffs, horizon):
    shape = (len(cutoffs), horizon)
    assert forecasts.mean.shape == forecasts.variance.shape == shape
    assert forecasts.quantiles.shape == (*shape, len(LEVELS))
    assert all(array.dtype == np.float64 and np.isfinite(array).all() for array in numbers(forecasts))
    assert (forecasts.variance > 0).all()
    assert (np.diff(forecasts.quantiles, axis=-1) >= 0).all()


def volatility_score(forecasts, outcome):
    """Mean of log v + r^2 / v in hundredths."""
    variance = forecasts.variance[:, 0] * 1e4
    return np.mean(np.log(variance) + (outcome * 100) ** 2 / variance)


def test_names():
    assert [baseline.name for baseline in make_baselines()] == list(BASELINES)
    assert [baseline.name for baseline in make_baselines(["fhs", "naive"])] == ["naive", "fhs"]
    with pytest.raises(UserError, match=r"'garhc'.*garch, gjr_garch") as error:
        make_baselines(["naive", "garhc"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["price", "level", "return"])
@pytest.mark.parametrize("name", BASELINES)
def test_what_comes_after_a_cut_off_changes_nothing(name, kind):
    rng = np.random.default_rng(1)
    rows, horizon = 400, 4
    history = random_series(rows, kind)
    end = int(rng.integers(250, 320))
    cut = int(rng.integers(end, 380))
    cutoffs = np.arange(end - 1, rows - horizon)
    y = history.y.copy()
    y[cut + 1 :] = np.where(rng.random(rows - cut - 1) < 0.2, np.nan, np.abs(y[cut + 1 :]) * 1.3 + 0.01)
    other = series(y, kind)
    before = cutoffs <= cut
    one, two = (forecast(name, h, end, cutoffs, horizon) for h in (history, other))
    check_forecasts(one, cutoffs, horizon)
    for a, b in zip(numbers(one), numbers(two), strict=True):
        np.testing.assert_array_equal(a[before], b[before])
    if name != "drift":
        assert (one.quantiles[~before] != two.quantiles[~before]).any()


@pytest.mark.parametrize("name", BASELINES)
def test_only_the_training_part_is_fitted_and_forecasts_do_not_depend_on_the_other_cut_offs(name):
    history = random_series(400, "price")
    cut = series(history.y[:361], "price")
    long, short = fitted(name, history, 300, 3), fitted(name, series(history.y[:300]), 300, 3)
    many = long.forecast(0, history, np.arange(299, 397), 3, LEVELS)
    one = short.forecast(0, cut, np.array([356]), 2, LEVELS)
    for a, b in zip(numbers(many), numbers(one), strict=True):
        np.testing.assert_allclose(a[57:58, :2], b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["price", "level", "return"])
@pytest.mark.parametrize("name", BASELINES)
def test_poor_series_are_forecast_all_the_same(name, kind):
    moving = random_series(60, kind, missing=0).y
    poor = {
        "constant": (np.ones(60), 40),
        "constant, then moving": (np.append(np.full(40, moving[0]), moving[:20]), 40),
        "short": (moving, 3),
        "without a training part": (moving, 0),
        "observed once": (np.append(np.full(39, np.nan), moving[:21]), 40),
        "never observed": (np.full(60, np.nan), 40),
    }
    (baseline,) = make_baselines([name])
    histories = [series(y, kind) for y, _ in poor.values()]
    ends = np.array([end for _, end in poor.values()])
    baseline.fit(histories, ends, 3)
    for index, (history, end) in enumerate(zip(histories, ends, strict=True)):
        cutoffs = np.arange(max(0, end - 1), 57)
        check_forecasts(baseline.forecast(index, history, cutoffs, 3, LEVELS), cutoffs, 3)


def test_what_cannot_be_asked():
    history = random_series(100, "price")
    baseline = fitted("ewma", history, 50, 2)
    with pytest.raises(ValueError, match="rows 49 to 99"):
        baseline.forecast(0, history, np.array([48]), 1, LEVELS)
    with pytest.raises(ValueError, match="2 steps"):
        baseline.forecast(0, history, np.array([60]), 3, LEVELS)
    with pytest.raises(ValueError, match="no number 1"):
        baseline.forecast(1, history, np.array([60]), 1, LEVELS)


def test_slow_ones_are_fitted_on_the_first_series_alone():
    histories = [random_series(60, "return", seed) for seed in range(3)]
    slow, quick = make_baselines(["ewma", "auto_ets"], max_statistical=2)[::-1]
    for baseline in (slow, quick):
        baseline.fit(histories, np.full(3, 50), 1)
    assert [slow.covers(i) for i in range(3)] == [True, True, False]
    assert quick.covers(2)
    assert AutoEts.max_series == 50


def test_naive_is_a_random_walk_of_the_last_250_increments():
    history = random_series(400, "level")
    cutoffs = np.array([299, 350])
    found = forecast("naive", history, 300, cutoffs, 3)
    for row, cutoff in enumerate(cutoffs):
        x = history.x[: cutoff + 1]
        last = x[~np.isnan(x)][-250:]
        np.testing.assert_allclose(found.variance[row], np.mean(last**2) * np.array([1, 2, 3]))
    assert not found.mean.any()
    np.testing.assert_allclose(found.quantiles[1, 2], norm.ppf(LEVELS, scale=found.variance[1, 2] ** 0.5), atol=1e-15)


def test_naive_repeats_the_last_return_and_knows_how_wrong_that_was():
    y = np.arange(12.0) ** 2
    found = forecast("naive", series(y, "return"), 9, [8, 10], 2)
    np.testing.assert_array_equal(found.mean, [[64, 64], [100, 100]])
    np.testing.assert_allclose(found.variance[0], [np.mean((y[1:9] - y[:8]) ** 2), np.mean((y[2:9] - y[:7]) ** 2)])


@pytest.mark.parametrize(("kind", "cumulates"), [("level", True), ("return", False)])
def test_seasonal_naive_repeats_a_season(kind, cumulates):
    week = np.array([1.0, -2.0, 4.0, 0.5, -3.0])
    noise = np.random.default_rng(0).normal(size=60) * 0.1
    x = np.tile(week, 12) + noise
    x[47] = np.nan
    y = x if kind == "return" else np.cumsum(np.nan_to_num(x)) + np.where(np.isnan(x), np.nan, 0)
    history = series(y, kind)
    found = forecast("seasonal_naive", history, 40, [48], 7)
    known = np.where(np.isnan(history.x), 0, history.x)
    expected = known[[44, 45, 46, 42, 48, 44, 45]]  # row 47 is missing: row 42 stands in
    np.testing.assert_allclose(found.mean[0], np.cumsum(expected) if cumulates else expected)
    ratio = found.variance[0] / found.variance[0, 0]
    np.testing.assert_allclose(ratio, [1, 2, 3, 4, 5, 7, 9] if cumulates else [1, 1, 1, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("time", "rows"),
    [
        (WEEKDAYS[:100], 5),
        (np.arange(100) * DAY, 7),
        (np.arange(1000) * HOUR // 2, 48),
        (np.concatenate([day + 9 * HOUR + np.arange(13) * HOUR // 2 for day in WEEKDAYS[:50]]), 13),
        (np.arange(100) * 7 * DAY, 1),
        (np.arange(2), 1),
    ],
)
def test_seasons(time, rows):
    assert season(time, np.zeros(len(time), dtype=np.int32)) == rows


def test_drift_is_the_mean_of_the_training_part():
    history = random_series(200, "level", missing=0)
    found = forecast("drift", history, 101, [100, 150], 3)
    x = history.x[1:101]
    steps = np.arange(1, 4)
    np.testing.assert_allclose(found.mean, np.tile(x.mean() * steps, (2, 1)))
    np.testing.assert_allclose(found.variance[1], x.var() * steps * (1 + steps / 100))


def test_ewma_is_its_recursion_and_skips_what_is_missing():
    history = random_series(300, "price", missing=0.2)
    found = forecast("ewma", history, 200, np.arange(199, 297), 3)
    x = history.x[:200]
    variance = np.mean(x[~np.isnan(x)][:50] ** 2)
    for row, value in enumerate(history.x[:297]):
        if not np.isnan(value):
            variance = 0.94 * variance + 0.06 * value**2
        if row >= 199:
            np.testing.assert_allclose(found.variance[row - 199], variance * np.array([1, 2, 3]), rtol=1e-10)
    assert not found.mean.any()


def hourly(rows, seed=0):
    """Returns that are five times as large on Mondays and Tuesdays at 8 to 15 o'clock, and cluster besides."""
    rng = np.random.default_rng(seed)
    time = MONDAY + np.arange(rows) * HOUR
    busy = (np.arange(rows) % 24 // 8 == 1) & (np.arange(rows) // 24 % 7 < 2)
    variance, x = np.empty(rows), np.empty(rows)
    now = 1.0
    for i in range(rows):
        variance[i] = now * (25.0 if busy[i] else 1.0)
        z = rng.normal()
        x[i] = np.sqrt(variance[i]) * z
        now = 0.02 + 0.98 * now * (0.9 + 0.1 * z**2)
    return History.of("hourly", "return", time, np.zeros(rows, np.int32), 1e-4 * x), 1e-8 * variance, busy


def test_ewma_clock_learns_the_hours_and_the_clusters():
    history, truth, busy = hourly(12_000)
    cutoffs = np.arange(8_999, 11_990)
    found = forecast("ewma_clock", history, 9_000, cutoffs, 2, np.array([0.05, 0.95]))
    quiet = truth / np.where(busy, 25, 1)
    for step in (1, 2):
        error = np.log(found.variance[:, step - 1] / truth[cutoffs + step])
        assert np.sqrt(np.mean(error**2)) < 0.7 * np.log(quiet[cutoffs + step]).std()  # as far as the clock alone gets
    outcome = cumulated(history.x, "return", cutoffs, 2)[..., None]
    assert np.abs(np.mean(outcome < found.quantiles, axis=(0, 1)) - [0.05, 0.95]).max() < 0.01


def test_ewma_clock_regression_in_plain_loops():
    history = random_series(500, "price")
    baseline = fitted("ewma_clock", history, 400, 3)
    found = baseline.forecast(0, history, np.array([450]), 3, LEVELS)
    fit = baseline._parameters[0]
    assert (fit.coefficients >= 0).all()
    assert (fit.coefficients.sum(axis=1) > 0.5).all()
    x = history.x[:400]
    scale = np.nanmean(x**2)
    weekday = np.arange(500) % 5
    clock = scale * fit.clock.profile[weekday * 24]
    total = np.zeros(3)
    for k, decay in enumerate((0.5, 0.8, 0.9, 0.94, 0.97, 0.99, 0.999)):
        mean = np.mean(x[~np.isnan(x)][:50] ** 2) / scale
        for row in range(451):
            if not np.isnan(history.x[row]):
                mean = decay * mean + (1 - decay) * history.x[row] ** 2 / clock[row]
        total += mean * fit.coefficients[:, k + 1]
    np.testing.assert_allclose(found.variance[0], np.cumsum(clock[451:454] * (total + fit.coefficients[:, 0])))


def test_ewma_clock_quantiles_are_those_of_its_training_part():
    history, _, _ = hourly(3_000)
    levels = np.array([0.02, 0.3, 0.5, 0.98])
    baseline = fitted("ewma_clock", history, 3_000, 2)
    found = baseline.forecast(0, history, np.array([2_999]), 2, levels)
    cutoffs = np.arange(2_998)
    variance = _clock_variance(baseline._parameters[0], baseline._training[0], history, cutoffs, 2)
    residuals = cumulated(history.x, "return", cutoffs, 2) / np.sqrt(variance)
    expected = np.quantile(residuals, levels, axis=0).T
    np.testing.assert_allclose(found.quantiles[0] / np.sqrt(found.variance[0, :, None]), expected, atol=0.01)
    assert np.abs(np.mean(residuals**2, axis=0) - 1).max() < 0.1


@pytest.fixture(scope="module")
def sp500():
    from arch.data import sp500

    table = sp500.load()
    time = table.index.to_numpy().astype("datetime64[us]").astype(np.int64)
    return series(table["Adj Close"].to_numpy(), "price", time)


@pytest.mark.parametrize(
    ("name", "score"),
    [("gjr_garch", 0.367), ("ewma", 0.477), ("drift", 0.940), ("garch", 0.419), ("ewma_clock", 0.416)],
)
def test_published_scores_on_the_sp500(sp500, name, score):
    end = len(sp500) - 1000
    found = forecast(name, sp500, end, np.arange(end - 1, len(sp500) - 1))
    assert volatility_score(found, sp500.x[end:]) == pytest.approx(score, abs=0.003)


@pytest.mark.parametrize(("name", "asymmetric"), [("garch", 0), ("gjr_garch", 1)])
def test_garch_is_that_of_arch(sp500, name, asymmetric):
    from arch import arch_model

    end, horizon, cutoffs = 1500, 5, np.array([1499, 1600, 1990])
    baseline = fitted(name, sp500, end, horizon)
    found = baseline.forecast(0, sp500, cutoffs, horizon, LEVELS)
    fit = baseline._parameters[0]
    model = arch_model(sp500.x[1:2000] * 100, mean="Zero", vol="GARCH", o=asymmetric, dist="t", rescale=False)
    gamma = [fit.gamma] * asymmetric
    same = model.fix([fit.omega * 1e4, fit.alpha, *gamma, fit.beta, fit.degrees])
    theirs = same.forecast(horizon=horizon, start=0, reindex=True).variance.to_numpy()[cutoffs - 1] / 1e4
    np.testing.assert_allclose(found.variance, np.cumsum(theirs, axis=1), rtol=1e-6)
    scale = np.sqrt(found.variance[..., None] * (fit.degrees - 2) / fit.degrees)
    np.testing.assert_allclose(found.quantiles, scale * t.ppf(LEVELS, fit.degrees), atol=1e-15)
    best = arch_model(sp500.x[1:end] * 100, mean="Zero", vol="GARCH", o=asymmetric, dist="t").fit(disp="off")
    np.testing.assert_allclose([fit.alpha, fit.beta, fit.degrees], best.params.iloc[[1, -2, -1]], rtol=0.02, atol=2e-3)


def test_fhs_quantiles_are_those_of_the_residuals_and_of_simulated_paths(sp500):
    end = 2000
    baseline = fitted("fhs", sp500, end, 5)
    found = baseline.forecast(0, sp500, np.array([2500]), 5, LEVELS)
    variance = np.mean(sp500.x[1:51] ** 2)
    residuals = []
    for value in sp500.x[1:end]:
        residuals.append(value / np.sqrt(variance))
        variance = 0.94 * variance + 0.06 * value**2
    now = forecast("ewma", sp500, end, [2500]).variance[0, 0]
    np.testing.assert_allclose(found.quantiles[0, 0], np.sqrt(now) * np.quantile(residuals, LEVELS), rtol=0.02)
    rng = np.random.default_rng(5)
    variance, total = np.full(100_000, now), np.zeros(100_000)
    for _ in range(5):
        z = rng.choice(residuals, 100_000)
        total += np.sqrt(variance) * z
        variance *= 0.94 + 0.06 * z**2 / np.mean(np.square(residuals))
    expected = np.quantile(total, LEVELS)
    assert np.abs(found.quantiles[0, 4] - expected).max() < 0.04 * np.abs(expected).max()
    assert found.variance[0, 4] == pytest.approx(total.var(), rel=0.04)
    again = baseline.forecast(0, sp500, np.array([2400, 2500]), 5, LEVELS)
    np.testing.assert_array_equal(again.quantiles[1], found.quantiles[0])


def test_fhs_survives_a_shock_after_quiet_years():
    x = np.append(np.tile([1e-6, -1e-6], 300), [0.1, -0.1, 0.0])
    history = series(x, "return")
    baseline = FilteredHistorical()
    baseline.fit([history], np.array([603]), 60)
    check_forecasts(baseline.forecast(0, history, np.array([602]), 60, LEVELS), [602], 60)


def level_series(rows, period):
    rng = np.random.default_rng(3)
    x = rng.normal(size=rows)
    wave = 6 * np.sin(2 * np.pi * np.arange(rows) / period) if period > 1 else 0.3 * np.arange(rows)
    return series(50 + np.cumsum(x) + wave, "level", np.arange(rows) * (DAY if period > 1 else 7 * DAY))


def package_forecast(model, y, horizon):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.forward(y, h=horizon, level=[68])
    half = (np.asarray(found["hi-68"]) - np.asarray(found["lo-68"])) / 2
    return np.asarray(found["mean"]), (half / norm.ppf(0.84)) ** 2


@pytest.mark.parametrize(
    ("kind", "period"), [(AutoArima, 1), (AutoEts, 1), (AutoEts, 7)], ids=["arima", "ets", "ets seasonal"]
)
def test_walking_forward_is_what_the_package_does(kind, period):
    from statsforecast import models

    end, horizon = 160, 4
    history = level_series(200, period)
    baseline = kind()
    baseline.fit([history], np.array([end]), horizon)
    cutoffs = np.array([159, 170, 190])
    found = baseline.forecast(0, history, cutoffs, horizon, LEVELS)
    scale = np.sqrt(np.mean(history.x[1:end] ** 2))
    values = (history.y - history.y[0]) / scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = models.AutoARIMA() if kind is AutoArima else models.AutoETS(season_length=period, model="AZZ")
        theirs.fit(values[:end])
    if period > 1:
        assert theirs.model_["components"][2] == "A"
    for row, cutoff in enumerate(cutoffs):
        mean, variance = package_forecast(theirs, values[: cutoff + 1], horizon)
        np.testing.assert_allclose(found.mean[row], (mean - values[cutoff]) * scale, rtol=1e-4, atol=1e-4)
        if period == 1:  # with a season the package takes the last horizon's term for all
            own = found.variance[row] / scale**2
            np.testing.assert_allclose(own / own[0], variance / variance[0], rtol=1e-4)
        if cutoff == end - 1:
            np.testing.assert_allclose(found.variance[row, 0] / scale**2, variance[0], rtol=1e-6)


def test_auto_arima_finds_what_an_autoregression_will_do():
    rng = np.random.default_rng(0)
    x = np.zeros(600)
    for i in range(1, 600):
        x[i] = 0.7 * x[i - 1] + rng.normal()
    found = forecast("auto_arima", series(x, "return"), 500, np.arange(499, 597), 2)
    np.testing.assert_allclose(found.mean[:, 0], 0.7 * x[499:597], atol=0.4)
    np.testing.assert_allclose(found.variance[0], [1, 1.49], rtol=0.15)


def test_an_unknown_state_is_learned_as_normal_distributions_say():
    """The Kalman filter against conditioning the joint distribution of all observations at once."""
    rng = np.random.default_rng(2)
    transition, observe, gain = np.array([[0.9, 0.4], [-0.2, 0.7]]), np.array([1.0, 0.5]), np.array([0.6, -0.3])
    model = Innovations(observe, transition, gain, np.array([1.0, 2.0]), np.diag([2.0, 0.5]), 1.7, 0.3, 0.1)
    seen, horizon = 6, 3
    count = seen + horizon
    from_state = np.stack([observe @ np.linalg.matrix_power(transition, k) for k in range(count)])
    from_errors = np.eye(count)
    for row in range(count):
        for error in range(row):
            from_errors[row, error] = from_state[row - error - 1] @ gain
    mean = from_state @ model.state + 0.3 + 0.1 * np.arange(1, count + 1)
    covariance = 1.7 * (from_state @ model.unknown @ from_state.T + from_errors @ from_errors.T)
    y = rng.multivariate_normal(mean, covariance)
    weights = covariance[seen:, :seen] @ np.linalg.inv(covariance[:seen, :seen])
    expected = mean[seen:] + weights @ (y - mean)[:seen]
    spread = covariance[seen:, seen:] - weights @ covariance[:seen, seen:]
    states, unknown = model.walk(y[:seen])
    reading, variances = model.ahead(horizon, unknown)
    found = reading @ states[-1] + 0.3 + 0.1 * np.arange(seen + 1, count + 1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(variances[-1], np.diag(spread), rtol=1e-9)
