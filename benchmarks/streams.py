"""How fast a thousand open streams are read on one GPU: turns, tokens and memory of a StreamPool.

    python benchmarks/streams.py --json benchmarks/results/streams_h100.json

A turn is one call of ``StreamPool.feed`` with tokens on the CPU, as a server would make it; figures are medians of the
turns' wall time, the GPU awaited at the end of each. Weights are bf16, states float32. The cases:

    step          one token of every stream: one call, in place
    step, most    one token of nine streams in ten, others each turn: their rows are gathered
    step, swap    as step, and each turn ten streams go to the CPU and ten that were there come back
    block         64 tokens of every stream
    ragged        1 to 128 tokens of every second stream, others each turn: gathered and padded
    alone, step   one token of the only stream of a pool
    alone, block  4,096 tokens of it
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import measured_commit, write_result
from mamba_core import BackboneConfig, CausalLM, Mamba2Config, State, StreamPool

VOCABULARY = 16
MODELS = {
    "tiny": BackboneConfig(d_model=64, n_layers=2, mamba2=Mamba2Config(d_state=16, headdim=32)),
    "8 x 256": BackboneConfig(d_model=256, n_layers=8, mamba2=Mamba2Config(d_state=64)),
    "24 x 1024": BackboneConfig(d_model=1024, n_layers=24, mamba2=Mamba2Config(d_state=128)),
}
SWAPPED, BLOCK, RAGGED, LONG = 10, 64, 128, 4096
WARM_UP, TURNS = 3, 30
BUDGET = 15.0  # seconds of turns of one case
Turn = Callable[[], int]  # feeds, and says how many tokens


def tokens(length: int) -> Tensor:
    """Random ones, (length,) on the CPU."""
    return torch.randint(0, VOCABULARY, (length,))


def make_turn(case: str, pool: StreamPool) -> Turn:
    """What a turn of this case does to a pool whose streams are open by number."""
    every, chance = list(range(pool.slots)), random.Random(0)
    away = swapping(pool, every, chance) if case == "step, swap" else iter(())

    def turn() -> int:
        next(away, None)
        chunks: dict[Hashable, Tensor]
        if case == "ragged":
            chunks = {i: tokens(chance.randint(1, RAGGED)) for i in chance.sample(every, max(1, len(every) // 2))}
        elif case == "step, most":
            chunks = {i: tokens(1) for i in chance.sample(every, max(1, len(every) * 9 // 10))}
        else:
            length = {"block": BLOCK, "alone, block": LONG}.get(case, 1)
            chunks = {i: tokens(length) for i in every}
        pool.feed(chunks)
        return sum(map(len, chunks.values()))

    return turn


def swapping(pool: StreamPool, every: list[int], chance: random.Random) -> Iterator[None]:
    """Each time, some streams go to the CPU, and others take their slots, and their numbers, from there."""
    count = min(SWAPPED, len(every))
    waiting: list[State] = [pool.state(i).to("cpu") for i in range(count)]
    while True:
        going = chance.sample(every, count)
        gone = [pool.state(i).to("cpu") for i in going]
        for i in going:
            pool.close(i)
        for i, state in zip(going, waiting, strict=True):
            pool.open(i, state)
        waiting = gone
        yield


def measure(case: str, pool: StreamPool, device: torch.device) -> dict[str, Any]:
    """Median figures of one case."""
    turn = make_turn(case, pool)
    seconds, read = [], []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    deadline = time.monotonic() + BUDGET
    for i in range(WARM_UP + TURNS):
        start = time.perf_counter()
        count = turn()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= WARM_UP:
            seconds.append(time.perf_counter() - start)
            read.append(count)
            if time.monotonic() > deadline:
                break
    middle = statistics.median(seconds)
    return {
        "turns": len(seconds),
        "turn_ms": round(1e3 * middle, 3),
        "turns_per_second": round(1 / middle, 1),
        "tokens_per_second": round(sum(read) / sum(seconds)),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20) if device.type == "cuda" else None,
    }


def make_pool(name: str, streams: int, device: torch.device) -> StreamPool:
    """A pool with all its streams open."""
    torch.manual_seed(0)
    model = CausalLM(VOCABULARY, MODELS[name]).to(device, torch.bfloat16).eval()
    pool = StreamPool(model, streams)
    for i in range(streams):
        pool.open(i)
    return pool


def run(names: list[str], streams: int, device: torch.device, deadline: float) -> list[dict[str, Any]]:
    """Every case of every model, as far as the time goes."""
    rows = []
    groups = ((streams, ("step", "step, most", "step, swap", "block", "ragged")), (1, ("alone, step", "alone, block")))
    for name in names:
        for count, cases in groups:
            pool = make_pool(name, count, device)
            state = sum(tensor.nbytes for tensor in pool.state(0).values())
            for case in cases:
                row = {"model": name, "case": case, "streams": count, "state_bytes_a_stream": state}
                if time.monotonic() > deadline:
                    row["error"] = "skipped: the time limit was reached"
                else:
                    row |= measure(case, pool, device)
                rows.append(row)
                show(row)
            del pool
    return rows


def show(row: dict[str, Any]) -> None:
    """One line for a reader."""
    figures = row.get("error") or (
        f"{row['turn_ms']:>10,.2f} ms a turn, {row['turns_per_second']:>9,.1f} turns/s, "
        f"{row['tokens_per_second']:>12,} tokens/s, peak {row['peak_mib'] or 0:,} MiB"
    )
    print(f"{row['model']:<10} {row['streams']:>5,} streams  {row['case']:<13} {figures}", flush=True)


def main() -> None:
    """Run the cases and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--models", default="8 x 256,24 x 1024", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--device", default="cuda", help="cpu only to try this script")
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS", help="skip what is left then")
    arguments = parser.parse_args()
    commit = measured_commit(arguments.commit, arguments.json is not None)
    device = torch.device(arguments.device)
    deadline = time.monotonic() + arguments.time_limit
    rows = run(arguments.models.split(","), arguments.streams, device, deadline)
    write_result(arguments.json, device, commit, {"dtype": "bfloat16", "rows": rows})


if __name__ == "__main__":
    main()
