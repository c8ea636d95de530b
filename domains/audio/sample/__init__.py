"""Clips that ship with the package; SOURCE.md says where they come from."""

from importlib.resources import files
from pathlib import Path


def sample_clips() -> Path:
    """The table of the bundled clips (path, label, group); they lie beside it as FLAC, 16 kHz, one voice."""
    return Path(str(files(__name__) / "labels.csv"))
