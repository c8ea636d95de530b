"""Folders of prepared data: each store named by what it was made from, so that it is found rather than made again."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from domains.errors import UserError
from domains.files import partial_folder
from domains.folder import read_json

META = "meta.json"  # in every store; holds its ``fingerprint``

Store = TypeVar("Store")


def store_key(*made_from: object) -> str:
    """12 hexadecimal digits for what decides a store's bytes: the format, the source's hash, settings."""
    return hashlib.sha256(":".join(str(part) for part in made_from).encode()).hexdigest()[:12]


def find_by_key(root: Path, key: str) -> Path | None:
    """The store of that key in folder ``root``, whatever the name of its source was; None without one."""
    return next(iter(sorted(root.glob(f"*-{key}"))), None)


def build_store(root: Path, stem: str, key: str, write: Callable[[Path], None], what: str) -> Path:
    """Make the store ``root/<stem>-<key>``.

    It is built beside that and renamed when whole, so a failure leaves nothing behind, and processes that prepare the
    same data at once do not disturb each other. What killed processes left is for domains.files.sweep_partials.

    Args:
        root: folder of stores; made when missing.
        stem: of the source's name; letters that file names had better not have become underscores.
        key: see :func:`store_key`.
        write: fills the folder that it is given.
        what: the data, for a message: ``the genome of a.fa``.

    Raises:
        UserError: nothing can be written there, for want of space for instance.
    """
    path = root / f"{re.sub(r'[^A-Za-z0-9._-]', '_', stem)}-{key}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with partial_folder(path) as partial:
            write(partial)
            _publish(partial, path)
    except OSError as error:
        raise UserError(
            f"{root}: cannot keep {what} ({error.strerror or error}); make room or give another folder as data.stores"
        ) from None
    return path


def find_store(root: Path | str, fingerprint: str, open_store: Callable[[Path], Store]) -> Store | None:
    """The store of that fingerprint in folder ``root``, wherever its source is now; None without one.

    Stores that cannot be read are passed over.
    """
    for meta in sorted(Path(root).glob(f"*/{META}")):
        try:
            if read_json(meta).get("fingerprint") == fingerprint:
                return open_store(meta.parent)
        except UserError:
            continue
    return None


def _publish(partial: Path, path: Path) -> None:
    try:
        partial.rename(path)
    except OSError:
        if not path.is_dir():  # otherwise another process was first, and its store is the same
            raise
