"""What the training part says about all series before any weight is learned."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from domains.errors import UserError
from domains.timeseries.clock import DECAYS, MEMORY, Clock, hour_of_week
from domains.timeseries.history import KINDS, History
from domains.timeseries.model import Shape
from domains.timeseries.splits import Splits
from domains.timeseries.store import SeriesStore
from domains.timeseries.transforms import BANK, mean_squares

_BURN_IN = 100  # increments before the running mean squares say much
_FEWEST, _MOST = 500, 200_000  # rows that the weights are fitted on
_ROUNDS = 3


@dataclass(frozen=True)
class Scaler:
    """What the training part says about all series.

    Attributes:
        kind: one of :data:`domains.timeseries.history.KINDS`.
        clock: usual size of moves by hour of the week.
        weekends: whether there are rows on Saturdays and Sundays.
        shape: covariates and horizon.
    """

    kind: str
    clock: Clock
    weekends: bool
    shape: Shape

    @classmethod
    def fit(cls, store: SeriesStore, splits: Splits) -> "Scaler":
        """From the rows before the validation part."""
        parts = _Training(store, splits)
        days = {int(day) for hours, _ in parts.hours_and_increments() for day in np.unique(hours // 24)}
        clock = Clock.fit(parts.hours_and_increments())
        clock = replace(clock, memory=fit_memory(*parts.terms(clock)))
        shape = Shape(tuple(store.past_names), tuple(store.future_names), tuple(store.static_names), splits.horizon)
        return cls(store.kind, clock, bool(days & {5, 6}), shape)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        covariates = {name: list(getattr(self.shape, name)) for name in ("past", "future", "static")}
        return {
            "kind": self.kind,
            "horizon": self.shape.horizon,
            "weekends": self.weekends,
            **covariates,
            "clock": self.clock.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "Scaler":
        """What :meth:`to_dict` gave; a UserError when it is something else."""
        try:
            covariates = [tuple(map(str, values[name])) for name in ("past", "future", "static")]
            shape = Shape(covariates[0], covariates[1], covariates[2], int(values["horizon"]))
            kind, weekends = str(values["kind"]), bool(values["weekends"])
            clock = Clock.from_dict(dict(values["clock"]), where)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: holds no scaler ({error}); restore the file or train again") from None
        if kind not in KINDS:
            raise UserError(f"{where}: kind is {kind!r}, none of {', '.join(KINDS)}; restore the file or train again")
        return cls(kind, clock, weekends, shape)


@dataclass(frozen=True)
class _Training:
    """The training part of a store, read series by series."""

    store: SeriesStore
    splits: Splits

    def histories(self) -> Iterator[tuple[History, int]]:
        for i, end in enumerate(self.splits.train_ends):
            yield self.store.history(i), int(end)

    def hours_and_increments(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for history, end in self.histories():
            yield hour_of_week(history.time[:end], history.offset[:end]), history.x[:end]

    def terms(self, clock: Clock) -> tuple[np.ndarray, np.ndarray]:
        """Running mean squares (n, BANK), and the squared increment of the next row on the clock (n,): rows spread over
        all series, at most _MOST of them."""
        stride = max(1, int(self.splits.train_ends.sum()) // _MOST)
        terms, later = [np.zeros((0, BANK))], [np.zeros(0)]
        for history, end in self.histories():
            x, time, offset = history.x[:end], history.time[:end], history.offset[:end]
            rows = np.flatnonzero(np.cumsum(~np.isnan(x)) >= _BURN_IN)[:-1:stride]
            rows = rows[~np.isnan(x[rows + 1])]
            if len(rows):
                terms.append(mean_squares(x, time, offset, clock)[rows])
                later.append(x[rows + 1] ** 2 / clock.of(time[rows + 1], offset[rows + 1]))
        return np.concatenate(terms), np.concatenate(later)


def fit_memory(terms: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Weights of running mean squares with which they best foretell the next square (non-negative least squares).

    Each row is divided by what the weights of the round before foretell, as the error of a square grows with its size;
    in the first round by the slowest mean square. So series of any size count alike.

    Args:
        terms: float64 (n, BANK), running mean squares.
        later: float64 (n,), squares of the next increments.

    Returns:
        float64 (BANK,); the weights of a single mean square where there are too few rows to fit any.
    """
    from scipy.optimize import nnls

    slowest = terms[:, len(DECAYS) - 1]
    usable = slowest > 0
    terms, later, expected = terms[usable], later[usable], slowest[usable]
    if len(later) < _FEWEST:
        return MEMORY
    weights = MEMORY
    for _ in range(_ROUNDS):
        found, _ = nnls(terms / expected[:, None], later / expected)
        if not found.any():
            return weights
        weights = found
        expected = np.maximum(terms @ weights, 1e-3 * slowest[usable])
    return weights
