"""Files that appear whole or not at all, and folders that one process at a time works in."""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from domains.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}")
_PARTIAL = re.compile(r".+\.partial-[0-9a-f]{8}")


@contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """Open a hidden sibling of ``path`` for writing bytes; it takes the place of ``path`` when the block ends well.

    When the block raises, the sibling is removed and ``path`` stays as it was. Readers never see half a file. Only a
    process that is killed leaves its sibling behind, for :func:`find_temporaries` to find.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_sha256(path: Path | str) -> str:
    """sha256 of a file's content, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_temporaries(folder: Path | str, endings: tuple[str, ...]) -> list[Path]:
    """Siblings by :func:`atomic_file` for files whose names have these endings: being written, or left by the dead."""
    found = ((path, _TEMPORARY.fullmatch(path.name)) for path in Path(folder).iterdir())
    return [path for path, match in found if match and match[1].endswith(endings)]


def file_stem(name: str) -> str:
    """A file name for any name: what file systems do not like is percent-encoded, what is long hashed."""
    stem = quote(name, safe=" ()[],;=+@#")
    if stem.startswith("."):
        stem = f"%2E{stem[1:]}"
    return stem if len(stem) <= 120 else f"{stem[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


@contextmanager
def partial_folder(path: Path | str) -> Iterator[Path]:
    """A folder beside ``path`` to build it in and to rename it from; gone when the block ends, one way or the other.

    Its lock says that its process lives: one that is killed leaves it behind for :func:`sweep_partials`.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
    try:
        with ExitStack() as alive:
            with locked_folder(path.parent):  # so that no sweep comes between making it and locking it
                partial.mkdir()
                alive.enter_context(locked_folder(partial))
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sweep_partials(root: Path | str) -> None:
    """Remove from ``root`` what killed processes left of :func:`partial_folder`: the folders that are not locked."""
    root = Path(root)
    if not root.is_dir():
        return
    with locked_folder(root):
        for partial in [path for path in root.iterdir() if _PARTIAL.fullmatch(path.name)]:
            with suppress(UserError, OSError), locked_folder(partial, "is being built") as dead:
                if dead:
                    shutil.rmtree(partial, ignore_errors=True)


class FolderInUse(UserError):
    """Another process holds the lock of a folder."""


@contextmanager
def locked_folder(path: Path | str, busy: str | None = None, *, shared: bool = False) -> Iterator[bool]:
    """Hold the lock of a folder, which goes with the process, however that ends; it writes nothing.

    Gives whether the lock is truly held: False on Windows and on file systems that know no locks, where others may be
    at work in the folder too.

    Args:
        path: the folder, which must exist.
        busy: what to tell the user when someone else holds the lock; None waits instead.
        shared: others may hold it too, if they share it as well.

    Raises:
        FolderInUse: someone else holds it.
    """
    if fcntl is None:
        yield False
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        yield _lock(folder, path, busy, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    finally:
        os.close(folder)


def _lock(folder: int, path: Path | str, busy: str | None, kind: int) -> bool:
    try:
        fcntl.flock(folder, kind if busy is None else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderInUse(f"{path}: {busy}") from None
    except OSError:
        return False  # some network file systems know no locks
    return True
