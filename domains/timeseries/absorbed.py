"""What a series has absorbed: enough to tell whether rows that come again are the same rows.

Of the last TAIL rows stamps and hashes are kept. All rows before them are folded into one number, which can be compared
when the whole history comes again; a few old rows out of its middle can no longer be checked, and are refused.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

NOTHING = np.uint64(0)
TAIL = 256  # rows that can be compared one by one
_PRIME = np.uint64(0x9E3779B97F4A7C15 | 1)


def row_hashes(time: np.ndarray, y: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """A number for each row, uint64 (n,): equal for equal stamp, observation and covariates, bit by bit.

    Args:
        time: int64 (n,). y: float64 (n,). covariates: float32 (n, p).
    """
    columns = [time.view(np.uint64), _bits(y)] + [
        _bits(covariates[:, j].astype(np.float64)) for j in range(covariates.shape[1])
    ]
    mixed = np.zeros(len(time), dtype=np.uint64)
    for column in columns:
        mixed = _mix(mixed ^ column)
    return mixed


class Checked(NamedTuple):
    """Rows of one series that came, told apart."""

    repeated: int  # rows that are the very ones absorbed
    first_new: int  # index of the first row behind the last absorbed stamp
    problem: str | None  # why the series is refused; None when it is not


@dataclass(frozen=True)
class Absorbed:
    """The rows that a series has absorbed.

    Attributes:
        count: how many.
        folded: uint64, all but the last TAIL of them.
        times: int64 (t,), stamps of the last ones. hashes: uint64 (t,), of :func:`row_hashes`.
    """

    count: int = 0
    folded: np.uint64 = NOTHING
    times: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    @property
    def last(self) -> int | None:
        """Stamp of the last row, None before the first."""
        return int(self.times[-1]) if len(self.times) else None

    def check(self, times: np.ndarray, hashes: np.ndarray) -> Checked:
        """Compare rows that came, in the order of their stamps, with those absorbed."""
        if self.last is None:
            return Checked(0, 0, None)
        new = int(np.searchsorted(times, self.last, side="right"))
        recent = int(np.searchsorted(times[:new], self.times[0]))
        problem = self._check_recent(times[recent:new], hashes[recent:new])
        if problem is None and recent:
            older = self.count - len(self.times)
            if recent != older or fold(NOTHING, hashes[:recent]) != self.folded:
                problem = (
                    f"{recent} rows are older than the last {len(self.times)}, which alone are kept to compare with, "
                    "and not the whole history that was absorbed"
                )
        return Checked(new, new, problem)

    def _check_recent(self, times: np.ndarray, hashes: np.ndarray) -> str | None:
        place = np.searchsorted(self.times, times)
        known = self.times[np.minimum(place, len(self.times) - 1)] == times
        if not known.all():
            return (
                f"row {np.datetime64(int(times[~known][0]), 'us')} lies before the last stamp and was not there before"
            )
        different = self.hashes[place] != hashes
        if different.any():
            return f"row {np.datetime64(int(times[different][0]), 'us')} differs from what was absorbed"
        return None

    def absorb(self, times: np.ndarray, hashes: np.ndarray) -> "Absorbed":
        """With these rows behind the last one."""
        all_times, all_hashes = np.append(self.times, times), np.append(self.hashes, hashes)
        leaving = max(0, len(all_times) - TAIL)
        return replace(
            self,
            count=self.count + len(times),
            folded=fold(self.folded, all_hashes[:leaving]),
            times=all_times[leaving:],
            hashes=all_hashes[leaving:],
        )


def fold(folded: np.uint64, hashes: np.ndarray) -> np.uint64:
    """Fold more rows in, in their order: a polynomial in _PRIME modulo 2**64, so parts can be folded one by one."""
    if not len(hashes):
        return folded
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(len(hashes), _PRIME, dtype=np.uint64))  # P, P^2, ..., P^n
        weights = np.append(powers[::-1][1:], np.uint64(1))
        return np.uint64(folded * powers[-1] + np.sum(weights * hashes, dtype=np.uint64))


def _bits(values: np.ndarray) -> np.ndarray:
    """Bits of float64, with one NaN and one zero."""
    clean = np.where(np.isnan(values), np.nan, values + 0.0)
    return np.ascontiguousarray(clean, dtype=np.float64).view(np.uint64)


def _mix(values: np.ndarray) -> np.ndarray:
    """Each bit of the result depends on each bit of the input (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
