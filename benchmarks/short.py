"""Short sequences and decoding on a GPU, where launches cost more than the work: eager, in CUDA graphs, compiled.

    python benchmarks/short.py --mamba-ssm mamba_ssm-2.3.2 --json benchmarks/results/short_h200.json

Rows, timing and the file are those of kernels.py; the modes stand in jobs.py. mamba_ssm beside it is its Triton half
alone, without its CUDA extensions and with torch.nn.Conv1d (peers.py), eager against eager and graph against graph. The
bars are those of the project's issue G, set for an H100; what is printed at the end is each beside what was measured,
and where the GPU's time goes.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import floors, kernels, peers, report
from benchmarks.jobs import Job, Settings, run_jobs

WORKER = Path(__file__).resolve().parent / "worker.py"
BOTH = ("serpentine", "mamba_ssm")
OURS = ("serpentine",)
PARTS = ("layers", "decode", "transformer", "compile", "peers")
# (case, batch, length, mode, mixer, variant) -> bar and goal in ms, forward and forward + backward; None: there is none
BARS: dict[tuple[Any, ...], tuple[tuple[float, float], tuple[float, float] | None]] = {
    ("mamba2_layer", 1, 2048, "eager", None, None): ((0.40, 0.25), (1.6, 1.0)),
    ("mamba2_layer", 1, 2048, "graph", None, None): ((0.15, 0.10), (0.6, 0.4)),
    ("mamba1_layer", 1, 2048, "eager", None, None): ((0.25, 0.20), (1.2, 0.8)),
    ("mamba2_layer", 1, 2048, "one thread", None, None): ((0.40, 0.25), (1.6, 1.0)),
    ("mamba1_layer", 1, 2048, "one thread", None, None): ((0.25, 0.20), (1.2, 0.8)),
    ("mamba2_layer", 16, 2048, "eager", None, None): ((float("inf"), float("inf")), (4.5, 3.5)),
    ("decode", 1, 1, "graph", "mamba2", None): ((0.40, 0.25), None),
    ("decode", 64, 1, "graph", "mamba2", None): ((1.6, 1.35), None),
    ("decode", 64, 1, "graph", "mamba2", "bf16 state"): ((1.1, 0.8), None),
}


def make_jobs(parts: list[str]) -> list[Job]:
    """The jobs in order, those with bars first."""
    jobs = [Job("ceilings", 0, impls=("floor",))]
    if "decode" in parts:
        for mixer in ("mamba2", "mamba1"):
            for batch in (1, 8, 64):
                sides = BOTH if batch != 8 else OURS
                jobs.append(Job("decode", 1, batch, sides, "graph", mixer))
                if mixer == "mamba2" and batch == 1:
                    jobs.append(Job("decode", 1, batch, OURS, "graph", mixer, "no pdl"))
            jobs.append(Job("decode", 1, 64, OURS, "graph", mixer, "bf16 state"))
            jobs.append(Job("decode", 1, 1, OURS, "eager", mixer))
    if "transformer" in parts:
        for length in (1024, 8192, 65_536):
            for batch in (1, 64):
                jobs.append(Job("decode_after", length, batch, ("transformer",), "graph", variant="gqa"))
                if length < 65_536:
                    jobs.append(Job("decode_after", length, batch, ("transformer",), "graph", variant="mha"))
    if "layers" in parts:
        shapes = [(2048, 1, mode) for mode in ("eager", "one thread", "graph")]
        shapes += [(2048, 16, mode) for mode in ("eager", "one thread", "graph")] + [(8192, 1, "eager")]
        jobs += [Job("mamba2_layer", length, batch, OURS, mode) for length, batch, mode in shapes]
        jobs += [Job("mamba1_layer", length, batch, OURS, mode) for length, batch, mode in shapes]
    if "compile" in parts:
        jobs += [Job(f"{mixer}_layer", 2048, 1, OURS, "compile") for mixer in ("mamba2", "mamba1")]
    if "peers" in parts:  # in turn with ours, after a minute or more in which it chooses among its kernels
        jobs += [Job("mamba2_layer", 2048, batch, BOTH, mode) for batch in (1, 16) for mode in ("eager", "graph")]
    return jobs


def verdicts(rows: list[report.Row]) -> list[str]:
    """A line for each bar: what was measured beside it."""
    found = {
        tuple(row.get(name) for name in ("case", "batch", "length", "mode", "mixer", "variant")): row
        for row in rows
        if row["impl"] == "serpentine"
    }
    lines = []
    for key, (forward, both) in BARS.items():
        row = found.get(key, {})
        for what, name, limits in (("forward", "fwd_ms", forward), ("with backward", "fwdbwd_ms", both)):
            value = row.get(name)
            if limits is None or limits[0] == float("inf") or value is None:
                continue
            bar, goal = limits
            word = "goal met" if value <= goal else "bar met" if value <= bar else "missed"
            label = " ".join(str(part) for part in key if part is not None)
            fastest = row.get(name.replace("_ms", "_fastest_ms"), value)
            shown = f"{value:8.3f} ms (fastest round {fastest:.3f})"
            lines.append(f"{label:<40} {what:<14} {shown}  bar {bar:g}, goal {goal:g}: {word}")
    return lines


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="merge the result into this file")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument(
        "--parts", type=kernels.words(PARTS), default=["decode", "layers", "transformer"], help=f"of {','.join(PARTS)}"
    )
    parser.add_argument("--mamba-ssm", metavar="FOLDER", help="its unpacked source distribution")
    parser.add_argument("--quick", action="store_true", help="a fifth of the calls")
    parser.add_argument("--device-limit", type=float, default=240.0, metavar="SECONDS", help="skip what is left then")
    parser.add_argument("--device", default="cuda", help="cpu only to try this script")
    parser.add_argument("--d-model", type=int, default=1024)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print, write the JSON if asked."""
    arguments = parse()
    commit = kernels.measured_commit(arguments.commit, arguments.json is not None)
    deadline = time.monotonic() + arguments.device_limit
    peer = str(peers.check(arguments.mamba_ssm).parent.resolve()) if arguments.mamba_ssm else None
    settings = Settings(arguments.device, arguments.d_model, peer, arguments.quick)
    jobs = make_jobs(arguments.parts)
    if peer is None:
        jobs = [Job(**vars(job) | {"impls": tuple(i for i in job.impls if i != "mamba_ssm")}) for job in jobs]
    about: dict[str, Any] = {}
    rows: list[report.Row] = []
    with tempfile.TemporaryDirectory() as cache:
        environment = {"TRITON_CACHE_DIR": cache, **os.environ}
        for message in run_jobs(jobs, [sys.executable, str(WORKER)], settings, deadline, environment=environment):
            if "about" in message:
                about |= message["about"]
            elif message["row"]["case"] != "ceilings":
                rows.append(message["row"])
                kernels.show(message["row"])
    for job in jobs[1:]:
        if (
            job.mode in ("eager", "graph")
            and job.case != "decode_after"
            and "ceilings" in about
            and job.variant is None
        ):
            rows.append(floors.floor_row(job, about["ceilings"], settings.d_model) or {})
    if arguments.json and "hardware" in about:
        result = {"hardware": about.pop("hardware"), "commit": commit, "versions": kernels.versions(peer)}
        report.write(
            arguments.json, result | {"d_model": settings.d_model, **about, "rows": [row for row in rows if row]}
        )
        print(f"written to {arguments.json}")
    print(json.dumps(about.get("ceilings", {})))
    print("\n".join(verdicts(rows)))


if __name__ == "__main__":
    main()
