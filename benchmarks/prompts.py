"""One voice, sample by sample: train the recipe of the prompts, score it beside its baselines, draw from it.

    python -m pipelines.audio prepare data.root=prompts_en_16k                          # here; prints the store
    python -m pipelines.audio train experiment=prompts data.store=<store> run.export=prompts.yaml
    python benchmarks/prompts.py --config prompts.yaml --out runs/prompts --json benchmarks/results/prompts_h100.json

The last line needs a GPU and no more than PyTorch, Lightning, numpy, scipy and torchaudio. The recipe's steps are made
as many as --minutes allow, by the time that a step takes there, so that its schedule ends with them. Test clips are
those that the names choose, never seen in training. The run folder is --out, its sounds lie in --out/samples:
``import-run run=<out>`` brings all of it into MLflow, with players. --tgz packs that folder without its checkpoints.

Four sounds of --seconds are drawn from silence, and four go on from the first quarter of that of test clips. What can
be counted of them stands beside the same of test clips: loudness, quiet 10 ms, frames with a pitch and its median, the
spectrum's centre, and how surprised the model is by them: a model that draws what it knows is as surprised by it as by
real speech.
"""

import argparse
import json
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kernels import measured_commit
from benchmarks.pace import fitted, samples_a_step, seconds_a_step
from domains.audio.bits import generator_of, sample_bits
from domains.audio.config import EvaluateConfig, GenerateConfig, TrainConfig
from domains.audio.evaluate import evaluate
from domains.audio.generate import Drawn, draw_sounds, write_sounds
from domains.audio.store import AudioStore
from domains.audio.tokens import encode
from domains.audio.train import train
from domains.audio.trained import LoadedModel, load_model
from domains.files import atomic_file
from domains.folder import write_json
from domains.hardware import choose_device, describe_hardware, describe_versions
from domains.settings import from_dict, read_yaml, to_dict

SOUNDS = 4  # of each kind
PROMPT = 0.25  # of a sound that goes on from one
PITCH = (60.0, 400.0)  # Hz
FRAME = 0.04  # s, of a pitch
VOICED = 0.5  # least autocorrelation at a pitch


