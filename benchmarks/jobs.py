"""What a benchmark measures, and a queue that outlives the processes which measure it.

A kernel that reads past its memory takes the whole CUDA context with it. So the jobs run in a process of their own, one
after the other; when it dies, the implementation that was at work gets an ``error``, and a fresh process goes on
with the rest. Nothing here imports PyTorch.
"""

import json
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import IO, Any

EXPAND, HEADDIM, WIDTH = 2, 64, 4  # of the models that are measured, and of their floors
STATE = {"mamba1": 16, "mamba2": 128}
LAYERS = 24  # of the decode rows, and of long_context.py
MODES = {
    "eager": "Python launches every kernel",
    "one thread": "eager, and autograd runs in the thread that calls it",
    "graph": "a CUDA graph is replayed; inputs are copied to where it reads them",
    "compile": "torch.compile",
}
VARIANTS = {
    "bf16 state": "states of the scan in bfloat16",
    "no pdl": "no kernel starts before the one in front has ended",
    "gqa": "of a Transformer: 4 heads of keys and values for 16 of queries",
    "mha": "of a Transformer: 16 heads of each",
}
MARK = "@@ "  # begins each line that a worker means for the queue
Message = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One case at one length: the implementations in it take turns in one process."""

    case: str
    length: int
    batch: int = 1
    impls: tuple[str, ...] = ("serpentine",)
    mode: str = "eager"  # one of MODES, for every side of the job
    mixer: str | None = None  # which mixer a decode or first_call job builds
    variant: str | None = None  # of a decode or decode_after job, one of VARIANTS

    def row(self, impl: str, **found: object) -> dict[str, Any]:
        """The row of one implementation, with None for what was not found."""
        row: dict[str, Any] = {"impl": impl, "case": self.case, "length": self.length, "batch": self.batch}
        row |= {"fwd_ms": None, "fwdbwd_ms": None, "extra_peak_mib": None, "mode": self.mode}
        if self.mixer is not None:
            row["mixer"] = self.mixer
        if self.variant is not None:
            row["variant"] = self.variant
        return row | {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Settings:
    """What every job of a run shares. ``quick`` takes a fifth of the time a row; ``peer`` is mamba_ssm's folder."""

    device: str = "cuda"
    d_model: int = 1024
    peer: str | None = None
    quick: bool = False
    segment: int = 131_009  # of the check of long sequences, and of training in segments
    layers: int = LAYERS  # of training in segments


def read_request(stream: IO[str]) -> tuple[list[Job], Settings]:
    """The worker's half of :func:`run_jobs`."""
    request = json.load(stream)
    return [Job(**job | {"impls": tuple(job["impls"])}) for job in request["jobs"]], Settings(**request["settings"])


def run_jobs(
    jobs: Sequence[Job],
    command: Sequence[str],
    settings: Settings,
    deadline: float,
    silence: float = 180.0,
    environment: dict[str, str] | None = None,
) -> Iterator[Message]:
    """Run jobs in worker processes and hand on their messages; each implementation of each job answers once.

    Args:
        jobs: in the order in which they run.
        command: starts a worker, which reads the request from stdin and writes lines that begin with MARK:
            ``{"trying": impl}``, ``{"row": ...}`` or ``{"long": ...}``, ``{"about": ...}``, ``{"done": true}`` after
            each job, and ``{"failed": {"impl", "error", "fatal"}}``, after which it goes on unless that was fatal.
        settings: goes to the worker as it is.
        deadline: on time.monotonic(); what is left then gets rows with the error "skipped: ...".
        silence: seconds without a line after which a worker counts as hanging.
        environment: of the workers.

    Yields:
        The messages with ``row``, ``long`` and ``about``; rows with an ``error`` where something failed.
    """
    pending = list(jobs)
    while pending:
        if time.monotonic() >= deadline:
            for job in pending:
                yield from (_failure(job, impl, "skipped: the time limit was reached") for impl in job.impls)
            return
        yield from _one_process(pending, list(command), settings, deadline, silence, environment)
        if pending and not pending[0].impls:  # its last implementation has failed, and the process ended with it
            pending.pop(0)


def _one_process(
    pending: list[Job],
    command: list[str],
    settings: Settings,
    deadline: float,
    silence: float,
    environment: dict[str, str] | None,
) -> Iterator[Message]:
    """Serve jobs until the process ends; what is done or has failed is taken out of ``pending``."""
    request = json.dumps({"jobs": [asdict(job) for job in pending], "settings": asdict(settings)})
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment
        )
        assert process.stdin is not None
        assert process.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        reason, trying = "", None
        try:
            try:
                process.stdin.write(request)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it died before it read; the end of its output says so below
            while pending:
                left = deadline - time.monotonic()
                try:
                    line = lines.get(timeout=max(0.0, min(left, silence)))
                except queue.Empty:
                    if left > silence:
                        reason = f"no result within {silence:.0f} s"
                    else:
                        reason = "skipped: the time limit was reached"
                    break
                if line is None:
                    process.wait()
                    complaints.seek(0)
                    last = [text for text in complaints.read().splitlines() if text.strip()][-1:]
                    reason = ": ".join([f"the process ended with code {process.returncode}", *last])
                    break
                message = json.loads(line)
                trying = message.get("trying", trying)
                if "failed" in message:
                    impl, trying = message["failed"]["impl"], None
                    yield _failure(pending[0], impl, message["failed"]["error"])
                    _drop(pending, impl)
                    if message["failed"].get("fatal"):
                        return
                elif "done" in message:
                    pending.pop(0)
                    trying = None
                elif "trying" not in message:
                    yield message
        finally:
            process.kill()
            process.wait()
    if reason and pending:
        for impl in pending[0].impls if trying is None else (trying,):
            yield _failure(pending[0], impl, reason)
            _drop(pending, impl)


def _failure(job: Job, impl: str, error: str) -> Message:
    return {"row": job.row(impl, error=error[:300])}


def _drop(pending: list[Job], impl: str) -> None:
    """Take one implementation out of the first job; an empty job stays until the worker is done with it."""
    pending[0] = replace(pending[0], impls=tuple(other for other in pending[0].impls if other != impl))


def _pump(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    """Lines of the protocol from a pipe, None at its end."""
    for line in stream:
        if line.startswith(MARK):
            lines.put(line[len(MARK) :])
    lines.put(None)
