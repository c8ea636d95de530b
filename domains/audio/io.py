"""Sound files: WAV, FLAC, OGG, MP3 and AIFF in, block by block; WAV and FLAC out.

Whatever its rate, width and channels, a file is read as one channel of float32 at one rate. Channels are mixed down to
their mean; one that is silent throughout is left out of it. soundfile decodes, torchaudio's windowed sinc resamples. A
file is read twice: once to look at it, once to use it. The memory is that of a block.
"""

import re
import wave
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from domains.audio.mp3 import WithFront, read_frames
from domains.audio.ogg import lacking_end
from domains.audio.resample import Resampler
from domains.errors import UserError
from domains.files import atomic_file

ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc")
RATES = (1_000, 768_000)  # samples per second that a header may tell

# Reasons why a file is no clip.
MISSING = "no such file"
UNREADABLE = "cannot be opened"
NO_AUDIO = "not audio"
EMPTY = "no sample in it"
BAD_RATE = "absurd rate in its header"
CUT_SHORT = "cut short"
DAMAGED = "damaged"
NOT_FINITE = "samples that are not numbers"

_BLOCK = 1 << 19  # samples of all channels decoded at a time
_SECTION = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)  # in libsndfile's log
_UNKNOWN = 0xFFFFFFFF - 64  # sections of this size on come from writers that did not know how much would follow
_FULL_SCALE = {"PCM_S8": 127 / 128, "PCM_U8": 127 / 128, "ULAW": 32124 / 32768, "ALAW": 32256 / 32768}


