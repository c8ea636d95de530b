"""Sampled futures: each step is drawn from the distribution one step ahead, and read like an observation.

Unlike the forecasts of the horizon, paths may be longer than what was trained, and tell how steps hang together: of a
sum, a maximum, a barrier. They are drawn from what the model says, whatever a calibration makes of its quantiles: that
corrects steps ahead one by one, and says nothing of how they hang together.

What the steps of a series cost does not depend on its history. Random numbers follow from seed, name and cut-off, so
neither engines nor shards nor the order of series decide any; and each series is drawn by itself, so that it comes
out the same whichever others there are, to the digits of the state that it starts from.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from domains.config import MANY, check_range
from domains.timeseries.clock import DECAYS, DOWN_DECAYS
from domains.timeseries.data import look_ahead, padded
from domains.timeseries.history import is_logarithmic
from domains.timeseries.output import PathTable, Written
from domains.timeseries.splits import for_people
from domains.timeseries.stream import Carried, Stretch, can_step, read_row, stream
from domains.timeseries.trained import LoadedModel
from domains.timeseries.transforms import MOVES, TRENDS, Rows, Running, move_features, next_stamps, scale_of, see
from mamba_core.decoding import Graphed
from mamba_core.state import State

_CHUNK = 2048
_ROWS = 1 << 20  # in a file, but for one series however many
_WORTH_A_GRAPH = 100  # steps; making one takes as long as some dozens
_ALL_DECAYS = np.array([*DECAYS, *DOWN_DECAYS])


class Ending(NamedTuple):
    """The last row of a series, and all that it takes to go on from there.

    Attributes:
        name: of the series.
        running: what is carried of its observations. state: of the backbone, one row.
        raw: float (horizon, head.size), what is said of the steps ahead. spread: float64 (horizon,), its unit.
        ahead: rows to come; of them stamps and covariates known in advance are read.
    """

    name: str
    running: Running
    state: State
    raw: torch.Tensor
    spread: np.ndarray
    ahead: Rows


def sample_paths(loaded: LoadedModel, rows: Rows, steps: int, count: int, seed: int = 0) -> np.ndarray:
    """Draw paths of a series behind its last row; the history is read once.

    Args:
        loaded: the model.
        rows: the series; at least 16 increments observed.
        steps: length of the paths. Stamps go on as is usual (:func:`domains.timeseries.transforms.next_stamps`);
            covariates are missing there.
        count: how many paths.
        seed: of the random numbers.

    Returns:
        float64 (count, steps): observations to come, in units of ``rows.y``.

    Raises:
        UserError: steps or count make no sense.
        ValueError: the series has shown too little, or nothing.
    """
    check_range("steps", steps, 1, MANY)
    check_range("count", count, 1, MANY)
    model, scaler = loaded.model, loaded.scaler
    ahead = max(steps, scaler.shape.horizon)
    whole = rows.extended(*next_stamps(rows.time, rows.offset, ahead, scaler.weekends))
    stretch = Stretch(whole, len(rows), np.array([len(rows) - 1]))
    (said,), carried = stream(model, scaler, [stretch], Carried.start(model, scaler, 1), _CHUNK)
    if not said.ripe[0]:
        raise ValueError("the series has shown too few increments to go on from")
    behind = whole.part(slice(len(rows), None))
    ending = Ending("", carried.running[0], carried.state, said.raw[0], said.spread[0], behind)
    generator = torch.Generator().manual_seed(seed)
    return go_on(loaded, ending, steps, count, generator, make_stepper(loaded, count, steps))


class Stepper:
    """A step of so many paths in one launch: the backbone's, and what the head says of the next one.

    The graph is made once and serves one series after the other: :meth:`begin` copies where the next one starts.
    """

    def __init__(self, loaded: LoadedModel, count: int):
        model = self._model = loaded.model
        parameter = next(model.parameters())
        self._state = model.init_state(count, parameter.device)
        self._first = torch.zeros(1, dtype=torch.int64, device=parameter.device)
        given = parameter.new_zeros(count, model.shape.features)
        self._step = Graphed(
            self._advance, self._state, given, self._first.clone(), parameter.new_zeros(1, model.shape.known)
        )

    def _advance(self, given: torch.Tensor, cells: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        history = self._model.backbone.step_(self._model.embed(given), self._state)
        return self._model.answer(*self._model.condense(history, given), cells, known, self._first)[:, 0]

    def begin(self, state: State) -> None:
        """Go on from ``state``, (count,) rows."""
        self._state.copy_(state)

    def __call__(self, given: torch.Tensor, cells: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Inputs float (count, features), int64 (1,) and float (1, known) of the step ahead: raw (count, head.size),
        which the next call overwrites."""
        return self._step(given, cells, known)


