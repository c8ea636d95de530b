"""Masked models of Ustilago maydis: symmetry by construction or after the fact, beside two-sided k-mer models.

    python -m pipelines.genomics train experiment=umaydis_mlm data.store=<store> run.export=mlm.yaml
    python benchmarks/masked.py --config mlm.yaml --json benchmarks/results/umaydis_mlm_h200.json
    python benchmarks/masked.py --table benchmarks/results/umaydis_mlm_h200.json
    python benchmarks/masked.py --check runs/mlm/model --config mlm.yaml --json <a JSON that is there>

Variants of the recipe of --config: ``symmetric`` (one set of weights reads both strands), ``post_hoc`` (windows are
flipped by chance in training, and both strands' probabilities averaged in the test; half the cost of a step) and
``one_way`` (symmetric, each strand read in one direction by plain Mamba-2). The weights with the best validation
count. Each is asked for hidden bases of the test contigs, with 15 % and with 1 % hidden, and how far its scores move
with the halo: every HALOS against one of 65,536 bases, at four windows. The second line needs no more than PyTorch and
Lightning. The JSON is written after each variant; the same command goes on with what is missing, while commit and
settings are the same. The fourth line adds to a JSON, under ``checks``, how far the halo and the strand move a model.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kernels import measured_commit
from domains.folder import write_json
from domains.genomics.config import EvaluateConfig, PredictConfig, TrainConfig, WindowsConfig
from domains.genomics.masked_evaluate import evaluate_masked
from domains.genomics.masked_windows import Source, masked_scores
from domains.genomics.model import load_model
from domains.genomics.store import GenomeStore
from domains.genomics.tokens import COMPLEMENT, MASK
from domains.genomics.train import FREE_ON_RESUME, open_store, train
from domains.hardware import choose_device, describe_hardware, describe_versions
from domains.runlog import read_metrics
from domains.settings import flatten, from_dict, read_yaml, to_dict
from mamba_core import MaskedLM

VARIANTS = {  # bidirectional, reverse_complement
    "symmetric": (True, True),
    "post_hoc": (True, False),
    "one_way": (False, True),
}
FRACTIONS = (0.15, 0.01)  # of the bases, hidden
HALOS = (0, 256, 1024, 2048, 4096)
WIDE = 65_536
LAST_PIECE = 40.0  # seconds kept for what follows a training
Result = dict[str, Any]


def recipe_of(config: TrainConfig, variant: str, seconds: float) -> TrainConfig:
    """The recipe with the mixers of a variant."""
    bidirectional, symmetric = VARIANTS[variant]
    backbone = replace(config.backbone, bidirectional=bidirectional, reverse_complement=symmetric)
    return replace(config, backbone=backbone, trainer=replace(config.trainer, max_minutes=seconds / 60))


def halo_errors(
    model: MaskedLM,
    store: GenomeStore,
    contig: str,
    length: int = WindowsConfig.length,
    halos: Sequence[int] = HALOS,
    wide: int | None = None,
    windows: int = 4,
) -> dict[str, Any]:
    """Largest and mean difference, in nats, of scores with each halo from those with a very wide one."""
    total, wide = store.contig(contig).length, WIDE if wide is None else wide
    source = Source(partial(store.tokens, contig), total)
    firsts = sorted({(1 + 2 * index) * (total // length) // (2 * windows) * length for index in range(windows)})

    def scores(halo: int) -> np.ndarray:
        config = PredictConfig(windows=WindowsConfig(length, halo))
        stretches = ((first, min(first + length, total)) for first in firsts)
        return np.concatenate([piece for s in stretches for piece in masked_scores(model, source, *s, config)])

    reference = scores(wide)
    differences = {halo: np.abs(scores(halo) - reference) for halo in halos}
    found = {str(halo): {"max": float(np.nanmax(d)), "mean": float(np.nanmean(d))} for halo, d in differences.items()}
    return {"contig": contig, "windows": firsts, "length": length, "against": wide, "nats": found}


def strand_error(model: MaskedLM, store: GenomeStore, contig: str) -> float:
    """Largest difference between logits of 2,000 bases, 15 % hidden, and those of their reverse complement, float64."""
    middle = store.contig(contig).length // 2
    tokens = torch.from_numpy(store.tokens(contig, middle - 1000, middle + 1000).astype(np.int64))[None]
    tokens[torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.15] = MASK
    turned = torch.tensor(COMPLEMENT)[tokens.flip(1)]
    with torch.no_grad():
        logits, other = (model.double().cpu()(text) for text in (tokens, turned))
    return float((other.flip(1)[..., COMPLEMENT] - logits).abs().max())


def check(model_dir: Path, config: TrainConfig, json_path: Path, commit: str | None, options: dict[str, Any]) -> None:
    """Add to a JSON how far halo and strand move the scores of a model."""
    device = choose_device(config.trainer.accelerator)
    loaded, store = load_model(model_dir, str(device)), open_store(config.data)
    contig = loaded.splits.test[-1].contig
    found: dict[str, Any] = {"halo": halo_errors(loaded.masked, store, contig, **options)}
    found |= {"strand_float64": strand_error(loaded.masked, store, contig)}
    result = json.loads(json_path.read_text())
    write_json(json_path, result | {"checks": found | {"commit": commit, "hardware": describe_hardware(device)}})
    print(json.dumps(found, indent=1))


def measure(
    config: TrainConfig, store: GenomeStore, variant: str, folder: Path, seconds: float, device: torch.device
) -> Result | None:
    """Train a variant, or go on with that, and test it; None when the time was up before the last step."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = (folder / "run.json").exists()
    done = train(recipe_of(config, variant, seconds), folder, resume=begun, progress=False)
    if not done.finished:
        return None
    rows = read_metrics(folder / "metrics.jsonl")
    speeds = [row["train/bases_per_second"] for row in rows if "train/bases_per_second" in row]
    validations = [row for row in rows if "validation/bits_per_base" in row]
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    loaded = load_model(done.model_dir, str(device))
    options: dict[str, Any] = {"device": config.trainer.accelerator, "progress": False}
    tests = {
        str(hidden): evaluate_masked(done.model_dir, store, EvaluateConfig(mask_fraction=hidden), **options).to_dict()
        for hidden in FRACTIONS
    }
    return {
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "bases": config.trainer.max_steps * config.trainer.accumulate * config.data.tokens_per_step,
        "bases_per_second": round(float(np.median(speeds))),
        "peak_mib": peak and round(peak),
        "validation": [[int(row["step"]), round(row["validation/bits_per_base"], 5)] for row in validations],
        "tests": tests,
        "halo": halo_errors(loaded.masked, store, loaded.splits.test[-1].contig),
    }


