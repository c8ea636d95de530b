"""Are sounds found in a long recording, and named as well as when they are cut out? Drum hits of a kit never heard.

    python -m pipelines.audio train experiment=drums_stream data.store=<store> run.export=drums_stream.yaml
    OMP_NUM_THREADS=1 python benchmarks/hits.py --config drums_stream.yaml --json benchmarks/results/hits.json

A classifier in one direction is trained without the test kit. The hits of that kit, in an order drawn once, with 0.25
to 1 s between them, make a recording, which ``predict`` reads as it reads any file: streamed, sounds cut by their
loudness. A hit is found if a sound begins within 30 ms of its first 10 ms that are not quiet; a sound at no hit is
extra. Accuracies are over all hits, what was not found counting as wrong, beside those of the same model and of the
baselines for the clips as they were cut out by hand. The cases:

    silence   nothing between the hits, longest_seconds=10
    anew      the same, and what lasts longer than clips in training (1.5 s) is judged anew, as is the default
    hiss      as silence, with white noise at -60 dBFS throughout
    louder    as silence, with white noise at -45 dBFS, and quiet_db=-40
    stereo    as silence, at 44,100 Hz in stereo, one channel silent
"""

import argparse
import csv
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels import measured_commit
from domains.audio.config import EvaluateConfig, PredictConfig, SourceConfig, TrainConfig
from domains.audio.endpoints import FRAME_SECONDS
from domains.audio.evaluate import evaluate
from domains.audio.metrics import Naming
from domains.audio.naming import NamingEvaluation
from domains.audio.predict import predict
from domains.audio.resample import Resampler
from domains.audio.store import AudioStore
from domains.audio.train import train
from domains.audio.trained import load_model
from domains.folder import write_json
from domains.hardware import choose_device, describe_hardware, describe_versions
from domains.settings import from_dict, read_yaml, to_dict

NEAR = 0.03  # s
GAPS = (0.25, 1.0)  # s
WHOLE = PredictConfig(longest_seconds=10.0)
CASES: dict[str, tuple[float | None, int, int, PredictConfig]] = {  # noise in dBFS, rate, channels, settings
    "silence": (None, 16_000, 1, WHOLE),
    "anew": (None, 16_000, 1, PredictConfig()),
    "hiss": (-60.0, 16_000, 1, WHOLE),
    "louder": (-45.0, 16_000, 1, replace(WHOLE, quiet_db=-40.0)),
    "stereo": (None, 44_100, 2, WHOLE),
}


def make_recording(store: AudioStore, clips: list[int], noise_db: float | None) -> tuple[np.ndarray, list[float]]:
    """The clips one after another, float32 (l,) at the store's rate, and where each begins, in seconds."""
    rng = np.random.default_rng(0)
    parts, starts, length = [], [], 0
    for clip in clips:
        gap = np.zeros(round(rng.uniform(*GAPS) * store.rate), dtype=np.float32)
        starts.append((length + len(gap)) / store.rate)
        parts += [gap, store.samples(clip)]
        length += len(gap) + len(parts[-1])
    whole = np.concatenate([*parts, np.zeros(store.rate, dtype=np.float32)])
    if noise_db is not None:
        whole = whole + (10 ** (noise_db / 20) * rng.standard_normal(len(whole))).astype(np.float32)
    return whole, starts


