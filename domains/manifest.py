"""Folders of results that are written part by part and gone on with after an interruption.

``manifest.json`` says what the results were made of and which parts are done. A part's files appear whole or not at
all, so a run that was killed goes on with the first part that is missing; the manifest holds their sizes and hashes, so
one that was damaged since is made again. One process at a time writes into a folder.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domains.errors import UserError
from domains.files import file_sha256, find_temporaries, locked_folder
from domains.folder import read_json, write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Plan:
    """What a folder of results is to hold, and what it is made of.

    Attributes:
        holds: what the results are called, in plural: ``scores``.
        parts: what their parts are called, in plural: ``contigs``.
        identity: versions and hashes that all results share; other results stand under another identity.
        settings: likewise, of what the user chose.
        notes: whatever else the manifest says; never compared.
        endings: of the names of the parts' files: ``(".parquet",)``.
    """

    holds: str
    parts: str
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    notes: Mapping[str, Any]
    endings: tuple[str, ...]


class Manifest:
    """The manifest of a folder of results. Made by :func:`open_manifest`.

    Attributes:
        out: the folder.
        path: the file.
        parts: name of each part that was done, to ``{kind: file name, ..., "files": {file name: size and hash}, ...}``.
    """

    def __init__(self, out: Path, table: dict[str, Any], parts: str) -> None:
        self.out = out
        self.path = out / MANIFEST
        self.parts: dict[str, dict[str, Any]] = table[parts]
        self._table = table

    def is_done(self, part: str) -> bool:
        """Whether all files of a part are what the manifest says; when they cannot be read, they are not."""
        entry = self.parts.get(part)
        try:
            return entry is not None and all(_stamp(self.out / name) == stamp for name, stamp in entry["files"].items())
        except OSError:
            return False

    def record(self, part: str, files: Mapping[str, str], facts: Mapping[str, Any]) -> None:
        """Note that a part is done.

        Args:
            part: its name.
            files: kind to name of each of its files, which stand in the folder; a kind is not called "files".
            facts: what else there is to say about it; plain values.
        """
        stamps = {name: _stamp(self.out / name) for name in files.values()}
        self.parts[part] = {**files, "files": stamps, **facts}
        write_json(self.path, self._table)


@contextmanager
def open_manifest(out: Path, plan: Plan) -> Iterator[Manifest]:
    """The folder ``out``, made when missing, for this process alone; what killed processes left in it is removed.

    Raises:
        UserError: the folder holds results of another identity or setting, or other files; another process is writing
            into it; or it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: holds other files; choose a new out folder")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    busy = f"another process is writing {plan.holds} there; wait for it, or choose another out folder"
    with locked_folder(out, busy) as alone:
        yield Manifest(out, _read_or_start(out, plan, alone), plan.parts)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn what the disk says while results are written into one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{out}: cannot be written ({reason}); put that right and run again: what is done stays"
        ) from error


def _read_or_start(out: Path, plan: Plan, alone: bool) -> dict[str, Any]:
    """The table of manifest.json, a fresh one in an empty folder; leftovers go when no one else can be at work."""
    path = out / MANIFEST
    leftovers = find_temporaries(out, (MANIFEST, *plan.endings))
    table = {**plan.identity, **plan.settings, **plan.notes, plan.parts: {}}
    started = path.exists()
    if started:
        table = read_json(path)
        _check_same(out, plan, table)
    elif set(out.iterdir()) - set(leftovers):
        raise UserError(f"{out}: holds other files; choose a new out folder")
    with disk_errors(out):
        for leftover in leftovers if alone else ():
            leftover.unlink(missing_ok=True)
        if not started:
            write_json(path, table)
    return table


def _check_same(out: Path, plan: Plan, table: Mapping[str, Any]) -> None:
    another = [f"another {key}" for key, value in plan.identity.items() if table.get(key) != value]
    another += [f"{key}={table.get(key)}" for key, value in plan.settings.items() if table.get(key) != value]
    if another:
        raise UserError(f"{out}: holds {plan.holds} with {another[0]}; choose another out folder")


def _stamp(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
