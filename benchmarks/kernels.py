"""This project's operations and layers on a GPU beside mamba_ssm's Triton kernels, attention, and the floor.

    python benchmarks/kernels.py --mamba-ssm mamba_ssm-2.3.2 --json benchmarks/results/kernels_h100.json
    python benchmarks/kernels.py --table benchmarks/results/kernels_h100.json --into benchmarks/RESULTS.md

All rows are eager (no CUDA graph, no torch.compile) but the decode rows that say "graph", for both sides. How calls
are timed stands in worker.py, what is called in kernel_cases.py, the floors' formulas in floors.py, how mamba_ssm is
imported without its CUDA extension in peers.py. Its CUDA scan cannot run that way: those figures come from the field
notes and are marked. A first_call row is a fresh process with an empty Triton cache, from the first import to the end
of forward and backward, which stands in fwdbwd_ms.

--json merges into a file of the same commit, GPU and versions, and replaces any other. What fails gets an ``error``
in its row; the rest goes on.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import floors, peers, report
from benchmarks.jobs import Job, Message, Settings, run_jobs
from domains.folder import write_json
from domains.hardware import describe_hardware, describe_versions, git_commit

HERE = Path(__file__).resolve().parent
# 65,536 first: mamba_ssm tunes its kernels at the first length that it meets, and this is the one with bars.
LENGTHS = (65_536, 2_048, 8_192, 262_144, 1_048_576)
CASES = ("first_call", "ssd", "selective_scan", "mamba1_layer", "decode", "conv", "norm", "mamba2_layer")
IMPLS = ("serpentine", "mamba_ssm", "attention", "floor")
RUNNABLE = {  # what runs without mamba_ssm's CUDA extension; the rest comes from the notes
    "ssd": ("serpentine", "mamba_ssm", "attention"),
    "mamba2_layer": ("serpentine", "mamba_ssm"),
    "decode": ("serpentine", "mamba_ssm"),
}
LONGEST_ATTENTION = 65_536
SMALL_BATCH, SMALL_LENGTH = 16, 2_048
FIRST_LENGTH, FIRST_LIMIT = 8_192, 150.0


def make_jobs(cases: list[str], lengths: list[int], impls: list[str]) -> list[Job]:
    """The jobs in order; what may take the GPU's context down (mamba_ssm's layer at a million tokens) comes last."""
    jobs = [Job("ceilings", 0, impls=("floor",))]
    shapes = [(1, length) for length in lengths if length <= LENGTHS[0]]
    if SMALL_LENGTH in lengths:
        shapes.append((SMALL_BATCH, SMALL_LENGTH))
    shapes += [(1, length) for length in lengths if length > LENGTHS[0]]
    for batch, length in shapes:
        for case in cases:
            sides = tuple(impl for impl in RUNNABLE.get(case, ("serpentine",)) if impl in impls)
            if case in ("first_call", "decode") or not sides:
                continue
            if length > LONGEST_ATTENTION:
                sides = tuple(impl for impl in sides if impl != "attention")
            jobs.append(Job(case, length, batch, sides))
    if "decode" in cases:
        sides = tuple(impl for impl in RUNNABLE["decode"] if impl in impls)
        decode = [
            Job("decode", 1, batch, sides, mode, mixer)
            for mixer in ("mamba2", "mamba1")
            for batch in (1, 64)
            for mode in ("eager", "graph")
        ]
        place = max(1, len(jobs) - 1)  # before the last
        jobs[place:place] = decode
    return [job for job in jobs if job.impls]


def first_calls(impls: list[str], settings: Settings, cache: Path, deadline: float) -> Iterator[Message]:
    """Fresh processes, each with an empty cache; the workers use mamba_ssm's, which takes minutes to fill."""
    for impl, mixer in (("serpentine", "mamba2"), ("serpentine", "mamba1"), ("mamba_ssm", "mamba2")):
        if impl not in impls:
            continue
        job = Job("first_call", FIRST_LENGTH, impls=(impl,), mixer=mixer)
        seconds = min(FIRST_LIMIT, deadline - time.monotonic())
        if seconds <= 0:
            yield {"row": job.row(impl, error="skipped: the time limit was reached")}
            continue
        folder = cache / ("workers" if impl == "mamba_ssm" else f"first_{mixer}")
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, str(HERE / "first_call.py"), impl, mixer, str(FIRST_LENGTH)]
        command += ["--device", settings.device, "--d-model", str(settings.d_model)]
        command += ["--mamba-ssm", settings.peer] if settings.peer else []
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=seconds,
                env={**os.environ, "TRITON_CACHE_DIR": str(folder)},
            )
            found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
            last = ["", *done.stderr.strip().splitlines()][-1]
        except subprocess.TimeoutExpired:
            found, last = None, f"not finished within {seconds:.0f} s"
        if found is None:
            yield {"row": job.row(impl, error=last[:300] or "the process failed")}
        else:
            note = f"{found['imports']:.1f} s of it until everything was imported and built"
            yield {"row": job.row(impl, fwdbwd_ms=round(1e3 * found["seconds"], 1), note=note)}


def show(row: report.Row) -> None:
    """One line for a reader."""
    figures = [report.number(row.get(name)) for name in ("fwd_ms", "fwdbwd_ms")]
    memory = row.get("extra_peak_mib")
    mixer = "".join(f" {row[name]}" for name in ("mixer", "variant") if name in row)
    print(
        f"{row['impl']:<10} {row['case'] + mixer:<26} {row['batch']:>2} x {row['length']:>9,} {row['mode']:<10} "
        f"{figures[0]:>9} {figures[1]:>9} ms {'-' if memory is None else format(memory, ',.0f'):>8} MiB "
        f"{row.get('error', '')[:90]}",
        flush=True,
    )


