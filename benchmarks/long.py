"""Are a million and four million tokens right? Each operation and layer against itself in segments that pass state.

    python benchmarks/long.py --json benchmarks/results/kernels_h100.json

d_model 1024, bf16, segments of 131,009 tokens: no border of a kernel's chunk is one of the whole call's. Outputs and
final state at both lengths; gradients of every input, weight and initial state at 1,048,576, and of ssd at 4,194,304
too, where the others do not fit in memory (4,194,304 tokens want a GPU of 140 GB). In segments, gradients go back
through the states that were passed. A quarter of the decay rates are so slow that a state outlives the whole sequence:
a mistake in passing it on would show. Relative errors are norm(whole - segments) / norm(segments), tensor by tensor;
the tolerance is that of bf16. Exit code 1 if any is larger.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.jobs import Job, Settings, run_jobs
from benchmarks.kernel_cases import Tensors, make_inputs, make_layer
from benchmarks.kernels import measured_commit
from benchmarks.worker import release, send, serve
from domains.hardware import describe_hardware, describe_versions
from mamba_core.mixers import Mixer
from mamba_core.ops.selective_scan import selective_scan
from mamba_core.ops.ssd import ssd
from mamba_core.state import State

CASES = ("ssd", "selective_scan", "mamba1_layer", "mamba2_layer")
LENGTHS = (1_048_576, 4_194_304)
WITH_GRADIENTS = 1_048_576  # tokens up to which every case has gradients
TOLERANCE = 1e-2
SEQUENCES = ("x", "dt", "B", "C", "z")
Result = tuple[Tensor, Tensors]


@dataclass
class Problem:
    """A function ``y, state = f(sequences, weights, state)``, and what to call it with."""

    function: Callable[[Tensors, Tensors, Tensors], Result]
    sequences: Tensors
    weights: Tensors
    state: Tensors
    grad: Tensor | None  # of y


def slow_rates(count: int, device: str) -> Tensor:
    """-A: a quarter from 1e-9 to 1e-4, so that dt A adds up to little over millions of tokens; the rest 1 to 16."""
    exponents = torch.linspace(math.log(1e-9), math.log(1e-4), count // 4, device=device)
    return torch.cat([exponents.exp(), torch.linspace(1.0, 16.0, count - count // 4, device=device)])


def make_problem(job: Job, settings: Settings, gradients: bool) -> Problem:
    """Random inputs with a random initial state."""
    device = settings.device
    if job.case.endswith("_layer"):
        return _layer_problem(job, settings, gradients)
    tensors = make_inputs(job.case, 1, job.length, settings)
    grad = tensors.pop("grad")
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    if job.length > WITH_GRADIENTS and job.case == "ssd":
        tensors["dt"] = tensors["dt"].contiguous()  # the projection that it is a slice of takes 37 GB there
    channels = tensors["A"].shape[0]
    tensors["A"] = -slow_rates(channels, device)
    if job.case == "selective_scan":
        tensors["A"] = tensors["A"][:, None] * torch.rand(1, tensors["B"].shape[-1], device=device).add(0.5)
        shape: tuple[int, ...] = (1, channels, tensors["B"].shape[-1])
    else:
        shape = (1, *tensors["x"].shape[2:], tensors["B"].shape[-1])
    operation: Callable[..., tuple[Tensor, Tensor]] = ssd if job.case == "ssd" else selective_scan

    def function(sequences: Tensors, weights: Tensors, state: Tensors) -> Result:
        y, final = operation(**sequences, **weights, initial_state=state["state"])
        return y, {"state": final}

    sequences = {name: tensor for name, tensor in tensors.items() if name in SEQUENCES}
    weights = {name: tensor for name, tensor in tensors.items() if name not in SEQUENCES}
    return Problem(
        function, sequences, weights, {"state": torch.randn(shape, device=device)}, grad if gradients else None
    )


def _layer_problem(job: Job, settings: Settings, gradients: bool) -> Problem:
    layer, _ = make_layer("serpentine", job.case.removesuffix("_layer"), settings)
    assert isinstance(layer, Mixer)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    A_log = parameters["A_log"]
    rates = slow_rates(A_log.shape[0], settings.device).log()
    parameters["A_log"] = rates if A_log.ndim == 1 else rates[:, None] + A_log * 0.1
    # Where nothing decays, small steps too: else the mean of x B^T outgrows all else, y becomes a multiple of one
    # vector, its norm little more than a sign, and what shows is 16 bits, not kernels (0.2 of the gradient of C).
    parameters["dt_bias"][: A_log.shape[0] // 4] = math.log(1e-6)
    start = layer.init_state(1, settings.device)
    index = start["seq_idx"].clamp(min=0)  # in the middle of document 0, as every later segment is
    state = {name: torch.randn_like(tensor) for name, tensor in start.items() if name != "seq_idx"}

    def function(sequences: Tensors, weights: Tensors, state: Tensors) -> Result:
        whole = State({**state, "seq_idx": index})
        y, after = torch.func.functional_call(layer, weights, (sequences["x"], whole))
        return y, {name: tensor for name, tensor in after.items() if name != "seq_idx"}

    tensors = make_inputs(job.case, 1, job.length, settings)
    grad = tensors["grad"] if gradients else None
    return Problem(function, {"x": tensors["x"].detach()}, parameters, state, grad)


class Errors:
    """Sums of squares by name, for the relative error of tensors that come in pieces."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, name: str, got: Tensor, want: Tensor) -> None:
        sums = self.sums.setdefault(name, [0.0, 0.0])
        got, want = got.detach().float(), want.detach().float()
        sums[0] += float((got - want).norm()) ** 2
        sums[1] += float(want.norm()) ** 2

    def relative(self) -> dict[str, float]:
        return {name: math.sqrt(off / max(size, 1e-30)) for name, (off, size) in self.sums.items()}


