"""Engines: one function over many jobs, in threads or on Ray (which is tested with the batch jobs)."""

import threading
import time

import pytest
import torch

from domains.engines import Cancelled, Progress, check_engine, run_local
from domains.errors import UserError


def test_every_job_is_done_once_by_one_thread_of_pytorch():
    before = torch.get_num_threads()
    seen = []

    def square(job):
        seen.append(torch.get_num_threads())
        return job * job

    assert sorted(run_local(square, list(range(20)), device="cpu")) == [(i, i * i) for i in range(20)]
    assert set(seen) == {1}
    assert torch.get_num_threads() == before
    assert list(run_local(square, [], device="cpu")) == []


def test_a_gpu_is_not_shared_by_threads():
    names = set()
    list(run_local(lambda _: names.add(threading.current_thread().name), list(range(5)), device="cuda"))
    assert len(names) == 1


def test_one_job_at_a_time_is_done_where_signals_arrive(monkeypatch):
    monkeypatch.setattr("domains.engines.processors", lambda: 1)
    names = [name for _, name in run_local(lambda _: threading.current_thread().name, [1, 2], device="cpu")]
    assert names == [threading.current_thread().name] * 2


@pytest.mark.parametrize("how", ["a job fails", "the consumer stops"])
def test_what_nobody_waits_for_ends_early_and_what_has_not_begun_never_does(how, monkeypatch):
    monkeypatch.setattr("domains.engines.processors", lambda: 2)
    told, progress, began = [], Progress(lambda amount: told.append(amount)), []

    def work(job):
        began.append(job)
        if job == 0:
            if how == "a job fails":
                raise UserError("chr1: cannot be read")
            return job
        while True:  # for ever, but for the progress
            progress(1)
            time.sleep(0.01)

    start = time.monotonic()
    done = run_local(work, list(range(100)), device="cpu", progress=progress)
    if how == "a job fails":
        with pytest.raises(UserError, match="chr1: cannot be read"):
            list(done)
    else:
        assert next(done) == (0, 0)
        done.close()
    assert time.monotonic() - start < 20
    assert len(began) <= 3
    with pytest.raises(Cancelled):
        progress(1)


def test_there_are_two_engines():
    check_engine("local")
    check_engine("ray")
    with pytest.raises(UserError, match="engine=spark: must be one of local, ray"):
        check_engine("spark")
