"""The benchmark of the kernels: floors, the queue that outlives a crash, JSON, README table, long sequences."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import floors, kernel_cases, kernels, long, peers, report, worker
from benchmarks.jobs import Job, Message, Settings, run_jobs
from benchmarks.kernel_cases import Graphed, Tensors, Work

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
H100 = {"copy_bytes_per_s": 3.02e12, "matmul_flops_per_s": 7.7e14, "exp_per_s": 16.0 * 132 * 1.755e9}

# Stands in for worker.py: a case says what happens to each implementation.
FAKE_WORKER = """
import json, os, sys, time
request = json.load(sys.stdin)
def send(**message): print("@@ " + json.dumps(message), flush=True)
print("noise on stdout")
for job in request["jobs"]:
    for impl in job["impls"]:
        send(trying=impl)
        if impl == "theirs" and job["case"] == "crash":
            print("illegal memory access", file=sys.stderr)
            os.abort()
        if impl == "theirs" and job["case"] == "hang":
            time.sleep(60)
        if impl == "theirs" and job["case"] in ("error", "fatal"):
            fatal = job["case"] == "fatal"
            send(failed={"impl": impl, "error": "broken", "fatal": fatal})
            if fatal:
                os._exit(1)
    for impl in job["impls"]:
        if impl != "theirs" or job["case"] == "fine":
            send(row={"impl": impl, "case": job["case"]})
    send(done=True)
"""


def fake(cases: list[str], folder: Path, seconds: float = 60.0, silence: float = 30.0) -> list[Message]:
    script = folder / "fake_worker.py"
    script.write_text(FAKE_WORKER)
    jobs = [Job(case, 8, impls=("ours", "theirs")) for case in cases]
    command = [sys.executable, "-S", str(script)]
    return [m["row"] for m in run_jobs(jobs, command, Settings(), time.monotonic() + seconds, silence)]


def summary(rows: list[Message]) -> list[tuple[str, str, str]]:
    return [(row["case"], row["impl"], row.get("error", "")) for row in rows]


def test_a_crash_costs_one_row(tmp_path: Path) -> None:
    rows = summary(fake(["fine", "error", "crash", "fatal", "fine"], tmp_path))
    crash = "the process ended with code -6: illegal memory access"
    assert rows == [
        ("fine", "ours", ""),
        ("fine", "theirs", ""),
        ("error", "theirs", "broken"),
        ("error", "ours", ""),
        ("crash", "theirs", crash),
        ("crash", "ours", ""),
        ("fatal", "theirs", "broken"),
        ("fatal", "ours", ""),
        ("fine", "ours", ""),
        ("fine", "theirs", ""),
    ]


def test_a_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    rows = summary(fake(["hang", "fine"], tmp_path, silence=1.0))
    assert rows[0] == ("hang", "theirs", "no result within 1 s")
    assert rows[1:] == [("hang", "ours", ""), ("fine", "ours", ""), ("fine", "theirs", "")]


def test_what_does_not_fit_in_the_time_says_so(tmp_path: Path) -> None:
    rows = fake(["hang", "fine"], tmp_path, seconds=1.5)
    skipped = "skipped: the time limit was reached"
    assert {row["error"] for row in rows} == {skipped}
    assert {(row["case"], row["impl"]) for row in rows} == {
        (c, i) for c in ("hang", "fine") for i in ("ours", "theirs")
    }
    assert rows[0]["fwd_ms"] is None


def test_a_worker_that_never_starts_ends_the_queue(tmp_path: Path) -> None:
    jobs = [Job("fine", 8), Job("fine", 16)]
    command = [sys.executable, "-S", "-c", "raise SystemExit('no PyTorch here')"]
    rows = [message["row"] for message in run_jobs(jobs, command, Settings(), time.monotonic() + 60)]
    assert [row["error"] for row in rows] == ["the process ended with code 1: no PyTorch here"] * 2


def test_floors_are_those_of_the_notes() -> None:
    def floor(case: str) -> tuple[float, float]:
        row = floors.floor_row(Job(case, 65_536), H100, 1024)
        assert row is not None
        return row["fwd_ms"], row["fwdbwd_ms"]

    assert floor("ssd") == (pytest.approx(0.19, abs=0.005), pytest.approx(0.48, abs=0.01))
    assert floor("selective_scan")[0] == pytest.approx(0.58, abs=0.005)  # exponentials, not bytes (0.36)
    assert floor("mamba2_layer")[0] == pytest.approx(0.19 + 1.12, abs=0.02)  # 13.2 MFLOP a token of projections
    weights = floors.decode_bytes("mamba2", 0, 1024)
    assert weights == pytest.approx(317e6, rel=0.01)
    assert floors.floor_row(Job("first_call", 8, mixer="mamba2"), H100, 1024) is None


def test_jobs_come_in_an_order_that_is_fair_and_safe() -> None:
    jobs = kernels.make_jobs(list(kernels.CASES), list(kernels.LENGTHS), list(kernels.IMPLS))
    assert jobs[0].case == "ceilings"
    assert (jobs[1].case, jobs[1].length) == ("ssd", 65_536)  # mamba_ssm tunes where the bars are
    assert (jobs[-1].case, jobs[-1].length) == ("mamba2_layer", 1_048_576)  # which breaks its context
    assert {(job.batch, job.length) for job in jobs if job.case == "ssd"} == {
        *((1, length) for length in kernels.LENGTHS),
        (16, 2_048),
    }
    assert max(job.length for job in jobs if "attention" in job.impls) == 65_536
    assert {job.mode for job in jobs if job.case == "decode"} == {"eager", "graph"}
    assert kernels.make_jobs(["ssd"], [64], ["mamba_ssm"])[1:] == [Job("ssd", 64, impls=("mamba_ssm",))]


def test_sides_take_turns_and_one_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    lost: list[str] = []
    monkeypatch.setattr(worker, "send", lambda **message: None)

    def broken(turn: int) -> None:
        order.append("broken")
        if len(order) > 6:
            raise RuntimeError("lost")

    medians = worker.in_turn(
        {"fine": lambda turn: order.append("fine"), "broken": broken}, "cpu", 0.0, lambda name, _: lost.append(name)
    )
    assert list(medians) == ["fine"]
    assert lost == ["broken"]
    assert order[:6] == ["fine", "fine", "broken", "broken", "fine", "broken"]


def test_rounds_are_many_and_short_but_hold_three_calls_where_they_can() -> None:
    assert [worker.plan(calls) for calls in (1e6, 600, 60)] == [(20, 12), (20, 12), (20, 3)]
    assert [worker.plan(calls) for calls in (30, 15, 10, 1, 0)] == [(10, 3), (5, 3), (5, 2), (5, 1), (5, 1)]


def test_a_slow_side_takes_part_in_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of 1 and of 40 ms: all are made, and the first of a turn is not counted where there are several."""
    made: dict[str, list[int]] = {"fast": [], "slow": []}
    monkeypatch.setattr(worker, "send", lambda **message: None)

    def burst(call: Callable[[int], object], count: int, device: str) -> list[float]:
        name = str(call(0))
        made[name].append(count)
        each = {"fast": 1.0, "slow": 40.0}[name]
        return [9 * each, *[each] * (count - 1)]

    monkeypatch.setattr(worker, "burst", burst)
    sides = {"fast": lambda turn: "fast", "slow": lambda turn: "slow"}
    found = worker.in_turn(sides, "cpu", worker.BUDGET_MS, lambda name, error: None)
    assert found == {"fast": (1.0, 1.0), "slow": (40.0, 40.0)}
    assert made == {"fast": [2, *[12] * 20], "slow": [2, *[3] * 5]}


