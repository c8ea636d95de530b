"""Small made sound files for the tests."""

from pathlib import Path

import numpy as np
import soundfile

from domains.audio.config import SourceConfig
from domains.audio.store import AudioStore, prepare_store

RATE = 16000


def tone(seconds: float = 0.5, rate: int = RATE, hertz: float = 440.0, amplitude: float = 0.3) -> np.ndarray:
    """A sine, float64 (l,)."""
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def noise(seconds: float = 0.5, seed: int = 0, amplitude: float = 0.1, rate: int = RATE) -> np.ndarray:
    """White noise of 16 bit, float64 (l,)."""
    x = amplitude * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return np.rint(np.clip(x, -1, 1) * 32767) / 32768


def write(path: Path, samples: np.ndarray, rate: int = RATE, **kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **kind)
    return path


def make_store(folder: Path, labels: dict[str, int], groups: int = 0, seconds: float = 0.1) -> AudioStore:
    """A real store of so many noises of each label, spread over so many groups."""
    seed = 0
    for label, count in labels.items():
        for i in range(count):
            group = f"g{i % groups}/" if groups else ""
            write(folder / "clips" / label / f"{group}{i:03d}.wav", noise(seconds * (1 + i % 3), seed))
            seed += 1
    return store_of(folder)


def store_of(folder: Path, **settings: object) -> AudioStore:
    """The store of the clips in ``folder / "clips"``."""
    source = {"root": str(folder / "clips"), "stores": str(folder / "stores")} | settings
    return prepare_store(SourceConfig(**source), progress=False)  # type: ignore[arg-type]
