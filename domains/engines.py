"""One function a job, over many jobs: in threads of this process, or on Ray.

What a job gives must not depend on the engine. So on a CPU each job is computed by one thread of PyTorch, whichever
engine runs it: threads that share a sum would give other last digits on machines with other numbers of processors.
"""

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from domains.errors import UserError

ENGINES = ("local", "ray")
_THREADS = 16  # at most: what each does between long calls, the others have to wait for

Job = TypeVar("Job")
Done = TypeVar("Done")


def check_engine(engine: str) -> None:
    """Make sure that there is such an engine."""
    if engine not in ENGINES:
        raise UserError(f"engine={engine}: must be one of {', '.join(ENGINES)}")


class Cancelled(Exception):
    """Raised inside a job that nobody waits for any more."""


class Progress:
    """How far all jobs are, together; given to each, which calls it from time to time."""

    def __init__(self, report: Callable[[int], object] = lambda _: None) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._cancelled = False

    def __call__(self, amount: int) -> None:
        """Note that ``amount`` more is done; raises :class:`Cancelled` when the job should end."""
        if self._cancelled:
            raise Cancelled
        with self._lock:
            self._report(amount)

    def cancel(self) -> None:
        """Let every job end at its next call."""
        self._cancelled = True


def processors() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """PyTorch computes with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_local(
    work: Callable[[Job], Done], jobs: Sequence[Job], *, device: str, progress: Progress | None = None
) -> Generator[tuple[Job, Done], None, None]:
    """All jobs in as many threads as there are processors, or in one on a GPU; each as soon as it is done.

    What takes long, products of matrices and hashes, needs no lock of the interpreter. When a job fails, or the
    consumer stops, those that have not begun never do; those that have are told through ``progress``.

    Yields:
        job and what ``work`` made of it, in the order in which they end.
    """
    threads = 1 if device != "cpu" else min(processors(), _THREADS, len(jobs))
    if threads <= 1:  # in the thread that signals interrupt
        with one_torch_thread():
            yield from ((job, work(job)) for job in jobs)
        return
    with one_torch_thread(), ThreadPoolExecutor(threads) as pool:
        futures: dict[Future[Done], Job] = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            if progress is not None:
                progress.cancel()
            pool.shutdown(wait=True, cancel_futures=True)


class _Actor:
    """Holds what ``open_work`` opened, does one job a call."""

    def __init__(self, open_work: Callable[[], Callable[[str], str]]) -> None:
        torch.set_num_threads(1)  # as run_local: so the bytes are the same
        self._work = open_work()

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        try:
            return {"job": row["job"], "done": self._work(row["job"]), "error": ""}
        except UserError as error:  # Ray would wrap it in pages
            return {"job": row["job"], "done": "", "error": str(error)}


def run_ray(
    open_work: Callable[[], Callable[[str], str]], jobs: Sequence[str], *, workers: int, device: str
) -> Iterator[tuple[str, str]]:
    """All jobs in ``workers`` actors of one CPU each, on the cluster that Ray finds or starts.

    Files are read and written by the actors, so all machines of the cluster must see them under the same paths. An
    actor that dies is started again by Ray, and its job with it.

    Args:
        open_work: makes the function of an actor, once in each; it must be picklable, with what it holds.
        jobs: texts, such as JSON.
        workers: actors, at most one a job.
        device: cpu or cuda; each actor has a GPU of its own.

    Yields:
        job and what the function made of it, in the order in which they end.

    Raises:
        UserError: Ray is not installed, or a job raised one.
    """
    try:
        import ray.data
    except ImportError:
        raise UserError("engine=ray needs Ray, which is not installed; pip install '.[ray]'") from None
    if not jobs:
        return
    rows: Any = ray.data.from_items([{"job": job} for job in jobs], override_num_blocks=len(jobs))
    done = rows.map(
        _Actor,
        fn_constructor_args=(open_work,),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(jobs))),
        num_cpus=1,
        num_gpus=0 if device == "cpu" else 1,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        yield row["job"], row["done"]
