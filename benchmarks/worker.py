"""The process that measures: takes jobs from stdin and answers as :mod:`benchmarks.jobs` says.

Time: CUDA events between calls that follow one another without a pause. So a call counts what it costs a program that
keeps the GPU busy: its kernels, or its launches where those take longer. Sides take turns, twenty short rounds each,
fewer where calls are slow, after two calls of warm-up; the median counts. Beside it stand the median of the fastest
round, and how long a loop in Python took: a host that others use too slows launches, not kernels, for seconds at a
time, and a short round finds the quiet moments between. Input sets rotate, so nothing is timed on inputs that the last
call left in the L2 cache. Memory: the peak of one forward and backward above what inputs, weights and the incoming
gradient hold. A side whose output or gradients are not finite gets an error instead of figures.
"""

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from itertools import chain, pairwise

import torch

from benchmarks.jobs import MARK, Job, Settings, read_request
from benchmarks.kernel_cases import Tensors, Work, build, input_kind, input_sets
from domains.hardware import describe_hardware

ROUNDS, FEWEST_ROUNDS = 20, 5  # of each side, and of one whose calls are slow
MOST_CALLS, FEWEST_CALLS = 12, 3  # in one turn of one round; fewer where even the fewest rounds are too long
BUDGET_MS = 600.0  # for each side of a job, forward; as much again for forward and backward


def send(**message: object) -> None:
    """One line for the queue."""
    print(MARK + json.dumps(message), flush=True)


def synchronize(device: str) -> None:
    """Wait for a GPU; errors of its kernels surface here."""
    if device != "cpu":
        torch.cuda.synchronize()


def serve(handle: Callable[[Job, Settings], None]) -> None:
    """Do every job of the request. An error is reported; one that broke the device ends the process."""
    jobs, settings = read_request(sys.stdin)
    torch.seed()
    for job in jobs:
        try:
            handle(job, settings)
        except Exception as error:  # nothing a job raises may lose the others
            for impl in job.impls:
                report(impl, error, settings.device)
        send(done=True)
        release(settings.device)


def report(impl: str, error: Exception, device: str) -> None:
    """Tell what failed, and end the process if the device went with it: nothing runs on it any more."""
    lines = str(error).strip().splitlines() or [""]
    try:
        synchronize(device)
        fatal = False
    except Exception:
        fatal = True
    send(failed={"impl": impl, "error": f"{type(error).__name__}: {lines[0]}"[:300], "fatal": fatal})
    if fatal:
        sys.stdout.flush()
        os._exit(1)


