"""Folders of results that are written part by part and gone on with after an interruption.

``manifest.json`` says what the results were made of and which parts are done. A part's files appear whole or not at
all, so a run that was killed goes on with the first part that is missing; the manifest holds their sizes and hashes, so
one that was damaged since is made again. One process at a time writes into a folder, or the processes of a job that
was split into shards (domains.shards).
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domains.errors import UserError
from domains.files import file_sha256, find_temporaries, locked_folder
from domains.folder import read_json, write_json
from domains.shards import Shard

MANIFEST = "manifest.json"
PROGRESS = ".progress"
_WHOLE = "whole"
_SHARD = re.compile(r"manifest\.\d+-of-\d+\.json")


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
        path: the file that this process writes: manifest.json, or that of its shard.
        parts: name of each part that was done, to ``{kind: file name, ..., "files": {file name: size and hash}, ...}``;
            of a shard, those that it did itself.
        others: likewise of the parts that are noted in other shards' files; empty in manifest.json.
    """

    def __init__(self, path: Path, table: dict[str, Any], plan: Plan, others: dict[str, dict[str, Any]]) -> None:
        self.out = path.parent
        self.path = path
        self.parts: dict[str, dict[str, Any]] = table[plan.parts]
        self.others = others
        self._table = table

    def is_done(self, part: str, kinds: Sequence[str] = ()) -> bool:
        """Whether a part has these kinds of files, and all its files are what the manifest says.

        When they cannot be read, they are not.
        """
        entry = self.parts.get(part) or self.others.get(part)
        return entry is not None and all(kind in entry for kind in kinds) and self._are(entry["files"])

    def changed(self, part: str) -> list[Path]:
        """Files of a part that are there, and not what the manifest says."""
        stamps = self.parts[part]["files"] if part in self.parts else {}
        there = {name: stamp for name, stamp in stamps.items() if (self.out / name).exists()}
        return [self.out / name for name, stamp in there.items() if not self._are({name: stamp})]

    def record(self, part: str, files: Mapping[str, str], facts: Mapping[str, Any]) -> None:
        """Note that a part is done.

        Args:
            part: its name.
            files: kind to name of each of its files, which stand in the folder; a kind is not called "files".
            facts: what else there is to say about it; plain values.
        """
        self.enter(part, make_entry(self.out, files, facts))

    def enter(self, part: str, entry: Mapping[str, Any]) -> None:
        """Note that a part is done, which :func:`make_entry` describes; another process may have made it."""
        self.parts[part] = dict(entry)
        write_json(self.path, self._table)

    def has_whole(self, file: str) -> bool:
        """Whether a file that is made of all parts is there, and what the manifest says."""
        whole = self._table.get(_WHOLE, {})
        return file in whole and self._are({file: {key: whole[file][key] for key in ("bytes", "sha256")}})

    def refuse_foreign(self, file: str) -> None:
        """A UserError when a file that all parts make is there and was never recorded: somebody else put it there."""
        if file not in self._table.get(_WHOLE, {}) and (self.out / file).exists():
            path = self.out / file
            raise UserError(f"{path}: is there already, and not of these results; move it away and run again")

    def record_whole(self, file: str, facts: Mapping[str, Any]) -> None:
        """Note that a file was made of all parts; ``facts`` are what else there is to say about it, plain values."""
        self._table.setdefault(_WHOLE, {})[file] = {**_stamp(self.out / file), **facts}
        write_json(self.path, self._table)

    def _are(self, stamps: Mapping[str, Mapping[str, Any]]) -> bool:
        try:
            return all(_stamp(self.out / name) == stamp for name, stamp in stamps.items())
        except OSError:
            return False

    @property
    def progress(self) -> Path:
        """A folder for what this process has not finished, made now; what is there outlives the process."""
        folder = self.out / PROGRESS / self.path.stem
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def close(self, order: Sequence[str]) -> bool:
        """Once all parts are done: one manifest, in their order, and nothing left of shards and of what was under way.

        Args:
            order: names of all parts.

        Returns:
            whether all are done. Of a shard's manifest, which knows too little, always False.
        """
        if self.path.name != MANIFEST or not all(part in self.parts for part in order):
            return False
        done = {part: self.parts[part] for part in order}
        self.parts.clear()
        self.parts.update(done)
        if not self.path.exists() or json.dumps(read_json(self.path)) != json.dumps(self._table):
            write_json(self.path, self._table)
        for path in _shard_manifests(self.out):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.out / PROGRESS, ignore_errors=True)
        return True


