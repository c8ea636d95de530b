"""Does longer context help on music? Bits per sample by training window and by context at the test.

    python -m pipelines.audio prepare data.root=music_16k                                   # here; prints the store
    python -m pipelines.audio train experiment=music_1m data.store=<store> run.export=music.yaml
    python benchmarks/music.py --config music.yaml --minutes 5 --json benchmarks/results/music_h100.json
    python benchmarks/music.py --config music.yaml --json benchmarks/results/music_h100.json --baselines
    python benchmarks/music.py --table benchmarks/results/music_h100.json

The recipe is trained once for each window of 8,192, 65,536, 524,288 and 1,048,576 samples (half a second to over a
minute): same model, seed, schedule, steps and samples a step, longer windows in segments with their exact gradient; the
last weights count, so that none is chosen on windows of its own length. --minutes fits the number of steps, equal for
all, to a time for all trainings together, by what a step of each takes there.

Each model then predicts the pieces that no training heard, those of the test and of the validation part (nothing is
chosen on the latter), forgetting everything every so many samples, and once without. Differences are paired: sums of
bits over blocks of 65,536 samples, 95 % intervals from 10,000 resamplings of the blocks, which two pieces of music
bound in what they say: another piece may say otherwise. ``--baselines`` adds the linear predictor and the context
model, on the CPU. The third line needs PyTorch and Lightning. The JSON is written after each piece of work; the same
command goes on with what is missing, while commit and settings are the same.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contexts
from benchmarks.kernels import measured_commit
from benchmarks.pace import fitted, samples_a_step, seconds_a_step
from domains.audio.baselines import ContextModels, LinearPredictor
from domains.audio.bits import generator_of, sample_bits
from domains.audio.config import TrainConfig
from domains.audio.splits import Splits, make_splits
from domains.audio.store import AudioStore
from domains.audio.train import FREE_ON_RESUME, train
from domains.audio.trained import LoadedModel, load_model
from domains.folder import write_json
from domains.hardware import choose_device, describe_hardware, describe_versions
from domains.settings import flatten, from_dict, read_yaml, to_dict

WINDOWS = (8192, 65_536, 524_288, 1_048_576)
BLOCK = 65_536  # samples, about four seconds
NEVER = "never"  # forgets nothing
Result = dict[str, Any]
Bits = dict[str, list[float]]  # piece -> bits of each block


def block_sums(values: np.ndarray) -> list[float]:
    """Sums over the blocks of a piece, the last one shorter."""
    return np.add.reduceat(values.astype(np.float64), np.arange(0, len(values), BLOCK)).round(3).tolist()


def held_out(store: AudioStore, splits: Splits) -> list[int]:
    """The pieces that no training hears."""
    return splits.clips(store, "test") + splits.clips(store, "validation")


def scored(store: AudioStore, pieces: Sequence[int], level: float | None, bits: Callable[..., np.ndarray]) -> Bits:
    """Bits of each block of each piece."""
    return {store.clips[piece].name: block_sums(bits(store.tokens(piece, level_db=level))) for piece in pieces}


def model_bits(loaded: LoadedModel, store: AudioStore, context: int | None, chunk: int) -> Bits:
    """Bits of a model that forgets everything every ``context`` samples."""
    model = generator_of(loaded)
    pieces, level = held_out(store, loaded.splits), loaded.sound.level_db
    return scored(store, pieces, level, lambda levels: sample_bits(model, levels, chunk=chunk, context=context))


def begin(config: TrainConfig, store: AudioStore, windows: Sequence[int], old: Result | None, place: Result) -> Result:
    """An earlier result of the same commit and settings, or a new one."""
    free = FREE_ON_RESUME | {"data.window", "trainer.max_steps", "trainer.validate_every", "trainer.checkpoint_every"}
    settings = {key: value for key, value in flatten(to_dict(config)).items() if key not in free}
    identity = {
        "commit": place["commit"],
        "clips": store.fingerprint,
        "windows": list(windows),
        "settings": json.loads(json.dumps(settings)),
    }
    if old is not None and all(old.get(key) == value for key, value in identity.items()):
        return old
    splits = make_splits(store, config.data, labelled=False)
    pieces = held_out(store, splits)
    samples = {store.clips[i].name: block_sums(np.ones(store.clips[i].length)) for i in pieces}
    about = {"block": BLOCK, "known": samples, "test": splits.test, "training": splits.train}
    return {**identity, **place, **about, "steps": None, "trained": {}, "baselines": {}}


def run(
    config: TrainConfig,
    windows: Sequence[int],
    runs: Path,
    json_path: Path,
    commit: str | None,
    *,
    minutes: float | None = None,
    chunk: int = 1 << 20,
) -> Result:
    """Train and score whatever the result lacks."""
    device = choose_device(config.trainer.accelerator)
    store = AudioStore.open(config.data.store)
    place = {"commit": commit, "hardware": describe_hardware(device), "versions": describe_versions()}
    old = json.loads(json_path.read_text()) if json_path.exists() else None
    result = begin(config, store, windows, old, place)
    recipes = {window: replace(config, data=replace(config.data, window=window)) for window in windows}
    if result["steps"] is None:
        result["steps"] = config.trainer.max_steps
        if minutes is not None:
            paces = {window: seconds_a_step(own, runs / f"pace-{window}") for window, own in recipes.items()}
            result["steps"] = max(4, int(60 * minutes / sum(paces.values())))
            print("seconds a step:", {window: round(pace, 3) for window, pace in paces.items()}, flush=True)
        write_json(json_path, result)
    for window, own in recipes.items():
        row = result["trained"].setdefault(str(window), {})
        if not row:
            row |= train_one(fitted(own, result["steps"]), runs / str(window))
            write_json(json_path, result)
        loaded = load_model(runs / str(window) / "model", str(device))
        scores = row.setdefault("scores", {})
        for context in (*windows, None):
            name = NEVER if context is None else str(context)
            if name not in scores:
                scores[name] = model_bits(loaded, store, context, chunk)
                write_json(json_path, result | {"table": make_table(result)})
                print(f"window {window:,}, forgets after {name}: {mean(result, scores[name]):.4f}", flush=True)
    return result


def train_one(config: TrainConfig, folder: Path) -> Result:
    """Train with one window, or go on with that: what it came to."""
    config = replace(config, trainer=replace(config.trainer, keep="last"))
    started = time.perf_counter()
    done = train(config, folder, resume=(folder / "run.json").exists(), progress=False)
    return {
        "steps": config.trainer.max_steps,
        "samples": config.trainer.max_steps * samples_a_step(config),
        "seconds": round(time.perf_counter() - started, 1),
        "samples_per_second": round(done.metrics["train/samples_per_second"]),
        "train_bits_per_sample": round(done.metrics["train/bits_per_sample"], 5),
        "validation_bits_per_sample": round(done.metrics["validation/bits_per_sample"], 5),
    }


def add_baselines(config: TrainConfig, json_path: Path) -> None:
    """The linear predictor and the context model, into a result of :func:`run`."""
    store = AudioStore.open(config.data.store)
    result = json.loads(json_path.read_text())
    splits, level = make_splits(store, config.data, labelled=False), config.data.level_db
    known, chosen = (splits.clips(store, part) for part in ("train", "validation"))
    linear = LinearPredictor.fit(store, known, chosen, follow=True, level_db=level)
    context = ContextModels.fit(store, known, chosen, level_db=level)
    for model in (linear, context):
        result["baselines"][model.name] = scored(store, held_out(store, splits), level, model.bits)
        print(f"{model.name}: {mean(result, result['baselines'][model.name]):.4f} bits per sample")
    write_json(json_path, result | {"table": make_table(result)})


def mean(result: Result, bits: Bits) -> float:
    """Bits per sample over all blocks."""
    return contexts.mean(result["known"], bits)


def make_table(result: Result) -> list[dict[str, Any]]:
    """A row for each window and context, and each baseline: bits per sample, by piece too, and differences."""
    cells = {
        (int(window), context): bits
        for window, row in result["trained"].items()
        for context, bits in row.get("scores", {}).items()
    }
    table = [
        {"window": cell[0], "forgets_after": cell[1], **means(result, bits)}
        | contexts.differences(result["known"], cells, cell)
        for cell, bits in cells.items()
    ]
    return table + [{"baseline": name, **means(result, bits)} for name, bits in result["baselines"].items()]


def means(result: Result, bits: Bits) -> dict[str, Any]:
    """Bits per sample over all, and of each piece."""
    return {"bits_per_sample": round(mean(result, bits), 5), "by_piece": contexts.by_part(result["known"], bits)}


def markdown(result: Result) -> str:
    """The table for people."""
    cells = {(row["window"], row["forgets_after"]): row for row in result["table"] if "window" in row}
    baselines = {row["baseline"]: row["bits_per_sample"] for row in result["table"] if "baseline" in row}
    return contexts.markdown(cells, "bits_per_sample", None, baselines)


def main() -> None:
    """Read the arguments, work, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings of experiment=music_1m, with data.store")
    parser.add_argument("--json", type=Path, help="the result, gone on with when it is there")
    parser.add_argument("--runs", type=Path, help="folder of the training runs (runs/music-<commit>)")
    parser.add_argument("--windows", default=",".join(map(str, WINDOWS)), help="training windows, and contexts")
    parser.add_argument("--minutes", type=float, help="of all trainings; without it, the recipe's steps")
    parser.add_argument("--chunk", type=int, default=1 << 20, help="samples a call while scoring; changes nothing")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--baselines", action="store_true", help="add the baselines, and do nothing else")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of a result, and do nothing else")
    arguments = parser.parse_args()
    if arguments.table:
        print(markdown(json.loads(arguments.table.read_text())))
        return
    if arguments.config is None or arguments.json is None:
        parser.error("--config and --json are needed")
    config = from_dict(TrainConfig, read_yaml(arguments.config), str(arguments.config))
    if arguments.baselines:
        add_baselines(config, arguments.json)
        return
    commit = measured_commit(arguments.commit, True)
    windows = [int(word) for word in arguments.windows.split(",")]
    runs = arguments.runs or Path("runs") / f"music-{commit}"
    result = run(config, windows, runs, arguments.json, commit, minutes=arguments.minutes, chunk=arguments.chunk)
    print(markdown(result | {"table": make_table(result)}))


if __name__ == "__main__":
    main()
