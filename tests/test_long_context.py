"""The benchmark of training steps by length."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import long_context
from benchmarks.jobs import Job, Message, Settings

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_whole_on_a_cpu(tmp_path: Path) -> None:
    """Three sides in turn, the sentences, the file, the plot."""
    path = tmp_path / "long_context_cpu.json"
    command = [sys.executable, "benchmarks/long_context.py", "--device", "cpu", "--d-model", "64", "--layers", "2"]
    command += ["--lengths", "40", "--segment", "16", "--json", str(path), "--commit", COMMIT]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert out.returncode == 0, out.stdout + out.stderr
    assert "40 tokens: segments of 16 take " in out.stdout
    result = json.loads(path.read_text())
    assert (result["commit"], result["d_model"], result["layers"]) == (COMMIT, 64, 2)
    assert "cpu" in result["hardware"]
    rows = {row["impl"]: row for row in result["rows"]}
    assert {impl: row["segment"] for impl, row in rows.items()} == {"segments": 16, "plain": 40, "attention": 40}
    for row in rows.values():
        assert row["tokens_per_second"] == pytest.approx(40 / row["seconds"], rel=0.05)
    assert rows["plain"]["parameters"] == rows["segments"]["parameters"]
    assert long_context.draw(path).read_bytes().startswith(b"\x89PNG")


def test_both_sides_make_the_same_step() -> None:
    """Weights after two steps, in segments and plainly."""
    tokens = torch.randint(7, 11, (1, 41), generator=torch.Generator().manual_seed(0))
    steps = []
    for _ in range(2):
        torch.manual_seed(0)
        steps.append(long_context.Step("plain", Settings("cpu", 64, layers=1)))
    losses = [[float(step(tokens, segment)) for _ in range(2)] for step, segment in zip(steps, (40, 16), strict=True)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-2)
    assert losses[0][0] != losses[0][1]


def test_memory_that_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are halved until they fit; a side that does not fit at all is not tried at greater lengths."""
    sent: list[Message] = []
    tried: list[tuple[str, int, int]] = []
    monkeypatch.setattr(long_context, "send", lambda **message: sent.append(message))

    def step(impl: str, length: int, segment: int, settings: Settings) -> dict[str, object]:
        tried.append((impl, length, segment))
        if segment > 300:
            raise torch.OutOfMemoryError("full")
        return {"segment": segment}

    measure = long_context.Measure(step)
    settings = Settings("cpu", 64, segment=1000)
    measure(Job("train", 4000, impls=("segments",)), settings)
    assert [segment for _, _, segment in tried] == [1000, 500, 250]
    assert sent[-1]["row"]["segment"] == 250
    measure(Job("train", 8000, impls=("segments",)), settings)
    assert tried[3:] == [("segments", 8000, 250)]
    measure(Job("train", 300, impls=("segments",)), settings)
    assert sent[-1]["row"]["segment"] == 150
    measure(Job("train", 300, impls=("plain",)), settings)
    assert sent[-1]["row"]["segment"] == 300
    with pytest.raises(torch.OutOfMemoryError):
        measure(Job("train", 4000, impls=("plain",)), settings)
    with pytest.raises(MemoryError, match="not tried: out of memory at 4,000 tokens already"):
        measure(Job("train", 8000, impls=("plain",)), settings)
    assert tried[-1] == ("plain", 4000, 4000)


def test_what_the_rows_come_to() -> None:
    def row(impl: str, length: int, seconds: float, **more: object) -> Message:
        return {"impl": impl, "length": length, "seconds": seconds, "tokens_per_second": length / seconds, **more}

    rows = [
        row("plain", 131_072, 0.4),
        row("segments", 131_072, 0.48, segment=65_536),
        row("segments", 2_097_152, 8.0, segment=131_072),
        row("segments", 16_777_216, 65.0, segment=131_072),
        {"impl": "plain", "length": 262_144, "error": "OutOfMemoryError: CUDA out of memory."},
        {
            "impl": "plain",
            "length": 524_288,
            "error": "MemoryError: not tried: out of memory at 262,144 tokens already",
        },
    ]
    assert long_context.compare(rows) == [
        "131,072 tokens: segments of 65,536 take 1.20 of the plain step",
        "a token of 16,777,216 in segments takes 1.27 of one in a plain step of 131,072",
        "tokens/s at 16,777,216 over 2,097,152: 0.985",
        "plain: out of memory at 262,144 tokens",
    ]
