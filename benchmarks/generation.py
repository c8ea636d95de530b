"""Bases a second that ``generate`` of the genomics domain draws, by how many sequences it samples side by side.

    python benchmarks/generation.py --model runs/demo/model --json benchmarks/results/generation_h200.json

Timed is ``sample`` itself, which ``generate`` calls, with its own settings (float32, no prompt), so with the draw of
each base on the CPU. The moment at which each base is known is noted: from the first base to the last there are steps
and draws alone, which give the rate, and what stands before the first base is apart: it is paid once a call, whatever
its length (the state; on a GPU the capture of a step as a CUDA graph). Figures are medians of CALLS calls of the same
number of steps, chosen so that they take about ``--seconds``. A call of a few bases goes before them: its seconds
before the first base are those of a process that meets this number of sequences for the first time, and hold the
compilation of kernels that are not in Triton's cache.
"""

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels import measured_commit, model_name, write_result
from domains.genomics import generate
from domains.genomics.config import GenerateConfig
from domains.genomics.model import load_model
from mamba_core import CausalLM

COUNTS = (1, 64, 1024)
CALLS = 5
FIRST = 4  # bases of the call before them


def moments(model: CausalLM, count: int, length: int) -> list[float]:
    """Seconds from the start of a call of ``sample`` until each of its ``length`` bases is known."""
    found: list[float] = []
    draw = generate.draw

    def noted(logits: Tensor, temperature: float, top_k: int, random: torch.Generator) -> Tensor:
        drawn = draw(logits, temperature, top_k, random)
        found.append(time.perf_counter() - start)
        return drawn

    with patch.object(generate, "draw", noted):
        start = time.perf_counter()
        generate.sample(model, np.zeros(0, np.uint8), GenerateConfig(count=count, length=length))
    return found


def measure(model: CausalLM, count: int, seconds: float) -> dict[str, Any]:
    """The figures of so many sequences side by side."""
    first = moments(model, count, FIRST)
    each = min(after - before for before, after in pairwise(first))
    steps = max(1, round(seconds / CALLS / each))
    calls = [moments(model, count, steps + 1) for _ in range(CALLS)]
    rates = [count * steps / (call[-1] - call[0]) for call in calls]
    return {
        "count": count,
        "steps": steps,
        "calls": CALLS,
        "bases_per_second": round(statistics.median(rates), 1),
        "fastest_bases_per_second": round(max(rates), 1),
        "seconds_before_first_base": round(statistics.median(call[0] for call in calls), 4),
        "first_call_seconds_before_first_base": round(first[0], 4),
    }


def show(row: dict[str, Any]) -> None:
    """One line for a reader."""
    print(
        f"{row['model']:<12} {row['count']:>6,} side by side {row['bases_per_second']:>12,.0f} bases/s "
        f"(fastest {row['fastest_bases_per_second']:,.0f}), {row['seconds_before_first_base']:.3f} s before the first "
        f"base, {row['first_call_seconds_before_first_base']:.3f} s at first",
        flush=True,
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", required=True, help="model folder (may be repeated)")
    parser.add_argument(
        "--counts",
        type=lambda text: [int(part) for part in text.split(",")],
        default=list(COUNTS),
        help="sequences side by side",
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="for each model and count")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    commit = measured_commit(arguments.commit, arguments.json is not None)
    device = torch.device(arguments.device)
    rows: list[dict[str, Any]] = []
    for folder in arguments.model:
        loaded = load_model(folder, arguments.device)
        about: dict[str, Any] = {"model": model_name(folder), "sha256": loaded.hash}
        about |= {"parameters": sum(p.numel() for p in loaded.model.parameters())}
        for count in arguments.counts:
            rows.append(about | measure(loaded.causal, count, arguments.seconds))
            show(rows[-1])
    write_result(arguments.json, device, commit, {"precision": GenerateConfig.precision, "rows": rows})


if __name__ == "__main__":
    main()
