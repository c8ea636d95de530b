import numpy as np
import pytest
from scipy import stats

from domains.timeseries.calibration import (
    Calibrator,
    normal_scores,
    pooled_scores,
    quantiles_at,
    recalibrate,
    recalibrate_together,
    scores_of,
)
from domains.timeseries.config import LEVELS

NAN = float("nan")
LEVEL = np.array(LEVELS)
NORMAL = stats.norm.ppf(LEVEL)


def forecasts(scale, shape):
    """Quantiles of a normal distribution of that scale, the same everywhere."""
    return np.broadcast_to(scale * NORMAL, (*shape, len(LEVEL))).copy()


def check_coverage(x, quantiles, strictness=1e-4):
    """The share of outcomes below each quantile, against the binomial distribution."""
    for index, level in enumerate(LEVEL):
        below = int((x <= quantiles[..., index]).sum())
        assert stats.binomtest(below, x.size, level).pvalue > strictness, (level, below / x.size)


def test_scores_and_readings_of_a_normal_forecast_are_exact():
    np.testing.assert_allclose(normal_scores(LEVEL), NORMAL, atol=1e-14)
    x = np.array([-30.0, -4.0, -1.1, 0.0, 0.4, 6.0, 1e9, NAN])
    quantiles = 1.0 + forecasts(2.0, x.shape)
    expected = (x - 1) / 2
    np.testing.assert_allclose(scores_of(x, quantiles, LEVEL), np.clip(expected, -100, 100), rtol=1e-12)
    scores = np.array([-5.0, -2.0, -0.3, 0.0, 1.7, 5.0])
    np.testing.assert_allclose(quantiles_at(quantiles[0], LEVEL, scores), 1 + 2 * scores, rtol=1e-12)
    assert np.array_equal(quantiles_at(quantiles, LEVEL, normal_scores(LEVEL)), quantiles)


def test_forecasts_without_width():
    scores = scores_of(np.array([-1.0, 0.0, 2.0]), np.zeros((3, len(LEVEL))), LEVEL)
    assert scores[0] == -100
    assert abs(scores[1]) < 3
    assert scores[2] == 100
    assert not quantiles_at(np.zeros(len(LEVEL)), LEVEL, scores).any()


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_coverage_comes_to_nominal(scale):
    """Whether forecasts are half as wide as they should be, right, or three times as wide."""
    x = np.random.default_rng(1).standard_t(5, (20_000, 2))
    raw = forecasts(scale, x.shape)
    new = recalibrate(LEVEL, raw, x, np.arange(len(x)), 1000)
    for h in range(2):  # 100 outcomes are known from cut-off 99 + 1 and 99 + 2 on
        assert np.array_equal(new[: 100 + h, h], raw[: 100 + h, h])
        assert not np.array_equal(new[100 + h, h], raw[100 + h, h])
    assert (np.diff(new, axis=-1) >= 0).all()
    check_coverage(x[1000:], new[1000:])
    if scale != 1:
        below = (x[1000:] <= raw[1000:, :, 0]).mean()
        assert not 0.007 < below < 0.013  # they did need it


def test_coverage_is_exact_for_small_windows():
    """Ranks out of n + 1: with 19 outcomes known, level 0.05 is below the next one 19 times in 20, and so on."""
    rng = np.random.default_rng(2)
    levels = np.array([0.05, 0.25, 0.5, 0.9])
    below = np.zeros(4)
    for _ in range(4000):
        x = rng.gumbel(size=20)
        calibrator = Calibrator(levels, 1, 50, minimum=5)
        calibrator.push(1, x[:19], np.tile(stats.norm.ppf(levels), (19, 1)))
        below += x[19] <= calibrator.apply(stats.norm.ppf(levels)[None])[0]
    for level, count in zip(levels, below, strict=True):
        assert stats.binomtest(int(count), 4000, level).pvalue > 1e-3


def test_good_forecasts_stay_as_they_are_but_for_noise():
    x = np.random.default_rng(3).normal(size=(4000, 1))
    raw = forecasts(1.0, x.shape)
    new = recalibrate(LEVEL, raw, x, np.arange(len(x)), 500)
    moved = stats.norm.cdf(new[600:, 0]) - LEVEL  # the raw level that was read
    noise = np.sqrt(LEVEL * (1 - LEVEL) / 500)
    assert (np.abs(moved).max(0) < 5.5 * noise).all()
    assert (np.abs(moved.mean(0)) < 2 * noise).all()
    assert np.abs(moved).max() > 0


