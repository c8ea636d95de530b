"""A forecaster over whole histories: each row is read once, and what is carried on is a state of fixed size.

The same call serves an evaluation, which asks at every row of the test part, and a batch job, which asks at the last
row and keeps what is carried for the next time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from domains.timeseries.data import WARM_UP, look_ahead, padded, read_rows
from domains.timeseries.forecasts import Forecasts
from domains.timeseries.model import Forecaster
from domains.timeseries.scaler import Scaler
from domains.timeseries.store import SeriesStore
from domains.timeseries.transforms import Rows, Running, Seen, see
from mamba_core.state import State

_SERIES, _ROWS = 16, 256  # in a call on a CPU: what becomes of them on the way stays in its cache, twice as fast
_STEPS = 16  # stretches up to this length are read row by row: a chunk would be padding for the most part


@dataclass(frozen=True)
class Carried:
    """What is kept of some series between two calls: one entry, and one row of the state, for each.

    Attributes:
        running: running means.
        state: of the backbone; batch as long as ``running``.
    """

    running: tuple[Running, ...]
    state: State

    @classmethod
    def start(cls, model: Forecaster, scaler: Scaler, series: int) -> "Carried":
        """Before any row."""
        covariates = len(scaler.shape.past) + len(scaler.shape.future)
        device = next(model.parameters()).device
        return cls((Running.start(covariates),) * series, model.init_state(series, device))


class Stretch(NamedTuple):
    """The next rows of a series, and where forecasts are wanted.

    Attributes:
        rows: ``new`` new rows and, behind them, at least ``horizon`` more of which only stamps and future covariates
            are read.
        new: how many are new.
        cutoffs: int64 (k,), rows below ``new``, increasing.
    """

    rows: Rows
    new: int
    cutoffs: np.ndarray


class Said(NamedTuple):
    """Forecasts of one series at its cut-offs."""

    raw: Tensor  # float (k, horizon, head.size), on the CPU
    spread: np.ndarray  # float64 (k, horizon): outcomes are in units of it
    ripe: np.ndarray  # bool (k,): whether the series had shown enough increments


@torch.no_grad()
def stream(
    model: Forecaster, scaler: Scaler, stretches: Sequence[Stretch], before: Carried, chunk: int
) -> tuple[list[Said], Carried]:
    """Read the next rows of some series, all at once, and forecast at their cut-offs.

    Args:
        model: in evaluation mode.
        scaler: of its model folder.
        stretches: one for each series of ``before``; best of like length, as shorter ones are padded.
        before: what the call for the rows before gave, or :meth:`Carried.start`.
        chunk: rows per call of the model; changes results by rounding alone.
    """
    seen, history, after = read(model, scaler, stretches, before, chunk)
    return say(model, scaler, stretches, seen, history), after


@torch.no_grad()
def read(
    model: Forecaster, scaler: Scaler, stretches: Sequence[Stretch], before: Carried, chunk: int
) -> tuple[list[Seen], Tensor, Carried]:
    """The first half of :func:`stream`: what was seen of each series, what the backbone made of the rows at the
    cut-offs, (k, d_model), series after series, and what to carry on."""
    seen: list[Seen] = []
    running: list[Running] = []
    for stretch, earlier in zip(stretches, before.running, strict=True):
        found, after = see(stretch.rows.part(slice(0, stretch.new)), scaler.kind, scaler.clock, earlier)
        seen.append(found)
        running.append(after)
    cutoffs = [stretch.cutoffs for stretch in stretches]
    history, state = _read(model, [found.inputs for found in seen], cutoffs, before.state, chunk)
    return seen, history, Carried(tuple(running), state)


@torch.no_grad()
def say(
    model: Forecaster, scaler: Scaler, stretches: Sequence[Stretch], seen: list[Seen], history: Tensor
) -> list[Said]:
    """The second half: the head at the cut-offs of all series; ``history`` (k, d_model), series after series."""
    parameter = next(model.parameters())
    pairs = list(zip(stretches, seen, strict=True))
    ahead = [_ahead(stretch, found, scaler) for stretch, found in pairs]
    cells, known = (torch.from_numpy(np.concatenate([one[j] for one in ahead])) for j in (0, 1))
    inputs = torch.from_numpy(np.concatenate([found.inputs[stretch.cutoffs] for stretch, found in pairs]))
    raw = model.say(history, inputs.to(parameter), cells.to(parameter.device), known.to(parameter))
    parts = raw.cpu().split([len(stretch.cutoffs) for stretch in stretches])
    return [
        Said(part, one[2], found.shown[stretch.cutoffs] >= WARM_UP)
        for part, one, (stretch, found) in zip(parts, ahead, pairs, strict=True)
    ]


def read_row(model: Forecaster, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """One more row of each series: inputs float (b, features) to what the backbone makes of it, (b, d_model)."""
    if can_step(model):
        return model.backbone.step(model.embed(inputs), state)
    hidden, state = model.read(inputs[:, None], state)
    return hidden[:, 0], state


def walk_series(
    model: Forecaster, scaler: Scaler, store: SeriesStore, series: int, cutoffs: np.ndarray, chunk: int
) -> Said:
    """A series of a store from its first row on, with forecasts at rows ``cutoffs``, int64 (k,), at least one."""
    part = store.series(series)
    count = int(cutoffs[-1]) + 1
    needed = count + scaler.shape.horizon
    rows = padded(read_rows(store, series, 0, min(part.stop - part.start, needed)), needed)
    said, _ = stream(model, scaler, [Stretch(rows, count, cutoffs)], Carried.start(model, scaler, 1), chunk)
    return said[0]


def joined(said: Sequence[Said]) -> Said:
    """Forecasts of several series, one behind the other."""
    spread, ripe = (np.concatenate([getattr(one, name) for one in said]) for name in ("spread", "ripe"))
    return Said(torch.cat([one.raw for one in said]), spread, ripe)


def forecasts(model: Forecaster, said: Said, levels: np.ndarray) -> Forecasts:
    """Quantiles, mean and variance in units of the increments."""
    distribution = model.distribution(said.raw.double())
    quantiles = distribution.quantile(torch.from_numpy(np.asarray(levels, dtype=np.float64))).numpy()
    return Forecasts(
        np.asarray(levels, dtype=np.float64),
        quantiles * said.spread[..., None],
        distribution.mean.numpy() * said.spread,
        distribution.variance.numpy() * said.spread**2,
    )


def _read(
    model: Forecaster, inputs: list[np.ndarray], cutoffs: list[np.ndarray], state: State, chunk: int
) -> tuple[Tensor, State]:
    """The backbone over all rows; its output (k, d_model) at the cut-offs, series after series."""
    lengths = np.array([len(rows) for rows in inputs])
    order = np.argsort(lengths, kind="stable")
    groups = [order]
    if lengths.max() <= _STEPS and can_step(model):
        chunk = 1
    elif next(model.parameters()).device.type == "cpu":
        groups = np.array_split(order, -(-len(order) // _SERIES))
        chunk = min(chunk, _ROWS * max(1, _SERIES // len(order)))
    kept: dict[int, Tensor] = {}
    after = []
    for group in groups:
        own = [cutoffs[i] for i in group]
        found, behind = _read_group(model, [inputs[i] for i in group], own, state.rows(group.tolist()), chunk)
        kept.update(zip(group.tolist(), found.split([len(rows) for rows in own]), strict=True))
        after.append(behind)
    return torch.cat([kept[i] for i in range(len(inputs))]), State.cat(after).rows(np.argsort(order).tolist())


def _read_group(
    model: Forecaster, inputs: list[np.ndarray], cutoffs: list[np.ndarray], state: State, chunk: int
) -> tuple[Tensor, State]:
    """Likewise of series in the order of their lengths, chunk by chunk. Those that have ended leave from the front."""
    parameter = next(model.parameters())
    lengths = np.array([len(rows) for rows in inputs])
    padded_inputs = np.zeros((len(inputs), lengths[-1], inputs[0].shape[1]), dtype=np.float32)
    for i, rows in enumerate(inputs):
        padded_inputs[i, : len(rows)] = rows
    at = np.concatenate(cutoffs)
    owner = np.repeat(np.arange(len(inputs)), [len(rows) for rows in cutoffs])
    kept = torch.empty(len(at), model.backbone.config.d_model, dtype=parameter.dtype, device=parameter.device)
    ended: list[State] = []
    first = 0
    for start in range(0, int(lengths[-1]), chunk):
        gone = int(np.searchsorted(lengths, start, side="right")) - first
        if gone:
            ended.append(state.rows(slice(0, gone)))
            state, first = state.rows(slice(gone, None)), first + gone
        block = torch.from_numpy(padded_inputs[first:, start : start + chunk]).to(parameter)
        left = torch.from_numpy(lengths[first:] - start).to(parameter.device)
        hidden, state = _one_step(model, block, state) if chunk == 1 else _one_chunk(model, block, left, state)
        here = np.flatnonzero((at >= start) & (at < start + chunk))
        kept[here] = hidden[owner[here] - first, at[here] - start]
    return kept, State.cat([*ended, state])


def can_step(model: Forecaster) -> bool:
    return all(block.mixer.capabilities.steps for _, block in model.backbone.blocks())


def _one_step(model: Forecaster, block: Tensor, state: State) -> tuple[Tensor, State]:
    hidden, state = read_row(model, block[:, 0], state)
    return hidden[:, None], state


def _one_chunk(model: Forecaster, block: Tensor, left: Tensor, state: State) -> tuple[Tensor, State]:
    """A chunk of rows (b, l, features), of which the first ``left`` (b,) are real."""
    if int(left.min()) >= block.shape[1]:  # no padding to tell the model of
        return model.read(block, state)
    real = torch.arange(block.shape[1], device=block.device) < left[:, None]
    return model.read(block, state, seq_idx=real.long() - 1)


def _ahead(stretch: Stretch, seen: Seen, scaler: Scaler) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells, what is known, and spread of the steps ahead of each cut-off."""
    h = scaler.shape.horizon
    if not len(stretch.cutoffs):
        known = scaler.shape.known
        return np.zeros((0, h), np.int64), np.zeros((0, h, known), np.float32), np.zeros((0, h))
    first, last = int(stretch.cutoffs[0]), int(stretch.cutoffs[-1])
    rows = stretch.rows.part(slice(first, last + 1 + h))
    own = slice(first, last + 1)
    unknown = np.full(len(rows.time), np.nan)
    found = look_ahead(rows, seen.scale[own], seen.mean[own], seen.spread[own], unknown, scaler.kind, scaler.clock, h)
    at = stretch.cutoffs - first
    return found.cells[at], found.known[at], found.spread[at]
