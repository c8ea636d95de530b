"""Files of any length through streams: many side by side, each read a block ahead of its being heard."""

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from domains.audio.endpoints import EndpointConfig, EndPointer
from domains.audio.io import ClipError, ClipInfo, read_blocks, read_mixed
from domains.audio.loudness import level_gain
from domains.audio.stream import Frames, Segment, SoundStreams

_BLOCK_SECONDS = 10.0  # of a recording that are read, and heard, at a time
_READERS = 4  # threads


class Recording(NamedTuple):
    """A file to be heard: a name of its own, its place, what :func:`domains.audio.io.inspect_clip` found, its gain."""

    name: str
    path: Path
    info: ClipInfo
    gain: float = 1.0


class Progress(NamedTuple):
    """What became known of a recording. ``error``: it could not be read to its end after all."""

    name: str
    segments: list[Segment]
    frames: Frames | None
    ended: bool
    error: ClipError | None = None


def hear_recordings(streams: SoundStreams, recordings: Sequence[Recording], at_once: int) -> Iterator[Progress]:
    """Hear files from beginning to end, at most ``at_once`` side by side; the memory is that of a few blocks of each.

    Yields:
        what each block made known, and at the end of each recording an entry that says so.
    """
    waiting = deque(recordings)
    coming: dict[str, tuple[Iterator[np.ndarray], Future[np.ndarray | None]]] = {}
    with ThreadPoolExecutor(min(_READERS, at_once)) as readers:
        while waiting or coming:
            while waiting and len(coming) < at_once:
                new = waiting.popleft()
                streams.open(new.name, new.info.rate, new.gain)
                blocks = read_mixed(new.path, new.info, _BLOCK_SECONDS)
                coming[new.name] = blocks, readers.submit(next, blocks, None)
            arrived: dict[Hashable, np.ndarray] = {}
            for name, (blocks, future) in list(coming.items()):
                try:
                    block = future.result()
                except ClipError as error:
                    del coming[name]
                    streams.close(name)
                    yield Progress(name, [], None, True, error)
                    continue
                if block is None:
                    del coming[name]
                    yield Progress(name, *streams.close(name), ended=True)
                else:
                    arrived[name] = block
                    coming[name] = blocks, readers.submit(next, blocks, None)
            for key, heard in streams.feed(arrived).items():
                yield Progress(str(key), *heard, ended=False)


def recording_gain(path: Path, info: ClipInfo, rate: int, config: EndpointConfig, level_db: float | None) -> float:
    """What a recording is multiplied by for a model whose training brought clips to ``level_db``; 1 for None.

    As one clip with the quiet between its sounds left out: the file is read for it once more.
    """
    if level_db is None:
        return 1.0
    ends = EndPointer(rate, config, longest_seconds=config.longest_seconds or 10.0)
    squares, count, peak = 0.0, 0, 0.0
    for block in chain(read_blocks(path, info, rate), [None]):
        for stretch in ends.push(np.zeros(0, np.float32) if block is None else block, last=block is None):
            squares += float(np.square(stretch.samples, dtype=np.float64).sum())
            count += len(stretch.samples)
            peak = max(peak, float(np.abs(stretch.samples).max(initial=0.0)))
    return level_gain(10 * np.log10(squares / count), peak, level_db) if squares > 0 else 1.0