def test_drift_is_followed():
    x = np.random.default_rng(4).normal(size=(6000, 1))
    x[3000:] *= 2
    new = recalibrate(LEVEL, forecasts(1.0, x.shape), x, np.arange(len(x)), 500)
    check_coverage(x[3600:], new[3600:])


def test_what_is_not_known_yet_changes_nothing():
    rng = np.random.default_rng(5)
    rows = np.cumsum(rng.integers(1, 4, 400))
    x = rng.normal(size=(400, 3))
    raw = forecasts(0.7, x.shape) * rng.uniform(0.5, 2, (400, 3, 1))
    new = recalibrate(LEVEL, raw, x, rows, 60, minimum=20)
    for cut in (30, 100, 399):
        for h in range(3):
            unknown = rows + h + 1 > rows[cut]
            other = x.copy()
            other[unknown, h] = 1e6
            again = recalibrate(LEVEL, raw, other, rows, 60, minimum=20)
            assert np.array_equal(again[: cut + 1], new[: cut + 1])
            last = np.flatnonzero(~unknown)[-1]  # while the last one known does count
            other = x.copy()
            other[last, h] = 1e6
            assert not np.array_equal(recalibrate(LEVEL, raw, other, rows, 60, minimum=20)[cut], new[cut])


def test_outcomes_behind_the_window_are_forgotten():
    x = np.random.default_rng(6).normal(size=(300, 1))
    raw = forecasts(1.0, x.shape)
    new = recalibrate(LEVEL, raw, x, np.arange(300), 50, minimum=20)
    other = x.copy()
    other[:200] = 100.0
    again = recalibrate(LEVEL, raw, other, np.arange(300), 50, minimum=20)
    assert np.array_equal(again[250:], new[250:])  # at 250, outcomes of cut-offs 200 to 249 are known
    assert not np.array_equal(again[249], new[249])


def test_streaming_gives_the_same(tmp_path):
    rng = np.random.default_rng(7)
    rows = np.cumsum(rng.integers(1, 4, 300))
    x = rng.normal(size=(300, 2))
    x[rng.random(x.shape) < 0.1] = NAN
    raw = forecasts(0.6, x.shape) * rng.uniform(0.5, 2, (300, 2, 1))
    expected = recalibrate(LEVEL, raw, x, rows, 80, minimum=30)
    calibrator = Calibrator(LEVEL, 2, 80, minimum=30)
    pushed = [0, 0]
    for index, row in enumerate(rows):
        for h in range(2):
            known = int(np.searchsorted(rows + h + 1, row, side="right"))
            calibrator.push(h + 1, x[pushed[h] : known, h], raw[pushed[h] : known, h])
            pushed[h] = known
        np.testing.assert_array_equal(calibrator.apply(raw[index]), expected[index])
        if index == 150:  # saved and loaded in between
            np.savez(tmp_path / "state.npz", state=calibrator.state)
            state = np.load(tmp_path / "state.npz")["state"]
            calibrator = Calibrator(LEVEL, 2, 80, minimum=30, state=state)
    with pytest.raises(ValueError, match="horizon 3"):
        Calibrator(LEVEL, 3, 80, state=calibrator.state)


def test_adjusted_scores_by_hand():
    levels = np.array([0.01, 0.2, 0.5, 0.95])
    calibrator = Calibrator(levels, 1, 10, minimum=4)
    forecast = np.tile(stats.norm.ppf(levels), (4, 1))
    calibrator.push(1, np.array([2.0, -1.0, 0.5]), forecast[:3])
    np.testing.assert_allclose(calibrator.adjusted_scores(), stats.norm.ppf(levels)[None])
    calibrator.push(1, np.array([NAN, 1.0]), forecast[:2])
    lowest, highest = -1.0, 2.0  # ranks 0.05, 1, 2.5 and 4.75 of 4
    tail = stats.norm.ppf(0.2)
    expected = [lowest + stats.norm.ppf(0.01) - tail, lowest, 0.75, highest + stats.norm.ppf(0.95) + tail]
    np.testing.assert_allclose(calibrator.adjusted_scores(), [expected], rtol=1e-9)


