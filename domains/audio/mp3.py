"""MP3 files as they lie on disk: whether the last frame is whole, and how long they are where no frame tells it.

Most encoders write a first frame ("Xing", "Info") that tells how many frames follow. Without one the decoder takes a
guess by the bitrate of the first and gives no more samples than that, which may be half of what there is. So the
frames are counted here, from their headers alone, and the decoder gets a frame that tells their number.
"""

import io
import os
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_BLOCK = 1 << 20  # bytes read at a time
_SAME = 0xFFFE0C00  # of a header: the mark of a frame, version, layer and rate, which all frames have in common
_KBITS = {  # by whether it is version 1, and layer
    (True, 1): range(0, 449, 32),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class Mp3(NamedTuple):
    """The frames of a file.

    Attributes:
        lack: what of them is missing, for people; empty where they are whole.
        start, end: of them, in bytes of the file; titles and pictures lie outside.
        front: a frame to be put in front that tells their number; empty where there is one, or can be none.
    """

    lack: str
    start: int
    end: int
    front: bytes = b""


def read_frames(file: BinaryIO) -> Mp3 | None:
    """Look at the frames of a file; None where it is no MP3, or something else lies between its frames."""
    start, end = _bounds(file)
    file.seek(start)
    head = file.read(256)
    if len(head) < 4 or not _length(int.from_bytes(head[:4], "big") >> 9):
        return None
    tag = max(head[:64].find(b"Xing"), head[:64].find(b"Info"))
    flags = head[tag + 7] if 0 <= tag < len(head) - 16 else 0
    if flags & 2:  # the bytes of all frames; before them their number, where that is told
        at = tag + 8 + 4 * (flags & 1)
        told, found = int.from_bytes(head[at : at + 4], "big"), file.seek(0, os.SEEK_END) - start
        if found < told:
            return Mp3(f"{found:,} of {told:,} bytes are there", start, end)
    return None if flags & 1 else _walk(file, start, end)


class WithFront(io.RawIOBase):
    """The frames of an open file behind another frame, to be read as one file."""

    def __init__(self, path: Path, frames: Mp3) -> None:
        super().__init__()
        self._path, self._frames = path, frames
        self._file = path.open("rb")
        self._at = 0
        self._size = len(frames.front) + frames.end - frames.start

    def __repr__(self) -> str:
        return repr(str(self._path))  # what soundfile names in its messages

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        front, start = self._frames.front, self._frames.start
        count = max(0, min(len(buffer), self._size - self._at))
        data = front[self._at : self._at + count]
        if len(data) < count:
            self._file.seek(start + self._at + len(data) - len(front))
            data += self._file.read(count - len(data))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _bounds(file: BinaryIO) -> tuple[int, int]:
    """Where frames begin, behind ID3v2, and where they end, before ID3v1 and APE."""
    end = file.seek(0, os.SEEK_END)
    start = 0
    while True:
        file.seek(start)
        head = file.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        start += size + (20 if head[5] & 0x10 else 10)  # sizes have 7 bits a byte; there may be a footer
    if end - start >= 128 and _bytes(file, end - 128, 3) == b"TAG":
        end -= 128
    if end - start >= 32 and (foot := _bytes(file, end - 32, 32))[:8] == b"APETAGEX":
        size = int.from_bytes(foot[12:16], "little") + (32 if foot[23] & 0x80 else 0)
        end = max(start, end - size)
    return start, end


def _bytes(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _walk(file: BinaryIO, start: int, end: int) -> Mp3 | None:
    """Count frames by their headers, from each to the next."""
    first = int.from_bytes(_bytes(file, start, 4), "big")
    base, block = start, b""
    at, count, length = start, 0, 0
    while at + 4 <= end:
        if at + 4 > base + len(block):
            base, block = at, _bytes(file, at, _BLOCK)
        header = int.from_bytes(block[at - base : at - base + 4], "big")
        length = _length(header >> 9)
        if (header ^ first) & _SAME or not length:
            return None
        at += length
        count += 1
    if at < end:
        return Mp3("the last frame breaks off in its header", start, end) if _bytes(file, at, 1) == b"\xff" else None
    lack = f"{length - (at - end):,} of {length:,} bytes of the last frame are there" if at > end else ""
    return Mp3(lack, start, end, _front(first, count))


def _front(first: int, count: int) -> bytes:
    """A frame like ``first`` that tells how many follow; the decoder looks for it in layer III alone."""
    if first >> 17 & 3 != 1:
        return b""
    header = first & ~0xFE00 | 0x18000 | first & 0xC00  # no checksum, the eighth bitrate, no padding
    version1, mono = first >> 19 & 3 == 3, first >> 6 & 3 == 3
    tag = 4 + (17 if mono else 32) if version1 else 4 + (9 if mono else 17)
    frame = header.to_bytes(4, "big").ljust(tag, b"\0") + b"Xing" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return frame.ljust(_length(header >> 9), b"\0")


@cache
def _length(bits: int) -> int:
    """Bytes of the frame whose header begins with these 23 bits; 0 if it is none, or does not tell."""
    mark, version, layer = bits >> 12, bits >> 10 & 3, 4 - (bits >> 8 & 3)
    bitrate, rate, padding = bits >> 3 & 15, bits >> 1 & 3, bits & 1
    if mark != 0x7FF or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0
    bits_a_second = 1000 * _KBITS[version == 3, layer][bitrate]
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    if layer == 1:
        return (12 * bits_a_second // hertz + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits_a_second // hertz + padding
