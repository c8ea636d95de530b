"""From sound files to the files of a store, a block at a time."""

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from domains.audio.clips import Reject, Source
from domains.audio.config import SourceConfig
from domains.audio.io import ClipError, ClipInfo, inspect_clip, read_blocks
from domains.audio.resample import resampled_length
from domains.errors import UserError
from domains.store_folder import META

FORMAT = 1  # raise it when the same files would give other bytes
REJECTS = "rejects.csv"
SAMPLES = "samples.bin"

# Reasons why a file that can be read is no clip.
SHORT = "too short"
SILENT = "silent"
DUPLICATE = "duplicate"
CONTRADICTION = "duplicate under another label"

_HEADROOM = 1.25  # a band-limited square wave rises 18% above the one that it was


@dataclass(frozen=True)
class Clip:
    """One clip of a store.

    Attributes:
        name: path below the root.
        label, group, split: empty where unknown.
        offset, length: in samples of samples.bin.
        scale: amplitude that 32,768 stands for, a power of two.
        rms_db: loudness, the root mean square in dBFS: 0 is that of a square wave of amplitude 1.
        peak: largest magnitude.
        full_scale: share of the file's samples that are as large as its format allows, or larger.
        rate, channels: of the file.
        silent_channels: how many channels of it were silent, and left out.
    """

    name: str
    label: str
    group: str
    split: str
    offset: int
    length: int
    scale: float
    rms_db: float
    peak: float
    full_scale: float
    rate: int
    channels: int
    silent_channels: int


def write_store(
    folder: Path, sources: Sequence[Source], rejects: list[Reject], config: SourceConfig, where: str, progress: bool
) -> None:
    """Fill ``folder`` with the files of a store.

    Args:
        folder: exists, and is empty.
        sources: files that may be clips.
        rejects: what is kept aside already; the rest is added.
        config: rate and least length.
        where: the source, for messages and the record.
        progress: show a bar of what takes longer than a second.

    Raises:
        UserError: no clip is left.
    """
    clips: list[Clip] = []
    seen: dict[str, Clip] = {}  # by content
    fingerprint = hashlib.sha256(f"{config.rate}\n".encode())
    with (folder / SAMPLES).open("wb") as file:
        for source in tqdm(sources, desc="reading clips", unit="clip", delay=1, leave=False, disable=not progress):
            start = file.tell()
            try:
                clip, content = _write_clip(file, source, config)
                if before := seen.get(content):
                    reason = DUPLICATE if before.label == clip.label else CONTRADICTION
                    raise ClipError(source.path, reason, f"of {before.name}")
            except ClipError as error:
                file.seek(start)
                file.truncate()
                rejects.append(Reject(source.name, error.reason, error.detail))
                continue
            seen[content] = clip
            clips.append(clip)
            described = (clip.name, clip.label, clip.group, clip.split, clip.length, content)
            fingerprint.update(json.dumps(described).encode() + b"\n")
    counts = Counter(reject.reason for reject in rejects)
    if not clips:
        why = ", ".join(f"{count:,} x {reason}" for reason, count in counts.items())
        raise UserError(f"{where}: no clip is left ({why}); the first: {rejects[0]}")
    _write_rejects(folder / REJECTS, rejects)
    meta = {
        "format": FORMAT,
        "source": where,
        "rate": config.rate,
        "fingerprint": fingerprint.hexdigest(),
        "rejects": dict(counts),
        "clips": [asdict(clip) for clip in clips],
    }
    (folder / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def _write_clip(file: BinaryIO, source: Source, config: SourceConfig) -> tuple[Clip, str]:
    """Append a clip to samples.bin: its entry, and a hash of its sound."""
    info = inspect_clip(source.path)
    length = resampled_length(info.frames, info.rate, config.rate)
    if length < config.min_seconds * config.rate:
        raise ClipError(source.path, SHORT, f"{info.seconds:.3f} s")
    scale = _scale(info, config.rate)
    offset, squares, peak = file.tell() // 2, 0.0, 0
    content = hashlib.sha256(f"{scale}\n".encode())
    for block in read_blocks(source.path, info, config.rate):
        whole = np.clip(np.rint(block * np.float32(32768 / scale)), -32768, 32767).astype("<i2")
        file.write(whole.data)
        content.update(whole.data)
        size = np.abs(whole.astype(np.float64))
        squares += float(np.square(size).sum())
        peak = max(peak, int(size.max(initial=0)))
    written = file.tell() // 2 - offset
    assert written == length, f"{source.name}: {written} samples, not {length}"
    if not peak:
        raise ClipError(source.path, SILENT, "every sample is 0")
    return Clip(
        source.name,
        source.label,
        source.group,
        source.split,
        offset=offset,
        length=length,
        scale=scale,
        rms_db=round(10 * math.log10(squares / length) + 20 * math.log10(scale / 32768), 4),
        peak=peak * scale / 32768,
        full_scale=info.full_scale,
        rate=info.rate,
        channels=info.channels,
        silent_channels=len(info.silent),
    ), content.hexdigest()


def _scale(info: ClipInfo, rate: int) -> float:
    """A power of two that no sample exceeds: 16-bit files at ``rate`` are stored to the bit, softer ones as finely."""
    peak = info.peak if info.rate == rate else info.peak * _HEADROOM
    return 2.0 ** max(-40, math.ceil(math.log2(peak))) if peak > 0 else 1.0


def _write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(Reject._fields)
        table.writerows(rejects)