def test_graphed_calls_take_the_inputs_of_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cases, "captured", lambda call: call)
    torch.manual_seed(0)
    weight = torch.randn(3, requires_grad=True)
    sets = [{"x": torch.randn(2, 3, requires_grad=True), "grad": torch.randn(2, 3)} for _ in range(3)]

    def function(t: Tensors) -> torch.Tensor:
        return (t["x"] * weight).tanh()

    plain = Work(function, sets, (weight,))
    graphed = Graphed(function, sets, (weight,), note="a graph")
    assert (graphed.trains, graphed.note) == (True, "a graph")
    for turn in (0, 1, 2, 3, 1):
        torch.testing.assert_close(graphed.infer(turn), plain.infer(turn), rtol=0, atol=0)
        for ours, right in zip(graphed.train(turn), plain.train(turn), strict=True):
            torch.testing.assert_close(ours, right, rtol=0, atol=0)
    outputs = [graphed.infer(turn).clone() for turn in range(3)]  # a graph's would be overwritten by the next turn
    assert all(not torch.equal(outputs[i], outputs[i - 1]) for i in range(3))
    assert graphed.sets[0]["x"].data_ptr() not in {one["x"].data_ptr() for one in sets}


def test_every_script_imports() -> None:
    scripts = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    assert "decode_cpu" in scripts
    for script in scripts:
        importlib.import_module(f"benchmarks.{script}")


