"""Where sounds begin and end in a recording that comes in blocks: by loudness, sample-exact, whatever the blocks."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from domains.config import check_range
from domains.errors import UserError

FRAME_SECONDS = 0.01  # loudness is looked at, and sounds begin and end, by frames of this length


@dataclass
class EndpointConfig:
    """What a sound is, and how long one is listened to."""

    quiet_db: float | None = -50.0  # RMS in dBFS below which 10 ms are quiet; None: nothing is, all is one sound
    hold_seconds: float = 0.2  # so much quiet ends a sound
    lead_seconds: float = 0.05  # so much of the quiet before a sound is heard with it
    shortest_seconds: float = 0.05  # shorter sounds are passed over
    longest_seconds: float | None = None  # what lasts longer is judged anew; None: as long as clips in training


def check_endpoints(config: EndpointConfig) -> None:
    """Make sure that the settings make sense; a UserError names the first that does not."""
    if config.quiet_db is not None and not -200 <= config.quiet_db < 0:
        raise UserError(f"quiet_db={config.quiet_db}: must lie between -200 and 0, or be null")
    for name in ("hold_seconds", "lead_seconds", "shortest_seconds"):
        check_range(name, getattr(config, name), 0, 60)
    if config.longest_seconds is not None:
        check_range("longest_seconds", config.longest_seconds, 0.1, 86_400)


class Stretch(NamedTuple):
    """What is to be heard next of a sound.

    Attributes:
        sound: its number. A sound that lasts longer than is listened to at a time goes on as another.
        start: number of the first of ``samples`` in the recording. samples: float32 (l,), whole frames of it, but for
            the last of a recording; none where nothing is left but the end.
        onset: sample with which the first frame of the sound that is not quiet begins; None before any.
        loud_until: sample behind the last such frame; 0 before any.
        ends: whether the sound ends here.
        quiet: whether it does so for quiet or the recording's end, and does not go on as another.
    """

    sound: int
    start: int
    samples: np.ndarray
    onset: int | None
    loud_until: int
    ends: bool
    quiet: bool


@dataclass
class _Open:
    """A sound that has begun."""

    sound: int
    begins: int
    onset: int | None = None
    loud_until: int = 0
    held: int = 0  # quiet frames since the last that was not


class EndPointer:
    """Cuts a recording into sounds. What comes out depends on the samples alone, not on the blocks they come in.

    A sound begins ``lead_seconds`` before the first frame that is not quiet and ends when ``hold_seconds`` have been
    quiet. Quiet between sounds is passed over.

    Args:
        rate: samples per second.
        config: see :class:`EndpointConfig`.
        longest_seconds: for ``config.longest_seconds`` where that is None.
    """

    def __init__(self, rate: int, config: EndpointConfig, longest_seconds: float) -> None:
        self.frame = max(1, round(FRAME_SECONDS * rate))
        self._least = 0.0 if config.quiet_db is None else 10 ** (config.quiet_db / 10)  # mean square of a loud frame
        self._hold, self._lead = (
            round(seconds * rate / self.frame) for seconds in (config.hold_seconds, config.lead_seconds)
        )
        self._longest = (config.longest_seconds or longest_seconds) * rate
        self._pending = np.zeros(0, dtype=np.float32)
        self._first = 0  # number of the first pending sample
        self._at = 0  # up to which frames have been looked at
        self._given = 0  # up to which samples have been given out
        self._sounds = 0
        self._open: _Open | None = None

    def push(self, samples: np.ndarray, *, last: bool = False) -> list[Stretch]:
        """Take the next samples, float32 (l,), l possibly 0; give what is to be heard of them by now.

        Args:
            samples: whole frames are looked at, and what is left over with the next.
            last: whether the recording ends with them.

        Returns:
            one stretch of each sound that goes on, begins or ends, in their order.
        """
        self._pending = np.concatenate([self._pending, samples])
        unseen = self._pending[self._at - self._first :]
        whole = len(unseen) // self.frame * self.frame
        loud = [(is_loud, self.frame) for is_loud in self._loud(unseen[:whole].reshape(-1, self.frame))]
        if last and whole < len(unseen):
            loud += [(is_loud, len(unseen) - whole) for is_loud in self._loud(unseen[None, whole:])]
        stretches: list[Stretch] = []
        for is_loud, length in loud:
            if self._open is None and is_loud:
                self._begin(max(self._given, self._at - self._lead * self.frame))
            start, self._at = self._at, self._at + length
            if self._open is not None:
                self._hear(self._open, is_loud, start, stretches)
        if self._open is not None and (last or self._at > self._given):
            self._give(stretches, ends=last, quiet=last)
        keep = max(self._given, self._at - self._lead * self.frame)
        self._pending, self._first = self._pending[keep - self._first :], keep
        return stretches

    def _loud(self, frames: np.ndarray) -> list[bool]:
        return (np.square(frames, dtype=np.float64).mean(axis=1) >= self._least).tolist()

    def _hear(self, sound: _Open, is_loud: bool, start: int, stretches: list[Stretch]) -> None:
        if is_loud:
            sound.onset = start if sound.onset is None else sound.onset
            sound.loud_until, sound.held = self._at, 0
        else:
            sound.held += 1
        if sound.held >= max(1, self._hold):
            self._give(stretches, ends=True, quiet=True)
        elif self._at - sound.begins >= self._longest:
            self._give(stretches, ends=True)
            self._begin(self._at, sound.held)

    def _begin(self, sample: int, held: int = 0) -> None:
        self._open = _Open(self._sounds, sample, held=held)
        self._sounds += 1

    def _give(self, stretches: list[Stretch], *, ends: bool, quiet: bool = False) -> None:
        """What has been seen of the open sound and not been given out."""
        sound = self._open
        assert sound is not None
        start = max(self._given, sound.begins)
        samples = self._pending[start - self._first : self._at - self._first]
        stretches.append(Stretch(sound.sound, start, samples, sound.onset, sound.loud_until, ends, quiet))
        self._given = self._at
        if ends:
            self._open = None
