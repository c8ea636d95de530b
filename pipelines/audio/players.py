"""Sounds that a browser plays: a page with a player and a spectrogram for each, complete in one file."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

from domains.files import atomic_file
from pipelines.plots import save_figure, spectrogram_plot

PAGE = "players.html"
_MOST = 64  # sounds of a page

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font-family: sans-serif; margin: 2em; max-width: 60em }}
figure {{ margin: 0 0 2em 0 }} img {{ max-width: 100%; display: block }} audio {{ width: 100% }}
figcaption {{ color: #555; font-size: small }}
</style></head><body><h1>{title}</h1>
"""


def write_players(folder: Path, sounds: Sequence[Path]) -> list[Path]:
    """Draw a spectrogram beside each sound, and write a page that plays them.

    The page holds sounds and pictures in itself, for MLflow shows a page without the files beside it; of more than 64
    sounds it shows the first.

    Args:
        folder: of the page.
        sounds: WAV files; a JSON file of the same name tells where one comes from.

    Returns:
        all files: sounds, what tells of them, pictures, page.
    """
    from domains.audio.io import inspect_clip, read_clip

    files: list[Path] = []
    parts = [_HEAD.format(title=html.escape(folder.absolute().name))]
    for path in sounds:
        rate = inspect_clip(path).rate
        picture = save_figure(spectrogram_plot(read_clip(path, rate), rate, title=path.stem), path.with_suffix(".png"))
        about = path.with_suffix(".json")
        files += [path, picture, *([about] if about.exists() else [])]
        if len(parts) <= _MOST:
            parts.append(_figure(path, picture, about))
    with atomic_file(folder / PAGE) as file:
        file.write("".join([*parts, "</body></html>\n"]).encode())
    return [*files, folder / PAGE]


def _figure(sound: Path, picture: Path, about: Path) -> str:
    """A player, its picture, and where the sound comes from."""
    told = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}
    flat = {**told, **told.pop("settings", {})} if isinstance(told.get("settings"), dict) else told
    caption = ", ".join(f"{key} {value}" for key, value in flat.items() if key != "file" and value not in ("", None))
    return (
        f"<figure><h2>{html.escape(sound.name)}</h2>"
        f'<audio controls src="data:audio/wav;base64,{_encoded(sound)}"></audio>'
        f'<img alt="spectrogram" src="data:image/png;base64,{_encoded(picture)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
