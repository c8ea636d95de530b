"""The recall benchmark: its texts, that its task can be learned, and a result from end to end."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import recall
from benchmarks.recall import IGNORE, TASKS, Plan, Recall

CPU = torch.device("cpu")
TINY = ("--device", "cpu", "--d-model", "16", "--steps", "2", "--tokens-per-step", "256", "--longest", "128")


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_is_the_value_behind_the_key(name: str) -> None:
    task, distance = TASKS[name], 300
    tokens, targets = task.batch(5, distance, torch.Generator().manual_seed(0))
    assert tokens.shape == targets.shape == (5, distance + 2 * task.pairs)
    assert tokens.min() >= 0
    assert tokens.max() < task.vocab_size
    is_key = (tokens >= task.noise) & (tokens < task.noise + task.keys)
    for row in range(5):
        asked = (targets[row] != IGNORE).nonzero().flatten().tolist()
        assert asked == list(range(distance, distance + 2 * task.pairs, 2))
        assert int(is_key[row].sum()) == 2 * task.pairs  # noise holds none
        apart = []
        for at in asked:
            shown, again = (tokens[row] == tokens[row, at]).nonzero().flatten().tolist()
            assert again == at
            assert targets[row, at] == tokens[row, shown + 1] == tokens[row, at + 1]
            apart.append(again - shown)
        assert sum(apart) == distance * task.pairs  # the distance is their mean
    values = targets[targets != IGNORE]
    assert values.min() >= task.noise + task.keys
    assert task.chance == 1 / 16
    assert {"recall": pytest.approx(761 / 280 / 8), "induction": None}.get(name, task.unordered) == task.unordered


def test_texts_grow_from_short_to_long_and_from_fewer_pairs() -> None:
    plan = Plan(steps=400, longest=4096)
    drawn = list(recall.texts(TASKS["recall"], plan, torch.Generator().manual_seed(0)))
    assert {length for length, _ in drawn[:160]} == {32}
    assert {length for length, _ in drawn[320::4]} == {4096}
    assert all(32 <= length <= 4096 and length % 16 == 0 for length, _ in drawn)
    assert len({length for length, _ in drawn[321:]}) > 20
    assert {pairs for _, pairs in drawn[::2]} == {8}
    assert {pairs for _, pairs in drawn[1::2]} == set(range(1, 9))


def test_the_task_is_solvable_and_a_stream_remembers_what_a_guess_does_not() -> None:
    task = Recall(pairs=1, keys=8, values=4, noise=4)
    plan = Plan(d_model=32, layers=4, steps=100, tokens_per_step=1024, longest=32, chunk=16, learning_rate=1e-2)
    torch.manual_seed(0)
    model = recall.make_model("transformer", task.vocab_size, plan)
    untrained = recall.evaluate(model, task, plan, CPU, 60, time.monotonic() + 60)
    told = recall.train(model, task, plan, CPU, time.monotonic() + 120)
    trained = recall.evaluate(model, task, plan, CPU, 60, time.monotonic() + 60)
    assert (told["steps"], told["tokens"]) == (100, 100 * 1024)
    assert untrained["accuracy"] < 0.5
    assert trained["accuracy"] > 0.9
    assert trained["state_bytes"] == 2 * (2 * 62 * 32 * 4 + 16)  # two layers of keys and values, and two numbers each


def test_training_in_segments_is_the_same_training() -> None:
    plan = Plan(d_model=16, layers=3, steps=2, tokens_per_step=256, longest=256, segment=10_000)
    task, losses = TASKS["recall"], []
    for segment in (10_000, 48):
        torch.manual_seed(0)
        model = recall.make_model("hybrid", task.vocab_size, plan).double()
        losses.append(recall.train(model, task, replace(plan, segment=segment), CPU, time.monotonic() + 60)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_backbones_are_of_about_one_size() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in recall.make_model(b, 48, Plan()).parameters()) for b in recall.PATTERNS]
    assert max(sizes) < 1.1 * min(sizes)


def test_a_result_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "recall.json"
    recall.main([*TINY, "--distances", "50,200", "--texts", "4", "--json", str(target), "--plot", "--tasks", "recall"])
    result = json.loads(target.read_text())
    assert {(row["backbone"], row["distance"]) for row in result["rows"]} == {
        (backbone, distance) for backbone in recall.PATTERNS for distance in (50, 200)
    }
    assert all(0 <= row["accuracy"] <= 1 for row in result["rows"])
    grown = {row["backbone"]: row["state_bytes"] for row in result["rows"] if row["distance"] == 200}
    fixed = {row["backbone"]: row["state_bytes"] for row in result["rows"] if row["distance"] == 50}
    assert {backbone for backbone in grown if grown[backbone] > fixed[backbone]} == {"transformer", "hybrid"}
    assert {"hardware", "commit", "versions", "plan"} <= result.keys()
    assert (tmp_path / "recall.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "| chance | | 0.062 | 0.062 | |" in printed
    recall.main(["--table", str(target)])
    assert "| values without their keys | | 0.340 | 0.340 | |" in printed
    assert capsys.readouterr().out.strip() == printed[printed.index("| recall |") :].strip()


def test_what_gives_out_is_recorded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_memory(*args: object) -> None:
        raise torch.OutOfMemoryError("no")

    plan, task = Plan(d_model=16, layers=1), TASKS["recall"]
    model = recall.make_model("mamba2", task.vocab_size, plan)
    late = recall.evaluate(model, task, plan, CPU, 100, time.monotonic() - 1)
    assert (late["accuracy"], late["note"]) == (None, "time limit")
    monkeypatch.setattr(recall, "stream", no_memory)
    full = recall.evaluate(model, task, plan, CPU, 100, time.monotonic() + 60)
    assert (full["accuracy"], full["note"]) == (None, "out of memory")
    cut = recall.train(model, task, plan, CPU, time.monotonic() - 1)
    assert (cut["steps"], cut["note"]) == (0, "training was cut by the time limit")
