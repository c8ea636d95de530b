"""Clips on disk, memory-mapped, found again by the content of their files.

A store is a folder. ``samples.bin`` holds the clips one after another, little-endian int16 at one rate; ``meta.json``
names, labels, groups, places, scales, loudness, counts and the fingerprint; ``rejects.csv`` the files that were kept
aside, each with a reason. numpy alone reads it.
"""

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from domains.audio.checks import CLIPPED, label_notes
from domains.audio.clips import Source, find_clips
from domains.audio.config import SourceConfig
from domains.audio.io import RATES
from domains.audio.loudness import level_gain
from domains.audio.prepare import FORMAT, REJECTS, SAMPLES, Clip, write_store
from domains.audio.sample import sample_clips
from domains.audio.tokens import encode
from domains.config import check_range
from domains.errors import UserError
from domains.files import file_sha256, sweep_partials
from domains.store_folder import META, build_store, find_by_key, store_key
from domains.words import counted

_SHOWN = 5  # names in a line for people


class AudioStore:
    """Prepared clips, open for reading at any sample. Made by :func:`prepare_store`.

    Opening reads the table alone; samples come from a memory map, so a store of any size costs no memory, and copies
    sent to worker processes send the path.

    Attributes:
        path: the folder.
        clips: in the order of their names.
        raw: int16 (total,), read-only: all clips one after another.
        rate: samples per second.
        labels, groups: those that occur, sorted; without the empty one.
        fingerprint: sha256 over rate, names, labels, groups, splits and samples.
        source_name: the folder or table that it was made from.
        rejects: what was kept aside: reason -> files.
        reused: whether prepare_store found it rather than made it.
    """

    def __init__(self, path: Path, meta: dict[str, Any], raw: np.ndarray) -> None:
        self.path = path
        self.raw = raw
        self.clips = [Clip(**clip) for clip in meta["clips"]]
        self.rate = int(meta["rate"])
        self.fingerprint: str = meta["fingerprint"]
        self.source_name: str = meta["source"]
        self.rejects: dict[str, int] = dict(meta["rejects"])
        self.reused = False
        self.labels = sorted({clip.label for clip in self.clips} - {""})
        self.groups = sorted({clip.group for clip in self.clips} - {""})
        self._by_name = {clip.name: i for i, clip in enumerate(self.clips)}

    @classmethod
    def open(cls, path: Path | str) -> "AudioStore":
        """Open the store in folder ``path``.

        Raises:
            UserError: it is missing, no store, of another format version, or damaged.
        """
        path = Path(path)
        try:
            meta = json.loads((path / META).read_text(encoding="utf-8"))
            if meta["format"] != FORMAT:
                raise UserError(f"{path}: is a store of format {meta['format']}, not {FORMAT}; prepare the clips again")
            store = cls(path, meta, np.asarray(np.memmap(path / SAMPLES, dtype="<i2", mode="r")))
            total = store.total
        except (FileNotFoundError, NotADirectoryError) as error:
            missing = Path(str(error.filename)).name
            raise UserError(f"{path}: is no store of clips ({missing} is missing); run prepare on the clips") from None
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete it and prepare the clips again") from None
        if store.raw.size != total:
            raise UserError(f"{path}: {SAMPLES} is cut short; delete the folder and prepare the clips again")
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return AudioStore.open, (self.path,)  # worker processes map the file themselves

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def total(self) -> int:
        """Samples of all clips."""
        return self.clips[-1].offset + self.clips[-1].length

    def index(self, name: str) -> int:
        """The number of the clip of that name; a UserError names the nearest ones when there is none."""
        if name in self._by_name:
            return self._by_name[name]
        names = list(self._by_name)
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {_some(names)}"
        raise UserError(f"{self.source_name}: has no clip {name!r}; {hint}")

    def samples(self, i: int, start: int = 0, stop: int | None = None, level_db: float | None = None) -> np.ndarray:
        """A stretch of clip ``i``, float32 (stop - start,), as loud as it was recorded or brought to ``level_db``."""
        clip = self.clips[i]
        stop = clip.length if stop is None else stop
        if not 0 <= start <= stop <= clip.length:
            raise ValueError(f"{clip.name}: samples {start} to {stop} lie outside the clip; it has {clip.length}")
        factor = clip.scale / 32768 * self.gain(i, level_db)
        return self.raw[clip.offset + start : clip.offset + stop].astype(np.float32) * np.float32(factor)

    def tokens(self, i: int, start: int = 0, stop: int | None = None, level_db: float | None = None) -> np.ndarray:
        """Likewise as mu-law levels, uint8; see domains.audio.tokens."""
        return encode(self.samples(i, start, stop, level_db))

    def gain(self, i: int, level_db: float | None) -> float:
        """What clip ``i`` is multiplied by for a root mean square of ``level_db`` dBFS; 1 for None.

        Less where the peak would pass 1. Dividing by it gives back the loudness of the recording.
        """
        clip = self.clips[i]
        return level_gain(clip.rms_db, clip.peak, level_db)

    def summary(self) -> str:
        """One line about the clips, for people."""
        count = counted(len(self), "clip")
        lengths = np.array([clip.length for clip in self.clips]) / self.rate
        span = f"{lengths.min():.2f} to {lengths.max():.2f} s" if len(self) > 1 else ""
        said = [count, f"{lengths.sum():,.1f} s at {self.rate:,} Hz{span and f' ({span})'}"]
        for noun, known in (("label", self.labels), ("group", self.groups)):
            if known:
                said.append(counted(len(known), noun))
        return ", ".join(said)

    def notes(self) -> list[str]:
        """What was kept aside and what should make one think twice, a line each."""
        lines = []
        for reason, count in self.rejects.items():
            lines.append(f"{counted(count, 'file')} kept aside: {reason} (see {self.path / REJECTS})")
        if clipped := sorted((c for c in self.clips if c.full_scale >= CLIPPED), key=lambda c: -c.full_scale):
            worst = f"up to {clipped[0].full_scale:.2%} of the samples at full scale"
            lines.append(f"{len(clipped):,} clipped, {worst} ({_some([clip.name for clip in clipped])})")
        if halves := [clip.name for clip in self.clips if clip.silent_channels]:
            lines.append(f"{len(halves):,} with silent channels, which were left out ({_some(halves)})")
        return lines + label_notes(self.clips)


