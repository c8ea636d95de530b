"""Clips that ship with the package; SOURCE.md says where they come from."""

from importlib.resources import files
from pathlib import Path

from domains.errors import UserError

SAMPLES = ("prompts", "arrow")


def sample_clips(name: str) -> Path:
    """A table of bundled clips, which lie beside it as FLAC, 16 kHz, one voice.

    Args:
        name: ``prompts``, 47 spoken words (35 s), to predict samples of; or ``arrow``, the same words as they were
            spoken and backwards (94 clips), to tell apart: labels forwards and backwards, grouped by word.

    Raises:
        UserError: another name.
    """
    if name not in SAMPLES:
        raise UserError(f"data.sample={name}: must be one of {', '.join(SAMPLES)}")
    return Path(str(files(__name__) / f"{name}.csv"))
