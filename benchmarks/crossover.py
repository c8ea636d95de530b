"""From which length on Mamba is faster than attention: training steps and prefill from 256 to 262,144 tokens.

    python benchmarks/crossover.py --json benchmarks/results/crossover_h200.json

Stacks of width d_model with the same weights (26 M at 1,024): four Mamba-1 or four Mamba-2 layers, or two Transformer
blocks (transformer.py: flash attention, grouped queries, gated MLP), all in bfloat16.

    training   forward and backward of 65,536 tokens a step, as many sequences as that makes (one, where they are
    longer):
               how one trains, and enough work that no launch counts
    prefill    one sequence, forward alone, replayed as a CUDA graph: how long a reader waits

The crossing is found where the lines of milliseconds cross (in logarithms), and beside it by a rule: attention costs a
+ b L microseconds a token of a sequence of L, a Mamba layer c, so they are equal at L = (c - a) / b. --json also draws
a PNG.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import transformer
from benchmarks.jobs import Settings
from benchmarks.kernel_cases import captured, halved, mixer_configs
from benchmarks.kernels import measured_commit
from benchmarks.worker import burst, release, synchronize
from domains.folder import write_json
from domains.hardware import describe_hardware, describe_versions
from mamba_core.blocks import Block

LENGTHS = tuple(2**k for k in range(8, 19))
TOKENS = 65_536  # of a training step
LAYERS = 4
KINDS = ("attention", "mamba1", "mamba2")
WHATS = ("training", "prefill")
BUDGET_MS = 1500.0  # of one point


class Stack(nn.Module):
    """Mamba layers with norms and residuals."""

    def __init__(self, mixer: str, d_model: int):
        super().__init__()
        config = mixer_configs()[mixer]
        self.layers = nn.ModuleList(Block(d_model, config.build(d_model, 1e-5), 1e-5) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, d_model) -> the same."""
        for layer in self.layers:
            x = layer(x)[0]
        return x


