"""What baselines are fitted on where there is more than they need."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from domains.audio.store import AudioStore

_PIECE = 1 << 15  # samples
_LEAD = 1 << 10


class Stretch(NamedTuple):
    """Levels of a stretch of a clip, uint8 (l,); the first ``lead`` only serve as what came before the others."""

    levels: np.ndarray
    lead: int


def even_share(store: AudioStore, clips: Sequence[int], most: int, level_db: float | None) -> Iterator[Stretch]:
    """The clips in stretches; of those with more than ``most`` samples together, stretches spread evenly over all."""
    pieces = [(clip, start) for clip in clips for start in range(0, store.clips[clip].length, _PIECE)]
    total = sum(store.clips[clip].length for clip in clips)
    wanted = min(len(pieces), max(1, len(pieces) * most // total))
    for i in range(wanted):
        clip, start = pieces[i * len(pieces) // wanted]
        first, stop = max(0, start - _LEAD), min(start + _PIECE, store.clips[clip].length)
        yield Stretch(store.tokens(clip, first, stop, level_db), start - first)