def collect(
    jobs: list[Job], with_first_calls: bool, impls: list[str], settings: Settings, deadline: float, cache: Path
) -> report.Result:
    """Run everything; rows, and what the worker says of its device."""
    rows: list[report.Row] = []
    about: dict[str, object] = {}

    def take(message: Message) -> None:
        if "about" in message:
            about.update(message["about"])
        elif message["row"]["case"] == "ceilings":
            about["error"] = message["row"].get("error")
        else:
            rows.append(message["row"])
            show(message["row"])

    if with_first_calls:
        for message in first_calls(impls, settings, cache, deadline):
            take(message)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache / "workers")}
    command = [sys.executable, str(HERE / "worker.py")]
    for message in run_jobs(jobs, command, settings, deadline, environment=environment):
        take(message)
    if "ceilings" in about and "floor" in impls:
        measured = [job for job in jobs if job.case != "ceilings" and job.mode == "eager"]
        for job in measured:
            floor = floors.floor_row(job, about["ceilings"], settings.d_model)  # type: ignore[arg-type]
            if floor is not None:
                rows.append(floor)
                show(floor)
    return {**about, "rows": rows}


def model_name(folder: Path) -> str:
    """Of a model folder, which most often is ``model`` in that of a run."""
    return (folder.parent if folder.name == "model" else folder).name


def measured_commit(given: str | None, needed: bool) -> str | None:
    """The commit of a result: the one given, else that of the checkout; ``+changes`` says that the tree was edited.

    Raises:
        SystemExit: the one given is not 40 hexadecimal digits, or none is known and a file needs it.
    """
    if given is not None and not re.fullmatch("[0-9a-f]{40}", given):
        raise SystemExit(f"--commit {given}: must be 40 hexadecimal digits")
    commit = given or git_commit()
    if needed and commit is None:
        raise SystemExit("--json needs --commit here: there is no checkout that could tell")
    return commit


def write_result(path: Path | None, device: torch.device, commit: str | None, found: dict[str, Any]) -> None:
    """Write what was found, with where and of which commit; nothing without a path."""
    if path is None:
        return
    write_json(
        path, {"hardware": describe_hardware(device), "commit": commit, "versions": describe_versions(), **found}
    )
    print(f"written to {path}")


def versions(peer: str | None) -> dict[str, str]:
    """Versions of what was measured."""
    return describe_versions() | ({"mamba_ssm": peers.version(peer)} if peer else {})


def words(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A comma-separated choice among known words."""

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        for word in chosen:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word} is none of {', '.join(known)}")
        return [word for word in known if word in chosen]

    return read


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="merge the result into this file")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--cases", type=words(CASES), default=list(CASES), help=f"of {','.join(CASES)}")
    parser.add_argument("--impls", type=words(IMPLS), default=list(IMPLS), help=f"of {','.join(IMPLS)}")
    parser.add_argument(
        "--lengths", type=lambda text: [int(part) for part in text.split(",")], default=list(LENGTHS), help="tokens"
    )
    parser.add_argument("--mamba-ssm", metavar="FOLDER", help="its unpacked source distribution")
    parser.add_argument("--quick", action="store_true", help="a fifth of the calls")
    parser.add_argument("--device-limit", type=float, default=570.0, metavar="SECONDS", help="skip what is left then")
    parser.add_argument("--triton-cache", type=Path, help="keep the workers' compiled kernels here")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of a result, and stop")
    parser.add_argument("--into", type=Path, metavar="FILE", help="with --table: replace the block in this file")
    parser.add_argument("--device", default="cuda", help="cpu only to try this script")
    parser.add_argument("--d-model", type=int, default=1024)
    return parser.parse_args(arguments)


def print_table(path: Path, into: Path | None) -> None:
    """The block of RESULTS.md, printed or put in its place."""
    result = json.loads(path.read_text())
    link = os.path.relpath(path.resolve(), HERE if into is None else into.resolve().parent)
    if into is None:
        print(report.block(result, link))
    else:
        into.write_text(report.replace_block(into.read_text(), result, link))


def main() -> None:
    """Run every row and write the JSON if asked."""
    arguments = parse()
    if arguments.table:
        print_table(arguments.table, arguments.into)
        return
    commit = measured_commit(arguments.commit, arguments.json is not None)
    deadline = time.monotonic() + arguments.device_limit
    peer = None
    if arguments.mamba_ssm:
        try:
            peer = str(peers.check(arguments.mamba_ssm).parent.resolve())
        except FileNotFoundError as error:
            raise SystemExit(f"--mamba-ssm: {error}") from None
    settings = Settings(arguments.device, arguments.d_model, peer, arguments.quick)
    impls = [impl for impl in arguments.impls if impl != "mamba_ssm" or peer]
    jobs = make_jobs(arguments.cases, arguments.lengths, impls)
    with tempfile.TemporaryDirectory() as temporary:
        cache = (arguments.triton_cache or Path(temporary)).resolve()
        found = collect(jobs, "first_call" in arguments.cases, impls, settings, deadline, cache)
    if "hardware" not in found:
        raise SystemExit(f"nothing was written: the device could not be measured ({found.get('error')})")
    result = {
        "hardware": found.pop("hardware"),
        "commit": commit,
        "versions": versions(peer),
        "d_model": settings.d_model,
        **found,
        "notes": floors.published(),
    }
    if arguments.json:
        report.write(arguments.json, result)
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
