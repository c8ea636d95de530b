"""Coding sequence of Ustilago maydis by how many labels there are, from scratch and from models that read the genome.

    python benchmarks/annotation.py --store stores/<genome> --annotation stores/<genes> \\
        --pretrained causal=runs/umaydis/model mlm=runs/masked/model --json result.json --npz result.npz
    python benchmarks/annotation_report.py --json result.json --npz result.npz --store ... --annotation ...

Trainings: windows of 200 bases (balanced negatives, wholly coding against none), alone and amid 2,000 bases, and the
segmentation of every base; each from scratch, with the sizes of the first pre-trained model, and from every one of
those, all weights trained; each with all labels, a tenth and a hundredth (a smaller share is part of a larger one; amid
2,000 bases with all labels alone).
Weights are chosen on the whole of chr19, the test is chr20 to chr23. Learning rate and steps are those of RECIPES
whatever the start, but for the rate of what is pre-trained: RATES.

Every start and task is a process; as many as --at-once share each GPU, so times of trainings are not those of a GPU to
itself. The first begins alone, so that kernels are compiled once. Needs no more than PyTorch, Lightning and
scikit-learn. The JSON grows after each training; the same command goes on with what is missing in --runs.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import side_by_side
from benchmarks.kernels import measured_commit
from domains.folder import write_json
from domains.genomics.annotation.evaluate import WindowEvaluation, evaluate
from domains.genomics.annotation.table import FeatureTable
from domains.genomics.config import EvaluateConfig, TrainConfig
from domains.genomics.model import read_record
from domains.genomics.store import GenomeStore
from domains.genomics.train import train
from domains.hardware import choose_device, describe_hardware, describe_versions
from domains.runlog import read_metrics
from domains.settings import from_dict, to_dict

SPLITS = {"test": ["chr20", "chr21", "chr22", "chr23"], "validation": ["chr19"]}
FRACTIONS = (1.0, 0.1, 0.01)
WINDOWS: dict[str, Any] = {"window": 200, "min_overlap": 1.0, "negatives": "balanced", "validation_tokens": 10**7}
RECIPES: dict[str, dict[str, Any]] = {  # task, data, and steps by share of the labels
    "windows": {"kind": "classify", "data": WINDOWS | {"tokens_per_step": 51_200}, "steps": (800, 300, 120)},
    "bases": {
        "kind": "segment",
        "data": {"window": 8192, "tokens_per_step": 65_536, "validation_tokens": 10**6},
        "steps": (800, 300, 120),
    },
    "context": {
        "kind": "classify",
        "data": WINDOWS | {"context": 2000, "tokens_per_step": 256_000},
        "steps": (150,),
    },
}
RATES = {True: 1e-3, False: 3e-3}  # learning rate from a pre-trained model, and from scratch
SCRATCH = "scratch"
LAST_PIECE = 15.0  # seconds kept for what follows a training
COMPILING = 45.0  # seconds that the first process has to itself, at most
Result = dict[str, Any]


def shares_of(task: str) -> tuple[float, ...]:
    """Shares of the labels that a task is trained with."""
    return FRACTIONS[: len(RECIPES[task]["steps"])]


def settings_of(
    task: str, share: float, start: str, folders: dict[str, Path], place: argparse.Namespace
) -> TrainConfig:
    """The settings of one training."""
    recipe = RECIPES[task]
    steps = place.steps or recipe["steps"][FRACTIONS.index(share)]
    first = next(iter(folders.values()))
    given = {
        "data": recipe["data"] | SPLITS | {"store": str(place.store), "annotation": str(place.annotation)},
        "task": {"kind": recipe["kind"], "pretrained": str(folders[start]) if start != SCRATCH else ""},
        "trainer": {
            "max_steps": steps,
            "accelerator": place.device,
            "validate_every": max(1, steps // 5),
            "checkpoint_every": steps,
            "log_every": 10,
            "health_every": steps,
            "optimizer": {"learning_rate": RATES[start != SCRATCH]},
        },
        "seed": place.seed,
    }
    config = from_dict(TrainConfig, given)
    config = replace(config, data=replace(config.data, label_fraction=share, workers=place.workers))
    return replace(config, backbone=read_record(first).config.backbone) if start == SCRATCH else config


def one_training(config: TrainConfig, folder: Path, seconds: float) -> tuple[Result, WindowEvaluation | None]:
    """Train and test; the row, and of windows what was said of each."""
    config = replace(config, trainer=replace(config.trainer, max_minutes=max(seconds, 1.0) / 60))
    started = time.perf_counter()
    done = train(config, folder, overwrite=True, progress=False)
    trained = time.perf_counter() - started
    store, table = GenomeStore.open(config.data.store), FeatureTable.open(config.data.annotation)
    asked = EvaluateConfig(baselines=False)
    found = evaluate(done.model_dir, store, table, asked, device=config.trainer.accelerator, progress=False)
    rows = read_metrics(folder / "metrics.jsonl")
    speeds = [row["train/bases_per_second"] for row in rows if "train/bases_per_second" in row]
    tested, steps = found.to_dict(), int(max(row["step"] for row in rows))
    row = {
        "finished": done.finished,
        "steps_asked": config.trainer.max_steps,
        "steps": steps,
        "bases": steps * config.data.tokens_per_step,
        "learning_rate": config.trainer.optimizer.learning_rate,
        "seconds": round(trained, 1),
        "bases_per_second": round(float(np.median(speeds))) if speeds else None,
        "best_step": done.metrics.get("best/step"),
        "validation": [
            {key: round(value, 5) for key, value in row.items() if key.startswith("validation/")}
            | {"step": row["step"]}
            for row in rows
            if "validation/loss" in row
        ],
        "test": tested["methods"]["model"],
        "by_contig": tested["by_contig"],
        "pretrained": tested["pretrained"],
    }
    row |= {key: tested[key] for key in ("sites", "train_windows") if key in tested}
    return row, found if isinstance(found, WindowEvaluation) else None


def work(place: argparse.Namespace, folders: dict[str, Path]) -> None:
    """All trainings of one task from one start, each into a file of its own."""
    task, start = place.work.split(":")
    deadline = time.monotonic() + place.time_limit
    for share in shares_of(task):
        name = f"{task}-{start}-{share}"
        out = place.runs / f"{name}.json"
        left = deadline - time.monotonic() - LAST_PIECE
        if out.exists() or left <= 0:
            continue
        config = settings_of(task, share, start, folders, place)
        row, windows = one_training(config, place.runs / name, left)
        if windows is not None:
            arrays: dict[str, Any] = {
                "starts": windows.windows.starts,
                "labels": windows.windows.labels,
                "said": windows.said["model"],
            }
            np.savez(out.with_suffix(".npz"), **arrays)
        about = {"task": task, "start": start, "labels": share, "commit": measured_commit(place.commit, True)}
        write_json(out, about | {"settings": to_dict(config.data)} | row)


def gather(place: argparse.Namespace, identity: Result) -> Result:
    """The trainings that are done, as one JSON and one file of probabilities."""
    rows = [json.loads(path.read_text()) for path in sorted(place.runs.glob("*-*-*.json"))]
    order = {name: i for i, name in enumerate(RECIPES)}
    rows.sort(key=lambda row: (order[row["task"]], -row["labels"], row["start"]))
    result = identity | {"recipes": RECIPES, "rows": rows}
    result |= {"hardware": describe_hardware(choose_device(place.device)), "versions": describe_versions()}
    write_json(place.json, result)
    if place.npz is not None:
        kept: dict[str, Any] = {}
        for path in sorted(place.runs.glob("*.npz")):
            with np.load(path) as arrays:
                task = path.stem.split("-")[0]
                kept |= {f"{task}/starts": arrays["starts"], f"{task}/labels": arrays["labels"]}
                kept[f"said/{path.stem}"] = arrays["said"].astype(np.float32)
        np.savez_compressed(place.npz, **kept)
    return result


def summary(result: Result) -> list[str]:
    """A line for each training."""
    lines = []
    for row in result["rows"]:
        test = row["test"]
        score = f"AUC {test['all']['auc']:.4f}" if "all" in test else f"F1 of CDS {test['classes'][1]['f1']:.4f}"
        late = "" if row["finished"] else ", cut short"
        lines.append(
            f"{row['task']:8} {row['start']:8} {row['labels']:5.0%} of the labels: {score} "
            f"({row['seconds']:.0f} s, best at step {row['best_step']:.0f} of {row['steps']}{late})"
        )
    return lines


def launch(place: argparse.Namespace, folders: dict[str, Path], identity: Result) -> None:
    """A process for each task and start, the next when one has ended; the first begins alone."""
    deadline = time.monotonic() + place.time_limit
    waiting = [f"{task}:{start}" for task in place.tasks.split(",") for start in (SCRATCH, *folders)]
    gpus = range(max(1, torch.cuda.device_count()))
    running: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}
    first = True
    while (waiting or running) and time.monotonic() < deadline + 30:
        for job, (_, process) in list(running.items()):
            if process.poll() is not None:
                _report(place, job, process)
                del running[job]
        busy = [gpu for gpu, _ in running.values()]
        free = min(gpus, key=busy.count)
        if waiting and busy.count(free) < place.at_once and time.monotonic() < deadline:
            job = waiting.pop(0)
            running[job] = (free, _start(place, job, free, deadline))
            if first:
                _wait_for_first_steps(place.runs, running[job][1], deadline)
                first = False
        else:
            time.sleep(1)
    for job, (_, process) in running.items():
        process.kill()
        _report(place, job, process)
    print(*summary(gather(place, identity)), sep="\n", flush=True)


def _start(place: argparse.Namespace, job: str, gpu: int, deadline: float) -> "subprocess.Popen[bytes]":
    command = [sys.executable, __file__, *sys.argv[1:], "--work", job]
    command += ["--time-limit", f"{deadline - time.monotonic():.0f}"]  # the last of two counts
    with (place.runs / f"{job.replace(':', '-')}.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=side_by_side.environment(gpu))


def _report(place: argparse.Namespace, job: str, process: "subprocess.Popen[bytes]") -> None:
    if process.wait() != 0:
        lines = (place.runs / f"{job.replace(':', '-')}.log").read_text().splitlines()
        print(f"{job} ended with code {process.returncode}: {' | '.join(lines[-3:])}", flush=True)


def _wait_for_first_steps(runs: Path, process: "subprocess.Popen[bytes]", deadline: float) -> None:
    """Until the first training has written a row: its kernels are compiled then."""
    until = min(deadline, time.monotonic() + COMPILING)
    while time.monotonic() < until and process.poll() is None:
        if any(path.stat().st_size for path in runs.glob("*/metrics.jsonl")):
            return
        time.sleep(0.5)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="prepared genome")
    parser.add_argument("--annotation", type=Path, required=True, help="prepared annotation")
    parser.add_argument("--pretrained", nargs="+", required=True, metavar="NAME=FOLDER", help="model folders")
    parser.add_argument("--json", type=Path, required=True, help="the result")
    parser.add_argument("--npz", type=Path, help="what was said of each test window")
    parser.add_argument("--runs", type=Path, help="folder of the trainings (runs/annotation-<commit>)")
    parser.add_argument("--tasks", default=",".join(RECIPES))
    parser.add_argument("--device", default="gpu")
    parser.add_argument("--at-once", type=int, default=4, help="processes on one GPU")
    parser.add_argument("--workers", type=int, default=1, help="data loader processes of a training")
    parser.add_argument("--steps", type=int, help="of every training, instead of the recipes'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-limit", type=float, default=360.0, metavar="SECONDS")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--work", metavar="TASK:START", help=argparse.SUPPRESS)
    place = parser.parse_args()
    commit = measured_commit(place.commit, True)
    place.runs = place.runs or Path("runs") / f"annotation-{commit}"
    folders = {name: Path(folder) for name, folder in (pair.split("=", 1) for pair in place.pretrained)}
    if place.work:
        work(place, folders)
        return
    place.runs.mkdir(parents=True, exist_ok=True)
    identity = {
        "commit": commit,
        "seed": place.seed,
        "genome": GenomeStore.open(place.store).fingerprint,
        "annotation": FeatureTable.open(place.annotation).fingerprint,
        "backbones": {name: to_dict(read_record(folder).config.backbone) for name, folder in folders.items()},
    }
    launch(place, folders, identity)
    print(f"written to {place.json}")


if __name__ == "__main__":
    main()
