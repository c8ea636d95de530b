"""One training step on one sequence, on one GPU and split over all that torchrun started: 1, 4 and 16 million tokens.

    torchrun --nproc-per-node=2 benchmarks/context_parallel.py --json benchmarks/results/context_parallel_2xh100.json

The step is that of long_context.py (forward, cross entropy, backward, AdamW; 24 layers of Mamba-2, d_model 1024, bf16
autocast, batch 1) in segments of --segment tokens to a GPU. ``one`` is the first GPU alone, the others waiting; for
``split`` every segment lies on all of them (mamba_core.context_parallel), and the gradients are summed once a step. The
median of five steps counts, or of as many as fit into 3 s, after a warm-up of two segments to a GPU. Peak memory is
that of the fullest GPU, seconds those of the slowest.

Both sides begin with the same weights and the warm-up's tokens, so its loss tells whether they compute the same. Sent
bytes are counted where they are sent, to all others together, for one layer and one segment; ``formula`` says what they
should be. The JSON is written after every row, and whatever happens the script ends at --time-limit.
"""

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import report
from benchmarks.jobs import Settings
from benchmarks.kernels import measured_commit
from benchmarks.long_context import BUDGET, MOST_STEPS, Step
from benchmarks.worker import release, synchronize
from domains.genomics.tokens import BASES, VOCAB_SIZE
from domains.hardware import describe_hardware, describe_versions
from mamba_core.context_parallel import own_tokens, shard_sequence, sum_gradients, take
from mamba_core.mixers import Mamba2
from mamba_core.segments import in_segments

LENGTHS = (2**20, 2**22, 2**24)
IMPLS = ("split", "one")
SENT = ("all_gather_into_tensor", "all_to_all_single")  # forward, backward


class SplitStep(Step):
    """A training step on this process's part of a sequence."""

    def __init__(self, settings: Settings, group: dist.ProcessGroup | None):
        torch.manual_seed(0)
        super().__init__("segments", settings)
        self.group = group
        if group is not None:
            shard_sequence(self.model, group)

    def train(self, sequences: dict[str, Tensor], length: int, segment: int) -> Tensor:
        """Train on the tokens of this process, of ``length`` in all; its part of the loss."""
        with torch.autocast(self.device, torch.bfloat16):
            (total,), _ = in_segments(self._loss, self.model.parameters(), sequences, length=segment)
        loss = total / length
        loss.backward()
        if self.group is not None:
            sum_gradients(self.model.parameters(), self.group)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


@dataclass
class Traffic:
    """Bytes that this process sent to all others."""

    sent: dict[str, int]

    @staticmethod
    @contextmanager
    def counted(size: int) -> Iterator["Traffic"]:
        """Count within the block."""
        traffic = Traffic(dict.fromkeys(SENT, 0))

        def counting(name: str, send: Callable[..., Any]) -> Callable[..., Any]:
            def call(output: Tensor, tensor: Tensor, **options: Any) -> Any:
                copies = size - 1 if name == SENT[0] else (size - 1) / size  # the latter holds a part for everyone
                traffic.sent[name] += int(tensor.numel() * tensor.element_size() * copies)
                return send(output, tensor, **options)

            return call

        counters: dict[str, Any] = {name: counting(name, getattr(dist, name)) for name in SENT}
        with patch.multiple(dist, **counters):
            yield traffic


def formula(mixer: Mamba2, size: int, act_bytes: int) -> int:
    """Bytes that a rank sends in the forward of one layer, and again in its backward, with a batch of 1."""
    config = mixer.config
    tail = (config.d_conv - 1) * mixer.conv_dim * act_bytes
    state = mixer.heads * (config.headdim * config.d_state + 1) * 4  # and the total decay
    return (size - 1) * (tail + state)


def agree(value: float) -> float:
    """The first process's value, on all."""
    told = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(told, 0)
    return told.item()


def largest(value: float) -> float:
    """The largest value of all processes."""
    told = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return told.item()


