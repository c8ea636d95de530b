"""Another rate, block by block: the same samples as if the whole clip were resampled at once."""

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import torch

# The windowed sinc that torchaudio's documentation calls kaiser_best: flat to 0.94 of the lower Nyquist frequency.
_FILTER = {
    "resampling_method": "sinc_interp_kaiser",
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "beta": 14.769656459379492,
}
_LARGEST = 2000  # of both numbers of the ratio: the filter has as many phases


def rate_ratio(source: int, target: int) -> Fraction:
    """Samples out for each sample in.

    Rates of which no small multiple is common, such as 44,099 and 16,000, are taken as the nearest ratio of numbers up
    to 2,000, mostly about a millionth away and never more than 1 in 4,000 (16,001 passes for 16,000): the filter
    for the exact ratio would take gigabytes.
    """
    ratio = Fraction(target, source)
    if max(ratio.numerator, ratio.denominator) <= _LARGEST:
        return ratio
    if ratio > 1:
        return 1 / (1 / ratio).limit_denominator(_LARGEST)
    return ratio.limit_denominator(_LARGEST)


def resampled_length(length: int, source: int, target: int) -> int:
    """Samples at ``target`` of a clip that has ``length`` at ``source``."""
    ratio = rate_ratio(source, target)
    return -(-length * ratio.numerator // ratio.denominator)


@cache
def _filter(source: int, target: int) -> Any:
    """torchaudio's resampling of whole clips; its taps take longer to compute than a short clip to filter."""
    from torchaudio.transforms import Resample

    return Resample(source, target, **_FILTER)


class Resampler:
    """Resamples one channel that comes in blocks.

    The output does not depend on where blocks end, to the rounding of float32: each block is filtered together with
    what the filter reaches before and behind it. Equal rates pass blocks on as they are.

    Args:
        source, target: samples per second.
    """

    def __init__(self, source: int, target: int) -> None:
        ratio = rate_ratio(source, target)
        self._in, self._out = ratio.denominator, ratio.numerator
        self._same = ratio == 1
        self._pending = np.zeros(0, dtype=np.float32)  # from ``lead`` samples before the next to come out
        self._lead = 0  # samples of ``pending`` that are done with, and there for the filter; whole multiples of _in
        self._seen = self._given = 0
        if not self._same:
            self._filter = _filter(self._in, self._out)
            self._reach = -(-(self._filter.width + self._in) // self._in) * self._in

    def push(self, block: np.ndarray) -> np.ndarray:
        """Take the next samples, float32 (l,); give those that are certain by now, float32 (m,)."""
        self._seen += len(block)
        if self._same:
            return block
        self._pending = np.concatenate([self._pending, block])
        ready = (len(self._pending) - self._lead - self._reach) // self._in * self._in
        return self._take(ready) if ready > 0 else self._pending[:0]

    def finish(self) -> np.ndarray:
        """The rest; the end of the clip is followed by silence, as its start is preceded by it."""
        if self._same:
            return self._pending
        rest = -(-self._seen * self._out // self._in) - self._given
        if not rest:
            return self._pending[:0]
        left = len(self._pending) - self._lead
        return self._take(-(-left // self._in) * self._in)[:rest]

    def _take(self, ready: int) -> np.ndarray:
        """Filter all that is pending, give what belongs to the next ``ready`` samples, and forget what is past."""
        with torch.inference_mode():
            whole = self._filter(torch.from_numpy(self._pending)).numpy()
        first = self._lead // self._in * self._out
        out = whole[first : first + ready // self._in * self._out]
        drop = max(0, self._lead + ready - self._reach)
        self._pending = self._pending[drop:]
        self._lead += ready - drop
        self._given += len(out)
        return out