def open_store(source: SourceConfig, progress: bool = True) -> AudioStore:
    """The clips that the settings mean: a prepared store, else a table or a folder, else the bundled clips.

    Raises:
        UserError: the store cannot be opened or is of another rate than the settings ask for; or see
            :func:`prepare_store`.
    """
    if not source.store:
        return prepare_store(source, progress)
    store = AudioStore.open(source.store)
    if source.rate not in (store.rate, SourceConfig.rate):  # what is left as it was asks for nothing
        raise UserError(
            f"{source.store}: was prepared with data.rate={store.rate}, not {source.rate}; prepare the clips again, or "
            "leave that setting out"
        )
    return store


def prepare_store(source: SourceConfig, progress: bool = True) -> AudioStore:
    """Turn sound files into a store in folder ``source.stores``, or find the one made from the same content before.

    The store is ``stores/<stem>-<12 hex of content and settings>``; it appears whole or not at all (see
    domains.store_folder). Files that cannot be used are kept aside with a reason and the rest goes on. Of files with
    the same sound, the first by name is kept. The memory is that of a block of samples, whatever the length of a file.

    Args:
        source: what to read; without a folder or a table the bundled clips.
        progress: show a bar of what takes longer than a second, and say on stderr what was kept aside or is not used.

    Raises:
        UserError: a setting makes no sense; see :func:`domains.audio.clips.find_clips`; no clip is left; or the folder
            cannot be written.
    """
    check_range("data.rate", source.rate, *RATES)
    check_range("data.min_seconds", source.min_seconds, 0, 3600)
    if not source.root and not source.manifest:
        source = replace(source, manifest=str(sample_clips(source.sample or "prompts")))
    root = Path(source.stores)
    found = find_clips(source)
    sweep_partials(root)
    rejects = sorted(found.rejects)
    key = store_key(FORMAT, json.dumps([source.rate, source.min_seconds, rejects]), *_contents(found.sources))
    if existing := find_by_key(root, key):
        store = AudioStore.open(existing)
        store.reused = True
    else:
        where = _name(found.where)

        def write(folder: Path) -> None:
            write_store(folder, found.sources, rejects, source, where, progress)

        stem = where.removesuffix(".csv").removesuffix("/labels") or "clips"
        store = AudioStore.open(build_store(root, stem, key, write, f"the clips of {found.where}"))
    if progress:
        for line in found.notes:
            print(f"{_name(found.where)}: {line}", file=sys.stderr)
        for line in store.notes():
            print(f"{store.source_name}: {line}", file=sys.stderr)
    return store


def _name(where: Path) -> str:
    """Of a folder or a table, for people; a table's own name alone may tell little."""
    place = where.resolve()
    return place.name if place.is_dir() else f"{place.parent.name}/{place.name}"


def _contents(sources: Sequence[Source]) -> list[str]:
    """What each file adds to the key: what is known of it, and its content; one that cannot be read has none."""
    contents = []
    for clip in sources:
        try:
            sha256 = file_sha256(clip.path)
        except OSError as error:
            sha256 = str(error.strerror)
        contents.append(json.dumps([clip.name, clip.label, clip.group, clip.split, sha256]))
    return contents


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
