"""The benchmark of sampling, on a machine without the libraries that sampling does not need."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import generation
from domains.genomics.model import load_model
from mamba_core import CausalLM

ROOT = Path(__file__).parent.parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ABSENT = ("Bio", "polars", "hydra", "omegaconf", "mlflow")


def test_bases_a_second_are_those_between_the_first_and_the_last(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock on which a call waits 5 s for its first base, and each base after it takes 0.5 s."""
    asked: list[tuple[int, int]] = []

    def moments(model: CausalLM, count: int, length: int) -> list[float]:
        asked.append((count, length))
        return [(5.0 if len(asked) > 1 else 60.0) + 0.5 * i for i in range(length)]

    monkeypatch.setattr(generation, "moments", moments)
    row = generation.measure(load_model(tiny_model).causal, 64, 40.0)
    assert asked == [(64, generation.FIRST), *[(64, 17)] * generation.CALLS]
    assert row["steps"] == 16
    assert row["bases_per_second"] == row["fastest_bases_per_second"] == 128.0
    assert (row["seconds_before_first_base"], row["first_call_seconds_before_first_base"]) == (5.0, 60.0)


def test_each_base_is_noted(tiny_model: Path) -> None:
    found = generation.moments(load_model(tiny_model).causal, 3, 7)
    assert len(found) == 7
    assert 0 < found[0] < found[-1]
    assert found == sorted(found)


def test_the_whole_on_a_cpu(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "generation.json"
    arguments = ["--model", str(tiny_model), "--counts", "1,3", "--seconds", "0.1", "--device", "cpu"]
    arguments += ["--json", str(path), "--commit", COMMIT]
    lines = ["import runpy, sys", f"sys.modules.update(dict.fromkeys({ABSENT}))"]
    lines += [f"sys.argv = {['generation.py', *arguments]}"]
    lines += ["runpy.run_path('benchmarks/generation.py', run_name='__main__')"]
    out = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert out.returncode == 0, out.stderr
    result: dict[str, Any] = json.loads(path.read_text())
    assert result["commit"] == COMMIT
    assert result["hardware"]["device"] == "cpu"
    assert {"python", "torch"} <= result["versions"].keys()
    assert result["precision"] == "float32"
    assert [row["count"] for row in result["rows"]] == [1, 3]
    for row in result["rows"]:
        assert row["model"] == tiny_model.parent.name
        assert row["sha256"] == load_model(tiny_model).hash
        assert row["fastest_bases_per_second"] >= row["bases_per_second"] > 0
