"""Does longer context help on music? Bits per sample by training window and by context at the test.

    python -m pipelines.audio prepare data.root=music_16k                                   # here; prints the store
    python -m pipelines.audio train experiment=music_1m data.store=<store> run.export=music.yaml
    python benchmarks/music.py --config music.yaml --minutes 9 --json benchmarks/results/music_h200.json
    python benchmarks/music.py --config music.yaml --json benchmarks/results/music_h200.json --baselines
    python benchmarks/music.py --table benchmarks/results/music_h200.json

Most of what a generator of samples learns is local, and it learns that fastest from many steps of short windows. So
there are two phases. The first trains the recipe once on windows of 8,192 samples, in small steps. The second goes on
from its weights (``task.pretrained``) once for each window of 8,192, 65,536, 524,288 and 1,048,576 samples (half a
second to over a minute): same seed, schedule, steps and samples a step, a quarter of the recipe's learning rate, longer
windows in segments with their exact gradient; the last weights count, so that none is chosen on windows of its own
length. --minutes fits the numbers of steps to a time for all trainings together, --local-share of it for the first
phase, by what a step of each takes there. Where there are several GPUs, trainings of the second phase run side by side,
a process each (logs in --runs).

Each model then predicts the pieces that no training heard, those of the test and of the validation part (nothing is
chosen on the latter), forgetting everything every so many samples, and once without. Differences are paired: sums of
bits over blocks of 65,536 samples, 95 % intervals from 10,000 resamplings of the blocks, which two pieces of music
bound in what they say: another piece may say otherwise. ``--baselines`` adds the linear predictor and the context
model, on the CPU. The third line needs PyTorch and Lightning. The JSON is written after each piece of work; the same
command goes on with what is missing, while commit and settings are the same.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import side_by_side
from benchmarks.kernels import measured_commit
from benchmarks.music_table import LOCAL, NEVER, Bits, Result, make_table, markdown, mean
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
LOCAL_SHARE = 0.5
LOCAL_SAMPLES = 131_072
ONWARD = 0.25  # learning rate of the second phase, as a share of the recipe's
LEAST = 4  # steps of a training
IDENTITY = ("commit", "clips", "windows", "local", "settings")  # what a result is of, by keys of the JSON


@dataclass(frozen=True)
class Plan:
    """What is trained, and where.

    Attributes:
        config: the recipe.
        windows: of the second phase; the shortest is the first phase's.
        runs: folder of the training runs, and of what they came to.
        json_path: the result.
        commit: that is measured.
        minutes: of all trainings; None: each takes as many samples as the recipe.
        local_share: of the minutes, for the first phase.
        local_samples: of a step of the first phase.
        chunk: samples a call while scoring; changes nothing.
        command: this one, for processes that take a part of it.
    """

    config: TrainConfig
    windows: Sequence[int]
    runs: Path
    json_path: Path
    commit: str | None
    minutes: float | None = None
    local_share: float = LOCAL_SHARE
    local_samples: int = LOCAL_SAMPLES
    chunk: int = 1 << 20
    command: Sequence[str] = ()

    @property
    def second(self) -> list[str]:
        """Names of the trainings of the second phase; the longest windows take the longest, and begin."""
        return [str(window) for window in sorted(self.windows, reverse=True)]

    @property
    def gpus(self) -> int:
        """How many trainings can run side by side."""
        return torch.cuda.device_count() if choose_device(self.config.trainer.accelerator).type == "cuda" else 1

    def recipe(self, name: str) -> TrainConfig:
        """The settings of a training but for its steps: of the first phase, or of a window."""
        data, task = self.config.data, self.config.task
        trainer = replace(self.config.trainer, keep="last")
        if name == LOCAL:
            data = replace(data, window=min(self.windows), tokens_per_step=self.local_samples)
            return replace(self.config, data=data, trainer=trainer)
        rate = ONWARD * trainer.optimizer.learning_rate
        return replace(
            self.config,
            data=replace(data, window=int(name)),
            task=replace(task, pretrained=str(self.runs / LOCAL / "model")),
            trainer=replace(trainer, optimizer=replace(trainer.optimizer, learning_rate=rate)),
        )


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


def begin(plan: Plan) -> Result:
    """An earlier result of the same commit and settings, or a new one."""
    config, store = plan.config, AudioStore.open(plan.config.data.store)
    free = FREE_ON_RESUME | {"data.window", "trainer.max_steps", "trainer.validate_every", "trainer.checkpoint_every"}
    settings = {key: value for key, value in flatten(to_dict(config)).items() if key not in free}
    identity = {
        "commit": plan.commit,
        "clips": store.fingerprint,
        "windows": list(plan.windows),
        "local": {"share": plan.local_share, "samples_a_step": plan.local_samples},
        "settings": json.loads(json.dumps(settings)),
    }
    old = json.loads(plan.json_path.read_text()) if plan.json_path.exists() else {}
    if all(old.get(key) == identity[key] for key in IDENTITY):
        return old
    splits = make_splits(store, config.data, labelled=False)
    pieces = held_out(store, splits)
    samples = {store.clips[i].name: block_sums(np.ones(store.clips[i].length)) for i in pieces}
    hardware = describe_hardware(choose_device(config.trainer.accelerator))
    place = {"hardware": hardware | {"gpus": plan.gpus}, "versions": describe_versions()}
    about = {"block": BLOCK, "known": samples, "test": splits.test, "training": splits.train}
    return {**identity, **place, **about, "steps": None, "trained": {}, "baselines": {}}


def run(plan: Plan) -> Result:
    """Train and score whatever the result lacks: paces, the first phase, the second."""
    plan.runs.mkdir(parents=True, exist_ok=True)
    result = begin(plan)
    names = [LOCAL, *plan.second]
    if result["steps"] is None:
        if plan.minutes is not None:
            share_out(plan, [f"pace-{name}" for name in names], result)
        result["steps"] = steps(plan)
        write_json(plan.json_path, result)
    gather(plan, result)
    wanted = {NEVER, *map(str, plan.windows)}
    lacking = [name for name in names if result["trained"].get(name, {}).get("scores", {}).keys() < wanted]
    if lacking and (LOCAL in lacking or not (plan.runs / LOCAL / "model").is_dir()):
        share_out(plan, [LOCAL], result)
    share_out(plan, [name for name in lacking if name != LOCAL], result)
    return result


def share_out(plan: Plan, jobs: Sequence[str], result: Result) -> None:
    """Do jobs side by side where there are GPUs for it, else one after the other."""

    def look() -> None:
        gather(plan, result)

    if plan.gpus > 1:
        commands = {job: [*plan.command, "--work", job] for job in jobs}
        side_by_side.run(commands, plan.gpus, plan.runs, look)
    else:
        for job in jobs:
            work(plan, job, look)


def work(plan: Plan, job: str, look: Callable[[], None] = lambda: None) -> None:
    """Train and score one model, or go on with that, or take its pace; what it came to goes to a file in the runs."""
    kind, _, name = job.rpartition("-")
    out = plan.runs / f"{job}.json"
    recipe = plan.recipe(name)
    if kind == "pace":
        fresh = replace(recipe, task=replace(recipe.task, pretrained=""))  # the first phase is yet to come
        write_json(out, {"seconds_a_step": seconds_a_step(fresh, plan.runs / job)})
        return
    result = begin(plan)
    row = result["trained"].get(name, {})
    store, folder = AudioStore.open(plan.config.data.store), plan.runs / name
    if not row or not (folder / "model").is_dir():
        row = train_one(fitted(recipe, result["steps"]["first" if name == LOCAL else "second"]), folder)
    loaded = load_model(folder / "model", str(choose_device(plan.config.trainer.accelerator)))
    row |= {"model": loaded.hash, "pretrained": loaded.pretrained.get("model")}
    scores = row.setdefault("scores", {})
    for context in (*plan.windows, None):
        write_json(out, {"of": made_of(result), "row": row})
        look()
        key = NEVER if context is None else str(context)
        if key not in scores:
            scores[key] = model_bits(loaded, store, context, plan.chunk)
    write_json(out, {"of": made_of(result), "row": row})
    look()


def made_of(result: Result) -> Result:
    """What tells a result's trainings from those of another."""
    return {key: result[key] for key in (*IDENTITY, "steps")}


