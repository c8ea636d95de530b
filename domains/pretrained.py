"""Starting from a model that was trained before: what every domain that can records of it.

A task's settings name the folder as ``pretrained``. What :func:`describe` gives stands in splits.json and data.json
under the same name. A resumed run has its weights in its checkpoint: the folder may be gone by then.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from domains.errors import UserError


class Record(Protocol):
    """What is known about a trained model of any domain."""

    @property
    def path(self) -> Path:
        """The model folder."""

    @property
    def source(self) -> str:
        """Name of what it was trained on."""


def describe(record: Record, kind: str, sha256: str) -> dict[str, Any]:
    """The model that a training starts from, as plain values; ``sha256`` is that of its weights."""
    return {"model": sha256, "kind": kind, "folder": record.path.absolute().parent.name, "source": record.source}


def check_same(described: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> None:
    """Make sure that a run which is resumed before its first checkpoint starts from what it began with.

    Args:
        described: what :func:`describe` gave now.
        recorded: the run's splits.json; None for a new run.

    Raises:
        UserError: it began with other weights, or with none.
    """
    if recorded is not None and recorded.get("pretrained", {}).get("model") != described["model"]:
        raise UserError(
            f"task.pretrained: {described['folder']} holds other weights than this run began with; give the folder as "
            "it was, or start a new run"
        )


def folder_name(data: Mapping[str, Any]) -> str:
    """What stands for the folder in a model that travels, without its path; "" where data.json tells of none."""
    return str(data.get("pretrained", {}).get("folder", ""))
