"""What was forecast at the last rows of a series, what came of it, and what is kept of both between two runs.

Of each series the normal scores of its last ``window`` outcomes are kept, for each step ahead, and of its last
``horizon`` rows, whose outcomes have not all come, what the head made of them. When further rows come, what was
forecast of them is told again and scored: with the stamps and known covariates that came, as an evaluation tells it. So
a history that is read in parts gives what it gives when read at once, also where the forecasts written on the way had
to guess the stamps ahead.

The scores of all series of a shard are pooled, and forecasts read at the levels that follow from the last ``window``
outcomes of each (:mod:`domains.timeseries.calibration`). That is exact where an outcome to come is exchangeable with
these: where the model misses alike in all series of the shard, and as it did over the window. It is not where series
differ, as a correction that is right on average may be wrong for each; where outcomes hang together (series that move
on the same day, steps ahead that overlap), which leaves the levels right on average over time but counts fewer
outcomes than there seem to be; and where misses change faster than the window forgets. Series that have ended, or whose
rows are refused, count with the outcomes that they had. Shards differ a little, as each pools its own series. Forecasts
count from the end of the training part on: within it a model misses too little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from domains.timeseries.calibration import scores_of
from domains.timeseries.config import LEVELS
from domains.timeseries.data import WARM_UP, look_ahead, padded
from domains.timeseries.model import Forecaster
from domains.timeseries.scaler import Scaler
from domains.timeseries.transforms import Rows, Seen

_PAIRS = 4096  # of a row and a step ahead, that the head is asked for at once: they stay in the processor's cache


@dataclass(frozen=True)
class Recent:
    """Rows of series, one series behind the other, with all that it takes to tell what was forecast at each row.

    Attributes:
        time: int64 (k,), microseconds. offset: int32 (k,). future: float32 (k, f), covariates known in advance.
        x: float64 (k,), increments; NaN where missing.
        shown: int64 (k,), increments that the series had shown up to each row.
        scale: float64 (k,); mean, spread: float64 (k, f), of the covariates. As in
            :class:`domains.timeseries.transforms.Seen`.
        context: float64 (k, d_model). direct: float64 (k, head.size). Of :meth:`Forecaster.condense`.
    """

    time: np.ndarray
    offset: np.ndarray
    future: np.ndarray
    x: np.ndarray
    shown: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    context: np.ndarray
    direct: np.ndarray

    @classmethod
    def start(cls, model: Forecaster) -> "Recent":
        """No rows."""
        f, width, size = len(model.shape.future), model.backbone.config.d_model, model.head.size
        none, covariates = np.zeros(0), np.zeros((0, f))
        whole, future = np.zeros(0, np.int64), covariates.astype(np.float32)
        made = (np.zeros((0, width)), np.zeros((0, size)))
        return cls(whole, whole.astype(np.int32), future, none, whole, none, covariates, covariates, *made)

    @classmethod
    def of(cls, rows: Rows, seen: Seen, context: np.ndarray, direct: np.ndarray) -> "Recent":
        """The last rows of a stretch of one series that was seen, those that were condensed."""
        part, past = slice(len(seen.x) - len(context), len(seen.x)), rows.past.shape[1]
        told = (seen.x[part], seen.shown[part], seen.scale[part], seen.mean[part, past:], seen.spread[part, past:])
        return cls(rows.time[part], rows.offset[part], rows.future[part], *told, context, direct)

    @classmethod
    def cat(cls, parts: Sequence["Recent"]) -> "Recent":
        """One behind the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS))

    def rows(self, index: np.ndarray) -> "Recent":
        """Some of the rows, in this order."""
        return Recent(*(getattr(self, name)[index] for name in FIELDS))


FIELDS = tuple(field.name for field in fields(Recent))


