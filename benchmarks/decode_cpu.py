"""Decoding on a CPU with weights in float32, bfloat16 and int8: tokens a second, and what it costs in bits.

    python benchmarks/decode_cpu.py --model runs/demo/model --json benchmarks/results/decode_cpu.json

Speed: one row and eight, of the trained model and of larger ones with random weights (they decide no speed). Loss: bits
per base of the trained model on the first bases of a test contig, streamed. One thread; the best of several rounds,
taken in turns, because other work on the machine can only make a round longer.
"""

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.drift import TEST
from benchmarks.kernels import measured_commit, write_result
from domains.genomics.io import read_records
from domains.genomics.model import load_model
from domains.genomics.module import base_log_probs
from domains.genomics.sample import sample_genome
from domains.genomics.tokens import BASES, BOS, VOCAB_SIZE, N, encode
from domains.precision import PRECISIONS, to_precision
from mamba_core import BackboneConfig, CausalLM, GraphedStep, Mamba2Config
from mamba_core.streaming import stream

SIZES = {"4 layers of 256": (4, 256), "12 layers of 512": (12, 512), "24 layers of 1,024": (24, 1024)}
ROUNDS, CHUNK = 12, 16_384


def models(folder: Path) -> dict[str, CausalLM]:
    """The trained model, and larger ones."""
    torch.manual_seed(0)
    found = {"trained": load_model(folder).causal}
    for name, (layers, width) in SIZES.items():
        config = BackboneConfig(d_model=width, n_layers=layers, mamba2=Mamba2Config(d_state=64))
        found[name] = CausalLM(VOCAB_SIZE, config).eval()
    return found


@torch.inference_mode()
def bits(model: CausalLM, tokens: Tensor) -> float:
    """Mean bits per known base of tokens (l,)."""
    inputs = torch.cat([tokens.new_tensor([BOS]), tokens[:-1]])[None]
    total, count, start = 0.0, 0, 0
    for logits, _ in stream(model, inputs.split(CHUNK, dim=1)):
        target = tokens[start : start + logits.shape[1]]
        known = target != N
        nats = -base_log_probs(logits[0]).gather(1, (target - BASES.start).clamp(0, 3)[:, None])[:, 0]
        total, count = total + float(nats[known].double().sum()), count + int(known.sum())
        start += logits.shape[1]
    return total / count / math.log(2)


@torch.inference_mode()
def rates(model: CausalLM, batch: int, seconds: float) -> dict[str, float]:
    """Tokens a second of each precision."""
    steps = {}
    for precision in PRECISIONS:
        low = to_precision(copy.deepcopy(model), precision)
        steps[precision] = GraphedStep(low, low.init_state(batch))
    tokens = torch.full((batch,), BASES.start)
    best = dict.fromkeys(PRECISIONS, float("inf"))
    counts: dict[str, int] = {}
    for turn in range(ROUNDS + 1):
        for precision, graphed in steps.items():
            count = counts.get(precision, 2)
            start = time.perf_counter()
            for _ in range(count):
                graphed.step(tokens)
            each = (time.perf_counter() - start) / count
            if turn == 0:
                counts[precision] = max(2, int(seconds / ROUNDS / len(PRECISIONS) / each))
            best[precision] = min(best[precision], each)
    return {precision: batch / each for precision, each in best.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained model")
    parser.add_argument("--bases", type=int, default=200_000, help="of the test contig that are scored")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each model and batch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    arguments = parser.parse_args()
    commit = measured_commit(arguments.commit, arguments.json is not None)
    torch.set_num_threads(1)
    contig = next(record for record in read_records(sample_genome()) if record.name == TEST[0])
    tokens = torch.from_numpy(encode(contig.sequence[: arguments.bases].decode()).astype(np.int64))
    rows: list[dict[str, Any]] = []
    for name, model in models(arguments.model).items():
        weights = sum(p.numel() for p in model.parameters())
        for batch in (1, 8):
            found = rates(model, batch, arguments.seconds)
            rows += [
                {"model": name, "parameters": weights, "batch": batch, "precision": p, "tokens_per_second": round(r, 1)}
                for p, r in found.items()
            ]
            print(
                f"{name}, {weights:,} parameters, batch {batch}:", {p: round(r) for p, r in found.items()}, flush=True
            )
    trained = load_model(arguments.model)
    loss = {p: round(bits(to_precision(copy.deepcopy(trained.causal), p), tokens), 6) for p in PRECISIONS}
    print("bits per base:", loss)
    result: dict[str, Any] = {"rows": rows, "bits_per_base": loss, "bases": len(tokens), "sha256": trained.hash}
    write_result(arguments.json, torch.device("cpu"), commit, result)


if __name__ == "__main__":
    main()
