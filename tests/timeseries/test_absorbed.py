"""What is remembered of rows, and what is made of rows that come again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.timeseries.absorbed import (
    DIFFERENT,
    NOTHING,
    OLD,
    OTHER_STATIC,
    UNKNOWN,
    Absorbed,
    fold,
    row_hashes,
    static_hash,
)

HOUR = 3_600_000_000
TAIL = 256
PRIME = 0x9E3779B97F4A7C15


def rows(count: int, first: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Stamps and hashes of hourly rows; row i is the same in every call."""
    time = np.arange(first, first + count) * HOUR
    y = np.random.default_rng(seed).standard_normal(first + count)[first:]
    return time, row_hashes(time, np.zeros(count, np.int32), y, np.zeros((count, 0), np.float32))


def absorbed(*cuts: int) -> Absorbed:
    """Rows 0 to the last cut, absorbed in parts."""
    found = Absorbed()
    for start, stop in zip((0, *cuts), cuts, strict=False):
        time, hashes = rows(stop - start, start)
        assert found.check(time, hashes).problem is None
        found = found.absorb(time, hashes, keep=TAIL)
    return found


def test_a_fold_is_a_polynomial_modulo_two_to_the_64() -> None:
    values = np.random.default_rng(0).integers(0, 2**64, 3000, dtype=np.uint64)
    for count in (0, 1, 2, TAIL, 1024, 1025, 3000):
        expected = 7
        for value in values[:count].tolist():
            expected = (expected * PRIME + value) % 2**64
        assert fold(np.uint64(7), values[:count]) == expected
        half = count // 3
        assert fold(fold(np.uint64(7), values[:half]), values[half:count]) == expected


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_what_is_kept_does_not_depend_on_the_parts(lengths: list[int]) -> None:
    cuts = np.cumsum(lengths).tolist()
    one, many = absorbed(cuts[-1]), absorbed(*cuts)
    assert one.count == many.count == cuts[-1]
    assert one.folded == many.folded
    assert np.array_equal(one.times, many.times)
    assert np.array_equal(one.hashes, many.hashes)
    assert len(one.times) == min(TAIL, cuts[-1])
    whole = rows(cuts[-1] + 3)
    assert many.check(*whole) == (cuts[-1], None)


def test_rows_are_new_behind_the_last_stamp_alone() -> None:
    assert Absorbed().check(*rows(10)) == (0, None)
    found = absorbed(1000)
    assert found.check(*rows(5, 1000)) == (0, None)
    assert found.check(*rows(25, 980)) == (20, None)
    assert found.check(*rows(10, 900)) == (10, None)


@pytest.mark.parametrize("at", [0, 1, 743, 744, 999])
def test_the_whole_history_is_compared_to_its_first_row(at: int) -> None:
    found = absorbed(1000)
    time, hashes = rows(1005)
    assert found.check(time, hashes) == (1000, None)
    hashes[at] ^= np.uint64(1)
    repeated, problem = found.check(time, hashes)
    assert repeated == 1000
    assert problem is not None
    kept = at >= 1000 - TAIL
    assert problem.reason == (DIFFERENT if kept else OLD)
    assert problem.detail == (str(np.datetime64(at, "h").astype("datetime64[us]")) if kept else OLD_ROWS)


OLD_ROWS = f"744 rows up to {np.datetime64(743, 'h').astype('datetime64[us]')}, before the last 256"


def test_a_part_out_of_the_middle_is_refused() -> None:
    found = absorbed(1000)
    for start in (1, 500, 743):
        assert found.check(*rows(1005 - start, start)).problem == (OLD, OLD_ROWS.replace("744", str(744 - start)))
    assert found.check(*rows(300)).problem is not None  # the first rows, but not up to those that are kept


def test_rows_that_were_not_there_are_refused() -> None:
    time, hashes = rows(100)
    gaps = np.delete(time, [3, 50]), np.delete(hashes, [3, 50])
    found = Absorbed().absorb(*gaps, keep=TAIL)
    assert found.check(*gaps).problem is None
    problem = found.check(time, hashes).problem
    assert problem == (UNKNOWN, "1970-01-01T03:00:00.000000")
    before = np.append(time[:1] - HOUR, gaps[0]), np.append(hashes[:1], gaps[1])
    assert found.check(*before).problem == (UNKNOWN, "1969-12-31T23:00:00.000000")