def build(kind: str, settings: Settings) -> nn.Module:
    """One of KINDS on the device."""
    if kind == "attention":
        stack: nn.Module = nn.Sequential(*[transformer.Block(settings.d_model) for _ in range(LAYERS // 2)])
    else:
        stack = Stack(kind, settings.d_model)
    return halved(stack, settings.device)


def call_of(what: str, model: nn.Module, batch: int, length: int, settings: Settings) -> Callable[[int], object]:
    """What is timed."""
    shape = (batch, length, settings.d_model)
    x = torch.randn(shape, dtype=torch.bfloat16, device=settings.device)
    if what == "prefill":

        def infer() -> Tensor:
            with torch.no_grad():
                return model(x)

        replay = infer if settings.device == "cpu" else captured(infer)
        return lambda _: replay()
    grad, parameters = torch.randn_like(x), list(model.parameters())
    x.requires_grad_()
    return lambda _: torch.autograd.grad(model(x), [x, *parameters], grad)


def measure(what: str, kind: str, length: int, settings: Settings) -> dict[str, Any]:
    """Median milliseconds of one point, or the error."""
    batch = max(1, TOKENS // length) if what == "training" and settings.device != "cpu" else 1
    row: dict[str, Any] = {"what": what, "kind": kind, "length": length, "batch": batch}
    try:
        call = call_of(what, build(kind, settings), batch, length, settings)
        once = min(burst(call, 2, settings.device))
        count = int(max(2, min(30, BUDGET_MS / (5 if settings.quick else 1) / max(once, 1e-3))))
        found = burst(call, count, settings.device)
        row["ms"] = round(statistics.median(found[1:] or found), 4)
        row["us_per_token"] = round(1e3 * row["ms"] / batch / length, 5)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
        synchronize(settings.device)
    release(settings.device)
    return row


def crossing(rows: list[dict[str, Any]], what: str, mixer: str) -> float | None:
    """The length at which a mixer and attention take as long, by lines between measured points; None: there is none."""
    times = {
        kind: {row["length"]: row["ms"] for row in rows if row["what"] == what and row["kind"] == kind and "ms" in row}
        for kind in ("attention", mixer)
    }
    lengths = sorted(times["attention"].keys() & times[mixer].keys())
    lead = [math.log(times["attention"][length] / times[mixer][length]) for length in lengths]
    for i in range(len(lengths) - 1):
        if lead[i] < 0 <= lead[i + 1]:
            share = -lead[i] / (lead[i + 1] - lead[i])
            return lengths[i] * (lengths[i + 1] / lengths[i]) ** share
    return lengths[0] if lead and lead[0] >= 0 else None


def rule(rows: list[dict[str, Any]], what: str, mixer: str) -> dict[str, float] | None:
    """a, b and c in microseconds a token, and (c - a) / b; from the longest sequences of attention and all of the mixer
    from 4,096 tokens on."""
    long = [row for row in rows if row["what"] == what and "ms" in row and row["length"] >= 4096]
    attention = [(row["length"], row["us_per_token"]) for row in long if row["kind"] == "attention"]
    own = [row["us_per_token"] for row in long if row["kind"] == mixer]
    if len(attention) < 2 or not own:
        return None
    mean_l, mean_t = (statistics.mean(values) for values in zip(*attention, strict=True))
    b = sum((l - mean_l) * (t - mean_t) for l, t in attention) / sum((l - mean_l) ** 2 for l, _ in attention)
    a, c = mean_t - b * mean_l, statistics.median(own)
    return {"a": round(a, 5), "b": round(b, 9), "c": round(c, 5), "length": round((c - a) / b)}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A crossing and a rule for each mixer, in training and prefill."""
    found = []
    for what in WHATS:
        for mixer in KINDS[1:]:
            at = crossing(rows, what, mixer)
            found.append({"what": what, "mixer": mixer, "crossing": at and round(at), "rule": rule(rows, what, mixer)})
    return found


def draw(result: dict[str, Any], target: Path) -> None:
    """Microseconds a token by length, training beside prefill."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = {"attention": "Transformer", "mamba1": "Mamba-1", "mamba2": "Mamba-2"}
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharex=True)
    for axis, what in zip(axes, WHATS, strict=True):
        for kind in KINDS:
            rows = [row for row in result["rows"] if row["what"] == what and row["kind"] == kind and "ms" in row]
            axis.loglog(
                [row["length"] for row in rows], [row["us_per_token"] for row in rows], "o-", ms=3, label=names[kind]
            )
        for entry in result["crossings"]:
            if entry["what"] == what and entry["crossing"]:
                axis.axvline(entry["crossing"], color="grey", linewidth=0.8, linestyle="--")
                label = f"{names[entry['mixer']]} from {entry['crossing']:,}"
                axis.annotate(
                    label, (entry["crossing"], axis.get_ylim()[1]), rotation=90, va="top", ha="right", fontsize=7
                )
        axis.set(xlabel="tokens of a sequence", ylabel="microseconds a token", title=what)
        axis.legend()
    figure.suptitle(f"{result['hardware'].get('gpu', result['hardware']['device'])}, stacks of equal weights")
    figure.savefig(target, dpi=110)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here, and a PNG beside it")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="tokens")
    parser.add_argument("--quick", action="store_true", help="a fifth of the calls")
    parser.add_argument("--device", default="cuda", help="cpu only to try this script")
    parser.add_argument("--d-model", type=int, default=1024)
    arguments = parser.parse_args()
    commit = measured_commit(arguments.commit, arguments.json is not None)
    settings = Settings(arguments.device, arguments.d_model, None, arguments.quick)
    result: dict[str, Any] = {
        "hardware": describe_hardware(torch.device(arguments.device)),
        "commit": commit,
        "versions": describe_versions(),
        "d_model": settings.d_model,
        "layers": LAYERS,
        "tokens_per_training_step": TOKENS,
        "rows": [],
    }
    for length in map(int, arguments.lengths.split(",")):
        for what in WHATS:
            for kind in KINDS:
                result["rows"].append(measure(what, kind, length, settings))
                print(result["rows"][-1], flush=True)
        result["crossings"] = summary(result["rows"])
        if arguments.json:  # after each length, for time may run out
            write_json(arguments.json, result)
            draw(result, arguments.json.with_suffix(".png"))
    for entry in result["crossings"]:
        print(entry)
    if arguments.json:
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
