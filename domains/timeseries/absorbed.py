"""What a series has absorbed: enough to tell whether rows that come again are the same rows.

Of the last rows, ``compare_rows`` of them, stamps and hashes are kept. All rows before them are folded into one number,
which can be compared when they come again from the first row on, or from where the last input began (so that the same
input can always be given twice). A few old rows out of the middle can no longer be checked, and are refused. Where
more rows are to be kept than before, those of a history that comes again with new rows behind it are.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

NOTHING = np.uint64(0)
FACTS = 6  # width of Absorbed.facts
DIFFERENT = "a row differs from what was absorbed"
UNKNOWN = "a row before the last stamp was not there before"
OLD = (
    "rows older than those kept to compare are neither all that were absorbed nor the same; give the whole history, "
    "and compare_rows=<rows of an extract> with it if extracts as long are to come again"
)
OTHER_STATIC = "static covariates differ from those absorbed"
_PRIME, _MODULUS = 0x9E3779B97F4A7C15, 2**64


def row_hashes(time: np.ndarray, offset: np.ndarray, y: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """A number for each row, uint64 (n,): equal for equal stamp, observation and covariates, bit by bit.

    Args:
        time: int64 (n,). offset: int32 (n,). y: float64 (n,). covariates: float32 (n, p).
    """
    columns = [time.astype(np.int64).view(np.uint64), offset.astype(np.int64).view(np.uint64), _bits(y)]
    mixed = np.zeros(len(time), dtype=np.uint64)
    for column in [*columns, *(_bits(values) for values in covariates.T)]:
        mixed = _mix(mixed ^ column)
    return mixed


def static_hash(static: np.ndarray) -> np.uint64:
    """A number for the static covariates (s,) of a series."""
    return fold(NOTHING, _mix(_bits(static)))


class Problem(NamedTuple):
    """Why rows of a series are refused."""

    reason: str  # the same words for every series
    detail: str  # which rows


class Checked(NamedTuple):
    """Rows of one series that came, told apart."""

    repeated: int  # rows that are the very ones absorbed; the rest lies behind the last stamp
    problem: Problem | None  # why the series is refused; None when it is not


@dataclass(frozen=True)
class Absorbed:
    """The rows that a series has absorbed.

    Attributes:
        count: how many.
        folded: uint64, all but the last of them.
        began: how many there were before the first row of the last input. began_folded: uint64, these.
        static: uint64, of :func:`static_hash`.
        times: int64 (t,), stamps of the last ones, which are kept. hashes: uint64 (t,), of :func:`row_hashes`.
    """

    count: int = 0
    folded: np.uint64 = NOTHING
    began: int = 0
    began_folded: np.uint64 = NOTHING
    static: np.uint64 = NOTHING
    times: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    @property
    def facts(self) -> np.ndarray:
        """All but stamps and hashes, int64 (FACTS,)."""
        signed = [int(np.uint64(x).view(np.int64)) for x in (self.folded, self.began_folded, self.static)]
        return np.array([self.count, self.began, len(self.times), *signed], dtype=np.int64)

    @classmethod
    def from_facts(cls, facts: np.ndarray, times: np.ndarray, hashes: np.ndarray) -> "Absorbed":
        """What :attr:`facts` gave, with stamps and hashes int64, (t,) or more, of which the first ones count."""
        count, began, kept = (int(value) for value in facts[:3])
        folded, began_folded, static = (np.uint64(value) for value in facts[3:].view(np.uint64))
        return cls(
            count, folded, began, began_folded, static, times[:kept].copy(), hashes[:kept].copy().view(np.uint64)
        )

    def check(self, times: np.ndarray, hashes: np.ndarray, static: np.uint64 = NOTHING) -> Checked:
        """Compare rows that came, in the order of their stamps, with those absorbed."""
        if not self.count:
            return Checked(0, None)
        if static != self.static:
            return Checked(0, Problem(OTHER_STATIC, ""))
        again = int(np.searchsorted(times, self.times[-1], side="right"))
        recent = int(np.searchsorted(times[:again], self.times[0]))
        problem = self._check_older(times[:recent], hashes[:recent])
        problem = problem or self._check_recent(times[recent:again], hashes[recent:again])
        return Checked(again, problem)

    def _check_older(self, times: np.ndarray, hashes: np.ndarray) -> Problem | None:
        """Rows before those that are kept: all of them, or all since the last input began."""
        older = self.count - len(self.times)
        if not len(times):
            return None
        if not older:
            return Problem(UNKNOWN, _stamp(times[0]))
        for before, folded in ((0, NOTHING), (self.began, self.began_folded)):
            if len(times) == older - before and fold(folded, hashes) == self.folded:
                return None
        return Problem(OLD, f"{len(times)} rows up to {_stamp(times[-1])}, before the last {len(self.times)}")

    def _check_recent(self, times: np.ndarray, hashes: np.ndarray) -> Problem | None:
        place = np.searchsorted(self.times, times)  # below their number, as no stamp is later than the last
        unknown = self.times[place] != times
        if unknown.any():
            return Problem(UNKNOWN, _stamp(times[unknown][0]))
        different = self.hashes[place] != hashes
        if different.any():
            return Problem(DIFFERENT, _stamp(times[different][0]))
        return None

    def absorb(self, times: np.ndarray, hashes: np.ndarray, static: np.uint64 = NOTHING, *, keep: int) -> "Absorbed":
        """With the rows behind the last stamp, of rows for which :meth:`check` found no problem.

        Args:
            times, hashes: of all rows that came, at least one.
            keep: rows that are kept to be compared one by one.
        """
        again, older = 0, 0
        if self.count:
            again = int(np.searchsorted(times, self.times[-1], side="right"))
            older = int(np.searchsorted(times, self.times[0]))  # rows before those kept: all since `began`
        began, began_folded = self._place_of(times)
        all_times = np.concatenate([times[:older], self.times, times[again:]])
        all_hashes = np.concatenate([hashes[:older], self.hashes, hashes[again:]])
        leaving = max(0, len(all_times) - keep)
        return replace(
            self,
            count=self.count + len(times) - again,
            folded=fold(began_folded if older else self.folded, all_hashes[:leaving]),
            began=began,
            began_folded=began_folded,
            static=static,
            times=all_times[leaving:],
            hashes=all_hashes[leaving:],
        )

    def _place_of(self, times: np.ndarray) -> tuple[int, np.uint64]:
        """How many absorbed rows lie before the first of these, and what they fold to."""
        older = self.count - len(self.times)
        if older and times[0] < self.times[0]:  # one of the two places that rows may come again from
            from_start = int(np.searchsorted(times, self.times[0])) == older
            return (0, NOTHING) if from_start else (self.began, self.began_folded)
        before = int(np.searchsorted(self.times, times[0]))
        return older + before, fold(self.folded, self.hashes[:before])


def fold(folded: np.uint64, hashes: np.ndarray) -> np.uint64:
    """Fold more rows in, in their order: a polynomial in P = _PRIME modulo 2**64, so parts can be folded one by one."""
    n = len(hashes)
    if not n:
        return folded
    weights = _WEIGHTS[-n:] if n <= len(_WEIGHTS) else _weights(n)
    total = int(folded) * pow(_PRIME, n, _MODULUS) + int((weights * hashes).sum(dtype=np.uint64))
    return np.uint64(total % _MODULUS)


def _weights(n: int) -> np.ndarray:
    """P^(n-1), ..., P, 1 modulo 2**64, uint64 (n,)."""
    powers = np.cumprod(np.full(n - 1, _PRIME, dtype=np.uint64))
    return np.append(powers[::-1], np.uint64(1))


def _stamp(time: np.int64) -> str:
    return str(np.datetime64(int(time), "us"))


def _bits(values: np.ndarray) -> np.ndarray:
    """Bits of float64, with one NaN and one zero."""
    clean = np.where(np.isnan(values), np.nan, values + 0.0)
    return np.ascontiguousarray(clean, dtype=np.float64).view(np.uint64)


def _mix(values: np.ndarray) -> np.ndarray:
    """Each bit of the result depends on each bit of the input (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_WEIGHTS = _weights(1024)  # those that are wanted most
