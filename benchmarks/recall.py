"""Does a model remember? Recall of what was read 10^2 to 10^6 tokens earlier, by distance and backbone.

    python benchmarks/recall.py --json benchmarks/results/recall_h100.json --plot
    python benchmarks/recall.py --table benchmarks/results/recall_h100.json

``recall``: pairs of a key and a value, noise, then every key again, in another order, each to be answered with its
value (multi-query associative recall: arXiv:2312.04927; noise has symbols of its own). ``induction``: one marker and
the symbol behind it, noise of the same symbols, the marker again (arXiv:2312.00752, section 4.1.2). The loss is of the
answers alone. The distance is that between the two places of a key, as a mean over the keys of a text.

All backbones have six layers, about as many parameters, and see the same texts in the same order: short ones first,
then ever longer ones, those longer than ``--segment`` in segments with the exact gradient (mamba_core.segments). Texts
of training are at most ``--longest`` tokens; what lies beyond is extrapolated. Then the answers at each distance, read
as a stream (mamba_core.streaming). Attention here has no window, so its state grows: a distance at which it no longer
fits in memory, or in time, is recorded as such.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels import measured_commit, words
from benchmarks.recall_report import Row, draw, table
from domains.config import OptimizerConfig
from domains.folder import write_json
from domains.hardware import describe_hardware, describe_versions
from domains.optim import make_optimizer
from mamba_core import AttentionConfig, BackboneConfig, CausalLM, Mamba2Config, MLPConfig
from mamba_core.segments import in_segments
from mamba_core.state import State
from mamba_core.streaming import stream

IGNORE = -100
PATTERNS = {
    "mamba1": ["mamba1"],
    "mamba2": ["mamba2"],
    "transformer": ["attention", "mlp"],
    "hybrid": ["mamba2", "mamba2", "attention", "mamba2", "mamba2", "mamba2"],
}
DISTANCES = (100, 1_000, 10_000, 100_000, 1_000_000)
STEP = 16  # lengths of training are multiples of it
TRAINING_SHARE = 0.7  # of a backbone's time, at most; the rest is for the evaluation


@dataclass(frozen=True)
class Recall:
    """A task: ``pairs`` of a key and a value, ``distance`` tokens later the keys again, each with its value behind it.

    Symbols are numbered noise, keys, values; with ``noise`` 0 the noise is of values.
    """

    pairs: int
    keys: int
    values: int
    noise: int

    @property
    def vocab_size(self) -> int:
        return self.noise + self.keys + self.values

    @property
    def chance(self) -> float:
        """Accuracy of a guess, which is all that is left to a model that has forgotten the text."""
        return 1 / self.values

    @property
    def unordered(self) -> float | None:
        """About that of a model that remembers the values but not their keys, and says no value twice; None where it
        means nothing."""
        return (
            sum(1 / left for left in range(1, self.pairs + 1)) / self.pairs if self.noise and self.pairs > 1 else None
        )

    @property
    def asked(self) -> int:
        """Tokens of the questions and answers at the end of a text."""
        return 2 * self.pairs

    def batch(self, rows: int, distance: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and targets, int64 (rows, distance + asked), on the generator's device; targets are IGNORE but where
        a key is asked for, and there its value."""
        place: dict[str, Any] = {"generator": generator, "device": generator.device}
        first_value = self.noise + self.keys
        keys = self.noise + torch.rand(rows, self.keys, **place).argsort(dim=1)[:, : self.pairs]
        values = torch.randint(first_value, self.vocab_size, (rows, self.pairs), **place)
        low, high = (0, self.noise) if self.noise else (first_value, self.vocab_size)
        between = torch.randint(low, high, (rows, distance - self.asked), **place)
        order = torch.rand(rows, self.pairs, **place).argsort(dim=1)
        shown = torch.stack([keys, values], dim=2).flatten(1)
        asked = torch.stack([keys.gather(1, order), values.gather(1, order)], dim=2).flatten(1)
        tokens = torch.cat([shown, between, asked], dim=1)
        targets = torch.full_like(tokens, IGNORE)
        targets[:, -self.asked :: 2] = values.gather(1, order)
        return tokens, targets


