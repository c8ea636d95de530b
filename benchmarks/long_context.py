"""One training step from 8 thousand to 16 million tokens on one GPU: in segments, plain, and attention of that size.

    python benchmarks/long_context.py --json benchmarks/results/long_context_h100.json
    python benchmarks/long_context.py --plot benchmarks/results/long_context_h100.json

A step is forward, cross entropy, backward and AdamW, batch 1, bf16 autocast over float32 weights, on random bases. 24
layers, d_model 1024. ``segments`` and ``plain`` are the same Mamba-2 model; ``attention`` is layers of full causal
attention and of gated MLPs by turns, whose pairs have the parameters of two Mamba-2 layers. ``segments`` has
segments of --segment tokens, but two a sequence at least, so that it is seen beside the plain step; where one does not
fit in memory, they are halved. Each row says how long they were.

Each side is warmed up at its length (``segments``: with a sequence of two segments), then timed: the median of five
steps, or of as many as fit into 3 s. Peak memory is all that PyTorch held: weights, their
gradients, AdamW's moments, and the step. What fails gets an ``error``; after running out of memory, a side is not
tried at greater lengths. The JSON is written after every row; rows of the same commit, GPU and versions are kept.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import report
from benchmarks.jobs import Job, Settings, run_jobs
from benchmarks.kernels import measured_commit, words
from benchmarks.worker import release, send, serve, synchronize
from domains.genomics.tokens import BASES, VOCAB_SIZE
from domains.hardware import describe_hardware, describe_versions
from mamba_core import BackboneConfig, CausalLM, State
from mamba_core.segments import in_segments

IMPLS = ("segments", "plain", "attention")
PATTERNS = {"segments": ["mamba2"], "plain": ["mamba2"], "attention": ["attention", "mlp"]}
LENGTHS = tuple(2**power for power in range(13, 25))
COMPARED = (2**21, 2**24)  # lengths whose tokens/s should be the same
CASE = "train"
MOST_STEPS, BUDGET = 5, 3.0  # seconds
FEWEST_SEGMENTS = 2
SMALLEST_SHARE = 8  # of --segment, when memory runs out


class Step:
    """A model, its optimizer, and one training step on a sequence of any length."""

    def __init__(self, impl: str, settings: Settings):
        self.device = settings.device
        config = BackboneConfig(d_model=settings.d_model, n_layers=settings.layers, pattern=PATTERNS[impl])
        with torch.device(self.device):
            self.model = CausalLM(VOCAB_SIZE, config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=self.device != "cpu")

    def __call__(self, tokens: Tensor, segment: int) -> Tensor:
        """Train on tokens (1, l + 1) in segments (one: plainly); the loss."""
        sequences = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
        with torch.autocast(self.device, torch.bfloat16):
            (total,), _ = in_segments(self._loss, self.model.parameters(), sequences, length=segment)
        loss = total / sequences["targets"].numel()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _loss(self, part: dict[str, Tensor], state: State | None) -> tuple[tuple[Tensor], State]:
        logits, state = self.model(part["inputs"], state)
        losses = F.cross_entropy(logits.float().flatten(0, 1), part["targets"].flatten(), reduction="sum")
        return (losses,), state


def measure_step(impl: str, length: int, segment: int, settings: Settings) -> dict[str, object]:
    """The figures of one row.

    Raises:
        torch.OutOfMemoryError: the step does not fit.
        ValueError: the loss is not finite.
    """
    step = Step(impl, settings)
    tokens = torch.randint(BASES.start, BASES.stop, (1, length + 1), device=settings.device)
    step(tokens[:, : 2 * segment + 1], segment)
    synchronize(settings.device)
    if settings.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    send(trying=impl)
    seconds: list[float] = []
    while not seconds or (len(seconds) < MOST_STEPS and sum(seconds) + seconds[-1] < BUDGET):
        start = time.perf_counter()
        loss = step(tokens, segment)
        synchronize(settings.device)
        seconds.append(time.perf_counter() - start)
    if not loss.isfinite():
        raise ValueError(f"the loss is {loss.item()}")
    took = statistics.median(seconds)
    return {
        "segment": segment,
        "seconds": round(took, 4),
        "tokens_per_second": round(length / took, 1),
        "peak_mib": None if settings.device == "cpu" else round(torch.cuda.max_memory_allocated() / 2**20, 1),
        "parameters": sum(parameter.numel() for parameter in step.model.parameters()),
    }


class Measure:
    """The worker's part: one row a job."""

    def __init__(self, measure: Callable[[str, int, int, Settings], dict[str, object]] = measure_step):
        self._measure = measure
        self._full: dict[str, int] = {}  # the length at which a side ran out of memory
        self._longest: float = math.inf  # segments that were halved for it stay so

    def __call__(self, job: Job, settings: Settings) -> None:
        if job.case != CASE:
            send(about={"hardware": describe_hardware(torch.device(settings.device))})
            return
        (impl,) = job.impls
        send(trying=impl)
        if impl in self._full:
            raise MemoryError(f"not tried: out of memory at {self._full[impl]:,} tokens already")
        send(row=job.row(impl, **self._fitting(impl, job.length, settings)))

    def _fitting(self, impl: str, length: int, settings: Settings) -> dict[str, object]:
        """Figures with the longest segments that fit."""
        segment = smallest = length
        if impl == "segments":
            segment = max(1, int(min(settings.segment, self._longest, length // FEWEST_SEGMENTS)))
            smallest = max(1, segment // SMALLEST_SHARE)
        while True:
            try:
                return self._measure(impl, length, segment, settings)
            except torch.OutOfMemoryError:
                if segment // 2 < smallest:
                    self._full[impl] = length
                    raise
            release(settings.device)
            segment //= 2
            self._longest = segment


def compare(rows: list[report.Row]) -> list[str]:
    """What the rows come to, in sentences."""
    found = {(row["impl"], row["length"]): row for row in rows if "error" not in row}
    lines = []
    for impl, length in sorted(found, key=lambda key: key[1]):
        if impl == "plain" and (cut := found.get(("segments", length))):
            ratio = cut["seconds"] / found["plain", length]["seconds"]
            lines.append(f"{length:,} tokens: segments of {cut['segment']:,} take {ratio:.2f} of the plain step")
    longest = [max((at for impl, at in found if impl == name), default=0) for name in ("segments", "plain")]
    if all(longest):
        rates = [found[name, at]["tokens_per_second"] for name, at in zip(("segments", "plain"), longest, strict=True)]
        lines.append(
            f"a token of {longest[0]:,} in segments takes {rates[1] / rates[0]:.2f} of one in a plain step of "
            f"{longest[1]:,}"
        )
    short, long = (found.get(("segments", length)) for length in COMPARED)
    if short and long:
        ratio = long["tokens_per_second"] / short["tokens_per_second"]
        lines.append(f"tokens/s at {COMPARED[1]:,} over {COMPARED[0]:,}: {ratio:.3f}")
    for impl in IMPLS:
        failed = [row for row in rows if row["impl"] == impl and "OutOfMemory" in row.get("error", "")]
        if failed:
            lines.append(f"{impl}: out of memory at {min(row['length'] for row in failed):,} tokens")
    return lines


def draw(path: Path) -> Path:
    """Write a PNG of speed and memory by length beside the JSON, and return its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    result = json.loads(path.read_text())
    labels = {"segments": "Mamba-2 in segments", "plain": "Mamba-2, plain step", "attention": "attention, plain step"}
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    limit = result["hardware"].get("gpu_memory_bytes")
    for impl, marker in zip(IMPLS, ("o", "s", "^"), strict=True):
        rows = sorted((row for row in result["rows"] if row["impl"] == impl), key=lambda row: row["length"])
        done = [row for row in rows if "error" not in row]
        full = [row["length"] for row in rows if "OutOfMemory" in row.get("error", "")]
        lengths = [row["length"] for row in done]
        (line,) = axes[0].plot(lengths, [row["tokens_per_second"] for row in done], marker=marker, label=labels[impl])
        memory = [(row["length"], row["peak_mib"] / 1024) for row in done if "peak_mib" in row]
        axes[1].plot([at for at, _ in memory], [gib for _, gib in memory], marker=marker, label=labels[impl])
        if full and limit:
            axes[1].plot(min(full), limit / 2**30, marker="x", markersize=10, color=line.get_color())
            axes[1].annotate("out of memory", (min(full), limit / 2**30), fontsize=8, va="bottom")
    if limit:
        axes[1].axhline(limit / 2**30, color="grey", linewidth=0.8, linestyle="--")
    where = result["hardware"].get("gpu", result["hardware"]["device"])
    head = f"one {where}, {result['layers']} layers, d_model {result['d_model']}"
    axes[0].set(xlabel="tokens in one step", ylabel="tokens/s", title=f"training: {head}")
    axes[1].set(xlabel="tokens in one step", ylabel="peak memory, GiB", title="memory")
    for axis in axes:
        axis.set_xscale("log", base=2)
    axes[0].set_yscale("log")
    axes[0].legend()
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=110)
    return target


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="merge the rows into this file")
    parser.add_argument("--plot", type=Path, metavar="JSON", help="draw a result, and stop")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="tokens")
    parser.add_argument("--impls", type=words(IMPLS), default=list(IMPLS), help=f"of {','.join(IMPLS)}")
    parser.add_argument("--segment", type=int, default=131_072, help="tokens")
    parser.add_argument("--time-limit", type=float, default=570.0, metavar="SECONDS", help="skip what is left then")
    parser.add_argument("--device", default="cuda", help="cpu only to try this script")
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=Settings.layers)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def show(row: report.Row) -> None:
    """One line for a reader."""
    found = row.get("error", "")[:90]
    if not found:
        found = f"{row['tokens_per_second']:>11,.0f} tokens/s {row['seconds']:>9.3f} s"
        found += f" {row['peak_mib']:>8,.0f} MiB" if "peak_mib" in row else ""
        found += f"  segments of {row['segment']:,}" if row["impl"] == "segments" else ""
    print(f"{row['impl']:<10} {row['length']:>10,} {found}", flush=True)


def main() -> None:
    """Measure every row, write each as it comes, say what they come to."""
    arguments = parse()
    if arguments.worker:
        serve(Measure())
        return
    if arguments.plot:
        print(f"written to {draw(arguments.plot)}")
        return
    commit = measured_commit(arguments.commit, arguments.json is not None)
    deadline = time.monotonic() + arguments.time_limit
    settings = Settings(arguments.device, arguments.d_model, segment=arguments.segment, layers=arguments.layers)
    lengths = sorted(int(length) for length in arguments.lengths.split(","))
    jobs = [Job(CASE, length, impls=(impl,)) for length in lengths for impl in arguments.impls]
    command = [sys.executable, os.path.abspath(__file__), "--worker"]
    result = {
        "commit": commit,
        "versions": describe_versions(),
        "d_model": settings.d_model,
        "layers": settings.layers,
        "vocabulary": VOCAB_SIZE,
    }
    rows = []
    for message in run_jobs([Job("about", 0), *jobs], command, settings, deadline, silence=arguments.time_limit):
        if "about" in message:
            result["hardware"] = message["about"]["hardware"]
            continue
        row = {name: value for name, value in message["row"].items() if value is not None}
        if "hardware" not in result:
            raise SystemExit(f"nothing was written: the device could not be described ({row.get('error')})")
        rows.append(row)
        show(row)
        if arguments.json:
            report.write(arguments.json, {**result, "rows": [row]})
    if arguments.json:
        rows = json.loads(arguments.json.read_text())["rows"]
        print(f"written to {arguments.json}")
    print(*compare(rows), sep="\n")


if __name__ == "__main__":
    main()