def make_stepper(loaded: LoadedModel, count: int, steps: int) -> Stepper | None:
    """For ``steps`` of ``count`` paths in all; None where launches cost nothing or a graph is not worth making."""
    on_gpu = next(loaded.model.parameters()).is_cuda
    return Stepper(loaded, count) if on_gpu and can_step(loaded.model) and steps >= _WORTH_A_GRAPH else None


@torch.no_grad()
def go_on(
    loaded: LoadedModel,
    ending: Ending,
    steps: int,
    count: int,
    generator: torch.Generator,
    stepper: Stepper | None = None,
) -> np.ndarray:
    """Draw paths from where a series ends, float64 (count, steps), in units of its observations."""
    model, scaler = loaded.model, loaded.scaler
    parameter = next(model.parameters())
    coming = ending.ahead.part(slice(0, steps))
    unknown = Rows(coming.time, coming.offset, np.full(steps, np.nan), coming.past, coming.future, coming.static)
    # All inputs that no observation decides, and what is known one step ahead.
    seen, _ = see(unknown, scaler.kind, scaler.clock, ending.running)
    further = padded(unknown, steps + 1)
    ahead = look_ahead(further, np.ones(steps), seen.mean, seen.spread, further.y, scaler.kind, scaler.clock, 1)
    cells, known = torch.from_numpy(ahead.cells).to(parameter.device), torch.from_numpy(ahead.known).to(parameter)
    first = torch.zeros(1, dtype=torch.int64, device=parameter.device)
    profile = scaler.clock.of(coming.time, coming.offset)
    gaps = np.diff(coming.time, prepend=coming.time[0] if ending.running.time is None else ending.running.time) / 1e6
    copies = _Copies.of(ending.running, count)
    state = ending.state.rows([0] * count)
    if stepper is not None:
        stepper.begin(state)
    raw, spread = ending.raw[:1].expand(count, -1), ending.spread[:1].repeat(count)
    found = np.empty((count, steps))
    for step in range(steps):
        x = model.distribution(raw.cpu().double()).sample(generator).numpy() * spread
        copies = copies.moved(x, float(profile[step]), scaler.kind)
        found[:, step] = copies.y
        if step + 1 == steps:
            break
        scale = scale_of(copies.mean_squares, copies.y, scaler.kind, scaler.clock)
        inputs = np.repeat(seen.inputs[step : step + 1], count, axis=0)
        inputs[:, :MOVES] = copies.features(x, float(profile[step]), float(gaps[step]), scale)
        given = torch.from_numpy(inputs).to(parameter)
        if stepper is None:
            history, state = read_row(model, given, state)
            raw = model.answer(*model.condense(history, given), cells[step], known[step], first)[:, 0]
        else:
            raw = stepper(given, cells[step], known[step])
        spread = scale * ahead.spread[step, 0]
    return found


