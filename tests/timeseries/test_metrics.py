import math

import numpy as np
import pytest
from scipy import special, stats

from domains.timeseries.config import LEVELS
from domains.timeseries.metrics import (
    central_coverage,
    coverage,
    crps_from_quantiles,
    pinball,
    qlike,
    weighted_quantile_loss,
)
from domains.timeseries.risk import christoffersen_coverage, christoffersen_independence, kupiec
from domains.timeseries.significance import (
    clopper_pearson,
    diebold_mariano,
    direction_accuracy,
    incomplete_beta,
    rank_correlation,
    student_p_value,
)

NAN = float("nan")
LEVEL = np.array(LEVELS)


def bits(text):
    return np.array([letter == "1" for letter in text])


def test_pinball_by_hand():
    losses = pinball(np.array([1.0, NAN]), np.array([[0.0, 3.0], [0.0, 3.0]]), np.array([0.1, 0.9]))
    np.testing.assert_allclose(losses, [[0.1, 0.2], [NAN, NAN]])


def test_weighted_quantile_loss_by_hand_and_of_the_median():
    y, quantiles = np.array([1.0, -2.0, NAN]), np.array([[0.0, 3.0], [-1.0, 0.0], [5.0, 6.0]])
    # level 0.1: 0.1 + 0.9; level 0.9: 0.2 + 0.2
    assert weighted_quantile_loss(y, quantiles, np.array([0.1, 0.9])) == pytest.approx(2 * (1.0 + 0.4) / 2 / 3)
    median = weighted_quantile_loss(y, quantiles[:, :1], np.array([0.5]))
    assert median == pytest.approx((1 + 1) / 3)  # the weighted absolute percentage error
    assert math.isnan(weighted_quantile_loss(np.zeros(2), np.ones((2, 1)), np.array([0.5])))


def test_crps_of_a_normal_forecast():
    y = np.linspace(-3, 3, 61)
    exact = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / math.sqrt(math.pi)
    coarse = crps_from_quantiles(y, np.tile(stats.norm.ppf(LEVEL), (61, 1)), LEVEL)
    np.testing.assert_allclose(coarse, exact, rtol=0.04)
    fine = np.concatenate(
        [np.linspace(0.0001, 0.01, 100), np.linspace(0.011, 0.99, 900), np.linspace(0.9901, 0.9999, 99)]
    )
    np.testing.assert_allclose(crps_from_quantiles(y, np.tile(stats.norm.ppf(fine), (61, 1)), fine), exact, rtol=1e-3)
    assert math.isnan(crps_from_quantiles(np.array([NAN]), stats.norm.ppf(LEVEL)[None], LEVEL)[0])


def test_crps_does_not_depend_on_where_levels_lie_dense():
    y = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    tails = np.unique(np.concatenate([LEVEL, np.linspace(0.001, 0.05, 50)]))
    values = [crps_from_quantiles(y, np.tile(stats.norm.ppf(of), (2000, 1)), of).mean() for of in (LEVEL, tails)]
    assert values[0] == pytest.approx(1 / math.sqrt(math.pi), rel=0.01)
    assert values[1] == pytest.approx(values[0], rel=0.01)


def test_coverage_counts_ends_and_leaves_out_what_is_missing():
    y = np.array([0.0, 1.0, 2.0, NAN, 5.0])
    assert coverage(y, np.full(5, 0.0), np.full(5, 2.0)) == pytest.approx(3 / 4)
    assert math.isnan(coverage(np.array([NAN]), np.zeros(1), np.ones(1)))


def test_central_coverage_pairs_levels():
    y = np.arange(100) + 0.5
    levels = np.array([0.02, 0.1, 0.4, 0.5, 0.6, 0.9])
    found = central_coverage(y, np.tile(100 * levels, (100, 1)), levels)
    assert found == {0.8: pytest.approx(0.8), 0.2: pytest.approx(0.2)}


def test_qlike_by_hand_and_where_it_is_lowest():
    r, variance = np.array([1.0, -2.0, NAN, 0.0]), np.array([1.0, 2.0, 1.0, math.e])
    assert qlike(r, variance) == pytest.approx(((0 + 1) + (math.log(2) + 2) + 1) / 3)
    drawn = 1.5 * np.random.default_rng(1).standard_t(6, 50_000)
    scores = [qlike(drawn, np.full(50_000, factor * drawn.var())) for factor in (0.8, 0.95, 1.0, 1.05, 1.2)]
    assert int(np.argmin(scores)) == 2