@dataclass(frozen=True)
class Trailing:
    """What is kept of some series.

    Attributes:
        recent: their last rows.
        counts: int64 (n,), how many rows of each: ``horizon`` where there are as many.
        scores: float32 (n, horizon, window), normal scores of their last outcomes, the last one last; NaN where there
            was none yet. Rounded when they come in, so that it makes no difference how often they were saved since.
    """

    recent: Recent
    counts: np.ndarray
    scores: np.ndarray

    @classmethod
    def start(cls, model: Forecaster, window: int) -> "Trailing":
        """One series before any row."""
        scores = np.full((1, model.shape.horizon, window), np.nan, dtype=np.float32)
        return cls(Recent.start(model), np.zeros(1, np.int64), scores)

    @classmethod
    def cat(cls, parts: Sequence["Trailing"]) -> "Trailing":
        """One behind the other."""
        counts, scores = (np.concatenate([getattr(part, name) for part in parts]) for name in ("counts", "scores"))
        return cls(Recent.cat([part.recent for part in parts]), counts, scores)

    def rows(self, index: Sequence[int]) -> "Trailing":
        """Some of the series, in this order."""
        counts = self.counts[index]
        kept = _ranges((np.cumsum(self.counts) - self.counts)[index], counts)
        return Trailing(self.recent.rows(kept), counts, self.scores[index])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it, by name."""
        return {"counts": self.counts, "scores": self.scores} | {name: getattr(self.recent, name) for name in FIELDS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Trailing":
        """What :meth:`to_arrays` gave."""
        return cls(Recent(*(arrays[name] for name in FIELDS)), arrays["counts"], arrays["scores"])


def first_kept(y: np.ndarray, window: int, horizon: int) -> int:
    """The new row from which on it counts what was forecast.

    The last ``window`` observations, or all, come true of it, at any step ahead; and it is at least ``horizon`` before
    the end, as those rows are kept.

    Args:
        y: float64 (n,), observations of the new rows; NaN where missing.
    """
    known = np.flatnonzero(~np.isnan(y))[-window:]
    oldest = int(known[0]) if len(known) else len(y)
    return max(0, oldest - horizon)


def advanced(
    model: Forecaster, scaler: Scaler, before: Trailing, new: Recent, counts: np.ndarray, first: np.ndarray, since: int
) -> Trailing:
    """Score what came true, and keep what has not.

    Args:
        before: what was kept of n series.
        new: their new rows, of each those from row ``first`` on, of :func:`first_kept`, to the last.
        counts, first: int64 (n,); rows of each that ``new`` holds.
        since: as in :func:`score`.
    """
    _, horizon, window = before.scores.shape
    # Where first is not 0, no outcome was forecast at a row of before, and the rows between are not there.
    earlier = np.where(first == 0, before.counts, 0)
    starts = np.stack([np.cumsum(before.counts) - before.counts, before.counts.sum() + np.cumsum(counts) - counts], 1)
    lengths = np.stack([earlier, counts], 1)
    whole = Recent.cat([before.recent, new]).rows(_ranges(starts.ravel(), lengths.ravel()))
    sizes = lengths.sum(1)
    ends = np.cumsum(sizes)
    series = np.repeat(np.arange(len(sizes)), sizes)
    came = ~np.isnan(whole.x) & (np.arange(len(series)) >= (ends - counts)[series])
    number = np.cumsum(came)
    came &= (number[ends - 1])[series] - number < window  # the last ones
    at = np.flatnonzero(came)
    found = score(model, scaler, whole, at, (ends - sizes)[series[at]], since)
    parts = np.split(found, np.cumsum(np.bincount(series[at], minlength=len(sizes)))[:-1], axis=1)
    scores = [np.concatenate([old[:, p.shape[1] :], p], axis=1) for old, p in zip(before.scores, parts, strict=True)]
    kept = np.minimum(sizes, horizon)
    return Trailing(whole.rows(_ranges(ends - kept, kept)), kept, np.stack(scores))


@torch.no_grad()
def score(
    model: Forecaster, scaler: Scaler, rows: Recent, came: np.ndarray, begins: np.ndarray, since: int
) -> np.ndarray:
    """Normal scores of outcomes.

    Args:
        rows: k rows of some series.
        came: int64 (m,), those whose outcomes are scored; x is known there. begins: int64 (m,), the first row of their
            series.
        since: stamp from which on forecasts count. What a model says of rows that it was trained on is too good.

    Returns:
        float32 (horizon, m); NaN where nothing was forecast that counts, so many rows before.
    """
    h = scaler.shape.horizon
    parameter = next(model.parameters())
    origins = came - np.arange(1, h + 1)[:, None]  # (h, m)
    counts = origins >= begins
    made = origins[counts]
    counts[counts] = (rows.shown[made] >= WARM_UP) & (rows.time[made] >= since)
    at, steps = origins[counts], np.nonzero(counts)[0]
    # Series lie next to each other here. What a row says of steps ahead in another series is not asked for.
    none = np.zeros((len(rows.x), 0), np.float32)
    there = padded(Rows(rows.time, rows.offset, rows.x, none, rows.future, none[0]), len(rows.x) + h)
    ahead = look_ahead(there, rows.scale, rows.mean, rows.spread, there.y, scaler.kind, scaler.clock, h)
    levels = np.array(LEVELS)
    found = np.empty(len(at), dtype=np.float32)
    for start in range(0, len(at), _PAIRS):
        part = slice(start, start + _PAIRS)
        pair = at[part], steps[part]
        raw = model.answer(
            torch.from_numpy(rows.context[at[part]]).to(parameter),
            torch.from_numpy(rows.direct[at[part]]).to(parameter),
            torch.from_numpy(ahead.cells[pair][:, None]).to(parameter.device),
            torch.from_numpy(ahead.known[pair][:, None]).to(parameter),
            torch.from_numpy(steps[part, None]).to(parameter.device),
        )
        quantiles = model.distribution(raw[:, 0].double()).quantile(torch.from_numpy(levels)).cpu().numpy()
        found[part] = scores_of(ahead.outcome[pair], quantiles * ahead.spread[pair][:, None], levels)
    scores = np.full(counts.shape, np.nan, dtype=np.float32)
    scores[counts] = found
    return scores


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Numbers from each start on, so many, one range behind the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