def onset(samples: np.ndarray, rate: int, quiet_db: float) -> float:
    """Seconds up to the first 10 ms of a clip that are not quiet."""
    frame = round(FRAME_SECONDS * rate)
    frames = samples[: max(len(samples) // frame, 1) * frame].reshape(-1, min(frame, len(samples)))
    return FRAME_SECONDS * int(np.argmax(np.square(frames, dtype=np.float64).mean(1) >= 10 ** (quiet_db / 10)))


def write_recording(path: Path, samples: np.ndarray, rate: int, target: int, channels: int) -> None:
    """A WAV file at another rate, the sound in its first channel."""
    import soundfile

    resampler = Resampler(rate, target)
    sound = np.concatenate([resampler.push(samples), resampler.finish()])
    others = [np.zeros_like(sound)] * (channels - 1)
    soundfile.write(path, np.stack([sound, *others], axis=1), target, subtype="PCM_16")


def listen(model: Path, store: AudioStore, clips: list[int], case: str, device: str) -> dict[str, Any]:
    """Make a recording, label it, and count."""
    noise_db, rate, channels, config = CASES[case]
    samples, starts = make_recording(store, clips, noise_db)
    assert config.quiet_db is not None
    begins = [
        start + onset(store.samples(clip), store.rate, config.quiet_db)
        for start, clip in zip(starts, clips, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.wav"
        write_recording(path, samples, store.rate, rate, channels)
        clock, before = time.perf_counter(), time.process_time()
        out = Path(folder) / "labels"
        done = predict(model, SourceConfig(root=str(path)), out, config, device=device, progress=False)
        seconds, spent = time.perf_counter() - clock, time.process_time() - before
        (table,) = done.out.glob("labels-*.csv")
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    return {
        "case": case,
        "seconds": round(len(samples) / store.rate, 1),
        "hits": len(clips),
        **counted(store, clips, begins, rows),
        "seconds_spent": round(seconds, 2),
        "processor_seconds": round(spent, 2),
    }


def counted(store: AudioStore, clips: list[int], begins: list[float], rows: list[dict[str, str]]) -> dict[str, Any]:
    """Hits that were found and named, and sounds where there is none."""
    sounds = np.array([float(row["start"]) for row in rows])
    called, late, used = [], [], set()
    for begin in begins:
        nearest = int(np.abs(sounds - begin).argmin()) if len(sounds) else -1
        found = nearest >= 0 and abs(sounds[nearest] - begin) <= NEAR and nearest not in used
        called.append(store.labels.index(rows[nearest]["label"]) if found else -1)
        if found:
            used.add(nearest)
            late.append(abs(sounds[nearest] - begin))
    truth = np.array([store.labels.index(store.clips[clip].label) for clip in clips])
    right = np.array(called) == truth
    by_label = [float(right[truth == label].mean()) for label in np.unique(truth)]
    return {
        "found": len(used),
        "extra": len(rows) - len(used),
        "onset_error_ms": round(1e3 * float(np.mean(late)), 2) if late else None,
        "accuracy": round(float(right.mean()), 4),
        "balanced_accuracy": round(float(np.mean(by_label)), 4),
    }


def by_hand(found: NamingEvaluation) -> dict[str, dict[str, float]]:
    """Accuracies of the clips as they were cut out: of the model and of its baselines."""

    def scores(naming: Naming) -> dict[str, float]:
        return {"accuracy": round(naming.accuracy, 4), "balanced_accuracy": round(naming.balanced_accuracy, 4)}

    return {name: scores(naming) for name, naming in found.methods.items()}


def run(config: TrainConfig, runs: Path, commit: str | None, model: Path | None) -> dict[str, Any]:
    """Train where no model is given, and listen to every case."""
    device = choose_device(config.trainer.accelerator)
    store = AudioStore.open(config.data.store)
    folder = model or train(config, runs, overwrite=True, progress=False).model_dir
    named = evaluate(folder, store, EvaluateConfig(), device=config.trainer.accelerator, progress=False)
    assert isinstance(named, NamingEvaluation)
    loaded = load_model(folder)
    clips = loaded.splits.clips(store, "test")
    order = [clips[i] for i in np.random.default_rng(0).permutation(len(clips))]
    rows = []
    for case in CASES:
        rows.append(listen(folder, store, order, case, config.trainer.accelerator))
        print(json.dumps(rows[-1]), flush=True)
    return {
        "commit": commit,
        "hardware": describe_hardware(device),
        "versions": describe_versions(),
        "settings": to_dict(replace(config, data=replace(config.data, store=Path(config.data.store).name))),
        "test": sorted({store.clips[clip].group for clip in clips}),
        "cut_by_hand": by_hand(named),
        "recordings": rows,
    }


def main() -> None:
    """Read the arguments, work, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, required=True, help="settings of experiment=drums_stream with data.store"
    )
    parser.add_argument("--model", type=Path, help="a model folder of these settings, in place of a training")
    parser.add_argument("--runs", type=Path, default=Path("runs/hits"), help="the run folder; replaced")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    arguments = parser.parse_args()
    config = from_dict(TrainConfig, read_yaml(arguments.config), str(arguments.config))
    commit = measured_commit(arguments.commit, True)
    result = run(config, arguments.runs, commit, arguments.model)
    print(json.dumps(result["cut_by_hand"]))
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
