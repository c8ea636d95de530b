"""This project beside transformers on a CPU: tokens a second, forward and training, and how both grow with length.

    python benchmarks/cpu.py --json benchmarks/results/cpu.json

Both sides run in one process, turn by turn, on the same threads, without a cache, and the median of five counts. Model:
4 layers, d_model 128, vocabulary 16, batch 1, float32; Mamba-2 with heads of 64 and a state of 64, Mamba-1 with a state
of 16. Training is forward, cross entropy and backward. transformers' Mamba-1 loops over tokens in Python, so both sides
train it at a length that it finishes in reasonable time; this project's own figure at 4,096 stands beside it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.hardware import describe_hardware, describe_versions, git_commit
from mamba_core import BackboneConfig, CausalLM, Mamba1Config, Mamba2Config

D_MODEL, LAYERS, VOCABULARY = 128, 4, 16
LENGTH = 4096
MAMBA1_LENGTH = 512  # for the comparison with transformers' token loop
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
BARS = {"mamba2 forward": 2.5, "mamba2 training": 3.0, "mamba1 training": 10.0}


def ours(mixer: str) -> nn.Module:
    """This project's model of the benchmark."""
    config = BackboneConfig(
        d_model=D_MODEL,
        n_layers=LAYERS,
        pattern=[mixer],
        mamba1=Mamba1Config(d_state=16),
        mamba2=Mamba2Config(d_state=64, headdim=64),
    )
    return CausalLM(VOCABULARY, config)


def theirs(mixer: str) -> nn.Module:
    """transformers' model of the same sizes."""
    from transformers import Mamba2Config as HfMamba2Config
    from transformers import Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": D_MODEL,
        "num_hidden_layers": LAYERS,
        "use_cache": False,
    }
    if mixer == "mamba1":
        return MambaForCausalLM(MambaConfig(state_size=16, **sizes))
    heads: dict[str, Any] = {"num_heads": 2 * D_MODEL // 64, "head_dim": 64, "state_size": 64, "n_groups": 1}
    return Mamba2ForCausalLM(HfMamba2Config(**heads, **sizes))


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits (1, l, vocabulary) of either side."""
    if isinstance(model, CausalLM):
        return model(tokens)[0]
    return model(tokens, use_cache=False).logits


def forward(model: nn.Module, tokens: Tensor) -> None:
    """One forward pass without a graph."""
    with torch.no_grad():
        logits(model, tokens)


def training(model: nn.Module, tokens: Tensor) -> None:
    """Forward, cross entropy of the next token, backward."""
    model.zero_grad(set_to_none=True)
    F.cross_entropy(logits(model, tokens)[0, :-1], tokens[0, 1:]).backward()


def in_turn(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, after one warm-up, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(mixer: str, work: str, length: int, repeats: int = 5) -> dict[str, object]:
    """One row: tokens a second of both sides and their ratio."""
    torch.manual_seed(0)
    tokens = torch.randint(7, 11, (1, length))
    run = {"forward": forward, "training": training}[work]
    mine, other = ours(mixer), theirs(mixer)
    seconds = in_turn({"serpentine": lambda: run(mine, tokens), "transformers": lambda: run(other, tokens)}, repeats)
    rates = {name: length / value for name, value in seconds.items()}
    row = {
        "case": f"{mixer} {work}",
        "length": length,
        "serpentine_tokens_per_second": round(rates["serpentine"]),
        "transformers_tokens_per_second": round(rates["transformers"], 1),
        "ratio": round(rates["serpentine"] / rates["transformers"], 2),
        "bar": BARS.get(f"{mixer} {work}"),
    }
    print(
        f"{row['case']:<17} {length:>6} tokens: {rates['serpentine']:>8,.0f} tokens/s, "
        f"transformers {rates['transformers']:>8,.1f}, ratio {row['ratio']:.2f} (bar {row['bar'] or '-'})",
        flush=True,
    )
    return row


def one_length(mixer: str, length: int) -> None:
    """Train one step at one length in this process and print its seconds and peak memory as JSON."""
    tokens = torch.randint(7, 11, (1, length))
    model = ours(mixer)
    training(model, tokens[:, :LENGTH])  # warm-up
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        training(model, tokens)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": min(seconds), "peak_mib": peak_memory_mib()}))


def peak_memory_mib() -> float:
    """Peak resident memory of this process alone: getrusage would count what it inherited when it was forked."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def growth(mixer: str, threads: int) -> list[dict[str, object]]:
    """Training step by length, each in a process of its own so that peak memory is its own."""
    rows = []
    for length in LENGTHS:
        command = [sys.executable, __file__, "--one", mixer, str(length), "--threads", str(threads)]
        out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        row = {
            "case": f"{mixer} training",
            "length": length,
            "tokens_per_second": round(length / out["seconds"]),
            "peak_mib": round(out["peak_mib"]),
        }
        print(
            f"{mixer} training {length:>8} tokens: {row['tokens_per_second']:>8,} tokens/s, {row['peak_mib']:>7,} MiB"
        )
        rows.append(row)
    return rows


def main() -> None:
    """Run every row and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-growth", action="store_true", help="leave out the rows by length")
    parser.add_argument("--one", nargs=2, metavar=("MIXER", "LENGTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        one_length(arguments.one[0], int(arguments.one[1]))
        return
    rows = [
        compare("mamba2", "forward", LENGTH),
        compare("mamba2", "training", LENGTH),
        compare("mamba1", "training", MAMBA1_LENGTH, repeats=3),
    ]
    by_length = [] if arguments.no_growth else growth("mamba2", arguments.threads) + growth("mamba1", arguments.threads)
    if arguments.json:
        result = {
            "hardware": describe_hardware(torch.device("cpu")),
            "versions": describe_versions(),
            "commit": git_commit(),
            "threads": arguments.threads,
            "rows": rows,
            "growth": by_length,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
