"""The benchmark of folds and seeds: which runs there are, that what is done is left alone, and its tables."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import naming
from benchmarks.naming import Job, between, collect, make_jobs, run_all, table
from domains.audio.config import TrainConfig
from domains.folder import write_json
from tests.audio.sounds import make_store
from tests.audio.test_evaluate import X, Y, fold


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    config = TrainConfig()
    config.data.store = str(make_store(tmp_path, {"a": 5, "b": 6}, groups=4).path)
    return config


def test_each_group_is_tested_once_by_each_seed_and_the_smallest_other_watches(config: TrainConfig) -> None:
    jobs = make_jobs({"raw": config}, "groups", [3, 4], Path("runs"))
    assert [(job.fold, job.seed) for job in jobs] == [(f"g{i}", seed) for i in range(4) for seed in (3, 4)]
    for job in jobs:
        assert (job.config.data.test, job.config.seed) == ([job.fold], job.seed)
        assert job.config.data.validation == (["g2"] if job.fold != "g2" else ["g3"])  # of two clips
    assert len({job.folder for job in jobs}) == 8
    (one,) = make_jobs({"raw": config}, "1", [0], Path("runs"))
    assert (one.fold, one.config.data) == ("split", config.data)


def results(folder: Path) -> list[Job]:
    """Evaluations of two recipes as if they were done."""
    jobs = []
    for recipe, called in (("raw", ("a", "b")), ("other", ("a", "a"))):
        for seed in (0, 1):
            for name, names, own in zip("xy", (X, Y), called, strict=True):
                job = Job(recipe, name, seed, TrainConfig(), folder / f"{recipe}-{name}-{seed}")
                job.folder.mkdir()
                write_json(job.result, fold(names, seed, own))
                jobs.append(job)
    return jobs


def test_what_is_done_is_left_alone_and_pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(naming, "run", never)
    jobs = results(tmp_path)
    assert run_all(jobs, 2, deadline=0.0)
    found = collect(jobs, 50)
    assert found["raw"].balanced_accuracy == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["other"].balanced_accuracy == 0.5
    differences = between(found, 50)
    assert differences["raw - other"]["clips"]["value"] == pytest.approx(found["raw"].balanced_accuracy - 0.5)
    lines = table({"recipes": {name: own.to_dict() for name, own in found.items()}, "between": differences})
    assert lines[2].startswith("| raw | 0.583 | 0.583, 0.583 | 0.583 |")
    assert lines[3].startswith("| majority | 0.500 |")
    assert lines[-1].startswith("raw - other: by clips +0.083 [")


def test_nothing_starts_when_the_time_is_up(tmp_path: Path) -> None:
    job = Job("raw", "x", 0, TrainConfig(), tmp_path / "none")
    assert not run_all([job], 1, deadline=0.0)
    assert not job.folder.exists()
