"""OGG files as they lie on disk: whether their end is there, which the decoder does not ask."""

import os
from typing import BinaryIO

_LONGEST = 27 + 255 + 255 * 255  # bytes of a page
_LAST = 4  # the flag of a page with which a stream ends


def lacking_end(file: BinaryIO) -> str:
    """What is missing at the end of an OGG file, for people; empty where it ends with the last page of a stream."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LONGEST))
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return ""  # something else lies at the end, longer than a page: the decoder may know
    head, left = tail[at : at + 27], len(tail) - at
    sizes = tail[at + 27 : at + 27 + head[26]] if len(head) == 27 else b""
    if len(head) < 27 or len(sizes) < head[26]:
        return "it breaks off in the header of a page"
    if left < (page := 27 + len(sizes) + sum(sizes)):
        return f"{left:,} of {page:,} bytes of the last page are there"
    return "" if head[5] & _LAST else "the last page is not the end of a stream"