def make_entry(out: Path, files: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says about a part; see :meth:`Manifest.record`."""
    return {**files, "files": {name: _stamp(out / name) for name in files.values()}, **facts}


@contextmanager
def open_manifest(out: Path, plan: Plan, shard: Shard | None = None) -> Iterator[Manifest]:
    """The folder ``out``, made when missing, for this process; what killed processes left in it is removed.

    Processes with a ``shard`` share the folder with each other: each notes what it did in a file of its own,
    ``manifest.<index>-of-<count>.json``. Opened without a shard, which no shard may be at work for, the manifest takes
    in what those files say. File systems that know no locks leave it to the user that no two processes do the same.

    Raises:
        UserError: the folder holds results of another identity or setting, or other files; or it cannot be written.
        FolderInUse: another process is writing into it.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: holds other files; choose a new out folder")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    busy = f"another process is writing {plan.holds} there; wait for it, or choose another out folder"
    with ExitStack() as held:
        alone = held.enter_context(locked_folder(out, busy, shared=shard is not None))
        manifest = _read_or_start(out, plan, shard, alone)
        if shard is not None:
            busy = f"another process is writing shard {shard.index} of {shard.count} there; wait for it"
            held.enter_context(locked_folder(manifest.progress, busy))
        yield manifest


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


def _read_or_start(out: Path, plan: Plan, shard: Shard | None, alone: bool) -> Manifest:
    """What the manifests say, a fresh one in an empty folder; leftovers go when no one else can be at work."""
    path = out / (MANIFEST if shard is None else f"manifest.{shard}.json")
    there = {file for file in out.iterdir() if file.name != PROGRESS}  # first: other shards may begin just now
    leftovers = find_temporaries(out, (".json", *plan.endings))
    found = {file: read_json(file) for file in (out / MANIFEST, *_shard_manifests(out)) if file.exists()}
    for table in found.values():
        _check_same(out, plan, table)
    if not found and any(file.exists() for file in there - set(leftovers)):
        raise UserError(f"{out}: holds other files; choose a new out folder")
    started = path in found
    table = found.pop(path) if started else {**plan.identity, **plan.settings, **plan.notes, plan.parts: {}}
    others = {part: entry for other in found.values() for part, entry in other[plan.parts].items()}
    if shard is None:
        table[plan.parts] = others | table[plan.parts]
        others = {}
    with disk_errors(out):
        if alone and shard is None:
            for leftover in leftovers:
                leftover.unlink(missing_ok=True)
        if not started and (shard is not None or not found):
            write_json(path, table)
    return Manifest(path, table, plan, others)


def _shard_manifests(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if _SHARD.fullmatch(path.name))


def _check_same(out: Path, plan: Plan, table: Mapping[str, Any]) -> None:
    if plan.parts not in table or any(key not in table for key in (*plan.identity, *plan.settings)):
        raise UserError(f"{out}: holds other results than {plan.holds}; choose another out folder")
    another = [f"another {key}" for key, value in plan.identity.items() if table.get(key) != value]
    another += [f"{key}={table.get(key)}" for key, value in plan.settings.items() if table.get(key) != value]
    if another:
        raise UserError(f"{out}: holds {plan.holds} with {another[0]}; choose another out folder")


def _stamp(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