def compare(problem: Problem, segment: int) -> dict[str, float]:
    """Relative errors of the whole call against segments of ``segment`` tokens, by output."""
    function, weights, grad = problem.function, problem.weights, problem.grad
    length = problem.sequences["x"].shape[1]
    cuts = [slice(start, start + segment) for start in range(0, length, segment)]
    errors = Errors()
    groups = (problem.sequences, weights, problem.state)
    sequences, leaves, state = ({n: t.detach().requires_grad_(grad is not None) for n, t in g.items()} for g in groups)

    y, final = function(sequences, leaves, state)
    passed = [problem.state]
    with torch.no_grad():
        for cut in cuts:
            piece, after = function({n: t[:, cut] for n, t in problem.sequences.items()}, weights, passed[-1])
            errors.add("y", y[:, cut], piece)
            passed.append(after)
    for name, tensor in passed[-1].items():
        errors.add(f"final {name}", final[name], tensor)
    if grad is None:
        return errors.relative()

    upstream = {name: torch.randn_like(tensor) for name, tensor in final.items()}
    inputs = [*sequences.values(), *leaves.values(), *state.values()]
    whole = dict(zip(_names(problem), _gradients((y, final), inputs, grad, upstream), strict=True))
    del y, final
    totals = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
    for i in reversed(range(len(cuts))):
        pieces = {n: t[:, cuts[i]].detach().requires_grad_() for n, t in problem.sequences.items()}
        entered = {name: tensor.detach().requires_grad_() for name, tensor in passed[i].items()}
        results = function(pieces, leaves, entered)
        inputs = [*pieces.values(), *leaves.values(), *entered.values()]
        parts = dict(zip(_names(problem), _gradients(results, inputs, grad[:, cuts[i]], upstream), strict=True))
        for name in pieces:
            errors.add(f"gradient of {name}", whole["sequence", name][:, cuts[i]], parts["sequence", name])
        for name in totals:
            totals[name] += parts["weight", name]
        upstream = {name: parts["state", name] for name in entered}
    for name, total in totals.items():
        errors.add(f"gradient of {name}", whole["weight", name], total)
    for name, tensor in upstream.items():
        errors.add(f"gradient of initial {name}", whole["state", name], tensor)
    return errors.relative()


