"""What a model sees of a series: by hand, causal, and the same bits however the rows come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.timeseries.clock import DECAYS, DOWN_DECAYS, HOURS_A_WEEK, MEMORY, Clock, hour_of_week
from domains.timeseries.history import KINDS, cumulated, increments
from domains.timeseries.scaler import fit_memory
from domains.timeseries.transforms import (
    Rows,
    Running,
    feature_count,
    mean_squares,
    next_stamps,
    see,
    steps_ahead,
)

HOUR = 3_600_000_000


def make_rows(seed: int, n: int, past: int = 1, future: int = 1) -> Rows:
    """A price with missing values, irregular stamps, and covariates with missing values."""
    rng = np.random.default_rng(seed)
    time = 1_600_000_000_000_000 + np.cumsum(rng.integers(1, 5, n)) * HOUR
    y = 100 * np.exp(np.cumsum(0.01 * rng.standard_normal(n)))
    y[rng.random(n) < 0.1] = np.nan
    covariates = rng.standard_normal((n, past + future)).astype(np.float32)
    covariates[rng.random(covariates.shape) < 0.1] = np.nan
    return Rows(time, np.zeros(n, np.int32), y, covariates[:, :past], covariates[:, past:], np.ones(2, np.float32))


def a_clock() -> Clock:
    rng = np.random.default_rng(0)
    return Clock(rng.uniform(0.2, 5.0, HOURS_A_WEEK), rng.uniform(0.0, 0.2, len(MEMORY)))


def test_increments_by_hand() -> None:
    y = np.array([np.nan, 2.0, np.nan, 8.0, 4.0])
    assert np.array_equal(increments(y, "level"), [np.nan, np.nan, np.nan, 6.0, -4.0], equal_nan=True)
    assert np.allclose(increments(y, "price"), [np.nan, np.nan, np.nan, np.log(4), -np.log(2)], equal_nan=True)
    assert np.array_equal(increments(y, "return"), y, equal_nan=True)
    assert np.allclose(increments(y[3:], "price", last=2.0), [np.log(4), -np.log(2)])


def test_outcomes_by_hand() -> None:
    x = np.array([1.0, 2.0, np.nan, 4.0])
    got = cumulated(x, "level", np.array([0, 1, 3]), 2)
    assert np.array_equal(got, [[2.0, np.nan], [np.nan, 4.0], [np.nan, np.nan]], equal_nan=True)
    got = cumulated(x, "return", np.array([0, 2]), 2)
    assert np.array_equal(got, [[2.0, np.nan], [4.0, np.nan]], equal_nan=True)


@given(st.integers(0, 1000), st.integers(2, 60), st.sampled_from(KINDS), st.data())
@settings(max_examples=60, deadline=None)
def test_any_split_gives_the_same_bits(seed: int, n: int, kind: str, data: st.DataObject) -> None:
    rows, clock = make_rows(seed, n), a_clock()
    whole, end = see(rows, kind, clock, Running.start(2))
    cut = data.draw(st.integers(1, n - 1))
    first, middle = see(rows.part(slice(0, cut)), kind, clock, Running.start(2))
    second, last = see(rows.part(slice(cut, None)), kind, clock, Running.from_array(middle.to_array()))
    for name in whole._fields:
        pieces = np.concatenate([getattr(first, name), getattr(second, name)])
        assert np.array_equal(getattr(whole, name), pieces, equal_nan=True), name
    assert np.array_equal(end.to_array(), last.to_array(), equal_nan=True)


@given(st.integers(0, 1000), st.integers(2, 60), st.sampled_from(KINDS), st.data())
@settings(max_examples=60, deadline=None)
def test_nothing_of_the_future_is_seen(seed: int, n: int, kind: str, data: st.DataObject) -> None:
    rows, clock = make_rows(seed, n), a_clock()
    cut = data.draw(st.integers(1, n - 1))
    other = make_rows(seed + 1, n)
    columns = ("time", "offset", "y", "past", "future")
    mixed = Rows(*(np.append(getattr(rows, c)[:cut], getattr(other, c)[cut:], axis=0) for c in columns), rows.static)
    before, _ = see(rows, kind, clock, Running.start(2))
    after, _ = see(mixed, kind, clock, Running.start(2))
    for name in before._fields:
        assert np.array_equal(getattr(before, name)[:cut], getattr(after, name)[:cut], equal_nan=True), name


def test_running_mean_squares_by_hand() -> None:
    """Against the definition: means with weights that fall by the decay, over what was seen; then the sum of them."""
    rows, clock = make_rows(3, 40), a_clock()
    moves = (increments(rows.y, "price") / np.sqrt(clock.of(rows.time, rows.offset)))[:25]
    moves = moves[~np.isnan(moves)]
    want = []
    for decays, squares in ((DECAYS, moves**2), (DOWN_DECAYS, np.minimum(moves, 0) ** 2)):
        for decay in decays:
            weights = decay ** np.arange(len(moves))[::-1]
            want.append((weights * squares).sum() / weights.sum())
    x = increments(rows.y, "price")
    assert mean_squares(x, rows.time, rows.offset, clock)[24] == pytest.approx(np.array(want), rel=1e-12)
    seen, _ = see(rows, "price", clock, Running.start(2))
    assert seen.scale[24] == pytest.approx(np.sqrt(clock.memory @ np.array(want)), rel=1e-12)


def test_the_weights_of_the_mean_squares_are_found() -> None:
    """Squares that follow a known mixture of fast and slow memory, and of falls."""
    rng = np.random.default_rng(0)
    terms = np.exp(rng.standard_normal((60_000, len(MEMORY))))
    truth = np.array([0.1, 0, 0, 0.4, 0, 0, 0.3, 0, 0.5, 0, 0])
    found = fit_memory(terms, terms @ truth * rng.chisquare(1, len(terms)))
    assert found == pytest.approx(truth, abs=0.03)
    assert fit_memory(terms[:100], terms[:100, 0]) is MEMORY


def test_inputs_are_finite_and_as_many_as_announced() -> None:
    rows = make_rows(5, 50)
    seen, _ = see(rows, "price", Clock.flat(), Running.start(2))
    assert seen.inputs.shape == (50, feature_count(1, 1, 2))
    assert np.isfinite(seen.inputs).all()
    still = Rows(rows.time, rows.offset, np.full(50, 7.0), rows.past, rows.future, rows.static)  # never moves
    assert np.isfinite(see(still, "level", Clock.flat(), Running.start(2))[0].inputs).all()
    nothing = Rows(rows.time, rows.offset, np.full(50, np.nan), rows.past, rows.future, rows.static)
    assert np.isfinite(see(nothing, "price", Clock.flat(), Running.start(2))[0].inputs).all()


def test_inputs_do_not_depend_on_the_unit() -> None:
    rows = make_rows(6, 80)
    dearer = Rows(rows.time, rows.offset, 1000 * rows.y, rows.past, rows.future, rows.static)
    for kind in ("level", "return"):
        one, other = (see(r, kind, Clock.flat(), Running.start(2))[0].inputs for r in (rows, dearer))
        assert np.allclose(one, other, atol=1e-5)


def test_the_clock_is_found() -> None:
    """A market that moves ten times as much on Tuesdays from 14:00 to 15:00."""
    rng = np.random.default_rng(0)
    time = np.arange(24 * 7 * 60, dtype=np.int64) * HOUR
    hours = hour_of_week(time, np.zeros(len(time), np.int32))
    assert hours[0] == 3 * 24  # 1 January 1970 was a Thursday
    x = rng.standard_normal(len(time)) * np.where(hours == 24 + 14, 10.0, 1.0)
    clock = Clock.fit([(hours, x)])
    others = np.delete(clock.profile, 38)
    assert clock.profile[38] > 15 * others.mean()
    assert Clock.from_dict(clock.to_dict(), "here").profile == pytest.approx(clock.profile)


def test_hours_that_differ_by_chance_alone_are_not_believed() -> None:
    time = np.arange(24 * 7 * 30, dtype=np.int64) * HOUR
    hours = hour_of_week(time, np.zeros(len(time), np.int32))
    x = np.random.default_rng(1).standard_t(4, len(time))
    plain = np.bincount(hours, x**2) / np.bincount(hours) / (x**2).mean()
    assert abs(np.log(plain)).max() > 3 * abs(np.log(Clock.fit([(hours, x)]).profile)).max()


def test_local_clock_decides() -> None:
    assert hour_of_week(np.array([0]), np.array([3600], np.int32))[0] == 3 * 24 + 1


def test_spread_ahead_by_hand() -> None:
    clock = a_clock()
    time, offset = np.arange(6, dtype=np.int64) * HOUR, np.zeros(6, np.int32)
    profile = clock.of(time, offset)
    assert np.allclose(steps_ahead(clock, time, offset, "price", 2)[1], np.sqrt([profile[2], profile[2] + profile[3]]))
    assert np.allclose(steps_ahead(clock, time, offset, "return", 2)[1], np.sqrt([profile[2], profile[3]]))
    assert steps_ahead(clock, time, offset, "price", 2).shape == (4, 2)


def test_stamps_to_come_leave_out_weekends() -> None:
    day = 24 * HOUR
    friday = 1 * day  # 2 January 1970
    time = friday - np.array([3, 2, 1, 0]) * day
    stamps, offset = next_stamps(time, np.zeros(4, np.int32), 2, weekends=False)
    assert stamps.tolist() == [friday + 3 * day, friday + 4 * day]
    assert len(offset) == 2
    assert next_stamps(time, np.zeros(4, np.int32), 2, weekends=True)[0].tolist() == [friday + day, friday + 2 * day]


@pytest.mark.parametrize("gap", [1, 1_000, 1_800_000_000, 7 * HOUR, 24 * HOUR, 50 * HOUR, 7 * 24 * HOUR])
@pytest.mark.parametrize("day", range(7))
def test_stamps_to_come_are_as_many_as_asked_for(gap: int, day: int) -> None:
    """However small or large the gap, and whatever the day of the last row."""
    time = day * 24 * HOUR + 23 * HOUR + gap * np.arange(-5, 1, dtype=np.int64)
    for weekends in (True, False):
        stamps, offsets = next_stamps(time, np.zeros(6, np.int32), 9, weekends)
        assert len(stamps) == len(offsets) == 9
        assert (np.diff(np.append(time[-1], stamps)) >= gap).all()
        last_is_weekend = (day + 3) % 7 >= 5
        if not weekends and not last_is_weekend and gap < 48 * HOUR:
            assert ((stamps // (24 * HOUR) + 3) % 7 < 5).all()


def test_rows_before_1970_go_on_like_any_others() -> None:
    rows = make_rows(3, 40)
    old = Rows(rows.time - rows.time[-1] - HOUR, rows.offset, rows.y, rows.past, rows.future, rows.static)
    whole, _ = see(old, "price", Clock.flat(), Running.start(2))
    _, middle = see(old.part(slice(0, 20)), "price", Clock.flat(), Running.start(2))
    second, _ = see(old.part(slice(20, None)), "price", Clock.flat(), Running.from_array(middle.to_array()))
    assert np.array_equal(whole.inputs[20:], second.inputs)