def test_times_and_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA branch with a clock that each call moves on, and an allocator that holds 3 MiB at its peak."""
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            self.at = clock[0]

        def elapsed_time(self, later: "Event") -> float:
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2 << 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 << 20)

    def call(turn: int) -> None:
        clock[0] += 1.0 + turn

    assert worker.burst(call, 3, "cuda") == [1.0, 2.0, 3.0]
    x = torch.ones(2, requires_grad=True)
    for factor, finite in ((1.0, True), (float("inf"), False)):
        work = Work(lambda t, factor=factor: t["x"] * factor, [{"x": x, "grad": torch.ones(2)}])
        assert worker.peak_mib(work, "cuda") == (3.0, finite)


def test_mamba_ssm_that_is_not_there(tmp_path: Path) -> None:
    for folder in (None, str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="mamba_ssm"):
            peers.install(folder)
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text('__version__ = "2.3.2"\nimport nothing_of_the_kind\n')
    assert peers.version(str(tmp_path)) == "2.3.2"


def test_the_whole_on_a_cpu(tmp_path: Path) -> None:
    """One small run, in which mamba_ssm does not import, and the check of long sequences."""
    path = tmp_path / "kernels_cpu.json"
    common = ["--device", "cpu", "--d-model", "64", "--json", str(path), "--commit", COMMIT]
    cases = "ssd,selective_scan,norm,mamba2_layer"
    command = [sys.executable, "benchmarks/kernels.py", *common, "--cases", cases, "--lengths", "70", "--quick"]
    broken = tmp_path / "peer" / "mamba_ssm" / "ops" / "triton" / "ssd_combined.py"
    broken.parent.mkdir(parents=True)
    broken.write_text("import nothing_of_the_kind\n")
    command += ["--mamba-ssm", str(tmp_path / "peer")]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert out.returncode == 0, out.stderr
    result = json.loads(path.read_text())
    assert result["commit"] == COMMIT
    assert {"cpu", "device"} <= result["hardware"].keys()
    rows = {(row["impl"], row["case"]): row for row in result["rows"]}
    assert {"impl", "case", "length", "batch", "fwd_ms", "fwdbwd_ms", "extra_peak_mib", "mode"} <= set(
        result["rows"][0]
    )
    for case in cases.split(","):
        assert rows["serpentine", case]["fwdbwd_ms"] > 0
        assert rows["floor", case]["fwd_ms"] >= 0
    assert rows["attention", "ssd"]["fwd_ms"] > 0
    assert "nothing_of_the_kind" in rows["mamba_ssm", "ssd"]["error"]
    assert result["versions"]["mamba_ssm"] == "unknown"

    command = [sys.executable, "benchmarks/long.py", *common, "--cases", "ssd", "--lengths", "70", "--segment", "32"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert out.returncode == 0, out.stdout + out.stderr
    both = json.loads(path.read_text())
    assert both["rows"] == result["rows"]
    assert {row["output"] for row in both["long"]} >= {"y", "final state", "gradient of x", "gradient of initial state"}
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("case", ["selective_scan", "mamba1_layer", "mamba2_layer"])
def test_long_sequences_equal_their_segments(case: str) -> None:
    torch.manual_seed(0)
    settings = Settings("cpu", 64)
    errors = long.compare(long.make_problem(Job(case, 50), settings, True), 16)
    assert max(errors.values()) < long.TOLERANCE
    assert len(errors) > 8


def test_a_state_that_is_not_passed_on_shows() -> None:
    torch.manual_seed(0)
    problem = long.make_problem(Job("ssd", 50), Settings("cpu", 64), True)
    right = problem.function

    def forgetful(sequences: dict, weights: dict, state: dict) -> tuple:
        if sequences["x"].shape[1] == 50:  # the whole call loses what is slow after half of it
            halves = [{name: t[:, part] for name, t in sequences.items()} for part in (slice(25), slice(25, 50))]
            first, middle = right(halves[0], weights, state)
            second, final = right(halves[1], weights, {name: t * 0.9 for name, t in middle.items()})
            return torch.cat([first, second], dim=1), final
        return right(sequences, weights, state)

    problem.function = forgetful
    errors = long.compare(problem, 10)
    for output in ("y", "final state", "gradient of x", "gradient of initial state"):
        assert errors[output] > long.TOLERANCE, output


def example() -> report.Result:
    """A small result with a failure, a remark, decoding, a first call and a check of long sequences."""
    rows = [
        Job("ssd", 65_536).row("serpentine", fwd_ms=0.41, fwdbwd_ms=1.914, extra_peak_mib=802.3),
        Job("ssd", 65_536).row("mamba_ssm", fwd_ms=1.31, fwdbwd_ms=5.5, extra_peak_mib=1669.0),
        Job("ssd", 65_536).row("attention", fwd_ms=18.84, fwdbwd_ms=66.42),
        Job("ssd", 65_536).row("floor", fwd_ms=0.19, fwdbwd_ms=0.48),
        Job("mamba2_layer", 2_048, 16).row("serpentine", fwd_ms=1.2, fwdbwd_ms=4.0, extra_peak_mib=900.0),
        Job("mamba2_layer", 2_048, 16).row("mamba_ssm", fwd_ms=2.0, fwdbwd_ms=9.0, note=peers.NO_CONV),
        Job("mamba2_layer", 1_048_576).row("serpentine", fwd_ms=30.0, fwdbwd_ms=1031.0, extra_peak_mib=30_000.0),
        Job("mamba2_layer", 1_048_576).row("mamba_ssm", error="CUDA error: an illegal memory access"),
        Job("decode", 1, 64, mode="graph", mixer="mamba2").row("serpentine", fwd_ms=1.1),
        Job("first_call", 8_192, mixer="mamba2").row("serpentine", fwdbwd_ms=7_125.0),
    ]
    check = {"case": "ssd", "length": 4_194_304, "output": "y", "error": 3.2e-3, "tolerance": 1e-2}
    return {
        "hardware": {"device": "cuda", "gpu": "NVIDIA H200", "cpu": "x"},
        "commit": COMMIT,
        "versions": {"torch": "2.11.0", "mamba_ssm": "2.3.2"},
        "d_model": 1024,
        "rows": rows,
        "long": [check],
        "notes": floors.published(),
    }


def test_the_table_says_what_was_measured() -> None:
    text = report.markdown(example(), "benchmarks/results/kernels_h200.json")
    assert "One NVIDIA H200, bf16, d_model 1,024, PyTorch 2.11.0, commit 0123456789" in text
    assert (
        "| SSD | 65,536 | 0.41 / 1.91 | 802 | 1.31 / 5.50 | 1,669 | 1.46 / 6.11 | 18.8 / 66.4 | 0.19 / 0.48 |" in text
    )
    assert (
        "| Mamba-2 layer | 16 x 2,048 | 1.20 / 4.00 | 900 | 2.00 / 9.00<sup>2</sup> | - | 1.83 / 9.38 | - | - |" in text
    )
    assert "| Mamba-2 layer | 1,048,576 | 30.0 / 1,031 | 30,000 | failed<sup>1</sup> | - | - | - | - |" in text
    assert "1. CUDA error: an illegal memory access" in text
    assert "| Mamba-2 | 64 | 1.10 | - | - | - | 1.60 | - |" in text
    assert "Mamba-2 layer Serpentine 7.1 s." in text
    assert "At 4,194,304 tokens" in text
    assert "largest relative error 3.2e-03 (ssd, y; tolerance 1e-02)." in text
    assert "field notes" in text


def test_the_block_of_a_readme_is_replaced(tmp_path: Path) -> None:
    link = "benchmarks/results/kernels_h200.json"
    readme = "before\n<!-- kernels_h200 -->\nold\n<!-- /kernels_h200 -->\nafter\n"
    new = report.replace_block(readme, example(), link)
    assert new == f"before\n{report.block(example(), link)}\nafter\n"
    assert report.replace_block(new, example(), link) == new
    with pytest.raises(ValueError, match="no block"):
        report.replace_block("nothing here", example(), link)


def test_results_merge_or_replace(tmp_path: Path) -> None:
    path = tmp_path / "results" / "kernels_h200.json"
    report.write(path, example())
    again = Job("ssd", 65_536).row("serpentine", fwd_ms=0.4, fwdbwd_ms=1.8)
    skipped = Job("ssd", 65_536).row("mamba_ssm", error="skipped: the time limit was reached")
    report.write(path, example() | {"rows": [again, skipped], "long": [], "versions": {"torch": "2.11.0"}})
    merged = json.loads(path.read_text())
    rows = {report.key(row): row for row in merged["rows"]}
    assert len(rows) == len(example()["rows"])
    assert rows[report.key(again)]["fwdbwd_ms"] == 1.8
    assert rows[report.key(skipped)]["fwd_ms"] == 1.31
    assert merged["versions"]["mamba_ssm"] == "2.3.2"
    assert merged["long"] == example()["long"]
    report.write(path, example() | {"rows": [again], "commit": COMMIT[::-1]})
    assert json.loads(path.read_text())["rows"] == [again]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_commit_is_40_digits() -> None:
    assert kernels.measured_commit(COMMIT, True) == COMMIT
    with pytest.raises(SystemExit, match="40 hexadecimal"):
        kernels.measured_commit("3c1119a", False)


def test_the_profile_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    command = [sys.executable, "benchmarks/kernel_profile.py", "--device", "cpu", "--d-model", "64", "--lengths", "70"]
    command += ["--cases", "ssd", "--json", str(path), "--commit", COMMIT]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert out.returncode == 0, out.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [row["what"] for row in rows] == ["forward", "forward + backward"]
    for row in rows:
        assert row["elapsed_ms"] > 0
        assert row["kernels_ms"] == pytest.approx(sum(kernel["ms"] for kernel in row["kernels"]), abs=0.01)
        assert row["launches"] >= 1
    assert any("ssd_backward" in kernel["name"] for kernel in rows[1]["kernels"])
