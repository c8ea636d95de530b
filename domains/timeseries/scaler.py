"""What the training part says about all series before any weight is learned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from domains.errors import UserError
from domains.timeseries.clock import Clock, hour_of_week
from domains.timeseries.history import KINDS
from domains.timeseries.model import Shape
from domains.timeseries.splits import Splits
from domains.timeseries.store import SeriesStore


@dataclass(frozen=True)
class Scaler:
    """What the training part says about all series.

    Attributes:
        kind: price, return or level.
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
        histories = (store.history(i) for i in range(len(store)))
        parts = []
        days: set[int] = set()
        for history, end in zip(histories, splits.train_ends, strict=True):
            hours = hour_of_week(history.time[:end], history.offset[:end])
            days |= set(np.unique(hours // 24).tolist())
            parts.append((hours, history.x[:end]))
        shape = Shape(tuple(store.past_names), tuple(store.future_names), tuple(store.static_names), splits.horizon)
        return cls(store.kind, Clock.fit(parts), bool(days & {5, 6}), shape)

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
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: holds no scaler ({error}); restore the file or train again") from None
        if kind not in KINDS:
            raise UserError(f"{where}: kind is {kind!r}, none of {', '.join(KINDS)}; restore the file or train again")
        return cls(kind, Clock.from_dict(values.get("clock", {}), where), weekends, shape)
