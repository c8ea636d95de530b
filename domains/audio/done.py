"""Which recordings a folder of labels has done, and whether they are still what they were."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domains.audio.clips import Found, Reject, Source
from domains.errors import UserError
from domains.files import file_sha256
from domains.manifest import Manifest


def labelled(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """What the manifest says of each recording that is labelled."""
    return {name: entry for part in manifest.parts.values() for name, entry in part["recordings"].items()}


def look_up(manifest: Manifest, found: Found) -> tuple[list[Source], list[str], list[Reject]]:
    """Recordings that are to be labelled, names of those that are, and what is kept aside already.

    A part whose files were damaged is forgotten, and so are files that could not be used and have changed since.

    Raises:
        UserError: a recording has changed since it was labelled.
    """
    for name in [name for name in manifest.parts if not manifest.is_done(name)]:
        del manifest.parts[name]
    done = labelled(manifest)
    bad = {name: entry for part in manifest.parts.values() for name, entry in part["rejects"].items()}
    new, skipped, aside = [], [], list(found.rejects)
    for source in found.sources:
        if source.name in done:
            if not _is_same(source.path, done[source.name]):
                raise UserError(
                    f"{source.path}: has changed since its labels were written into {manifest.out}; choose another out "
                    "folder, or give the file another name"
                )
            skipped.append(source.name)
        elif source.name in bad and _is_same(source.path, bad[source.name]):
            aside.append(Reject(source.name, bad[source.name]["reason"], bad[source.name]["detail"]))
        else:
            new.append(source)
    return new, skipped, aside


def file_stamp(path: Path) -> dict[str, Any]:
    """What tells whether a file is the one that it was; nothing when it cannot be read."""
    try:
        about = path.stat()
        return {"bytes": about.st_size, "modified": about.st_mtime_ns, "sha256": file_sha256(path)}
    except OSError:
        return {}


def _is_same(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file is the one of a manifest's entry; its content is looked at where size and time do not tell."""
    try:
        about = path.stat()
        if about.st_size != entry["bytes"]:
            return False
        return about.st_mtime_ns == entry["modified"] or file_sha256(path) == entry["sha256"]
    except OSError:
        return False
