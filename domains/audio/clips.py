"""Which files are clips, and what is known of them: from folders whose names are labels, or from a table."""

import csv
import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from domains.audio.config import SourceConfig
from domains.audio.io import ENDINGS, MISSING, is_audio_name
from domains.errors import UserError

PARTS = ("train", "validation", "test")
_COLUMNS = ("path", "label", "group", "split")
_SHOWN = 5  # columns in a line for people

# Reasons why a file or a row is no clip, beside those of domains.audio.io.
FOREIGN = "not sound by its name"
NO_PATH = "row without a path"
OUTSIDE = "path outside the root"
TWICE = "listed twice"
BAD_SPLIT = "unknown split"


class Source(NamedTuple):
    """A file that may become a clip.

    Attributes:
        name: path below the root, with forward slashes.
        path: the file.
        label, group, split: empty where unknown; ``split`` is one of PARTS.
    """

    name: str
    path: Path
    label: str = ""
    group: str = ""
    split: str = ""


class Reject(NamedTuple):
    """A file, or a row of a table, that is kept aside."""

    file: str
    reason: str  # one of the constants here, in domains.audio.io and in domains.audio.prepare
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.file or 'a row'}: {self.reason}{self.detail and f' ({self.detail})'}"


class Found(NamedTuple):
    """What there is to read.

    Attributes:
        where: the folder or table, for people.
        sources: in the order of their names.
        rejects: what is no clip already by its name or row.
        notes: what of the table is not used, a line each.
    """

    where: Path
    sources: list[Source]
    rejects: list[Reject]
    notes: tuple[str, ...] = ()


def find_clips(source: SourceConfig) -> Found:
    """The clips that ``root`` and ``manifest`` mean.

    Without a table, the folder below the root is the label of the clips in it, and the next one, if any, their group;
    clips in the root itself have no label. What lies in the folder of stores, or is hidden, is passed over. A table's
    columns are known by their names, in letters of either case.

    Raises:
        UserError: there is no such folder or table, the table cannot be read, has no column ``path`` or one that is
            there twice, or there is no clip.
    """
    found = _from_table(source) if source.manifest else _from_folder(Path(source.root), Path(source.stores))
    if not found.sources:
        counts = Counter(reject.reason for reject in found.rejects)
        why = f" ({', '.join(f'{count:,} x {reason}' for reason, count in counts.items())})" if counts else ""
        raise UserError(f"{found.where}: holds no clip{why}; clips end in one of {', '.join(ENDINGS)}")
    return found._replace(sources=sorted(found.sources))


def _from_folder(root: Path, stores: Path) -> Found:
    if root.is_file():
        raise UserError(f"{root}: is a file; give the folder of the clips, or data.manifest={root} if it lists them")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; check data.root")
    sources, rejects = [], []
    for path in _walk(root, stores.resolve()):
        name = path.relative_to(root)
        if not is_audio_name(name.name):
            rejects.append(Reject(name.as_posix(), FOREIGN))
            continue
        folders = name.parts[:-1]
        label, group = (folders[i] if len(folders) > i else "" for i in (0, 1))
        sources.append(Source(name.as_posix(), path, label, group))
    return Found(root, sources, rejects)


def _walk(root: Path, stores: Path) -> Iterator[Path]:
    seen = {stores, root.resolve()}  # links may lead round in a circle
    for folder, below, files in os.walk(root, followlinks=True):
        here = Path(folder)
        real = {name: (here / name).resolve() for name in sorted(below) if name[0] not in "._"}
        below[:] = [name for name, place in real.items() if place not in seen]
        seen |= set(real.values())
        yield from (here / name for name in sorted(files) if name[0] not in "._")


def _from_table(source: SourceConfig) -> Found:
    path = Path(source.manifest)
    root = Path(source.root) if source.root else path.parent
    rows, notes = _rows(path)
    found = Found(path, [], [], notes)
    known: dict[str, Source] = {}
    for number, row in enumerate(rows, start=2):
        clip = _source(root, row, found.rejects, f"row {number}")
        if clip is None:
            continue
        if before := known.get(clip.name):
            other = f"also as {before.label!r}" if before.label != clip.label else ""
            found.rejects.append(Reject(clip.name, TWICE, f"row {number}{other and f', {other}'}"))
            continue
        known[clip.name] = clip
        found.sources.append(clip)
    return found


def _source(root: Path, row: dict[str, str], rejects: list[Reject], where: str) -> Source | None:
    text = row.get("path", "")
    if not text:
        rejects.append(Reject("", NO_PATH, where))
        return None
    # By the letters alone: links that lead out of the root are the user's own.
    path = Path(os.path.normpath(root / text.replace("\\", "/")))
    whole = Path(os.path.abspath(path))
    base = Path(os.path.abspath(root))
    if not whole.is_relative_to(base):
        reason, detail = OUTSIDE, where
    elif not is_audio_name(path.name):
        reason, detail = FOREIGN, where
    elif not path.is_file():
        reason, detail = MISSING, where
    elif row.get("split", "") not in ("", *PARTS):
        reason, detail = BAD_SPLIT, f"{where}: {row['split']!r} is none of {', '.join(PARTS)}"
    else:
        name = whole.relative_to(base).as_posix()
        return Source(name, path, row.get("label", ""), row.get("group", ""), row.get("split", ""))
    rejects.append(Reject(text, reason, detail))
    return None


def _rows(path: Path) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    """Rows of a table whose columns are parted by comma, semicolon or tab, without blanks round the values; notes."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.split("\n", 1)[0]
        table = csv.reader(text.splitlines(), delimiter=max(",;\t", key=head.count))
        columns = [name.strip() for name in next(table, [])]
        lines = [[value.strip() for value in line] for line in table if line]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check data.manifest") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no table in UTF-8 ({error}); write it again as CSV") from None
    names = [name.casefold() for name in columns]
    if "path" not in names:
        has = f"it has {', '.join(columns[:10])}" if any(columns) else "it is empty"
        raise UserError(f"{path}: has no column 'path'; {has}; give path,label[,group,split] in the first line")
    if twice := [name for name in _COLUMNS if names.count(name) > 1]:
        raise UserError(f"{path}: has the column {twice[0]!r} twice; leave one of them")
    return [dict(zip(names, line, strict=False)) for line in lines], _column_notes(columns)


def _column_notes(columns: Sequence[str]) -> tuple[str, ...]:
    """A line about columns that nothing is made of, with the name that may be meant."""
    names = {name.casefold() for name in columns}
    free = [name for name in _COLUMNS if name not in names]
    unused = [name for name in columns if name and name.casefold() not in _COLUMNS]
    if not unused:
        return ()
    near = [match for name in unused for match in difflib.get_close_matches(name.casefold(), free, n=1)]
    hint = f"; did you mean {' and '.join(map(repr, dict.fromkeys(near)))}?" if near else ""
    more = f" and {len(unused) - _SHOWN:,} more" if len(unused) > _SHOWN else ""
    several = "s" if len(unused) > 1 else ""
    said = f"manifest: column{several} {', '.join(unused[:_SHOWN])}{more} {'are' if several else 'is'} not used"
    return (f"{said}; known are {', '.join(_COLUMNS)}{hint}",)