class ClipError(UserError):
    """A file that cannot be used as a clip.

    Attributes:
        reason: one of the constants of this module.
        detail: what is particular to this file; may be empty.
    """

    def __init__(self, path: Path | str, reason: str, detail: str = "") -> None:
        remedy = "check the path" if reason == MISSING else "mend the file or leave it out"
        super().__init__(f"{path}: {reason}{detail and f' ({detail})'}; {remedy}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class ClipInfo:
    """What a first reading tells about a file.

    Attributes:
        rate: samples per second. channels: their number. frames: samples of each.
        silent: channels that are 0 throughout, where others are not.
        peak: largest magnitude in the others; integer formats reach 1.
        full_scale: share of their samples that are as large as the format allows, or larger: what clipping leaves.
    """

    rate: int
    channels: int
    frames: int
    silent: tuple[int, ...]
    peak: float
    full_scale: float

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def is_audio_name(name: str) -> bool:
    """Whether a file is sound by its name."""
    return name.lower().endswith(ENDINGS)


def inspect_clip(path: Path | str) -> ClipInfo:
    """Read a file through once.

    Raises:
        ClipError: it cannot be opened, is not audio, holds no sample, tells an absurd rate, is damaged or cut short, or
            holds samples that are not finite.
    """
    path = Path(path)
    frames = beyond = 0
    with _opened(path) as file:
        full_scale = _FULL_SCALE.get(file.subtype, 32767 / 32768)
        peaks = np.zeros(file.channels, dtype=np.float32)
        counts = np.zeros(file.channels, dtype=np.int64)
        for block in _blocks(path, file):
            if not np.isfinite(block).all():
                frame = frames + int(np.argmin(np.isfinite(block).all(axis=1)))
                raise ClipError(path, NOT_FINITE, f"the first at {frame / file.samplerate:.3f} s")
            size = np.abs(block)
            peaks = np.maximum(peaks, size.max(axis=0))
            counts += (size >= full_scale).sum(axis=0)
            frames += len(block)
        if not frames:
            raise ClipError(path, EMPTY)
        if frames < file.frames < 1 << 62:  # above that the length was not known to the writer
            raise ClipError(path, CUT_SHORT, f"{frames:,} of {file.frames:,} samples can be read")
        silent = tuple(np.flatnonzero(peaks == 0).tolist()) if peaks.any() else ()
        beyond = int(counts.sum()) / (frames * (file.channels - len(silent)))
        return ClipInfo(file.samplerate, file.channels, frames, silent, float(peaks.max()), beyond)


def read_mixed(path: Path | str, info: ClipInfo, seconds: float = 3600.0) -> Iterator[np.ndarray]:
    """The samples of a file as one channel at its own rate, in blocks of at most so many seconds: float32 (l,).

    Args:
        path: the file.
        info: see :func:`inspect_clip`.
        seconds: the longest that a block may be; the memory that one may take is bounded whatever this is.

    Raises:
        ClipError: it cannot be read, though it could be before.
    """
    path = Path(path)
    kept = [channel for channel in range(info.channels) if channel not in info.silent]
    with _opened(path) as file:
        for block in _blocks(path, file, round(seconds * info.rate)):
            yield block[:, 0] if info.channels == 1 else block[:, kept].mean(axis=1, dtype=np.float32)


def read_blocks(path: Path | str, info: ClipInfo, rate: int) -> Iterator[np.ndarray]:
    """The samples of a file as one channel at ``rate``, in blocks: float32 (l,), l of any size; together as many as
    :func:`domains.audio.resample.resampled_length` says.

    Args:
        path: the file.
        info: see :func:`inspect_clip`.
        rate: samples per second.

    Raises:
        ClipError: it cannot be read, though it could be before.
    """
    resampler = Resampler(info.rate, rate)
    for block in read_mixed(path, info):
        if len(out := resampler.push(block)):
            yield out
    if len(out := resampler.finish()):
        yield out


def read_clip(path: Path | str, rate: int) -> np.ndarray:
    """A whole file as one channel at ``rate``, float32 (l,), as loud as it is there; see :func:`read_blocks`."""
    return np.concatenate(list(read_blocks(path, inspect_clip(path), rate)))


def write_clip(path: Path | str, samples: np.ndarray, rate: int) -> None:
    """Write one channel of sound as 16 bit, atomically; what lies beyond -1 to 1 is clipped.

    Args:
        path: ends in .wav or .flac.
        samples: float (l,).
        rate: samples per second.

    Raises:
        UserError: another ending, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("wav", "flac"):
        raise UserError(f"{path}: sound is written as .wav or .flac; choose one of them")
    whole = np.clip(np.rint(np.asarray(samples, dtype=np.float64) * 32768), -32768, 32767).astype("<i2")
    try:
        with atomic_file(path) as file:
            (_write_wav if kind == "wav" else _write_flac)(file, whole, rate)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({_first_line(error)}); choose another place") from None


def _write_wav(file: BinaryIO, whole: np.ndarray, rate: int) -> None:
    with wave.open(file, "wb") as sound:  # the standard library's, for machines that only train lack soundfile
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(whole.tobytes())


def _write_flac(file: BinaryIO, whole: np.ndarray, rate: int) -> None:
    import soundfile

    try:
        soundfile.write(file, whole, rate, format="FLAC", subtype="PCM_16")
    except soundfile.SoundFileError as error:
        raise OSError(str(error)) from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, open in soundfile, after a look at what it is made of."""
    import soundfile

    try:
        with path.open("rb") as file:
            head = file.read(1 << 14)
            frames = read_frames(file)
            lack = frames.lack if frames else lacking_end(file) if head[:4] == b"OggS" else ""
    except FileNotFoundError:
        raise ClipError(path, MISSING) from None
    except OSError as error:
        raise ClipError(path, UNREADABLE, error.strerror or "") from None
    if not head:
        raise ClipError(path, EMPTY, "the file has 0 bytes")
    if lack:
        raise ClipError(path, CUT_SHORT, lack)
    with WithFront(path, frames) if frames else nullcontext(path) as source:
        try:
            file = soundfile.SoundFile(source)
        except soundfile.SoundFileError as error:
            if (rate := _wav_rate(head)) is not None and not RATES[0] <= rate <= RATES[1]:
                raise ClipError(path, BAD_RATE, f"{rate:,} samples per second") from None
            raise ClipError(path, NO_AUDIO, _first_line(error)) from None
        # Or soundfile would seek behind each block to where it is already, and MP3 go on with a gap.
        file.seekable = lambda: False
        with file:
            if not RATES[0] <= file.samplerate <= RATES[1]:
                raise ClipError(path, BAD_RATE, f"{file.samplerate:,} samples per second")
            for told, found in _SECTION.findall(file.extra_info):
                if int(told) < _UNKNOWN and int(found) < int(told):
                    raise ClipError(path, CUT_SHORT, f"{int(found):,} of {int(told):,} bytes are there")
            yield file


def _blocks(path: Path, file: Any, longest: int = _BLOCK) -> Iterator[np.ndarray]:
    """float32 (l, channels), l at most ``longest``, until the end."""
    import soundfile

    read = 0
    while True:
        try:
            block = file.read(max(1, min(longest, _BLOCK // file.channels)), dtype="float32", always_2d=True)
        except soundfile.SoundFileError:
            raise ClipError(path, DAMAGED, f"within a second after {read / file.samplerate:.2f} s") from None
        if not len(block):
            return
        read += len(block)
        yield block


def _wav_rate(head: bytes) -> int | None:
    """The rate that the header of a WAV file tells."""
    if head[:4] not in (b"RIFF", b"RIFX", b"RF64") or head[8:12] != b"WAVE":
        return None
    order: Literal["little", "big"] = "big" if head[:4] == b"RIFX" else "little"
    at = 12
    while at + 16 <= len(head):
        if head[at : at + 4] == b"fmt ":
            return int.from_bytes(head[at + 12 : at + 16], order)
        size = int.from_bytes(head[at + 4 : at + 8], order)
        at += 8 + size + size % 2
    return None


def _first_line(error: Exception) -> str:
    """What a library says, without the file's name."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.rsplit("': ", 1)[-1].rstrip(".")[:120]