def steps(plan: Plan) -> dict[str, int]:
    """Optimizer steps of the first phase, and of each training of the second."""
    first, second = plan.config.trainer.max_steps, plan.config.trainer.max_steps
    if plan.minutes is None:
        samples = second * samples_a_step(plan.recipe(plan.second[0]))
        return {"first": max(LEAST, samples // samples_a_step(plan.recipe(LOCAL))), "second": second}
    paces = {name: json.loads((plan.runs / f"pace-{name}.json").read_text()) for name in (LOCAL, *plan.second)}
    seconds = {name: found["seconds_a_step"] for name, found in paces.items()}
    print("seconds a step:", {name: round(pace, 3) for name, pace in seconds.items()}, flush=True)
    ends = [0.0] * plan.gpus  # of a step of each training of the second phase, on each GPU
    for name in plan.second:
        ends[ends.index(min(ends))] += seconds[name]
    first, second = (
        int(60 * plan.minutes * share / pace)
        for share, pace in ((plan.local_share, seconds[LOCAL]), (1 - plan.local_share, max(ends)))
    )
    return {"first": max(LEAST, first), "second": max(LEAST, second)}


def gather(plan: Plan, result: Result) -> None:
    """Take what trainings came to into the result, and write it where there is something new."""
    before = dict(result["trained"])
    for name in (LOCAL, *plan.second):
        path = plan.runs / f"{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        if found.get("of") != made_of(result):
            continue
        known = before.get(name, {}).get("scores", {})
        result["trained"][name] = found["row"]
        for context, bits in found["row"]["scores"].items():
            if context not in known:
                print(f"{name}, forgets after {context}: {mean(result, bits):.4f}", flush=True)
    if result["trained"] != before:
        write_json(plan.json_path, result | {"table": make_table(result)})


def train_one(config: TrainConfig, folder: Path) -> Result:
    """Train with one window, or go on with that: what it came to."""
    started = time.perf_counter()
    done = train(config, folder, resume=(folder / "run.json").exists(), progress=False)
    return {
        "steps": config.trainer.max_steps,
        "samples": config.trainer.max_steps * samples_a_step(config),
        "learning_rate": config.trainer.optimizer.learning_rate,
        "seconds": round(time.perf_counter() - started, 1),
        "samples_per_second": round(done.metrics["train/samples_per_second"]),
        "train_bits_per_sample": round(done.metrics["train/bits_per_sample"], 5),
        "validation_bits_per_sample": round(done.metrics["validation/bits_per_sample"], 5),
    }


def add_baselines(plan: Plan) -> Result:
    """The linear predictor and the context model, into a result of :func:`run`."""
    data, result = plan.config.data, json.loads(plan.json_path.read_text())
    store = AudioStore.open(data.store)
    splits, level = make_splits(store, data, labelled=False), data.level_db
    known, chosen = (splits.clips(store, part) for part in ("train", "validation"))
    linear = LinearPredictor.fit(store, known, chosen, follow=True, level_db=level)
    context = ContextModels.fit(store, known, chosen, level_db=level)
    for noun, model in (("linear predictor", linear), ("context model", context)):
        name = f"{noun} ({model.name})"
        result["baselines"][name] = scored(store, held_out(store, splits), level, model.bits)
        print(f"{name}: {mean(result, result['baselines'][name]):.4f} bits per sample")
    result["table"] = make_table(result)
    write_json(plan.json_path, result)
    return result


def main(words: Sequence[str] | None = None) -> None:
    """Read the arguments, work, write."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings of experiment=music_1m, with data.store")
    parser.add_argument("--json", type=Path, help="the result, gone on with when it is there")
    parser.add_argument("--runs", type=Path, help="folder of the training runs (runs/music-<commit>)")
    parser.add_argument("--windows", default=",".join(map(str, WINDOWS)), help="training windows, and contexts")
    parser.add_argument("--minutes", type=float, help="of all trainings; without it, each has the recipe's samples")
    parser.add_argument("--local-share", type=float, default=LOCAL_SHARE, help="of the minutes, for the first phase")
    parser.add_argument("--local-samples", type=int, default=LOCAL_SAMPLES, help="samples a step of the first phase")
    parser.add_argument("--chunk", type=int, default=1 << 20, help="samples a call while scoring; changes nothing")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--baselines", action="store_true", help="add the baselines, and do nothing else")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of a result, and do nothing else")
    parser.add_argument("--work", metavar="JOB", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.table:
        print(markdown(json.loads(given.table.read_text())))
        return
    if given.config is None or given.json is None:
        parser.error("--config and --json are needed")
    if not 0 < given.local_share < 1:
        parser.error("--local-share must lie between 0 and 1")
    commit = measured_commit(given.commit, True)
    plan = Plan(
        from_dict(TrainConfig, read_yaml(given.config), str(given.config)),
        [int(word) for word in given.windows.split(",")],
        given.runs or Path("runs") / f"music-{commit}",
        given.json,
        commit,
        given.minutes,
        given.local_share,
        given.local_samples,
        given.chunk,
        [sys.executable, __file__, *words],
    )
    if given.work:
        work(plan, given.work)
        return
    result = add_baselines(plan) if given.baselines else run(plan)
    print(markdown(result | {"table": make_table(result)}))


if __name__ == "__main__":
    main()
