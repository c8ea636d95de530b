"""Where the time of a case goes on a GPU: kernel by kernel, and whether the GPU waits for Python.

    python benchmarks/kernel_profile.py --cases ssd,mamba2_layer --json benchmarks/results/profile_h100.json

Cases are those of kernels.py, our side alone. For forward, and for forward and backward:

    elapsed   ms by CUDA events, call after call, as in kernels.py
    kernels   ms, the sum of the kernels' own times (profiler)
    enqueue   ms of Python until all kernels of a call are enqueued (host clock; nothing is waited for)

Where enqueue is as large as elapsed, the GPU waits for Python, and faster kernels would change nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.jobs import Job, Settings
from benchmarks.kernel_cases import build, input_kind, input_sets
from benchmarks.kernels import CASES, measured_commit, words
from benchmarks.worker import burst, release, synchronize
from domains.folder import write_json
from domains.hardware import describe_hardware, describe_versions

PROFILED = tuple(case for case in CASES if case not in ("first_call", "decode"))
WARM_UPS, TIMED, COUNTED = 3, 12, 4


def look(call: Callable[[int], object], device: str) -> dict[str, Any]:
    """The figures of one call; kernels in order of their time, names as the profiler has them."""
    for turn in range(WARM_UPS):
        call(turn)
    elapsed = statistics.median(burst(call, TIMED, device)[2:])
    synchronize(device)
    start = time.perf_counter()
    for turn in range(COUNTED):
        call(turn)
    enqueue = 1e3 * (time.perf_counter() - start) / COUNTED
    synchronize(device)
    on_cpu = device == "cpu"
    with profile(activities=[ProfilerActivity.CPU if on_cpu else ProfilerActivity.CUDA], acc_events=True) as record:
        for turn in range(COUNTED):
            call(turn)
        synchronize(device)
    kernels = []
    for event in record.key_averages():
        microseconds = event.self_cpu_time_total if on_cpu else event.self_device_time_total
        if microseconds > 0:
            ms, calls = microseconds / 1e3 / COUNTED, event.count / COUNTED
            kernels.append({"name": event.key[:60], "ms": round(ms, 4), "calls": round(calls, 2)})
    kernels.sort(key=lambda kernel: -kernel["ms"])
    return {
        "elapsed_ms": round(elapsed, 4),
        "kernels_ms": round(sum(kernel["ms"] for kernel in kernels), 4),
        "enqueue_ms": round(enqueue, 4),
        "launches": round(sum(kernel["calls"] for kernel in kernels)),
        "kernels": kernels,
    }


def rows_of(case: str, length: int, settings: Settings) -> list[dict[str, Any]]:
    """Forward, then forward and backward."""
    job = Job(case, length)
    work = build(job, "serpentine", settings, input_sets(input_kind(case, "serpentine"), job, settings))
    calls = {"forward": work.infer, "forward + backward": work.train}
    found = [
        {"case": case, "length": length, "what": what} | look(call, settings.device) for what, call in calls.items()
    ]
    release(settings.device)
    return found


def show(row: dict[str, Any], most: int = 12) -> None:
    """A line, and one for each of the longest kernels."""
    print(
        f"{row['case']} {row['length']:,} {row['what']}: elapsed {row['elapsed_ms']:.3f} ms, kernels "
        f"{row['kernels_ms']:.3f} ({row['launches']} launches), enqueue {row['enqueue_ms']:.3f}"
    )
    for kernel in row["kernels"][:most]:
        print(f"    {kernel['ms']:8.3f} ms  x {kernel['calls']:<5g} {kernel['name']}")


def main() -> None:
    """Profile, print, write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=words(PROFILED), default=list(PROFILED), help=f"of {','.join(PROFILED)}")
    parser.add_argument("--lengths", default="65536", help="tokens")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    parser.add_argument("--device", default="cuda", help="cpu only to try this script")
    parser.add_argument("--d-model", type=int, default=1024)
    arguments = parser.parse_args()
    commit = measured_commit(arguments.commit, arguments.json is not None)
    settings = Settings(arguments.device, arguments.d_model)
    rows = []
    for length in map(int, arguments.lengths.split(",")):
        for case in arguments.cases:
            for row in rows_of(case, length, settings):
                show(row)
                rows.append(row)
    if arguments.json:
        about = {"hardware": describe_hardware(torch.device(arguments.device)), "commit": commit}
        write_json(
            arguments.json, {**about, "versions": describe_versions(), "d_model": settings.d_model, "rows": rows}
        )
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
