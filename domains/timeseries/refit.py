"""Refitting while walking forward: the cut-offs in blocks of time, and what is fitted anew before each block.

Carrying on and refitting answer different questions. Carried parameters show what was learned once and how long it
lasts; refitted ones show what a desk gets that estimates every month anew. Either way a forecast at a cut-off rests on
rows up to that cut-off alone.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from domains.timeseries.history import History
from domains.timeseries.splits import Splits, for_people
from domains.timeseries.store import SeriesStore
from domains.timeseries.train import train
from domains.timeseries.trained import LoadedModel, load_model


@dataclass(frozen=True)
class Block:
    """Successive cut-offs of all series.

    Attributes:
        first: stamp of its first cut-off, int64 microseconds; what is fitted for the block may rest on rows up to it.
        end: stamp that its cut-offs lie before.
    """

    first: int
    end: int

    def part(self, times: np.ndarray, since: int | None = None) -> slice:
        """Which of increasing stamps lie in the block; ``since`` in place of ``first`` lets it begin earlier."""
        begin, end = np.searchsorted(times, (self.first if since is None else since, self.end))
        return slice(int(begin), int(end))

    def known(self, history: History) -> int:
        """How many rows of a series are known at the first cut-off."""
        return int(np.searchsorted(history.time, self.first, side="right"))


def blocks_of(histories: Sequence[History], cutoffs: Sequence[np.ndarray], every: int | None) -> list[Block]:
    """The cut-offs in blocks of ``every`` distinct stamps; a single one when None.

    Args:
        histories: the series. cutoffs: int64 rows of each at which it is forecast.
    """
    stamps = np.unique(np.concatenate([one.time[rows] for one, rows in zip(histories, cutoffs, strict=True)]))
    firsts = stamps[:: every or len(stamps)].tolist()
    return [Block(first, end) for first, end in zip(firsts, [*firsts[1:], np.iinfo(np.int64).max], strict=True)]


@contextmanager
def refitted(
    loaded: LoadedModel, store: SeriesStore, splits: Splits, blocks: Sequence[Block], device: str
) -> Iterator[Iterator[LoadedModel]]:
    """Models for the blocks: for the first ``loaded``, for each other one trained anew, as it was, up to that block.

    The validation part moves along and keeps its length in time. The embargo is no longer than the rows behind the
    block's first cut-off allow: a run wants a test part, though this one's is never used. A model is trained when it is
    asked for; what it leaves on disk is gone with the context.
    """

    def models() -> Iterator[LoadedModel]:
        yield loaded
        for number, block in enumerate(blocks[1:], 1):
            border = block.first + 1  # the row of the first cut-off is known
            left = [int((store.time[store.series(i)] >= border).sum()) for i in range(len(store))]
            data = replace(
                loaded.config.data,
                embargo=min(splits.embargo, max(left) - splits.horizon),
                store=str(store.path),
                test=for_people(border),
                validation=for_people(splits.validation + border - splits.test),
            )
            run = train(replace(loaded.config, data=data), Path(folder) / f"block-{number}", progress=False)
            yield load_model(run.model_dir, device)

    with tempfile.TemporaryDirectory() as folder:
        yield models()