def describe(samples: np.ndarray, rate: int) -> dict[str, float]:
    """What can be counted of a sound, float (l,)."""
    whole = np.asarray(samples, dtype=np.float64)
    small = whole[: len(whole) // (rate // 100) * (rate // 100)].reshape(-1, rate // 100)
    level = 10 * np.log10(np.square(small).mean(1) + 1e-12)
    width = round(FRAME * rate)
    frames = np.lib.stride_tricks.sliding_window_view(whole, width)[:: width // 2]
    frames = frames[np.square(frames).mean(1) > 10 ** (-50 / 10)]
    found = {"rms_db": 10 * np.log10(np.square(whole).mean() + 1e-12), "quiet": float((level < -50).mean())}
    if len(frames):
        pitches = pitch(frames - frames.mean(1, keepdims=True), rate)
        spectrum = np.abs(np.fft.rfft(frames * np.hanning(width))) ** 2
        centre = (spectrum * np.fft.rfftfreq(width, 1 / rate)).sum(1) / spectrum.sum(1)
        found |= {"voiced": float(np.isfinite(pitches).mean()), "centre_hz": float(np.median(centre))}
        if np.isfinite(pitches).any():
            found["pitch_hz"] = float(np.nanmedian(pitches))
    return {name: round(float(value), 3) for name, value in found.items()}


def pitch(frames: np.ndarray, rate: int) -> np.ndarray:
    """Pitch of frames (n, l) in Hz, by their autocorrelation; NaN where that has no peak worth the name: (n,)."""
    width = frames.shape[1]
    spectrum = np.abs(np.fft.rfft(frames, 2 * width)) ** 2
    found = np.fft.irfft(spectrum)[:, :width]
    found = found / np.maximum(found[:, :1], 1e-12)
    lags = slice(int(rate / PITCH[1]), int(rate / PITCH[0]) + 1)
    best = found[:, lags].argmax(1) + lags.start  # shorter lags weigh more, for more samples overlap: no octave below
    height = found[np.arange(len(found)), best] * width / (width - best)
    return np.where(height > VOICED, rate / best, np.nan)


def drawn_sounds(
    loaded: LoadedModel, store: AudioStore, folder: Path, seconds: float
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Draw, write, and count; and samples a second of all sounds together."""
    test = [clip for clip in loaded.splits.clips(store, "test") if store.clips[clip].length > seconds * store.rate]
    rows: list[dict[str, Any]] = []
    speeds: dict[str, float] = {}
    free = GenerateConfig(seconds=seconds, count=SOUNDS)
    started = time.perf_counter()
    drawn = draw_sounds(loaded, np.zeros(0), free)
    speeds[f"{SOUNDS} sounds"] = round(drawn.samples.size / (time.perf_counter() - started))
    rows += told("from silence", drawn, list(write_sounds(folder, drawn, loaded, free, "free")), loaded)
    for number, clip in enumerate(test[:SOUNDS], start=1):
        begun, length = PROMPT * seconds, (1 - PROMPT) * seconds
        prompt = store.samples(clip, 0, round(begun * store.rate))
        settings = replace(free, prompt=store.clips[clip].name, prompt_seconds=begun, seconds=length, count=1)
        started = time.perf_counter()
        drawn = draw_sounds(loaded, prompt, settings)
        speeds["1 sound"] = round(length * store.rate / (time.perf_counter() - started))
        paths = list(write_sounds(folder, drawn, loaded, settings, f"goes-on-{number}"))
        rows += told(f"goes on from {settings.prompt}", drawn, paths, loaded)
    for clip in test[:SOUNDS]:
        samples = store.samples(clip, 0, round(seconds * store.rate))
        rows.append({"sound": f"real: {store.clips[clip].name}", **counted(samples, loaded)})
    return rows, speeds


def told(what: str, drawn: Drawn, paths: list[Path], loaded: LoadedModel) -> list[dict[str, Any]]:
    """A row for each drawn sound, its prompt left out."""
    return [
        {"sound": what, "file": path.name, **counted(samples[drawn.prompt :], loaded)}
        for path, samples in zip(paths, drawn.samples, strict=True)
    ]


def counted(samples: np.ndarray, loaded: LoadedModel) -> dict[str, float]:
    """What can be counted of a sound, and the bits per sample that the model gives it."""
    bits = sample_bits(generator_of(loaded), encode(samples), chunk=1 << 16)
    return describe(samples, loaded.sound.rate) | {"bits_per_sample": round(float(bits.mean()), 3)}


def pack(folder: Path, target: Path) -> None:
    """A run folder without its checkpoints as one file."""

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "checkpoints" in Path(entry.name).parts else entry

    with atomic_file(target) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(folder, arcname=folder.name, filter=kept)


def run(
    config: TrainConfig,
    out: Path,
    json_path: Path,
    commit: str | None,
    *,
    minutes: float | None = None,
    max_samples: int | None = None,
    seconds: float = 4.0,
) -> dict[str, Any]:
    """Everything, into ``json_path``; what is done is written as soon as it is."""
    device = choose_device(config.trainer.accelerator)
    store = AudioStore.open(config.data.store)
    if minutes is not None:
        pace = seconds_a_step(config, out.with_name(f"{out.name}-pace"))
        config = fitted(config, max(10, int(60 * minutes / pace)))
    place = {"commit": commit, "hardware": describe_hardware(device), "versions": describe_versions()}
    started = time.perf_counter()
    done = train(config, out, progress=False)
    spent = time.perf_counter() - started
    samples = config.trainer.max_steps * samples_a_step(config)
    trained = {
        "steps": config.trainer.max_steps,
        "samples": samples,
        "seconds": round(spent, 1),
        "samples_per_second": round(samples / spent),
        "metrics": {name: value for name, value in done.metrics.items() if not name.startswith("health/")},
    }
    settings = to_dict(replace(config, data=replace(config.data, store=Path(config.data.store).name)))
    result: dict[str, Any] = {**place, "settings": settings, "trained": trained}
    write_json(json_path, result)
    scope = EvaluateConfig(max_samples=max_samples)
    found = evaluate(done.model_dir, store, scope, device=config.trainer.accelerator, progress=False)
    print(found.table(), flush=True)
    result["evaluation"] = found.to_dict()
    write_json(json_path, result)
    loaded = load_model(done.model_dir, str(device))
    sounds, speeds = drawn_sounds(loaded, store, out / "samples", seconds)
    result |= {"sounds": sounds, "drawn_samples_per_second": speeds}
    write_json(json_path, result)
    return result


def main() -> None:
    """Read the arguments, work, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="settings of experiment=prompts, with data.store")
    parser.add_argument("--out", type=Path, required=True, help="the run folder; sounds go into samples/ in it")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--minutes", type=float, help="of training; without it, the recipe's steps")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a sound, its prompt included")
    parser.add_argument("--max-samples", type=int, help="of the test clips that are scored; all without it")
    parser.add_argument("--tgz", type=Path, help="pack the run folder into this file")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    arguments = parser.parse_args()
    config = from_dict(TrainConfig, read_yaml(arguments.config), str(arguments.config))
    torch.manual_seed(config.seed)
    commit = measured_commit(arguments.commit, True)
    result = run(
        config,
        arguments.out,
        arguments.json,
        commit,
        minutes=arguments.minutes,
        max_samples=arguments.max_samples,
        seconds=arguments.seconds,
    )
    if arguments.tgz:
        pack(arguments.out, arguments.tgz)
    for row in result["sounds"]:
        print(json.dumps(row))
    print(f"written to {arguments.json}; sounds in {arguments.out / 'samples'}")


if __name__ == "__main__":
    main()
