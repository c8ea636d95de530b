"""Runs the batch job in forked processes that die at one moment or another, and again after each death.

    python -m tests.timeseries.killed <model> <first store> <second store> <folder>

In ``folder``, ``expected-1`` and ``expected-2`` hold what two undisturbed runs leave behind, ``<run>-<moment>`` what is
there after run 1 or 2 died at that moment and was run again, ``<run>-killed`` the same after SIGKILL. All of them had
``folder/work`` to work in, as folders write down where they are. Nothing is imported twice, so a run takes a tenth of a
second.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl  # noqa: F401 (these are imported where they are used, which would be in every process)
import scipy.signal  # noqa: F401
import tqdm  # noqa: F401

from domains.timeseries.config import ForecastConfig
from domains.timeseries.forecast import forecast
from domains.timeseries.store import SeriesStore

DEAD = 77


def main(model: str, first: str, second: str, place: str) -> None:
    folder = Path(place)
    work = folder / "work"

    def job(store: str) -> None:
        config = ForecastConfig(series_per_shard=2, paths=2, path_steps=2)
        forecast(model, SeriesStore.open(store), work / "out", work / "states", config, device="cpu")

    def set_up(run: int) -> None:
        shutil.rmtree(work, ignore_errors=True)
        if run == 2:
            shutil.copytree(folder / "expected-1", work)
        work.mkdir(exist_ok=True)

    for run, store in ((1, first), (2, second)):
        set_up(run)
        assert wait(fork(lambda store=store: job(store))) == 0
        work.rename(folder / f"expected-{run}")
        moment = 0
        while True:
            set_up(run)
            died = wait(fork(lambda store=store, moment=moment: die_at(moment, lambda: job(store))))
            if died == 0:
                break
            assert died == DEAD, died
            assert wait(fork(lambda store=store: job(store))) == 0
            work.rename(folder / f"{run}-{moment}")
            moment += 1
        set_up(run)
        child = fork(lambda store=store: hang_at_a_rename(lambda: job(store)))
        while not list((work / "states").glob(f"shard-*.{run:08d}.safetensors")):
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        assert wait(child) == -signal.SIGKILL
        assert wait(fork(lambda store=store: job(store))) == 0
        work.rename(folder / f"{run}-killed")


def die_at(moment: int, job: Callable[[], None]) -> None:
    """Do a job, but leave the process where ``moment`` files have been renamed or removed, before it is one more."""
    count = 0

    def moments(function: Callable[..., None]) -> Callable[..., None]:
        def patched(*args: object, **kwargs: object) -> None:
            nonlocal count
            if count == moment:
                os._exit(DEAD)
            count += 1
            function(*args, **kwargs)

        return patched

    os.replace, os.unlink = moments(os.replace), moments(os.unlink)  # type: ignore[assignment]
    job()


def hang_at_a_rename(job: Callable[[], None]) -> None:
    """Do a job up to where it would give a second state file its name."""
    replace, states = os.replace, []

    def patched(source: str, target: str) -> None:
        if "shard-" in str(target):
            states.append(target)
        time.sleep(600 if len(states) > 1 else 0)
        replace(source, target)

    os.replace = patched  # type: ignore[assignment]
    job()


def fork(function: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        function()
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