def measure(impl: str, length: int, segment: int, settings: Settings) -> report.Row:
    """The figures of one row; every process calls this for ``split``, the first alone for ``one``.

    Raises:
        torch.OutOfMemoryError: the step does not fit.
    """
    split = impl == "split"
    rank, size = (dist.get_rank(), dist.get_world_size()) if split else (0, 1)
    step = SplitStep(settings, dist.group.WORLD if split else None)
    generator = torch.Generator(settings.device).manual_seed(1)
    tokens = torch.randint(BASES.start, BASES.stop, (1, length + 1), device=settings.device, generator=generator)
    own = own_tokens(length, rank, size, segment)
    sequences = {"inputs": take(tokens[:, :-1], own), "targets": take(tokens[:, 1:], own)}
    begin = min(length, 2 * dist.get_world_size() * segment)  # the same tokens for both sides
    warm = {name: tensor[:, : begin // size] for name, tensor in sequences.items()}
    loss = step.train(warm, begin, segment)
    synchronize(settings.device)
    if settings.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    with Traffic.counted(size) as traffic:
        more = True
        while more:
            start = time.perf_counter()
            step.train(sequences, length, segment)
            synchronize(settings.device)
            seconds.append(largest(time.perf_counter() - start) if split else time.perf_counter() - start)
            more = len(seconds) < MOST_STEPS and sum(seconds) + seconds[-1] < BUDGET
    peak = 0.0 if settings.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    took = statistics.median(seconds)
    row: report.Row = {
        "segment": segment,
        "devices": size,
        "seconds": round(took, 4),
        "steps": len(seconds),
        "tokens_per_second": round(length / took, 1),
        "peak_mib": round(largest(peak) if split else peak, 1),
    }
    if not split:
        return row | {"loss": loss.item()}
    mixer = step.model.backbone.layers[0].mixer
    assert isinstance(mixer, Mamba2)
    calls = settings.layers * len(own) * len(seconds)
    forwards = settings.layers * (2 * len(own) - 1) * len(seconds)  # all but the last segment run twice
    dist.all_reduce(loss)
    return row | {
        "loss": loss.item(),
        "sent_forward": round(traffic.sent[SENT[0]] / forwards),
        "sent_backward": round(traffic.sent[SENT[1]] / calls),
        "formula": formula(mixer, size, 2),
    }


def measure_all(impl: str, length: int, settings: Settings) -> report.Row:
    """The row, or its error, on the first process."""
    row: report.Row = {"impl": impl, "case": "train", "length": length, "batch": 1, "mode": "eager"}
    if impl == "one" and dist.get_rank() > 0:
        dist.barrier()
        return row
    try:
        row |= measure(impl, length, settings.segment, settings)
    except torch.OutOfMemoryError as error:  # of like processes, all get here
        row["error"] = f"OutOfMemoryError: {str(error).splitlines()[0]}"[:300]
    release(settings.device)
    if impl == "one":
        dist.barrier()
    return row


def compare(rows: list[report.Row]) -> list[str]:
    """What the rows come to, in sentences."""
    found = {(row["impl"], row["length"]): row for row in rows if "error" not in row}
    lines = []
    for impl, length in sorted(found, key=lambda key: key[1]):
        if impl == "split" and (one := found.get(("one", length))):
            split = found[impl, length]
            ratio = split["tokens_per_second"] / one["tokens_per_second"]
            off = abs(split["loss"] - one["loss"])
            lines.append(
                f"{length:,} tokens: {split['devices']} GPUs are {ratio:.2f} of one; losses differ by {off:.1e}"
            )
    return lines


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="merge the rows into this file")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="tokens")
    parser.add_argument("--impls", default=",".join(IMPLS), help=f"of {','.join(IMPLS)}")
    parser.add_argument("--segment", type=int, default=65_536, help="tokens to a GPU")
    parser.add_argument("--time-limit", type=float, default=570.0, metavar="SECONDS", help="end then")
    parser.add_argument("--device", default="cuda", help="cpu only to try this script")
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=Settings.layers)
    return parser.parse_args()


def main() -> None:
    """Measure every row, write each as it comes, say what they come to."""
    arguments = parse()
    deadline = time.monotonic() + arguments.time_limit
    watchdog = threading.Timer(arguments.time_limit, os._exit, [3])  # a process that failed leaves the others waiting
    watchdog.daemon = True
    watchdog.start()
    settings = Settings(arguments.device, arguments.d_model, segment=arguments.segment, layers=arguments.layers)
    if settings.device != "cpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if settings.device == "cpu" else "cpu:gloo,cuda:nccl")
    first = dist.get_rank() == 0
    result = {
        "commit": measured_commit(arguments.commit, arguments.json is not None) if first else None,
        "versions": describe_versions(),
        "hardware": describe_hardware(torch.device(settings.device)) | {"devices": dist.get_world_size()},
        "d_model": settings.d_model,
        "layers": settings.layers,
        "vocabulary": VOCAB_SIZE,
    }
    rows: list[report.Row] = []
    rates: dict[str, float] = {}
    for length in sorted(int(length) for length in arguments.lengths.split(",")):
        for impl in arguments.impls.split(","):
            needs = 1.1 * length / rates[impl] + 20 if impl in rates else 0.0
            if agree(float(time.monotonic() + needs > deadline)):
                row = {"impl": impl, "case": "train", "length": length, "batch": 1, "mode": "eager"}
                row["error"] = "skipped for want of time"
            else:
                row = measure_all(impl, length, settings)
            rates |= {impl: row["tokens_per_second"]} if "tokens_per_second" in row else {}
            if first:
                rows.append(row)
                print(json.dumps(row), flush=True)
                if arguments.json:
                    report.write(arguments.json, {**result, "rows": [row]})
    if first:
        print(*compare(rows), sep="\n", flush=True)
    dist.destroy_process_group()
    watchdog.cancel()


if __name__ == "__main__":
    main()