@pytest.mark.parametrize(
    ("count", "level", "accepted"),
    [  # numbers of failures N that are not rejected at 5%: as tabulated by Kupiec 1995
        (255, 0.01, range(1, 7)),  # printed as N < 7; without a failure the statistic is 5.13, above 3.84
        (510, 0.01, range(2, 11)),
        (1000, 0.01, range(5, 17)),
        (255, 0.05, range(7, 21)),
        (510, 0.05, range(17, 36)),
        (1000, 0.05, range(38, 65)),
        (255, 0.1, range(17, 36)),
        (1000, 0.1, range(82, 120)),
    ],
)
def test_kupiec_accepts_the_published_numbers_of_failures(count, level, accepted):
    found = []
    for failures in range(count // 5):
        result = kupiec(np.arange(count) < failures, level)
        assert result.p_value == pytest.approx(stats.chi2(1).sf(result.statistic), rel=1e-9)
        found.append(result.p_value >= 0.05)
    assert np.flatnonzero(found).tolist() == list(accepted)


def test_kupiec_is_the_ratio_of_binomial_likelihoods():
    hits = bits("1" * 20 + "0" * 232)
    ratio = 2 * (stats.binom.logpmf(20, 252, 20 / 252) - stats.binom.logpmf(20, 252, 0.05))
    assert kupiec(hits, 0.05).statistic == pytest.approx(ratio, rel=1e-9)
    assert kupiec(bits("0000"), 0.1).statistic == pytest.approx(-8 * math.log(0.9))
    assert kupiec(bits("1111"), 0.1).statistic == pytest.approx(-8 * math.log(0.1))
    assert all(math.isnan(number) for number in kupiec(bits(""), 0.1))


def chain_ratio(text):
    """The likelihood ratio of Christoffersen, transition by transition."""
    pairs = [text[at : at + 2] for at in range(len(text) - 1)]
    free = bound = 0.0
    share = sum(pair[1] == "1" for pair in pairs) / len(pairs)
    for pair in pairs:
        alike = [other for other in pairs if other[0] == pair[0]]
        free += math.log(sum(other == pair for other in alike) / len(alike))
        bound += math.log(share if pair[1] == "1" else 1 - share)
    return 2 * (free - bound)


@pytest.mark.parametrize("text", ["0010100111000", "1111000011110000", "0101010101", "00001", "10000", "0110"])
def test_christoffersen_independence_and_coverage(text):
    result = christoffersen_independence(bits(text))
    assert result.statistic == pytest.approx(chain_ratio(text), abs=1e-12)
    assert result.p_value == pytest.approx(stats.chi2(1).sf(result.statistic), rel=1e-6)
    both = christoffersen_coverage(bits(text), 0.2)
    assert both.statistic == pytest.approx(chain_ratio(text) + kupiec(bits(text), 0.2).statistic)
    assert both.p_value == pytest.approx(stats.chi2(2).sf(both.statistic))


def test_christoffersen_without_anything_to_compare():
    for text in ("0000", "1111"):
        assert christoffersen_independence(bits(text)) == (0.0, 1.0)
    assert math.isnan(christoffersen_independence(bits("1")).statistic)
    assert math.isnan(christoffersen_coverage(bits("1"), 0.1).p_value)


def test_clustered_hits_are_found_out():
    clustered = bits(("1" * 5 + "0" * 95) * 5)
    assert kupiec(clustered, 0.05).p_value == pytest.approx(1)
    assert christoffersen_independence(clustered).p_value < 1e-6


@pytest.mark.parametrize("a", [0.5, 1, 3.2, 400, 50_000])
@pytest.mark.parametrize("b", [0.5, 2, 77.7, 60_000])
def test_incomplete_beta(a, b):
    for x in (0.0, 1e-9, 0.01, a / (a + b), 0.7, 0.999, 1.0):
        assert incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), rel=1e-8, abs=1e-300)


def test_student_p_values():
    for df in (1, 4, 30, 2000):
        for statistic in (0.0, -0.7, 2.5, 12.0):
            assert student_p_value(statistic, df) == pytest.approx(2 * stats.t(df).sf(abs(statistic)), rel=1e-9)


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (1, 10), (5, 10), (10, 10), (5300, 10_000)])
def test_clopper_pearson(successes, count):
    expected = stats.binomtest(successes, count).proportion_ci(0.95, "exact")
    assert clopper_pearson(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-10)


def test_direction_accuracy_leaves_out_zeros():
    y = np.array([1.0, -1.0, 2.0, 0.0, NAN, 3.0, -3.0])
    forecast = np.array([0.1, -0.1, -0.1, 1.0, 1.0, 0.0, -2.0])
    found = direction_accuracy(y, forecast)
    assert (found.share, found.cases) == (0.75, 4)
    assert (found.low, found.high) == pytest.approx(clopper_pearson(3, 4))
    nothing = direction_accuracy(np.zeros(3), forecast[:3])
    assert math.isnan(nothing.share)
    assert nothing[1:] == (0.0, 1.0, 0)