def run(
    config: TrainConfig, variants: list[str], runs: Path, json_path: Path, commit: str | None, seconds: float
) -> bool:
    """Measure what the JSON lacks, in order; False when the time was up before the end."""
    deadline = time.monotonic() + seconds
    store, device = open_store(config.data), choose_device(config.trainer.accelerator)
    settings = {key: value for key, value in flatten(to_dict(config)).items() if key not in FREE_ON_RESUME}
    identity = {"commit": commit, "genome": store.fingerprint, "settings": json.loads(json.dumps(settings))}
    old: Result = json.loads(json_path.read_text()) if json_path.exists() else {}
    same = all(old.get(key) == value for key, value in identity.items())
    result = old if same else identity | {"variants": {}}
    result |= {"hardware": describe_hardware(device), "versions": describe_versions()}
    for variant in variants:
        if variant in result["variants"]:
            continue
        left = deadline - time.monotonic() - LAST_PIECE
        row = measure(config, store, variant, runs / variant, left, device) if left > 0 else None
        if row is None:
            return False
        result["variants"][variant] = row
        write_json(json_path, result)
        print(*table(result)[2:], sep="\n", flush=True)
    return True


def table(result: Result) -> list[str]:
    """For the README."""
    lines = [
        "| | bits, 15 % hidden | told right | bits, 1 % hidden | told right | one strand, 15 % | bases/s in training |",
        "|---|---|---|---|---|---|---|",
    ]
    shown: dict[str, list[Result]] = {}
    for variant, row in result["variants"].items():
        tests = [row["tests"][str(fraction)]["rows"][0] for fraction in FRACTIONS]
        cells = [f"{test[kind]['model']:.4f}" for test in tests for kind in ("bits", "accuracy")]
        one = tests[0]["bits"].get("one strand", math.nan)
        single = "-" if math.isnan(one) else f"{one:.4f}"
        lines.append(f"| {variant} | {' | '.join(cells)} | {single} | {row['bases_per_second']:,} |")
        shown = dict.fromkeys(("two-sided", "unigram"), tests)
    for name, tests in shown.items():  # the same for every variant
        cells = [f"{test[kind][name]:.4f}" for test in tests for kind in ("bits", "accuracy")]
        lines.append(f"| {name} | {' | '.join(cells)} | | |")
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings of the recipe, with data.store")
    parser.add_argument("--runs", type=Path, help="folder of the training runs (runs/masked-<commit>)")
    parser.add_argument("--json", type=Path, help="the result")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of a result, and stop")
    parser.add_argument("--check", type=Path, metavar="MODEL", help="model folder to check, and stop")
    parser.add_argument("--length", type=int, default=WindowsConfig.length, help="of windows, in a check")
    parser.add_argument("--halos", default=",".join(map(str, HALOS)), help="in a check")
    parser.add_argument("--wide", type=int, default=WIDE, help="the halo that others are compared with, in a check")
    parser.add_argument("--windows", type=int, default=4, help="in a check")
    parser.add_argument("--device", help="instead of the recipe's accelerator, in a check")
    parser.add_argument("--variants", default="symmetric,post_hoc")
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
    if arguments.check:
        options = {"length": arguments.length, "wide": arguments.wide, "windows": arguments.windows}
        options |= {"halos": [int(halo) for halo in arguments.halos.split(",")]}
        device = arguments.device or config.trainer.accelerator
        config = replace(config, trainer=replace(config.trainer, accelerator=device))
        check(arguments.check, config, arguments.json, commit, options)
        return
    runs = arguments.runs or Path("runs") / f"masked-{commit}"
    variants = arguments.variants.split(",")
    whole = run(config, variants, runs, arguments.json, commit, arguments.time_limit)
    print(f"written to {arguments.json}" if whole else "the time was up; the same command goes on")


if __name__ == "__main__":
    main()