def write_paths(
    out: Path, endings: Iterable[Ending], loaded: LoadedModel, steps: int, count: int, seed: int, part: str
) -> tuple[Written, ...]:
    """Draw paths of some series and write them, a few series at a time.

    Args:
        out: folder of the forecasts.
        endings: one for each series.
        part: names the files, with what :meth:`PathTable.write` adds.
    """
    written: list[Written] = []
    endings = sorted(endings, key=_day_and_name)
    stepper = make_stepper(loaded, count, len(endings) * steps)
    for number, group in enumerate(_groups(endings, max(1, _ROWS // (count * steps)))):
        cutoffs = [_cutoff(ending) for ending in group]
        generators = [
            torch.Generator().manual_seed(path_seed(seed, end.name, at)) for end, at in zip(group, cutoffs, strict=True)
        ]
        values = [
            go_on(loaded, end, steps, count, random, stepper) for end, random in zip(group, generators, strict=True)
        ]
        stamps = np.stack([ending.ahead.time[:steps] for ending in group])
        names = [ending.name for ending in group]
        table = PathTable(names, np.array(cutoffs, dtype=np.int64), stamps, np.stack(values))
        written.append(table.write(out, f"{part}-{number:04d}", loaded.hash[:16]))
    return tuple(written)


def path_seed(seed: int, name: str, cutoff: int) -> int:
    """Of the random numbers of one series at one cut-off."""
    return int.from_bytes(hashlib.sha256(f"{seed} {cutoff} {name}".encode()).digest()[:8], "big")


@dataclass(frozen=True)
class _Copies:
    """What is carried of the observations of copies of one series that went on differently.

    Attributes:
        y: float64 (c,), last observations.
        count: increments seen.
        squares, means: float64 (c, BANK) and (c, len(TRENDS)), as in :class:`domains.timeseries.transforms.Running`.
    """

    y: np.ndarray
    count: int
    squares: np.ndarray
    means: np.ndarray

    @classmethod
    def of(cls, running: Running, count: int) -> "_Copies":
        y, squares, means = (np.tile(values, (count, 1)) for values in (running.y, running.squares, running.means))
        return cls(y[:, 0], running.count, squares, means)

    def moved(self, x: np.ndarray, profile: float, kind: str) -> "_Copies":
        """Each behind an increment of its own, in an hour of that profile."""
        y = self.y * np.exp(x) if is_logarithmic(kind) else self.y + x if kind == "level" else x
        move = (x / np.sqrt(profile))[:, None]
        powers = (
            np.concatenate([move.repeat(len(DECAYS), 1), np.minimum(move, 0.0).repeat(len(DOWN_DECAYS), 1)], 1) ** 2
        )
        return _Copies(
            y,
            self.count + 1,
            _ALL_DECAYS * self.squares + (1 - _ALL_DECAYS) * powers,
            np.array(TRENDS) * self.means + (1 - np.array(TRENDS)) * move,
        )

    @property
    def mean_squares(self) -> np.ndarray:
        """Running mean squares, float64 (c, BANK)."""
        return self.squares / (1 - _ALL_DECAYS**self.count)

    def features(self, x: np.ndarray, profile: float, gap: float, scale: np.ndarray) -> np.ndarray:
        """The inputs that observations decide, float64 (c, MOVES), behind increments x; gap: seconds before them."""
        profiles, gaps, counts = (np.full(len(x), value) for value in (profile, gap, self.count))
        means = self.means / (1 - np.array(TRENDS) ** self.count)
        return move_features(x, profiles, gaps, counts, self.mean_squares, means, scale)


def _groups(endings: list[Ending], most: int) -> Iterator[list[Ending]]:
    """Series with cut-offs on the same day, so many at a time."""
    group: list[Ending] = []
    for ending in endings:
        if group and (len(group) == most or _day_and_name(ending)[0] != _day_and_name(group[0])[0]):
            yield group
            group = []
        group.append(ending)
    if group:
        yield group


def _cutoff(ending: Ending) -> int:
    assert ending.running.time is not None
    return ending.running.time


def _day_and_name(ending: Ending) -> tuple[str, str]:
    return for_people(_cutoff(ending))[:10], ending.name
