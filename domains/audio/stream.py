"""Naming sounds while they are heard: many recordings at once, in blocks of any size.

A recording is cut into sounds by their loudness (domains.audio.endpoints). A classifier in one direction hears each
from its beginning, through a state of fixed size in a :class:`mamba_core.StreamPool`, and is asked at its end: no
windows, no overlap, and nothing is heard twice. How recordings are cut into blocks, and who is heard beside whom,
changes probabilities by rounding alone.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch

from domains.audio.endpoints import EndpointConfig, EndPointer, Stretch, check_endpoints
from domains.audio.io import RATES
from domains.audio.models.classifier import Running, WaveClassifier
from domains.audio.models.spectrogram import SpectrogramClassifier
from domains.audio.resample import Resampler, rate_ratio
from domains.errors import UserError
from domains.hardware import full_precision
from mamba_core import StreamPool

_LENGTH = 16384  # samples of a sound that a call of the model reads at most
_ROWS = 32  # sounds in a call
_FULL_SCALE = {np.dtype(np.int16): 2**15, np.dtype(np.int32): 2**31}  # of integer samples


class Segment(NamedTuple):
    """A sound, or neighbouring pieces of one that have the same label.

    ``start`` and ``end`` are seconds from the beginning of the recording, of the first and behind the last 10 ms that
    are not quiet; ``score`` is the probability of ``label`` at the end, the mean over pieces.
    """

    start: float
    end: float
    label: str
    score: float


class Frames(NamedTuple):
    """What the model held likely on the way, given what it had heard of the sound: every 10 ms that were heard.

    ``seconds`` float64 (n,), of the ends of the frames; ``probabilities`` float32 (n, classes).
    """

    seconds: np.ndarray
    probabilities: np.ndarray


class Heard(NamedTuple):
    """What a call made known of a recording: the sounds that ended, and the frames that were heard."""

    segments: list[Segment]
    frames: Frames


class SoundStreams:
    """Recordings by name, heard side by side.

    ::

        streams = SoundStreams(model, labels, rate=16000, slots=2)
        streams.open("door", rate=48000)
        streams.feed({"door": block})["door"].segments
        streams.close("door").segments

    Args:
        model: in evaluation mode, in one direction.
        labels: names of its classes.
        rate: samples per second that it was trained with.
        slots: how many recordings can be open at a time.
        config: what a sound is.
        longest_seconds: of a sound before it is judged anew, where ``config`` leaves that open.

    Raises:
        UserError: a model that cannot stream, or a setting that makes no sense.
    """

    def __init__(
        self,
        model: WaveClassifier | SpectrogramClassifier,
        labels: Sequence[str],
        rate: int,
        *,
        slots: int,
        config: EndpointConfig | None = None,
        longest_seconds: float = 10.0,
    ) -> None:
        if isinstance(model, SpectrogramClassifier) or not model.streams:
            raise UserError("a classifier in both directions hears whole clips and cannot stream: use mode=clips")
        self.config = config or EndpointConfig()
        check_endpoints(self.config)
        self.labels, self.rate = list(labels), rate
        self._longest = longest_seconds
        self._pool = StreamPool(Running(model).eval(), slots, rows=_ROWS, length=_LENGTH)  # type: ignore[arg-type]
        self._recordings: dict[Hashable, _Recording] = {}

    def __len__(self) -> int:
        """Open recordings."""
        return len(self._recordings)

    def open(self, name: Hashable, rate: int | None = None, gain: float = 1.0) -> None:
        """Begin a recording.

        Args:
            name: anything that can be a key.
            rate: samples per second of its blocks, from 1,000 to 768,000; None: the model's.
            gain: its samples are multiplied by this. Where training brought clips to a level, so should this.

        Raises:
            ValueError: it is open already, or all slots are taken.
            UserError: a rate that is none.
        """
        if name in self._recordings:
            raise ValueError(f"recording {name!r} is open already; close it first")
        if len(self) == self._pool.slots:
            raise ValueError(f"no slot for recording {name!r}: all {len(self)} are taken; close one first")
        if rate is not None and not (isinstance(rate, Integral) and RATES[0] <= rate <= RATES[1]):
            lowest, highest = RATES
            raise UserError(f"recording {name!r}: rate={rate!r}: must be a whole number from {lowest:,} to {highest:,}")
        self._recordings[name] = _Recording(self, self.rate if rate is None else int(rate), gain)

    def feed(self, blocks: Mapping[Hashable, np.ndarray]) -> dict[Hashable, Heard]:
        """Hear the next block of some recordings.

        Args:
            blocks: by name, (l,) of any length: floats of which 1 is full scale; int16 and int32 are brought to that.

        Returns:
            for each of them, the sounds that ended in it and the frames that were heard.

        Raises:
            ValueError: a recording that is not open.
            UserError: samples that are of another type, not finite, or not one channel; nothing has been heard then.
        """
        for name, block in blocks.items():
            self._check(name, block)
        return self._listen({name: self._recordings[name].push(block) for name, block in blocks.items()})

    def close(self, name: Hashable) -> Heard:
        """End a recording: what was still open.

        Raises:
            ValueError: it is not open.
        """
        self._check(name, np.zeros(0))
        heard = self._listen({name: self._recordings[name].finish()})[name]
        del self._recordings[name]
        return heard

    def _check(self, name: Hashable, block: np.ndarray) -> None:
        if name not in self._recordings:
            raise ValueError(f"recording {name!r} is not open")
        if block.ndim != 1:
            raise UserError(f"recording {name!r}: a block is one channel, (l,), not {block.shape}; mix it down")
        if block.dtype.kind != "f" and block.dtype.newbyteorder("=") not in _FULL_SCALE:
            raise UserError(f"recording {name!r}: a block is floats from -1 to 1, int16 or int32, not {block.dtype}")
        if not np.isfinite(block).all():
            raise UserError(f"recording {name!r}: holds samples that are not numbers; leave the block out or mend it")

    def _listen(self, stretches: Mapping[Hashable, list[Stretch]]) -> dict[Hashable, Heard]:
        probabilities = self._hear([(name, stretch) for name, own in stretches.items() for stretch in own])
        return {
            name: self._recordings[name].judge([(stretch, probabilities[name, stretch.sound]) for stretch in own])
            for name, own in stretches.items()
        }

    @full_precision()
    def _hear(self, waiting: list[tuple[Hashable, Stretch]]) -> dict[tuple[Hashable, int], np.ndarray]:
        """Probabilities behind each frame of each stretch, float32 (frames, classes), by recording and sound.

        Sounds of one block are heard side by side as well, as far as there are slots; there is always one for the
        sound of a recording with which its block ends.
        """
        found: dict[tuple[Hashable, int], np.ndarray] = {}
        while waiting:
            turn: dict[tuple[Hashable, int], Stretch] = {}
            later: list[tuple[Hashable, Stretch]] = []
            for name, stretch in waiting:
                key = (name, stretch.sound)
                if not len(stretch.samples):  # a sound of which nothing came after the last block but its end
                    found[key] = np.zeros((0, len(self.labels)), np.float32)
                    self._forget(key)
                elif key in self._pool or len(self._pool) < self._pool.slots:
                    if key not in self._pool:
                        self._pool.open(key)
                    turn[key] = stretch
                else:
                    later.append((name, stretch))
            logits = self._pool.feed({key: torch.from_numpy(stretch.samples) for key, stretch in turn.items()})
            for key, stretch in turn.items():
                at = self._recordings[key[0]].frame_ends(len(stretch.samples))
                found[key] = logits[key][at - 1].double().softmax(-1).float().cpu().numpy()
                if stretch.ends:
                    self._forget(key)
            waiting = later
        return found

    def _forget(self, key: tuple[Hashable, int]) -> None:
        if key in self._pool:
            self._pool.close(key)


@dataclass
class _Piece:
    """A sound that has ended, or several that go on into each other and have one label."""

    start: int
    end: int
    label: int
    score: float

    def joined(self, other: "_Piece") -> "_Piece":
        own, others = self.end - self.start, other.end - other.start
        return _Piece(
            self.start, other.end, self.label, (own * self.score + others * other.score) / max(own + others, 1)
        )


class _Recording:
    """One recording: its rate, its sounds, and what is not told yet."""

    def __init__(self, streams: SoundStreams, rate: int, gain: float) -> None:
        self._labels = streams.labels
        self._gain = np.float32(gain)
        self._resampler = Resampler(rate, streams.rate)
        self._seconds = float(1 / (rate * rate_ratio(rate, streams.rate)))  # of a sample
        self._ends = EndPointer(streams.rate, streams.config, streams._longest)
        self._shortest = streams.config.shortest_seconds * streams.rate
        self._verdict: np.ndarray | None = None  # of the open sound, behind its last frame that is not quiet
        self._piece: _Piece | None = None  # the next may go on with it

    def push(self, block: np.ndarray) -> list[Stretch]:
        scale = np.float32(_FULL_SCALE.get(block.dtype.newbyteorder("="), 1))
        return self._ends.push(self._resampler.push(block.astype(np.float32) / scale) * self._gain)

    def finish(self) -> list[Stretch]:
        return self._ends.push(self._resampler.finish() * self._gain, last=True)

    def frame_ends(self, length: int) -> np.ndarray:
        """Samples of a stretch up to the end of each frame, int64."""
        frame = self._ends.frame
        return np.minimum(np.arange(1, -(-length // frame) + 1) * frame, length)

    def judge(self, stretches: Sequence[tuple[Stretch, np.ndarray]]) -> Heard:
        """What stretches, and the probabilities behind their frames, make known."""
        told: list[Segment] = []
        times, rows = [np.zeros(0)], [np.zeros((0, len(self._labels)), np.float32)]
        for stretch, probabilities in stretches:
            times.append((stretch.start + self.frame_ends(len(stretch.samples))) * self._seconds)
            rows.append(probabilities)
            if stretch.loud_until > stretch.start:
                self._verdict = probabilities[-(-(stretch.loud_until - stretch.start) // self._ends.frame) - 1]
            if stretch.ends:
                told += self._end(stretch)
        return Heard(told, Frames(np.concatenate(times), np.concatenate(rows)))

    def _end(self, stretch: Stretch) -> list[Segment]:
        """A sound ends: what is certain by now."""
        told: list[Segment] = []
        if stretch.onset is not None and self._verdict is not None:
            label = int(self._verdict.argmax())
            new = _Piece(stretch.onset, stretch.loud_until, label, float(self._verdict[label]))
            short = new.end - new.start < self._shortest
            if self._piece is not None and (short or new.label == self._piece.label):
                # Too short to be judged, a rest of a sound belongs to what it is the rest of.
                self._piece = self._piece.joined(_Piece(new.start, new.end, label, self._piece.score) if short else new)
            elif not short:
                told += self._tell()
                self._piece = new
        self._verdict = None
        return told + (self._tell() if stretch.quiet else [])

    def _tell(self) -> list[Segment]:
        piece, self._piece = self._piece, None
        if piece is None:
            return []
        start, end = piece.start * self._seconds, piece.end * self._seconds
        return [Segment(start, end, self._labels[piece.label], piece.score)]
