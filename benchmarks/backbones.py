"""Four backbones on Ustilago maydis: the same bases, schedule and (nearly) parameters; quality, speed and memory.

    python -m pipelines.genomics train experiment=umaydis_long data.store=<store> run.export=train.yaml
    python benchmarks/backbones.py --config train.yaml --json benchmarks/results/backbones_h100.json
    python benchmarks/backbones.py --table benchmarks/results/backbones_h100.json

Each is the recipe of --config with windows of --window bases and a stack of its own: Mamba-2, Mamba-1, a Transformer
(attention to the last --window tokens and gated MLPs by turns), and a hybrid (Mamba-2 with attention in one layer of
eight). Then each reads the test contigs, both strands, as one stream. Bases per second are the median over a training's
log, memory is the peak of PyTorch's allocator in training. The second line needs no more than PyTorch and Lightning.
The JSON is written after each backbone; the same command goes on with what is missing, while commit and settings are
the same.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels import measured_commit
from benchmarks.umaydis_long import Result, begin, mean, model_scores, summed, train_one
from domains.folder import write_json
from domains.genomics.config import TrainConfig
from domains.genomics.model import load_model
from domains.genomics.splits import make_splits
from domains.genomics.train import open_store
from domains.hardware import choose_device, describe_hardware, describe_versions
from domains.settings import from_dict, read_yaml

MAMBA2 = ["mamba2"]
PATTERNS: dict[str, list[str]] = {
    "mamba2": MAMBA2,
    "mamba1": ["mamba1"],
    "transformer": ["attention", "mlp"],
    "hybrid": [*MAMBA2 * 2, "attention", *MAMBA2 * 5],
}
CHUNK = 65_536  # bases of a call while scoring
SCORING = 30.0  # seconds kept for it


def recipe_of(config: TrainConfig, name: str, window: int) -> TrainConfig:
    """The recipe with another backbone; attention sees the last ``window`` tokens, so that its state has a size."""
    attention = replace(config.backbone.attention, window=window)
    return replace(config, backbone=replace(config.backbone, pattern=PATTERNS[name], attention=attention))


def run(
    config: TrainConfig, names: list[str], window: int, runs: Path, json_path: Path, commit: str | None, seconds: float
) -> bool:
    """Train and score what the JSON lacks, in order; False when the time was up before the end."""
    deadline = time.monotonic() + seconds
    store = open_store(config.data)
    splits = make_splits(store, config.data)
    device = choose_device(config.trainer.accelerator)
    old: Result | None = json.loads(json_path.read_text()) if json_path.exists() else None
    result = begin(config, store, splits, commit, old) | {"window": window}
    result |= {"hardware": describe_hardware(device), "versions": describe_versions()}
    for name in names:
        if name in result["trained"]:
            continue
        left = deadline - time.monotonic() - SCORING
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        told = recipe_of(config, name, window)
        row: dict[str, Any] | None = train_one(told, runs / name, window, left) if left > 0 else None
        if row is None:
            return False
        peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
        loaded = load_model(runs / name / "model", str(device))
        row |= {"peak_mib": peak and round(peak), "parameters": sum(p.numel() for p in loaded.model.parameters())}
        sums = summed(splits.test, model_scores(loaded.causal, store, splits.test, None, CHUNK))
        row |= {"bits_per_base": round(mean(result, sums), 5), "bits": sums}
        result["trained"][name] = row
        write_json(json_path, result)
        print(f"{name}: {row['bits_per_base']:.4f} bits per base, {row['bases_per_second']:,} bases/s", flush=True)
    return True


def table(result: Result) -> list[str]:
    """For the README."""
    lines = ["| | bits per base | parameters | bases/s in training | MiB |", "|---|---|---|---|---|"]
    for name, row in result["trained"].items():
        memory = "-" if row["peak_mib"] is None else f"{row['peak_mib']:,}"
        lines.append(
            f"| {name} | {row['bits_per_base']:.4f} | {row['parameters']:,} | {row['bases_per_second']:,} | {memory} |"
        )
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings of the recipe, with data.store")
    parser.add_argument("--runs", type=Path, help="folder of the training runs (runs/backbones-<commit>)")
    parser.add_argument("--json", type=Path, help="the result")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of a result, and stop")
    parser.add_argument("--backbones", default=",".join(PATTERNS))
    parser.add_argument("--window", type=int, default=8192, help="bases")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--time-limit", type=float, default=570.0, metavar="SECONDS")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    arguments = parser.parse_args()
    if arguments.table:
        print(*table(json.loads(arguments.table.read_text())), sep="\n")
        return
    if not (arguments.config and arguments.json):
        parser.error("--config and --json are needed")
    config = from_dict(TrainConfig, read_yaml(arguments.config), str(arguments.config))
    if arguments.steps:
        config = replace(config, trainer=replace(config.trainer, max_steps=arguments.steps))
    commit = measured_commit(arguments.commit, True)
    runs = arguments.runs or Path("runs") / f"backbones-{commit}"
    names = arguments.backbones.split(",")
    whole = run(config, names, arguments.window, runs, arguments.json, commit, arguments.time_limit)
    print(f"written to {arguments.json}" if whole else "the time was up; the same command goes on")


if __name__ == "__main__":
    main()
