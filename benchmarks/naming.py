"""Clips named by models that never heard their group: folds and seeds trained side by side, and pooled.

    python -m pipelines.audio train experiment=drums data.store=<store> run.export=drums.yaml
    python -m pipelines.audio train experiment=drums_spectrogram data.store=<store> run.export=spectrogram.yaml
    python benchmarks/naming.py --recipe raw=drums.yaml --recipe spectrogram=spectrogram.yaml --json drums_h200.json
    python benchmarks/naming.py --table benchmarks/results/drums_h200.json

Drums: one fold for each kit, which is tested on by models that were trained on all others (the smallest other one
watches their training). Dialogue, whose 71 levels are many, wants the one split of its recipe: --folds 1.

Every fold of every recipe and seed is a training run of its own in a process beside others, on all GPUs that there are,
for so small ones leave one idle; each is evaluated beside its baselines, which learn from the same clips. Then folds
are pooled: scores of each seed over all clips, their mean, and a paired bootstrap over clips and groups against the
baselines and between the recipes. The recipes' data.store is read; PyTorch, torchaudio, Lightning and scikit-learn are
needed. Progress goes to standard output as lines of JSON. Stopped, the same command goes on with what is missing.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kernels import measured_commit
from domains.audio.config import EvaluateConfig, TrainConfig
from domains.audio.metrics import compare_naming
from domains.audio.naming import MODEL
from domains.audio.pooled import Pooled, pool
from domains.audio.splits import leave_one_group_out
from domains.audio.store import AudioStore, open_store
from domains.folder import read_json, write_json
from domains.settings import flatten, from_dict, read_yaml, to_dict

RESULT = "evaluation.json"


@dataclass(frozen=True)
class Job:
    """One training run and its evaluation."""

    recipe: str
    fold: str  # the group that is tested on; "split": as the recipe says
    seed: int
    config: TrainConfig
    folder: Path

    @property
    def result(self) -> Path:
        return self.folder / RESULT


def make_jobs(recipes: Mapping[str, TrainConfig], folds: str, seeds: Sequence[int], runs: Path) -> list[Job]:
    """All of them, the first fold of each recipe first."""
    jobs = []
    for recipe, config in recipes.items():
        for fold, data in folds_of(config, folds):
            for seed in seeds:
                folder = runs / f"{recipe}-{fold}-{seed}"
                jobs.append(Job(recipe, fold, seed, replace(config, data=data, seed=seed), folder))
    return jobs


def folds_of(config: TrainConfig, folds: str) -> Iterator[tuple[str, Any]]:
    """Name and data settings of each fold."""
    if folds == "1":
        yield "split", config.data
        return
    store = open_store(config.data, progress=False)
    sizes = {group: sum(clip.group == group for clip in store.clips) for group in store.groups}
    for group, _ in leave_one_group_out(store, replace(config.data, validation=None), labelled=True):
        smallest = min((other for other in sizes if other != group), key=lambda other: (sizes[other], other))
        yield group, replace(config.data, test=[group], validation=[smallest])


def take_gpu(numbers: "multiprocessing.Queue[int]") -> None:
    """Make the GPU of the next number the only one that this process sees; of none there is none to take."""
    if (number := numbers.get()) >= 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number)


def run(job: Job) -> dict[str, Any]:
    """Train, or go on training, and evaluate; what is done already is left as it is."""
    from domains.audio.evaluate import evaluate
    from domains.audio.train import train

    started = time.perf_counter()
    train(job.config, job.folder, resume=(job.folder / "run.json").exists(), progress=False)
    trained = time.perf_counter() - started
    store = AudioStore.open(job.config.data.store)
    found = evaluate(
        job.folder / "model", store, EvaluateConfig(), device=job.config.trainer.accelerator, progress=False
    )
    found.save(job.result)
    scores = found.to_dict()["methods"]
    shown = {name: round(score["balanced_accuracy"], 3) for name, score in scores.items()}
    return {"seconds": round(trained, 1), "balanced_accuracy": shown}


def run_all(jobs: Sequence[Job], processes: int, deadline: float) -> bool:
    """Run what has no result yet, on all GPUs that there are; False if the time was up before all had begun."""
    missing = [job for job in jobs if not job.result.exists()]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    numbers: multiprocessing.Queue[int] = context.Queue()
    gpus = 0 if jobs[0].config.trainer.accelerator == "cpu" else torch.cuda.device_count()
    for process in range(processes):
        numbers.put(process % gpus if gpus else -1)
    done = len(jobs) - len(missing)
    with ProcessPoolExecutor(processes, context, take_gpu, (numbers,)) as workers:
        waiting: dict[Future[dict[str, Any]], Job] = {}
        while missing or waiting:
            while missing and len(waiting) < processes and time.monotonic() < deadline:
                job = missing.pop(0)
                waiting[workers.submit(run, job)] = job
            if not waiting:
                return False
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job, done = waiting.pop(future), done + 1
                told = {"recipe": job.recipe, "fold": job.fold, "seed": job.seed, **future.result()}
                print(json.dumps(told | {"done": done, "of": len(jobs)}), flush=True)
    return True


def trained_on(jobs: Sequence[Job]) -> dict[str, Any]:
    """Hardware and versions of the trainings, which may have run elsewhere."""
    found: dict[str, Any] = {"hardware": read_json(jobs[0].result)["hardware"]}
    records = [job.folder / "run.json" for job in jobs if (job.folder / "run.json").exists()]
    return found | ({"versions": read_json(records[0])["sessions"][-1]["versions"]} if records else {})


def collect(jobs: Sequence[Job], resamples: int) -> dict[str, Pooled]:
    """The results of each recipe, pooled."""
    recipes = list(dict.fromkeys(job.recipe for job in jobs))
    found = {}
    for recipe in recipes:
        evaluations = [read_json(job.result) for job in jobs if job.recipe == recipe]
        found[recipe] = pool(evaluations, resamples)
    return found


def between(found: Mapping[str, Pooled], resamples: int) -> dict[str, Any]:
    """Mean balanced accuracy of the first recipe less that of each other."""
    names = list(found)
    first = found[names[0]]
    differences: dict[str, Any] = {}
    for name in names[1:]:
        other = found[name]
        groups: dict[str, list[str] | None] = {"clips": None}
        if len(set(first.groups)) > 1:
            groups["groups"] = first.groups
        differences[f"{names[0]} - {name}"] = {
            drawn: compare_naming(
                first.labels,
                first.truth,
                np.asarray(first.called[MODEL]),
                np.asarray(other.called[MODEL]),
                units,
                resamples=resamples,
            ).to_dict()
            for drawn, units in groups.items()
        }
    return differences


def table(result: Mapping[str, Any]) -> list[str]:
    """For the README."""
    lines = ["| | balanced accuracy | each seed | seeds together | model - it, by clips | by groups |"]
    lines.append("|---|---|---|---|---|---|")
    for recipe, found in result["recipes"].items():
        each = ", ".join(f"{run['balanced_accuracy']:.3f}" for run in found["methods"][MODEL])
        together = found["together"]["balanced_accuracy"]
        lines.append(f"| {recipe} | {found['balanced_accuracy']:.3f} | {each} | {together:.3f} | | |")
        for name, own in found["differences"].items():
            accuracy = found["methods"][name][0]["balanced_accuracy"]
            shown = [_interval(own[drawn]) if drawn in own else "" for drawn in ("clips", "groups")]
            lines.append(f"| {name} | {accuracy:.3f} | | | {shown[0]} | {shown[1]} |")
    for name, own in result["between"].items():
        lines.append(f"{name}: {', '.join(f'by {drawn} {_interval(found)}' for drawn, found in own.items())}")
    return lines


def _interval(found: Mapping[str, Any]) -> str:
    shown = "" if found["shown"] else ", not shown"
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]{shown}"


def _portable(config: TrainConfig) -> dict[str, Any]:
    """The settings of a recipe, its store by name alone."""
    return flatten(to_dict(config)) | {"data.store": Path(config.data.store).name}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", metavar="NAME=YAML", help="settings of a recipe, with data.store")
    parser.add_argument("--folds", default="groups", choices=("groups", "1"), help="a fold a group, or the split alone")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, help="instead of the recipes'")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--runs", type=Path, help="folder of the training runs (runs/naming-<commit>)")
    parser.add_argument("--json", type=Path, help="the result")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of a result, and stop")
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--time-limit", type=float, default=540.0, metavar="SECONDS", help="no training starts later")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    arguments = parser.parse_args()
    if arguments.table:
        print(*table(json.loads(arguments.table.read_text())), sep="\n")
        return 0
    if not (arguments.recipe and arguments.json):
        parser.error("--recipe and --json are needed")
    deadline = time.monotonic() + arguments.time_limit
    recipes = {}
    for given in arguments.recipe:
        name, _, path = given.partition("=")
        config = from_dict(TrainConfig, read_yaml(path), path)
        if arguments.steps:
            config = replace(config, trainer=replace(config.trainer, max_steps=arguments.steps))
        recipes[name] = replace(config, data=replace(config.data, workers=0))
    commit = measured_commit(arguments.commit, True)
    runs = arguments.runs or Path("runs") / f"naming-{commit}"
    jobs = make_jobs(recipes, arguments.folds, list(map(int, arguments.seeds.split(","))), runs)
    if not run_all(jobs, arguments.processes, deadline):
        print("the time was up; the same command goes on", flush=True)
        return 1
    found = collect(jobs, arguments.resamples)
    result = {
        "commit": commit,
        **trained_on(jobs),
        "folds": arguments.folds,
        "settings": {name: _portable(config) for name, config in recipes.items()},
        "recipes": {name: pooled.to_dict() for name, pooled in found.items()},
        "between": between(found, arguments.resamples),
    }
    write_json(arguments.json, result)
    for name, pooled in found.items():
        print(f"\n{name}: {pooled.table()}")
    print(f"\nwritten to {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
