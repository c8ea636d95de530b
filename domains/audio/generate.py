"""Drawing sound from a generator: constant time and memory for each sample, as loud as the prompt."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from domains.audio.config import GenerateConfig
from domains.audio.io import read_clip, write_clip
from domains.audio.loudness import level_gain, measure
from domains.audio.models.generator import Generator
from domains.audio.models.sampling import Sampler, read_prompt
from domains.audio.tokens import decode, encode
from domains.audio.trained import GENERATE, LoadedModel, load_model
from domains.config import MANY, check_range, check_seed
from domains.errors import UserError
from domains.folder import read_json, write_json
from domains.hardware import choose_device, full_precision
from domains.settings import flatten

_MOST = 1024  # sounds drawn side by side: each has a state of its own in memory
_LONGEST = 3600.0  # s
_STEM = "sample"  # of the files' names
_SETTINGS = "settings."  # of a draw, among what tells of it
_AT_ONCE = 256  # samples between two looks at the clock


@dataclass(frozen=True)
class Drawn:
    """Sounds drawn from a generator.

    Attributes:
        samples: float32 (count, n + l), the prompt as it was and what was drawn, at the prompt's loudness.
        prompt: samples of the prompt, n.
        rate: samples per second.
    """

    samples: np.ndarray
    prompt: int
    rate: int


def generate(
    model_dir: Path | str,
    out: Path | str,
    config: GenerateConfig,
    *,
    device: str = "auto",
    progress: bool = True,
) -> list[Path]:
    """Draw sounds and write each as ``<out>/sample-<number>.wav``, with its provenance beside it as JSON.

    The same settings give the same bytes on the same hardware, and may be drawn into the same folder again.

    Returns:
        the WAV files, each of which begins with the prompt.

    Raises:
        UserError: a setting out of range, a prompt that cannot be read, a model that is no generator, or a folder that
            cannot be written, or holds other files or sounds of another draw.
    """
    check_request(config)
    loaded = load_model(model_dir, str(choose_device(device)), (GENERATE,))
    prompt = _prompt(config, loaded.sound.rate)
    _check_out(Path(out), _about(prompt, loaded, config))
    drawn = draw_sounds(loaded, prompt, config, progress=progress)
    return list(write_sounds(Path(out), drawn, loaded, config))


def check_request(config: GenerateConfig) -> None:
    """Make sure that the settings make sense; a UserError names the first that does not."""
    check_seed(config.seed)
    check_range("count", config.count, 1, _MOST, "for memory's sake; more come from another call with another seed")
    check_range("seconds", config.seconds, 1e-3, _LONGEST)
    if config.prompt_seconds is not None:
        check_range("prompt_seconds", config.prompt_seconds, 1e-3, _LONGEST)
    if not 1e-3 <= config.temperature <= 1e3:
        raise UserError(f"temperature={config.temperature}: must lie between 0.001 and 1000")
    if not 0 < config.top_p <= 1:
        raise UserError(f"top_p={config.top_p}: must lie above 0 and be at most 1")


@full_precision()
def draw_sounds(loaded: LoadedModel, prompt: np.ndarray, config: GenerateConfig, *, progress: bool = False) -> Drawn:
    """Draw ``config.count`` continuations of a prompt.

    On a GPU the steps of a block of samples are one launch (see :class:`domains.audio.models.sampling.Sampler`).

    Args:
        loaded: a generator.
        prompt: float (n,) at the model's rate, n possibly 0, as loud as it is. A model whose training brought clips to
            a level reads it at that level, and what is drawn is brought back to the prompt's.
        config: settings.
        progress: show a bar.
    """
    model, rate = loaded.model, loaded.sound.rate
    assert isinstance(model, Generator)
    gain = level_gain(*measure(prompt), loaded.sound.level_db)
    levels = torch.from_numpy(encode(prompt * gain))[None].to(next(model.parameters()).device)
    logits, state = read_prompt(model, levels)
    sampler = Sampler(
        model,
        state.rows([0] * config.count),
        logits.expand(config.count, -1),
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
    )
    length = round(config.seconds * rate)
    if length * config.count > MANY:
        raise UserError(f"seconds={config.seconds}, count={config.count}: a billion samples at most are drawn at once")
    parts = []
    with tqdm(total=length, desc="drawing", unit=" samples", delay=1, disable=not progress) as bar:
        for start in range(0, length, _AT_ONCE):
            parts.append(sampler.read(min(_AT_ONCE, length - start)).numpy())
            bar.update(parts[-1].shape[1])
    drawn = decode(np.concatenate(parts, axis=1)) / np.float32(gain)
    begun = np.repeat(np.asarray(prompt, dtype=np.float32)[None], config.count, axis=0)
    return Drawn(np.concatenate([begun, drawn], axis=1), len(prompt), rate)


def write_sounds(
    out: Path, drawn: Drawn, loaded: LoadedModel, config: GenerateConfig, stem: str = _STEM
) -> Iterator[Path]:
    """Write each sound as ``<stem>-<number>.wav``, after its provenance; a UserError when that is not possible.

    Provenance comes first, so that an interrupted draw leaves no sound of which nothing is known.
    """
    about = _about(drawn.samples[0, : drawn.prompt], loaded, config)
    try:
        out.mkdir(parents=True, exist_ok=True)
        digits = len(str(len(drawn.samples)))
        for i, samples in enumerate(drawn.samples, start=1):
            path = out / f"{stem}-{i:0{digits}}.wav"
            write_json(path.with_suffix(".json"), {"file": path.name, "number": i, **about})
            write_clip(path, samples, drawn.rate)
            yield path
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); choose another out folder") from None


def _about(prompt: np.ndarray, loaded: LoadedModel, config: GenerateConfig) -> dict[str, Any]:
    """What the sounds of a draw have in common: all that it takes to get them again, and how much is the prompt."""
    rate = loaded.sound.rate
    return {
        "model": loaded.hash,
        "trained_on": loaded.source,
        "rate": rate,
        "prompt_samples": len(prompt),
        "prompt_sha256": hashlib.sha256(np.asarray(prompt, dtype="<f4").tobytes()).hexdigest() if len(prompt) else None,
        "drawn_samples": round(config.seconds * rate),
        "settings": asdict(config) | {"prompt": Path(config.prompt).name},
        "device": next(loaded.model.parameters()).device.type,
    }


def _check_out(out: Path, about: Mapping[str, Any]) -> None:
    """Make sure that nothing but sounds of this draw, and what was made of them, can be replaced in a folder."""
    try:
        names = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.exists() else set()
    except OSError as error:
        raise UserError(f"{out}: cannot be read ({error.strerror}); choose another out folder") from None
    told = sorted(name for name in names if name.startswith(f"{_STEM}-") and name.endswith(".json"))
    wanted = flatten(about)
    for name in told:
        found = flatten(read_json(out / name))
        others = [key for key, value in wanted.items() if found.get(key) != value]
        for key in sorted(others, key=lambda key: not key.startswith(_SETTINGS))[:1]:
            own = key.startswith(_SETTINGS)
            how = f"{key.removeprefix(_SETTINGS)}={found.get(key)}" if own else f"another {key.split('_')[0]}"
            raise UserError(f"{out}: holds sounds drawn with {how}; choose another out folder")
    sounds = {name for name in names if name.startswith(f"{_STEM}-") and name.endswith(".wav")}
    if (names and not told) or sounds - {f"{Path(name).stem}.wav" for name in told}:
        raise UserError(f"{out}: holds other files; choose a new out folder")


def _prompt(config: GenerateConfig, rate: int) -> np.ndarray:
    """The prompt's samples, float32 (n,)."""
    if not config.prompt:
        return np.zeros(0, dtype=np.float32)
    samples = read_clip(config.prompt, rate)
    if len(samples) > _LONGEST * rate:
        raise UserError(f"prompt={config.prompt}: lasts more than an hour; give prompt_seconds")
    kept = len(samples) if config.prompt_seconds is None else round(config.prompt_seconds * rate)
    return samples[max(0, len(samples) - kept) :]