def release(device: str) -> None:
    """Give memory back between jobs."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def burst(call: Callable[[int], object], count: int, device: str) -> list[float]:
    """Milliseconds of each of ``count`` calls in a row."""
    if device == "cpu":
        marks = [time.perf_counter()]
        for turn in range(count):
            call(turn)
            marks.append(time.perf_counter())
        return [1e3 * (after - before) for before, after in pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for turn in range(count):
        call(turn)
        events[turn + 1].record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(events)]


def plan(calls: float) -> tuple[int, int]:
    """Rounds, and calls in each, that come to about so many calls: rather fewer rounds than fewer than three calls."""
    rounds = int(max(FEWEST_ROUNDS, min(ROUNDS, calls / FEWEST_CALLS)))
    return rounds, int(max(1, min(MOST_CALLS, calls / rounds)))


def in_turn(
    calls: Mapping[str, Callable[[int], object]],
    device: str,
    budget_ms: float,
    on_error: Callable[[str, Exception], None],
) -> dict[str, tuple[float, float]]:
    """Milliseconds of each call that does not fail, the calls taking turns: the median, and that of the fastest round.

    The first call of a turn is dropped where there are several: the GPU was idle before it.
    """
    plans: dict[str, tuple[int, int]] = {}
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        for name in [name for name in times if turn <= plans.get(name, (ROUNDS, 0))[0]]:
            send(trying=name)
            try:
                if not turn:
                    once = max(min(burst(calls[name], 2, device)), 1e-3)
                    plans[name] = plan(budget_ms / once)
                    continue
                found = burst(calls[name], plans[name][1], device)
                times[name].append(found[1:] or found)
            except Exception as error:
                del times[name]
                on_error(name, error)
    return {
        name: (statistics.median(chain(*rounds)), min(map(statistics.median, rounds)))
        for name, rounds in times.items()
        if rounds
    }


def python_us() -> float:
    """Microseconds of a fixed loop in Python: how fast the host is just now, which others may use too."""
    start = time.perf_counter()
    sum(range(20_000))
    return 1e6 * (time.perf_counter() - start)


def peak_mib(work: Work, device: str) -> tuple[float | None, bool]:
    """Peak memory of one forward and backward above what stood before, MiB; and whether all that came out is finite."""
    synchronize(device)
    if device == "cpu":
        return None, all(bool(tensor.isfinite().all()) for tensor in work.train(0))
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = work.train(0)
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return peak, all(bool(tensor.isfinite().all()) for tensor in results)


def prepare(job: Job, settings: Settings, failed: Callable[[str, Exception], None]) -> dict[str, Work]:
    """Each side built and called twice, so that compiling and tuning are behind it."""
    sets: dict[str, list[Tensors]] = {}
    works: dict[str, Work] = {}
    for impl in job.impls:
        send(trying=impl)
        try:
            kind = input_kind(job.case, impl)
            if not job.case.startswith("decode") and kind not in sets:
                sets[kind] = input_sets(kind, job, settings)
            work = build(job, impl, settings, sets.get(kind, []))
            for turn in range(2):
                work.infer(turn)
                synchronize(settings.device)
                send(trying=impl)
                if work.trains:
                    work.train(turn)
                    synchronize(settings.device)
                    send(trying=impl)
            works[impl] = work
        except Exception as error:
            failed(impl, error)
    return works


def measure(job: Job, settings: Settings) -> None:
    """The rows of one job."""
    if job.case == "ceilings":
        send(about={"hardware": describe_hardware(torch.device(settings.device)), "ceilings": ceilings(settings)})
        return
    budget = BUDGET_MS / 5 if settings.quick else BUDGET_MS
    lost: set[str] = set()

    def failed(impl: str, error: Exception) -> None:
        lost.add(impl)
        report(impl, error, settings.device)

    works = prepare(job, settings, failed)
    infer = {impl: work.infer for impl, work in works.items()}
    host = [python_us()]
    forward = in_turn(infer, settings.device, budget, failed)
    host.append(python_us())
    train = {impl: work.train for impl, work in works.items() if work.trains and impl not in lost}
    both = in_turn(train, settings.device, budget, failed)
    host.append(python_us())
    for impl, work in works.items():
        if impl in lost:
            continue
        found: dict[str, object] = {"note": work.note}
        if work.trains:
            send(trying=impl)
            try:
                peak, finite = peak_mib(work, settings.device)
            except Exception as error:
                failed(impl, error)
                continue
            if not finite:
                failed(impl, ValueError("the output or a gradient is not finite"))
                continue
            found["extra_peak_mib"] = None if peak is None else round(peak, 1)
        found["host_us"] = round(statistics.median(host), 1)
        for name, times in (("fwd", forward), ("fwdbwd", both)):
            if impl in times:
                median, fastest = (round(value, 4) for value in times[impl])
                found |= {f"{name}_ms": median, f"{name}_fastest_ms": fastest}
        send(row=job.row(impl, **found))


def ceilings(settings: Settings) -> dict[str, float]:
    """What this device reaches.

    Returns:
        Measured: bytes read and written by a copy, and FLOP/s of a product of random bfloat16 matrices of 8192 x 8192.
        Computed: exponentials of the special-function units, 16 a clock and multiprocessor at the highest clock.
    """
    device = settings.device
    small = device == "cpu"
    source = torch.empty((1 << 26) if small else (1 << 31), dtype=torch.uint8, device=device).random_(0, 256)
    target = torch.empty_like(source)
    width = 512 if small else 8192
    left, right = (torch.randn(width, width, dtype=torch.bfloat16, device=device) for _ in range(2))
    copy = statistics.median(burst(lambda _: target.copy_(source), 12, device)[2:])
    product = statistics.median(burst(lambda _: left @ right, 22, device)[2:])
    found = {"copy_bytes_per_s": 2e3 * source.numel() / copy, "matmul_flops_per_s": 2e3 * width**3 / product}
    if not small:
        properties = torch.cuda.get_device_properties(0)
        found["exp_per_s"] = 16e3 * properties.multi_processor_count * properties.clock_rate
    return found


if __name__ == "__main__":
    serve(measure)