TASKS = {
    "recall": Recall(pairs=8, keys=16, values=16, noise=16),
    "many": Recall(pairs=64, keys=128, values=16, noise=16),  # more than a small state may hold
    "induction": Recall(pairs=1, keys=1, values=16, noise=0),
}


@dataclass(frozen=True)
class Plan:
    """Sizes and lengths of one comparison."""

    d_model: int = 128
    layers: int = 6
    steps: int = 3000  # attention needs thousands until it minds the keys, however many texts a step has
    tokens_per_step: int = 16_384
    longest: int = 16_384  # tokens of the longest texts of training
    segment: int = 8_192  # longer ones are trained in segments
    chunk: int = 65_536  # tokens that evaluation reads at once
    learning_rate: float = 2e-3
    distances: tuple[int, ...] = DISTANCES
    texts: int = 64  # evaluated at each distance, if they have no more than
    evaluation_tokens: int = 8_000_000  # together, but no fewer than 8


def make_model(backbone: str, vocab_size: int, plan: Plan) -> CausalLM:
    """Six layers of one kind; sizes chosen so that all kinds have about as many parameters."""
    config = BackboneConfig(
        d_model=plan.d_model,
        n_layers=plan.layers,
        pattern=PATTERNS[backbone],
        mamba2=Mamba2Config(d_state=plan.d_model // 2, headdim=plan.d_model // 4),
        # The Mamba layers of a hybrid know the order already.
        attention=AttentionConfig(headdim=plan.d_model // 2, rotary=backbone != "hybrid"),
        mlp=MLPConfig(expand=10 / 3),
    )
    return CausalLM(vocab_size, config)


def texts(task: Recall, plan: Plan, generator: torch.Generator) -> Iterator[tuple[int, int]]:
    """Tokens of the texts of each step, and how many pairs they hold.

    Lengths are log-uniform up to a limit, every fourth at the limit. It stays at the shortest for 0.4 of the steps,
    grows evenly on a logarithmic scale, and is the longest from 0.8 of them on. Every other step has all pairs, the
    rest fewer: one pair is learned first, and the others after it.
    """
    shortest = max(STEP, 2 * task.asked)  # without noise
    for step in range(plan.steps):
        reached = min(1.0, max(0.0, (step / plan.steps - 0.4) / 0.4))
        share, fewer = torch.rand(2, generator=generator).tolist()
        limit = (plan.longest / shortest) ** (reached if step % 4 == 0 else reached * share)
        pairs = task.pairs if step % 2 == 0 else 1 + int(fewer * task.pairs)
        yield STEP * round(shortest * limit / STEP), pairs


def loss_of(model: CausalLM) -> Callable[[dict[str, Tensor], State | None], tuple[tuple[Tensor], State]]:
    """What :func:`in_segments` calls: the sum of the losses of the answers in a stretch of a text."""

    def function(part: dict[str, Tensor], state: State | None) -> tuple[tuple[Tensor], State]:
        logits, state = model(part["tokens"], state)
        flat = logits.flatten(0, 1).float()
        return (F.cross_entropy(flat, part["targets"].flatten(), ignore_index=IGNORE, reduction="sum"),), state

    return function


def train(model: CausalLM, task: Recall, plan: Plan, device: torch.device, deadline: float) -> Row:
    """Train until the steps are done or the deadline has come; what it took, and the mean loss of the last steps."""
    began = time.monotonic()
    optimizer, schedule = make_optimizer(model, OptimizerConfig(plan.learning_rate, 0.01), plan.steps, device)
    random = torch.Generator(device).manual_seed(1)
    losses: list[Tensor] = []
    tokens = 0
    for length, pairs in texts(task, plan, torch.Generator().manual_seed(2)):
        if len(losses) % 16 == 0 and losses:
            losses[-1].item()  # the clock is of work done, not of work queued
        if time.monotonic() > deadline:
            break
        rows = max(1, plan.tokens_per_step // length)
        part = dataclasses.replace(task, pairs=pairs)
        inputs, targets = part.batch(rows, length - part.asked, random)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            (total,), _ = in_segments(
                loss_of(model), model.parameters(), {"tokens": inputs, "targets": targets}, length=plan.segment
            )
        loss = total / (rows * pairs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        tokens += inputs.numel()
    last = torch.stack(losses[-20:]).mean().item() if losses else None
    seconds = round(time.monotonic() - began, 1)
    cut = {} if len(losses) == plan.steps else {"note": "training was cut by the time limit"}
    return {"steps": len(losses), "tokens": tokens, "loss": last, "training_seconds": seconds} | cut


@torch.no_grad()
def evaluate(model: CausalLM, task: Recall, plan: Plan, device: torch.device, distance: int, deadline: float) -> Row:
    """Accuracy at one distance, the texts read as a stream; a reason in its place when memory or time gave out."""
    rows = min(plan.texts, max(8, plan.evaluation_tokens // distance))
    tokens, targets = task.batch(rows, distance, torch.Generator().manual_seed(distance))
    chunks = [*tokens[:, : -task.asked].split(plan.chunk, dim=1), tokens[:, -task.asked :]]
    row: Row = {"distance": distance, "answers": rows * task.pairs, "accuracy": None, "state_bytes": None}
    began = time.monotonic()
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            for found in stream(model, chunks):  # noqa: B007
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if time.monotonic() > deadline:
                    return row | {"note": "time limit"}
        logits, state = found
        said = logits[:, ::2].argmax(dim=-1).cpu()
    except torch.OutOfMemoryError:
        return row | {"note": "out of memory"}
    row["accuracy"] = (said == targets[:, -task.asked :: 2]).double().mean().item()
    row["state_bytes"] = sum(tensor.nbytes for tensor in state.values()) // rows
    return row | {"seconds": round(time.monotonic() - began, 2)}


def measure(name: str, backbone: str, plan: Plan, device: torch.device, deadline: float) -> list[Row]:
    """Train one backbone on one task; a row for each distance."""
    task, began = TASKS[name], time.monotonic()
    torch.manual_seed(0)
    model = make_model(backbone, task.vocab_size, plan).to(device)
    about = {
        "task": name,
        "backbone": backbone,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    about |= train(model, task, plan, device, began + TRAINING_SHARE * (deadline - began))
    print(f"{name:<10} {backbone:<12} {about}", flush=True)
    rows = []
    for distance in plan.distances:
        rows.append(about | evaluate(model, task, plan, device, distance, deadline))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        found = rows[-1]
        said = found["note"] if found["accuracy"] is None else f"{found['accuracy']:.3f} of {found['answers']}"
        print(f"{name:<10} {backbone:<12} {distance:>9,} {said}", flush=True)
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line: one option for each number of the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--plot", action="store_true", help="a PNG beside the JSON")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of a result, and stop")
    parser.add_argument("--backbones", type=words(tuple(PATTERNS)), default=list(PATTERNS))
    parser.add_argument("--tasks", type=words(tuple(TASKS)), default=["recall"], help=f"of {','.join(TASKS)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--time-limit", type=float, default=300.0, metavar="SECONDS", help="end by then, with a result")
    for field in dataclasses.fields(Plan):
        option = f"--{field.name.replace('_', '-')}"
        if field.name == "distances":
            parser.add_argument(option, type=lambda text: tuple(map(int, text.split(","))), default=field.default)
        else:
            parser.add_argument(option, type=type(field.default), default=field.default)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure every backbone on every task, print the table, write the JSON if asked."""
    given = parse(arguments)
    if given.table:
        print(table(json.loads(given.table.read_text())))
        return
    commit = measured_commit(given.commit, given.json is not None)
    plan = Plan(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Plan)})
    device = torch.device(given.device)
    end = time.monotonic() + given.time_limit
    result: Row = {
        "hardware": describe_hardware(device),
        "commit": commit,
        "versions": describe_versions(),
        "plan": dataclasses.asdict(plan),
        "chance": {name: TASKS[name].chance for name in given.tasks},
        "values_without_keys": {name: TASKS[name].unordered for name in given.tasks},
        "rows": [],
    }
    runs = [(name, backbone) for name in given.tasks for backbone in given.backbones]
    for i, (name, backbone) in enumerate(runs):
        now = time.monotonic()
        result["rows"] += measure(name, backbone, plan, device, now + (end - now) / (len(runs) - i))
        if given.json:  # after each: what has been measured is not lost
            write_json(given.json, result)
    print(table(result))
    if given.json and given.plot:
        draw(result, given.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