def test_pooled_series_learn_from_each_other_in_the_order_of_time():
    rng = np.random.default_rng(8)
    time = [np.arange(0, 600, 2), np.arange(1, 901, 3)]
    rows = [np.arange(10, 290), np.arange(5, 280, 2)]
    x = [rng.normal(size=(len(at), 2)) for at in rows]
    raw = [forecasts(0.5, values.shape) for values in x]
    found = recalibrate(LEVEL, raw, x, rows, 40, minimum=20, time=time)
    # by hand: of each forecast, everything that was known by its stamp, the last 80 of it
    for h in range(2):
        due = np.concatenate([clock[at + h + 1] for clock, at in zip(time, rows, strict=True)])
        scores = np.concatenate([scores_of(a[:, h], b[:, h], LEVEL) for a, b in zip(x, raw, strict=True)])
        order = np.argsort(due, kind="stable")
        for series in (0, 1):
            for index in (0, 30, 77, 130):
                known = scores[order][due[order] <= time[series][rows[series][index]]][-80:]
                calibrator = Calibrator(
                    LEVEL, 1, 80, minimum=20, state=np.pad(known, (80 - len(known), 0), constant_values=NAN)[None]
                )
                np.testing.assert_array_equal(
                    found[series][index, h], calibrator.apply(raw[series][index, h : h + 1])[0]
                )


def test_pooled_series_without_stamps_share_their_rows():
    x = np.random.default_rng(9).normal(size=(3, 200, 1))
    rows = np.arange(200)
    raw = [forecasts(0.5, (200, 1))] * 3
    found = recalibrate(LEVEL, raw, list(x), [rows] * 3, 100, minimum=60)
    assert np.array_equal(found[0][19], raw[0][19])
    assert not np.array_equal(found[0][20], raw[0][20])  # 20 outcomes of each of 3 series
    assert np.array_equal(found[0], found[2])
    assert recalibrate(LEVEL, [], [], [], 100) == []


def test_missing_forecasts_stay_missing_and_count_for_nothing():
    x = np.random.default_rng(10).normal(size=(200, 1))
    raw = forecasts(0.5, x.shape)
    raw[:50] = NAN
    new = recalibrate(LEVEL, raw, x, np.arange(200), 100, minimum=100)
    assert np.isnan(new[:50]).all()
    assert np.array_equal(new[50:150], raw[50:150])
    assert not np.array_equal(new[150], raw[150])


def test_quantiles_never_cross():
    rng = np.random.default_rng(11)
    x = rng.standard_cauchy((3000, 1))
    raw = np.sort(rng.standard_cauchy((3000, 1, len(LEVEL))).round(1), axis=-1)  # with equal neighbours
    new = recalibrate(LEVEL, raw, x, np.arange(3000), 300)
    assert np.isfinite(new).all()
    assert (np.diff(new, axis=-1) >= 0).all()


def test_series_of_a_file_have_windows_of_their_own_that_are_pooled() -> None:
    """Against windows that are pushed one outcome after the other; stamps differ, outcomes come twice or not at all."""
    rng = np.random.default_rng(9)
    window, minimum, counts = 30, 50, (120, 90, 100)
    time = [np.sort(rng.choice(500, n, replace=False)) for n in counts]
    rows = [np.arange(10, n) if n != 100 else np.arange(60, n) for n in counts]
    x = [rng.standard_t(4, (len(at), 2)).round(1) for at in rows]
    for own, at, n in zip(x, rows, counts, strict=True):
        own[rng.random(own.shape) < 0.1] = np.nan
        own[at[:, None] + [1, 2] >= n] = np.nan
    raw = [forecasts(1.3, own.shape) for own in x]
    table = [quantiles + 7.0 for quantiles in raw]
    found = recalibrate_together(LEVEL, raw, x, rows, time, table, window, minimum)
    for series, at in enumerate(rows):
        for k, row in enumerate(at):
            now = time[series][row]
            pooled = np.full((2, 3 * window), np.nan)
            for step in (1, 2):
                held = []
                for i in range(3):
                    due = np.array([time[i][r + step] if r + step < counts[i] else 10**6 for r in rows[i]])
                    known = np.flatnonzero(~np.isnan(x[i][:, step - 1]) & (due <= now))[-window:]
                    held.append(scores_of(x[i][known, step - 1], raw[i][known, step - 1], LEVEL).astype(np.float32))
                every = np.concatenate(held)
                pooled[step - 1, : len(every)] = every
            scores = pooled_scores(pooled, LEVEL, np.full((2, len(LEVEL)), np.nan), minimum)
            for step in (0, 1):
                few = np.isnan(scores[step, 0])
                expected = table[series][k, step] if few else quantiles_at(raw[series][k, step], LEVEL, scores[step])
                np.testing.assert_allclose(found[series][k, step], expected, rtol=1e-12)