@pytest.mark.parametrize("overlap", [0, 1, 100, TAIL])
def test_the_last_input_can_come_again_however_long(overlap: int) -> None:
    found = absorbed(2000, 3000)
    again = rows(700 + overlap, 3000 - overlap)
    assert found.check(*again) == (overlap, None)
    found = found.absorb(*again, keep=TAIL)
    assert found.count == 3700
    assert found.check(*again) == (700 + overlap, None)
    assert found.check(*rows(3700)) == (3700, None)
    time, hashes = again[0], again[1].copy()
    hashes[0] ^= np.uint64(1)
    assert found.check(time, hashes).problem is not None
    assert found.check(time[1:], again[1][1:]).problem is not None
    later = absorbed(2000, 3000).absorb(*again, keep=TAIL).absorb(*rows(300, 3700), keep=TAIL)
    assert later.check(*again).problem is not None  # the input before the last


def test_a_history_that_grows_and_is_given_whole_each_time() -> None:
    found = Absorbed()
    for length in (400, 900, 901, 2000):
        whole = rows(length)
        assert found.check(*whole).problem is None
        found = found.absorb(*whole, keep=TAIL)
        assert found.check(*whole) == (length, None)
    assert found.folded == absorbed(2000).folded


def test_hashes_tell_all_that_a_row_says() -> None:
    time, offset, y = np.array([5, 6]), np.array([0, 0], np.int32), np.array([1.0, np.nan])
    covariates = np.array([[1, np.nan], [3, 0]], np.float32)
    base = row_hashes(time, offset, y, covariates)
    assert base[0] != base[1]
    other_nan = np.array([0x7FF8000000000001], np.uint64).view(np.float64)
    assert np.array_equal(base, row_hashes(time, offset, np.append(y[:1], other_nan), covariates))
    assert np.array_equal(base, row_hashes(time, offset, y, np.where(covariates == 0, np.float32(-0.0), covariates)))
    changed = [
        row_hashes(time + 1, offset, y, covariates),
        row_hashes(time, offset + 3600, y, covariates),
        row_hashes(time, offset, np.nextafter(y, 2), covariates),
        row_hashes(time, offset, y, covariates[:, ::-1]),
    ]
    for hashes in changed:
        assert hashes[0] != base[0]


def test_static_covariates_belong_to_what_was_absorbed() -> None:
    assert static_hash(np.zeros(0, np.float32)) == NOTHING
    one, other = (static_hash(np.array(values, np.float32)) for values in ([1, 2], [2, 1]))
    found = Absorbed().absorb(*rows(10), one, keep=TAIL)
    assert found.check(*rows(10), one) == (10, None)
    assert found.check(*rows(5, 10), other).problem == (OTHER_STATIC, "")


def test_facts_bring_all_of_it_back() -> None:
    for cuts in ((5,), (2000, 2900)):
        found = absorbed(*cuts)
        times, hashes = np.zeros(TAIL, np.int64), np.zeros(TAIL, np.int64)
        times[: len(found.times)], hashes[: len(found.times)] = found.times, found.hashes.view(np.int64)
        again = Absorbed.from_facts(found.facts, times, hashes)
        assert np.array_equal(again.facts, found.facts)
        assert again.check(*rows(cuts[-1])) == (cuts[-1], None)
        assert (again.began_folded, again.static) == (found.began_folded, found.static)


@pytest.mark.parametrize("keep", [1, 256, 600, 5000])
def test_extracts_as_long_as_what_is_kept_can_slide(keep: int) -> None:
    found = Absorbed().absorb(*rows(1000), keep=keep)
    for first in range(1000, 1300, 50):
        extract = rows(500, first - 450)
        problem = found.check(*extract).problem
        assert (problem is None) == (keep >= 450), first
        time, hashes = extract if problem is None else rows(50, first)
        found = found.absorb(time, hashes, keep=keep)
    assert (found.count, len(found.times)) == (1300, min(keep, 1300))
    assert found.check(*rows(1300)).problem is None


def test_more_is_kept_of_a_history_that_comes_again_whole() -> None:
    """Or of the last input: of what was compared, and of what came since, as if it had been kept all the time."""
    wanted = Absorbed().absorb(*rows(1310), keep=600)
    grown = absorbed(1000, 1300).absorb(*rows(10, 1300), keep=600)
    assert len(grown.times) == TAIL + 10  # the others are gone
    whole = absorbed(1000, 1300).absorb(*rows(1310), keep=600)
    for found in (whole, Absorbed().absorb(*rows(700), keep=TAIL).absorb(*rows(600, 700), keep=TAIL)):
        last = found if found.count == 1310 else found.absorb(*rows(610, 700), keep=600)
        assert (last.count, last.folded) == (wanted.count, wanted.folded)
        assert np.array_equal(last.times, wanted.times)
        assert np.array_equal(last.hashes, wanted.hashes)
        assert last.check(*rows(600, 710)).problem is None
