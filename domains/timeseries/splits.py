"""Training, validation and test part: one border in time for all series, so that none tells about another's future.

Before a border the outcome of a forecast must lie (purge: the last ``horizon`` cut-offs are left out), and behind it
``embargo`` rows are left out.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from domains.config import MANY, check_range
from domains.errors import UserError
from domains.timeseries.config import DataConfig
from domains.timeseries.store import SeriesStore
from domains.words import counted


@dataclass(frozen=True)
class Splits:
    """Where the parts begin.

    Attributes:
        validation, test: stamps, microseconds since 1970 UTC; rows from there on belong to that part.
        train_ends, validation_ends: int64 (series,), rows of each series before these stamps.
        horizon, embargo: steps.
    """

    validation: int
    test: int
    train_ends: np.ndarray
    validation_ends: np.ndarray
    horizon: int
    embargo: int

    def train_cutoffs(self, series: int) -> range:
        """Rows of a series at which training may make a forecast: its outcome lies in the training part."""
        return range(0, max(0, int(self.train_ends[series]) - self.horizon))

    def validation_cutoffs(self, series: int) -> range:
        """Likewise in the validation part."""
        first, end = int(self.train_ends[series]), int(self.validation_ends[series])
        return _between(first - 1 + self.embargo, end - self.horizon)

    def test_cutoffs(self, series: int, length: int) -> range:
        """Likewise in the test part of a series of ``length`` rows. The first cut-off is the last row before it."""
        return _between(int(self.validation_ends[series]) - 1 + self.embargo, length - self.horizon)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "validation": for_people(self.validation),
            "test": for_people(self.test),
            "horizon": self.horizon,
            "embargo": self.embargo,
        }

    @property
    def note(self) -> str:
        """One line about the parts."""
        return (
            f"validation from {for_people(self.validation)}, test from {for_people(self.test)}; "
            f"{counted(self.horizon, 'step')} ahead"
        )


def _between(first: int, end: int) -> range:
    return range(max(0, first), max(0, first, end))


def make_splits(store: SeriesStore, data: DataConfig) -> Splits:
    """The parts that the settings ask for.

    Raises:
        UserError: a border that is neither a stamp nor a share, or that leaves a part without a cut-off.
    """
    check_range("data.horizon", data.horizon, 1, 10_000)
    check_range("data.embargo", data.embargo, 0, MANY)
    ordered = np.sort(store.time)
    test = _border("data.test", data.test, ordered)
    validation = _border("data.validation", data.validation, ordered[: np.searchsorted(ordered, test)])
    return splits_at(store, validation, test, data.horizon, data.embargo)


def splits_from_dict(store: SeriesStore, values: dict[str, Any], where: str) -> Splits:
    """The parts that :meth:`Splits.to_dict` wrote down, in a store that may have grown since."""
    try:
        stamps = [_microseconds(str(values[name])) for name in ("validation", "test")]
        steps = [int(values[name]) for name in ("horizon", "embargo")]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{where}: holds no splits ({error}); restore the file") from None
    return splits_at(store, stamps[0], stamps[1], steps[0], steps[1])


def validation_border(values: dict[str, Any]) -> int:
    """Where the validation part begins, microseconds, by what :meth:`Splits.to_dict` wrote down."""
    return _microseconds(str(values["validation"]))


def splits_at(store: SeriesStore, validation: int, test: int, horizon: int, embargo: int) -> Splits:
    """The parts with borders at these stamps; a UserError when one holds no cut-off."""
    rows = [store.series(i) for i in range(len(store))]
    ends = [
        np.array([int(np.searchsorted(store.time[part], border)) for part in rows], dtype=np.int64)
        for border in (validation, test)
    ]
    splits = Splits(validation, test, ends[0], ends[1], horizon, embargo)
    lengths = [part.stop - part.start for part in rows]
    counts = {
        "training": sum(len(splits.train_cutoffs(i)) for i in range(len(rows))),
        "validation": sum(len(splits.validation_cutoffs(i)) for i in range(len(rows))),
        "test": sum(len(splits.test_cutoffs(i, length)) for i, length in enumerate(lengths)),
    }
    for part, count in counts.items():
        if not count:
            raise UserError(
                f"{store.source_name}: the {part} part holds no forecast of {horizon} steps ({splits.note}); "
                "give another data.test or data.validation, or a shorter data.horizon"
            )
    return splits


def for_people(stamp: int) -> str:
    """A stamp in microseconds as ISO 8601, UTC."""
    return datetime.fromtimestamp(stamp / 1e6, UTC).isoformat().removesuffix("+00:00")


def _border(name: str, text: str, ordered: np.ndarray) -> int:
    """A border in microseconds, from a stamp or from the share of the ``ordered`` stamps that lies behind it."""
    try:
        share = float(text)
    except ValueError:
        try:
            return _microseconds(text)
        except ValueError:
            raise UserError(
                f"{name}={text}: is neither a stamp such as 2000-01-01 nor a share such as 0.2; give one of them"
            ) from None
    if not 0 < share < 1:
        raise UserError(f"{name}={text}: a share must lie between 0 and 1")
    if not len(ordered):
        raise UserError(f"{name}={text}: there is no row before the test part; give a later data.test")
    return int(ordered[min(len(ordered) - 1, round(len(ordered) * (1 - share)))])


def _microseconds(text: str) -> int:
    stamp = datetime.fromisoformat(text)
    stamp = stamp.replace(tzinfo=UTC) if stamp.tzinfo is None else stamp
    return round(stamp.timestamp() * 1e6)
