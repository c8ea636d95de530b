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
    seen: list[Seen] = []
    running: list[Running] = []
    for stretch, earlier in zip(stretches, before.running, strict=True):
        found, after = see(stretch.rows.part(slice(0, stretch.new)), scaler.kind, scaler.clock, earlier)
        seen.append(found)
        running.append(after)
    history, state = _read(model, [found.inputs for found in seen], [s.cutoffs for s in stretches], before.state, chunk)
    said = [
        _say(model, scaler, stretch, found, hidden)
        for stretch, found, hidden in zip(stretches, seen, history, strict=True)
    ]
    return said, Carried(tuple(running), state)


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
) -> tuple[list[Tensor], State]:
    """The backbone over all rows, chunk by chunk; its output (k, d_model) at the cut-offs of each series."""
    parameter = next(model.parameters())
    lengths = [len(rows) for rows in inputs]
    kept: list[list[Tensor]] = [[] for _ in inputs]
    for start in range(0, max(lengths), chunk):
        stop = min(start + chunk, max(lengths))
        block = np.zeros((len(inputs), stop - start, inputs[0].shape[1]), dtype=np.float32)
        seq_idx = np.full(block.shape[:2], -1, dtype=np.int64)
        for i, rows in enumerate(inputs):
            part = rows[start:stop]
            block[i, : len(part)] = part
            seq_idx[i, : len(part)] = 0
        tensor = torch.from_numpy(block).to(parameter)
        whole = min(lengths) >= stop  # no padding to tell the model of
        index = None if whole else torch.from_numpy(seq_idx).to(parameter.device)
        hidden, state = model.read(tensor, state, seq_idx=index)
        for i, rows_wanted in enumerate(cutoffs):
            here = rows_wanted[(rows_wanted >= start) & (rows_wanted < stop)] - start
            kept[i].append(hidden[i, torch.from_numpy(here).to(hidden.device)])
    return [torch.cat(parts) for parts in kept], state


def _say(model: Forecaster, scaler: Scaler, stretch: Stretch, seen: Seen, history: Tensor) -> Said:
    """The head at the cut-offs of one series."""
    ahead = _ahead(stretch, seen, scaler)
    parameter = next(model.parameters())
    inputs = torch.from_numpy(seen.inputs[stretch.cutoffs]).to(parameter)
    cells, known = torch.from_numpy(ahead[0]).to(parameter.device), torch.from_numpy(ahead[1]).to(parameter)
    raw = model.say(history, inputs, cells, known)
    return Said(raw.cpu(), ahead[2], seen.shown[stretch.cutoffs] >= WARM_UP)


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