def _names(problem: Problem) -> list[tuple[str, str]]:
    """Where each gradient belongs: a weight may share its name with a sequence."""
    groups = (("sequence", problem.sequences), ("weight", problem.weights), ("state", problem.state))
    return [(kind, name) for kind, group in groups for name in group]


def _gradients(results: Result, inputs: list[Tensor], grad: Tensor, upstream: Tensors) -> tuple[Tensor, ...]:
    y, final = results
    return torch.autograd.grad([y, *final.values()], inputs, [grad, *(upstream[name] for name in final)])


def errors_of(job: Job, settings: Settings, gradients: bool) -> dict[str, float] | None:
    """Errors by output, None where the GPU's memory does not hold it."""
    try:
        with torch.set_grad_enabled(gradients):
            return compare(make_problem(job, settings, gradients), settings.segment)
    except torch.OutOfMemoryError:
        return None


def check(job: Job, settings: Settings) -> None:
    """The worker's part: the errors of one case at one length."""
    if job.case == "ceilings":
        send(about={"hardware": describe_hardware(torch.device(settings.device))})
        return
    send(trying="serpentine")
    gradients = job.length <= WITH_GRADIENTS or job.case == "ssd"
    found = errors_of(job, settings, gradients)
    if found is None:
        row = {"case": job.case, "length": job.length, "output": "gradients", "error": None, "tolerance": TOLERANCE}
        send(long=row | {"skipped": "out of memory"})
        release(settings.device)
        found = errors_of(job, settings, False)
        if found is None:
            raise MemoryError("out of GPU memory")
    for output, error in found.items():
        measured = error if math.isfinite(error) else None  # which JSON could not hold
        row = {"case": job.case, "length": job.length, "output": output, "error": measured, "tolerance": TOLERANCE}
        send(long=row if measured is not None else row | {"failed": "not finite"})


def passes(row: report.Row) -> bool:
    """Whether an error is within its tolerance, or was not promised: gradients beyond WITH_GRADIENTS tokens."""
    if "skipped" in row:
        return row["length"] > WITH_GRADIENTS
    return row["error"] is not None and row["error"] <= row["tolerance"]


def main() -> None:
    """Check every case, print, write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="merge the errors into this result of kernels.py")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--device-limit", type=float, default=570.0, metavar="SECONDS", help="skip what is left then")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--segment", type=int, default=131_009)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(check)
        return
    commit = measured_commit(arguments.commit, arguments.json is not None)
    settings = Settings(arguments.device, arguments.d_model, segment=arguments.segment)
    jobs = [Job(case, int(length)) for length in arguments.lengths.split(",") for case in arguments.cases.split(",")]
    command = [sys.executable, os.path.abspath(__file__), "--worker"]
    hardware, rows = None, []
    deadline = time.monotonic() + arguments.device_limit
    for message in run_jobs([Job("ceilings", 0), *jobs], command, settings, deadline):
        if "about" in message:
            hardware = message["about"]["hardware"]
            continue
        row = message.get("long") or {name: message["row"][name] for name in ("case", "length")} | {
            "output": None,
            "error": None,
            "tolerance": TOLERANCE,
            "failed": message["row"]["error"],
        }
        rows.append(row)
        found = row.get("failed", row.get("skipped")) if row["error"] is None else f"{row['error']:.2e}"
        verdict = "" if passes(row) else " FAILED"
        print(f"{row['case']:<15} {row['length']:>9,} {row['output'] or '':<24} {found}{verdict}", flush=True)
    if hardware is None:
        raise SystemExit("nothing was written: no device")
    if arguments.json:
        result = {"hardware": hardware, "commit": commit, "versions": describe_versions(), "d_model": settings.d_model}
        report.write(arguments.json, {**result, "rows": [], "long": rows})
        print(f"written to {arguments.json}")
    sys.exit(0 if all(map(passes, rows)) else 1)


if __name__ == "__main__":
    main()
