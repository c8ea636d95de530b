"""What a sceptic would try first on a time series; reported beside every result.

All are fitted once, on the rows before the end of the training part, and walk through what follows with their
parameters fixed: each new observation moves the state of the recursion, never a parameter.
"""

from collections.abc import Sequence

from domains.errors import UserError
from domains.timeseries.baselines.base import Baseline
from domains.timeseries.baselines.garch import Garch, GjrGarch
from domains.timeseries.baselines.har import Har
from domains.timeseries.baselines.simple import Drift, Naive, SeasonalNaive
from domains.timeseries.baselines.statistical import AutoArima, AutoEts
from domains.timeseries.baselines.volatility import Ewma, EwmaClock, FilteredHistorical
from domains.timeseries.history import POWERS

# By name, in the order of the table.
BASELINES: dict[str, type[Baseline]] = {
    kind.name: kind
    for kind in (
        Naive,
        SeasonalNaive,
        Drift,
        Ewma,
        EwmaClock,
        Garch,
        GjrGarch,
        FilteredHistorical,
        AutoArima,
        AutoEts,
    )
}
VOLATILITY: dict[str, type[Baseline]] = {Har.name: Har}  # beside them, where volatility itself is the target


def make_baselines(names: Sequence[str] = (), max_statistical: int = 50, kind: str = "price") -> list[Baseline]:
    """Baselines that are not fitted yet, in the order of the table.

    Args:
        names: of those wanted; empty: all.
        max_statistical: series that AutoARIMA and AutoETS, which take long, are fitted on: the first so many.
        kind: of the series.

    Raises:
        UserError: a name that no baseline has.
    """
    offered = BASELINES | (VOLATILITY if kind in POWERS else {})
    for name in names:
        if name not in offered:
            raise UserError(f"baselines: there is none named {name!r}; choose among {', '.join(offered)}")
    made = [baseline() for name, baseline in offered.items() if not names or name in names]
    for baseline in made:
        if isinstance(baseline, AutoArima | AutoEts):
            baseline.max_series = max_statistical
    return made


__all__ = ["BASELINES", "VOLATILITY", "Baseline", "make_baselines"]