def test_rank_correlation_is_spearman_at_each_time():
    rng = np.random.default_rng(2)
    time = np.repeat(np.arange(12), [2, 3, 4, 10, 10, 10, 3, 5, 6, 7, 8, 9])
    forecast = rng.integers(0, 6, len(time)).astype(float)  # with ties
    outcome = rng.normal(size=len(time)) + 0.3 * forecast
    forecast[time == 6] = 1.0  # all equal
    outcome[np.flatnonzero(time == 4)[:3]] = NAN
    expected = []
    for at in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11):
        use = (time == at) & ~np.isnan(outcome)
        expected.append(stats.spearmanr(forecast[use], outcome[use]).statistic)
    mixed = rng.permutation(len(time))
    found = rank_correlation(forecast[mixed], outcome[mixed], time[mixed])
    assert found.times == 10
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.t_statistic == pytest.approx(stats.ttest_1samp(expected, 0).statistic)


def test_rank_correlation_of_nothing():
    for count in (0, 2):
        found = rank_correlation(np.arange(count, dtype=float), np.ones(count), np.zeros(count))
        assert found.times == 0
        assert math.isnan(found.mean)
        assert math.isnan(found.t_statistic)


def test_diebold_mariano_of_one_step_is_a_paired_t_test():
    rng = np.random.default_rng(3)
    first, second = rng.gamma(2, size=(2, 60))
    second[7] = NAN
    use = ~np.isnan(second)
    expected = stats.ttest_rel(first[use], second[use])
    found = diebold_mariano(first, second)
    assert found.cases == 59
    assert found.difference == pytest.approx((first - second)[use].mean())
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)


def test_diebold_mariano_of_more_steps_follows_the_formula():
    rng = np.random.default_rng(4)
    d = np.convolve(rng.normal(0.3, 1, 82), np.ones(3), "valid")
    n, h = len(d), 3
    gamma = [np.sum((d[k:] - d.mean()) * (d[: n - k] - d.mean())) / n for k in range(h)]
    plain = d.mean() / math.sqrt((gamma[0] + 2 * gamma[1] + 2 * gamma[2]) / n)
    corrected = plain * math.sqrt((n + 1 - 2 * h + h * (h - 1) / n) / n)
    found = diebold_mariano(d, np.zeros(n), horizon=h)
    assert found.statistic == pytest.approx(corrected)
    assert found.p_value == pytest.approx(2 * stats.t(n - 1).sf(abs(corrected)))


def test_diebold_mariano_with_a_negative_sum_of_autocovariances():
    d = np.array([1.0, -0.9] * 10)
    e = d - d.mean()
    assert e @ e + 2 * (e[1:] @ e[:-1]) < 0
    variance = (e @ e + e[1:] @ e[:-1]) / 20**2  # weights of Newey and West: 1/2
    expected = d.mean() / math.sqrt(variance) * math.sqrt((20 + 1 - 4 + 2 / 20) / 20)
    assert diebold_mariano(d, np.zeros(20), horizon=2).statistic == pytest.approx(expected)


def test_diebold_mariano_by_clusters_counts_no_copy_twice():
    rng = np.random.default_rng(5)
    first, second = rng.gamma(2, size=(2, 30))
    days = np.arange(30)
    once = diebold_mariano(first, second)
    copies = diebold_mariano(np.repeat(first, 8), np.repeat(second, 8), clusters=np.repeat(days, 8))
    assert copies[:3] == pytest.approx(once[:3])
    assert copies.cases == 240
    blind = diebold_mariano(np.repeat(first, 8), np.repeat(second, 8))
    assert abs(blind.statistic) > 2 * abs(once.statistic)


def test_diebold_mariano_keeps_its_size_under_clusters():
    rng = np.random.default_rng(6)
    days = np.repeat(np.arange(40), 6)
    p_values = [diebold_mariano(rng.normal(size=40)[days], np.zeros(240), clusters=days).p_value for _ in range(400)]
    rejected = int(np.sum(np.array(p_values) < 0.05))
    assert stats.binomtest(rejected, 400, 0.05).pvalue > 1e-3


def test_diebold_mariano_without_enough_to_go_by():
    for losses in ([], [1.0], [2.0, 2.0, 2.0], [0.0, 0.0]):
        found = diebold_mariano(np.array(losses), np.zeros(len(losses)))
        assert math.isnan(found.statistic)
        assert math.isnan(found.p_value)
    assert math.isnan(diebold_mariano(np.array([1.0, 2.0, 4.0]), np.zeros(3), horizon=3).statistic)
