"""Does longer context help on Ustilago maydis? Bits per base by training window and by context at the test.

    python -m pipelines.genomics train experiment=umaydis_long data.store=<store> run.export=train.yaml
    python benchmarks/umaydis_long.py --config train.yaml --json benchmarks/results/umaydis_long.json
    python benchmarks/umaydis_long.py --config train.yaml --json benchmarks/results/umaydis_long.json --markov
    python benchmarks/umaydis_long.py --table benchmarks/results/umaydis_long.json

The recipe is trained once for each window: same model, seed, schedule, steps and bases a step; the last weights count,
so that none is chosen on windows of its own length. Each model then reads the test contigs, both strands, forgetting
what it has read every 1,024 (8,192, 65,536, 262,144) bases, and once as one stream. Long windows begin at fewer places,
and contigs shorter than a window are not trained on: ``unused_bases`` says how many bases that concerns.

Differences are paired: sums of bits over blocks of 16,384 bases, 95 % intervals from 10,000 resamplings of the blocks.
``--markov`` adds the best Markov model of order up to 10, on the CPU. The second line needs no more than PyTorch and
Lightning. The JSON is written after each piece; the same command goes on with what is missing, while commit and
settings are the same, also in the middle of a training if --runs is still there.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import contexts
from benchmarks.kernels import measured_commit
from domains.folder import write_json
from domains.genomics.baselines import MarkovModels
from domains.genomics.config import TrainConfig
from domains.genomics.model import load_model
from domains.genomics.splits import Region, Splits, make_splits
from domains.genomics.store import GenomeStore
from domains.genomics.stream import Scored, stream_log_probs
from domains.genomics.tokens import BASES, reverse_complement
from domains.genomics.train import FREE_ON_RESUME, open_store, train
from domains.hardware import choose_device, describe_hardware, describe_versions
from domains.settings import flatten, from_dict, read_yaml, to_dict
from mamba_core import CausalLM

WINDOWS = (1024, 8192, 65_536, 262_144)
BLOCK = 16_384  # bases
MAX_ORDER = 10  # of the Markov models
LAST_PIECE = 45.0  # seconds kept for what follows a training: its last validation, the model folder, one evaluation
Result = dict[str, Any]


def name_of(context: int | None) -> str:
    """The key of a context in the JSON."""
    return "stream" if context is None else str(context)


def block_sums(values: np.ndarray) -> np.ndarray:
    """Sums over the blocks of a contig, the last one shorter: (length,) -> float64 (blocks,)."""
    return np.add.reduceat(values.astype(np.float64), np.arange(0, len(values), BLOCK))


def known_bases(store: GenomeStore, regions: Sequence[Region]) -> dict[str, list[int]]:
    """Known bases of each block of each contig; the two strands count as two."""
    found = {}
    for region in regions:
        tokens = store.tokens(*region)
        known = (tokens >= BASES.start) & (tokens < BASES.stop)
        found[region.contig] = [2 * int(count) for count in block_sums(known)]
    return found


def summed(regions: Sequence[Region], scores: Iterator[tuple[Region, Scored]]) -> dict[str, list[float]]:
    """Bits of each block of each contig, of scores in nats that come in any order."""
    nats = {region.contig: np.zeros(region.length, dtype=np.float64) for region in regions}
    for region, (start, log_probs) in scores:
        nats[region.contig][start : start + len(log_probs)] += np.nan_to_num(log_probs)
    return {contig: [round(float(bits), 3) for bits in -block_sums(x) / math.log(2)] for contig, x in nats.items()}


def model_scores(
    model: CausalLM, store: GenomeStore, regions: Sequence[Region], context: int | None, chunk: int
) -> Iterator[tuple[Region, Scored]]:
    """Nats of a model on both strands."""
    for region in regions:

        def read(start: int, stop: int, region: Region = region) -> np.ndarray:
            return store.tokens(region.contig, region.start + start, region.start + stop)

        for reverse in (False, True):
            pieces = stream_log_probs(model, read, region.length, chunk=chunk, reverse=reverse, context=context)
            yield from ((region, piece) for piece in pieces)


def markov_scores(
    markov: MarkovModels, store: GenomeStore, regions: Sequence[Region]
) -> Iterator[tuple[Region, Scored]]:
    """Nats of the chosen order on both strands, each contig as one stream."""
    for region in regions:
        tokens = store.tokens(*region)
        yield region, Scored(0, markov.log2_probs(tokens) * math.log(2))
        yield region, Scored(0, markov.log2_probs(reverse_complement(tokens))[::-1] * math.log(2))


def begin(config: TrainConfig, store: GenomeStore, splits: Splits, commit: str | None, old: Result | None) -> Result:
    """An earlier result of the same commit and settings, or a new one."""
    free = FREE_ON_RESUME | {"data.window"}
    settings = {key: value for key, value in flatten(to_dict(config)).items() if key not in free}
    identity = {"commit": commit, "genome": store.fingerprint, "settings": json.loads(json.dumps(settings))}
    if old is not None and all(old.get(key) == value for key, value in identity.items()):
        return old
    known = known_bases(store, splits.test)
    return identity | {"block": BLOCK, "known": known, "trained": {}, "markov": None}


def scores_of(row: Result | None, model: str) -> dict[str, Any]:
    """The scores that a row has of this very model: one that was trained again is scored again."""
    return row["scores"] if row is not None and row["model"] == model else {}


def train_one(config: TrainConfig, folder: Path, window: int, seconds: float) -> Result | None:
    """Train with windows of this length, or go on with that; None when the time was up before the last step."""
    told = replace(
        config,
        data=replace(config.data, window=window, window_warmup=[]),
        trainer=replace(config.trainer, max_minutes=seconds / 60, keep="last"),
    )
    begun = (folder / "run.json").exists()
    done = train(told, folder, resume=begun, progress=False)
    if not done.finished:
        return None
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["train/bases_per_second"] for row in rows if "train/bases_per_second" in row]
    return {
        "steps": config.trainer.max_steps,
        "bases": config.trainer.max_steps * config.trainer.accumulate * config.data.tokens_per_step,
        "bases_per_second": round(float(np.median(speeds))),
        "validation_bits_per_base": round(done.metrics["validation/bits_per_base"], 5),
    }


def run(
    config: TrainConfig,
    store: GenomeStore,
    windows: Sequence[int],
    runs: Path,
    json_path: Path,
    commit: str | None,
    *,
    seconds: float = math.inf,
    chunk: int = 262_144,
) -> bool:
    """Train and score what the JSON lacks, in order; False when the time was up before the end."""
    deadline = time.monotonic() + seconds
    splits = make_splits(store, config.data)
    device = choose_device(config.trainer.accelerator)
    result = begin(config, store, splits, commit, json.loads(json_path.read_text()) if json_path.exists() else None)
    result |= {"hardware": describe_hardware(device), "versions": describe_versions()}
    for window in windows:
        contexts = [*windows, None]
        if result["trained"].get(str(window), {}).get("scores", {}).keys() >= {
            name_of(context) for context in contexts
        }:
            continue
        left = deadline - time.monotonic() - LAST_PIECE
        trained = train_one(config, runs / str(window), window, left) if left > 0 else None
        if trained is None:
            return False
        loaded = load_model(runs / str(window) / "model", str(device))
        short = sum(region.length for region in splits.train if region.length < window)
        row = trained | {"unused_bases": short, "model": loaded.hash}
        row["scores"] = scores_of(result["trained"].get(str(window)), loaded.hash)
        result["trained"][str(window)] = row
        print(f"window {window:,}: {row['bases_per_second']:,} bases/s", flush=True)
        for context in contexts:
            if name_of(context) in row["scores"]:
                continue
            if time.monotonic() > deadline - LAST_PIECE / 2:
                return False
            start = time.monotonic()
            sums = summed(splits.test, model_scores(loaded.causal, store, splits.test, context, chunk))
            row["scores"][name_of(context)] = {"seconds": round(time.monotonic() - start, 1), "bits": sums}
            write_json(json_path, result | {"table": make_table(result)})
            print(f"  context {name_of(context):>7}: {mean(result, sums):.4f} bits per base", flush=True)
    return True


def add_markov(config: TrainConfig, store: GenomeStore, json_path: Path, commit: str | None) -> None:
    """The Markov model that does best on validation, into a result of :func:`run`."""
    splits = make_splits(store, config.data)
    result = begin(config, store, splits, commit, json.loads(json_path.read_text()) if json_path.exists() else None)
    markov = MarkovModels.fit(store, splits.train, MAX_ORDER, splits.validation)
    sums = summed(splits.test, markov_scores(markov, store, splits.test))
    result["markov"] = {"order": markov.chosen_order, "bits": sums}
    result = {"hardware": describe_hardware(torch.device("cpu")), "versions": describe_versions()} | result
    write_json(json_path, result | {"table": make_table(result)})
    print(f"Markov {markov.chosen_order}: {mean(result, sums):.4f} bits per base")


def mean(result: Result, sums: dict[str, list[float]]) -> float:
    """Bits per base over all blocks."""
    return contexts.mean(result["known"], sums)


def make_table(result: Result) -> list[dict[str, Any]]:
    """A row for each window and context: bits per base, by contig too, and the difference from two others."""
    cells = {
        (int(window), context): score["bits"]
        for window, row in result["trained"].items()
        for context, score in row["scores"].items()
    }
    known = result["known"]
    return [
        {"window": cell[0], "context": cell[1], "bits_per_base": round(mean(result, sums), 5)}
        | {"by_contig": contexts.by_part(known, sums)}
        | contexts.differences(known, cells, cell)
        for cell, sums in cells.items()
    ]


def markdown(result: Result) -> str:
    """The table for people."""
    cells = {(row["window"], row["context"]): row for row in result["table"]}
    markov = result["markov"]
    markov_bits = None if markov is None else {name_of(None): mean(result, markov["bits"])}
    baselines = {} if markov_bits is None else {f"Markov order {markov['order']}": markov_bits}
    return contexts.markdown(cells, "bits_per_base", "one stream", baselines)


def main() -> None:
    """Read the arguments, work, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings of experiment=umaydis_long, with data.store")
    parser.add_argument("--json", type=Path, help="the result, gone on with when it is there")
    parser.add_argument("--runs", type=Path, help="folder of the training runs (runs/umaydis_long-<commit>)")
    parser.add_argument("--windows", default=",".join(map(str, WINDOWS)), help="training windows, and contexts")
    parser.add_argument("--steps", type=int, help="of each training, in place of the recipe's")
    parser.add_argument("--chunk", type=int, default=262_144, help="bases a call while scoring; changes nothing")
    parser.add_argument(
        "--time-limit", type=float, default=math.inf, metavar="SECONDS", help="stop, to be gone on with"
    )
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--markov", action="store_true", help="add the Markov baseline, and do nothing else")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of a result, and do nothing else")
    arguments = parser.parse_args()
    if arguments.table:
        print(markdown(json.loads(arguments.table.read_text())))
        return
    if arguments.config is None or arguments.json is None:
        parser.error("--config and --json are needed")
    config = from_dict(TrainConfig, read_yaml(arguments.config), str(arguments.config))
    if arguments.steps:
        config = replace(config, trainer=replace(config.trainer, max_steps=arguments.steps))
    store, commit = open_store(config.data), measured_commit(arguments.commit, True)
    if arguments.markov:
        add_markov(config, store, arguments.json, commit)
        return
    windows = [int(word) for word in arguments.windows.split(",")]
    runs = arguments.runs or Path("runs") / f"umaydis_long-{commit}"
    limits = {"seconds": arguments.time_limit, "chunk": arguments.chunk}
    whole = run(config, store, windows, runs, arguments.json, commit, **limits)
    print(f"written to {arguments.json}" if whole else "the time was up; the same command goes on")


if __name__ == "__main__":
    main()
