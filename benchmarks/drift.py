"""What a state in bfloat16 costs: a model steps through a genome with it, beside itself with one in float32.

    python benchmarks/drift.py --model runs/demo/model --store stores/<genome> --steps 100000 --json drift_h200.json

Rows of the batch start at places spread over test contigs, and read the true bases (teacher forcing), each copy with
its own state, which is rounded once a token. A window of steps gets the mean bits per base of both, and of their
difference in log-probability of the true base the root mean square and the largest, in bits. Whether the error grows
shows from window to window. With ``--random`` the stack of the decode rows (24 layers of Mamba-2, width 1,024, random
weights and tokens) is told apart by the relative error of its logits.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.jobs import Settings
from benchmarks.kernel_cases import VOCABULARY, decoder
from benchmarks.kernels import measured_commit, model_name, write_result
from domains.genomics.model import load_model
from domains.genomics.module import base_log_probs
from domains.genomics.store import GenomeStore
from domains.genomics.tokens import BASES, BOS, N
from domains.hardware import full_precision
from mamba_core import CausalLM, GraphedStep

TEST = ("chr20", "chr21", "chr22", "chr23")
WINDOWS = (1, 100, 1_000, 10_000, 100_000)  # their upper ends, in steps; the last one is cut where steps end


def bases(store: GenomeStore, rows: int, steps: int) -> np.ndarray:
    """Tokens (rows, steps) uint8 from places spread over the test contigs of a prepared genome."""
    whole = np.concatenate([store.tokens(contig) for contig in TEST])
    starts = np.linspace(0, len(whole) - steps - 1, rows).astype(int)
    return np.stack([whole[start : start + steps] for start in starts])


def walk(model: CausalLM, tokens: Tensor, first: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits with a float32 and a bfloat16 state, and the token that they are for, step by step."""
    state = model.init_state(len(tokens), tokens.device)
    pair = [GraphedStep(model, state), GraphedStep(model, state.clone().scans_in(torch.bfloat16))]
    given = tokens.new_full((len(tokens),), first) if first is not None else tokens[:, 0]
    for t in range(0 if first is not None else 1, tokens.shape[1]):
        yield pair[0].step(given), pair[1].step(given), tokens[:, t]
        given = tokens[:, t]


@torch.inference_mode()
def measure(model: CausalLM, tokens: Tensor, trained: bool) -> list[dict[str, Any]]:
    """A row for each window."""
    rows: list[dict[str, Any]] = []
    sums, largest, count, begin = torch.zeros(4, dtype=torch.float64, device=tokens.device), None, 0, 1
    ends = [end for end in WINDOWS if end < tokens.shape[1]] + [tokens.shape[1] - (0 if trained else 1)]
    for step, (high, low, target) in enumerate(walk(model, tokens, BOS if trained else None), 1):
        if trained:
            known = target != N
            index = (target - BASES.start).clamp(0, 3)[:, None]
            bits = [-base_log_probs(one).gather(1, index)[:, 0].double() / math.log(2) * known for one in (high, low)]
            apart = (bits[1] - bits[0]).abs()
            now = torch.stack([bits[0].sum(), bits[1].sum(), apart.square().sum(), known.sum().double()])
        else:
            gap = (low.double() - high.double()).square().sum(1)
            apart = (gap / high.double().square().sum(1)).sqrt()
            now = torch.stack([gap.sum() * 0, gap.sum() * 0, apart.square().sum(), apart.new_tensor(float(len(apart)))])
        sums += now
        largest = apart.max() if largest is None else torch.maximum(largest, apart.max())
        if step in ends:
            a, b, squares, n = sums.tolist()
            count = int(n)
            found = {"from_step": begin, "to_step": step, "tokens": count, "rms": math.sqrt(squares / n)}
            found |= {"largest": float(largest)}
            if trained:
                found |= {"bits_float32": a / n, "bits_bf16": b / n, "bits_more": (b - a) / n}
            rows.append({name: round(v, 8) if isinstance(v, float) else v for name, v in found.items()})
            print(rows[-1], flush=True)
            sums, largest, begin = sums * 0, None, step + 1
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", default=[], help="model folder (may be repeated)")
    parser.add_argument("--store", type=Path, help="the prepared genome, with chr20 to chr23")
    parser.add_argument("--random", action="store_true", help="the decode rows' stack, with random weights")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--d-model", type=int, default=1024, help="of the random stack")
    arguments = parser.parse_args()
    commit = measured_commit(arguments.commit, arguments.json is not None)
    device = torch.device(arguments.device)
    if arguments.model and arguments.store is None:
        parser.error("--model needs --store, the prepared genome")
    results = []
    with full_precision():
        for folder in arguments.model:
            store = GenomeStore.open(arguments.store)
            loaded = load_model(folder, arguments.device)
            tokens = torch.from_numpy(bases(store, arguments.rows, arguments.steps).astype(np.int64)).to(device)
            print(folder, flush=True)
            found = measure(loaded.causal, tokens, True)
            results.append({"model": model_name(folder), "sha256": loaded.hash, "windows": found})
        if arguments.random:
            torch.manual_seed(0)
            model = decoder("mamba2", Settings(arguments.device, arguments.d_model))
            tokens = torch.randint(0, VOCABULARY, (arguments.rows, arguments.steps + 1), device=device)
            results.append({"model": "random", "windows": measure(model, tokens, False)})
    write_result(arguments.json, device, commit, {"rows": arguments.rows, "results": results})


if __name__ == "__main__":
    main()
