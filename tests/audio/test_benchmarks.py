"""The experiments on the prompts and on music, on small made sounds."""

import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import hits, music, pace, prompts, side_by_side
from domains.audio.bits import sample_bits
from domains.audio.config import TrainConfig
from domains.audio.trained import load_model
from domains.config import TrainerConfig
from domains.settings import to_dict, write_yaml
from tests.audio.models import LABELS, RATE, save, settings
from tests.audio.sounds import noise, store_of, tone, write

COMMIT = "a" * 40
WINDOWS = [64, 256]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A small generator's, on six tones in noise."""
    folder = tmp_path_factory.mktemp("made")
    for i in range(6):
        sound = tone(0.6 + 0.05 * i, RATE, 200.0 + 40 * i) + noise(0.6 + 0.05 * i, i, 0.02, RATE)
        write(folder / "clips" / f"{i}.wav", sound, RATE)
    store = store_of(folder, rate=RATE)
    base = settings("generate")
    data = replace(base.data, store=str(store.path), window=64, tokens_per_step=256, validation_tokens=256)
    trainer = TrainerConfig(
        max_steps=2, accelerator="cpu", log_every=1, validate_every=2, checkpoint_every=2, segment_length=64
    )
    return replace(base, data=replace(data, test=["0.wav"], validation=["1.wav"]), trainer=trainer)


def plan_of(config: TrainConfig, folder: Path, **changes: Any) -> music.Plan:
    plan = music.Plan(config, WINDOWS, folder / "runs", folder / "music.json", COMMIT, local_samples=128, chunk=1000)
    return replace(plan, **changes)


@pytest.fixture(scope="module")
def heard(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole experiment, with a learning rate at which a second phase moves far."""
    folder = tmp_path_factory.mktemp("heard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(music, "BLOCK", 500)
        plan = plan_of(config, folder)
        music.run(plan)
        music.add_baselines(plan)
    return folder


def test_music_goes_on_from_local_weights(config: TrainConfig, heard: Path) -> None:
    found = json.loads((heard / "music.json").read_text())
    assert list(found["trained"]) == ["local", "256", "64"]
    first = found["trained"].pop("local")
    assert found["steps"] == {"first": 4, "second": 2}
    assert {row["samples"] for row in (first, *found["trained"].values())} == {2 * 256}  # in steps of 128 and of 256
    rate = config.trainer.optimizer.learning_rate
    assert (first["learning_rate"], first["pretrained"]) == (rate, None)
    for name, row in found["trained"].items():
        loaded = load_model(heard / "runs" / name / "model")
        assert row["learning_rate"] == loaded.config.trainer.optimizer.learning_rate == rate / 4
        assert row["pretrained"] == first["model"] != row["model"] == loaded.hash
        assert loaded.config.data.window == int(name)


def test_music_is_scored_at_every_context(config: TrainConfig, heard: Path) -> None:
    found = json.loads((heard / "music.json").read_text())
    assert found["test"] == ["0.wav"]
    assert sorted(found["known"]) == ["0.wav", "1.wav"]
    table = {(row["window"], row["forgets_after"]): row for row in found["table"] if "window" in row}
    firsts = {("local", row["forgets_after"]): row for row in found["table"] if "first_phase" in row}
    assert set(table) == {(window, context) for window in WINDOWS for context in ("64", "256", "never")}
    assert [row["first_phase"] for row in firsts.values()] == [64, 64, 64]
    store = music.AudioStore.open(config.data.store)
    for (window, context), row in (table | firsts).items():
        loaded = load_model(heard / "runs" / str(window) / "model")
        forgets = None if context == "never" else int(context)
        bits = [sample_bits(loaded.model, store.tokens(i), chunk=77, context=forgets) for i in (0, 1)]  # type: ignore[arg-type]
        assert row["bits_per_sample"] == pytest.approx(np.concatenate(bits).mean(), abs=2e-4)
        assert row["by_piece"]["1.wav"] == pytest.approx(bits[1].mean(), abs=2e-4)
    gain = table[256, "never"]["bits_per_sample"] - table[64, "64"]["bits_per_sample"]
    told = table[256, "never"]["from_shortest"]
    assert told["difference"] == pytest.approx(gain, abs=2e-5)
    assert told["low"] <= told["difference"] <= told["high"]


def test_music_stands_beside_its_baselines(heard: Path) -> None:
    found = json.loads((heard / "music.json").read_text())
    baselines = {row["baseline"]: row["bits_per_sample"] for row in found["table"] if "baseline" in row}
    assert [name.split(" (")[0] for name in baselines] == ["linear predictor", "context model"]
    text = music.markdown(found)
    assert text.count("\n| 256 |") == 2
    assert sum(line.startswith("| 64, first phase |") and line.count(".") == 3 for line in text.splitlines()) == 1
    for row in found["table"]:
        assert ("from_baselines" in row) == (row.get("forgets_after") == "never")
        for name, compared in row.get("from_baselines", {}).items():
            assert compared["difference"] == pytest.approx(row["bits_per_sample"] - baselines[name], abs=2e-5)
    (linear, _) = baselines  # six steps do not beat it on tones
    for who in ("64, first phase", "64", "256"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"- {who}: ") and "linear" in line]
        assert line.startswith(f"- {who}: +")
        assert line.endswith(f", worse than the {linear}")


def test_music_goes_on_with_what_is_missing(
    config: TrainConfig, heard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(music, "BLOCK", 500)
    shutil.copytree(heard, tmp_path, dirs_exist_ok=True)
    plan, train = plan_of(config, tmp_path), music.train
    monkeypatch.setattr(music, "train", None)
    whole = json.loads(plan.json_path.read_text())
    assert music.run(plan)["trained"] == whole["trained"]  # a second call finds all of it
    monkeypatch.setattr(music, "model_bits", lambda *_: None)  # of a score that is there already
    part = json.loads(plan.json_path.read_text())
    del part["trained"]["256"]
    plan.json_path.write_text(json.dumps(part))
    assert music.run(plan)["trained"] == whole["trained"]  # the runs still hold it
    with pytest.raises(TypeError):  # another commit begins anew
        music.run(replace(plan, commit="b" * 40))
    # On another machine, without the runs, what goes on needs the first phase's weights.
    monkeypatch.undo()
    monkeypatch.setattr(music, "BLOCK", 500)
    plan.json_path.write_text(json.dumps(part))
    trained: list[str] = []
    monkeypatch.setattr(music, "train", lambda *a, **k: (trained.append(a[1].name), train(*a, **k))[1])
    again = music.run(replace(plan, runs=tmp_path / "elsewhere"))
    assert trained == ["local", "256"]
    assert again["trained"]["64"] == whole["trained"]["64"]
    assert again["trained"]["256"]["model"] == whole["trained"]["256"]["model"]


def test_the_minutes_are_shared_between_phases_and_gpus(config: TrainConfig, tmp_path: Path) -> None:
    class Cluster(music.Plan):
        gpus = 2

    for name, seconds in {"local": 0.1, "64": 1.0, "128": 2.0, "256": 4.0}.items():
        (tmp_path / f"pace-{name}.json").write_text(json.dumps({"seconds_a_step": seconds}))
    plan = plan_of(config, tmp_path, windows=[64, 128, 256], runs=tmp_path, minutes=2.0, local_share=0.25)
    assert music.steps(plan) == {"first": 300, "second": 12}  # 90 s / (1 + 2 + 4)
    assert music.steps(Cluster(**vars(plan))) == {"first": 300, "second": 22}  # 90 s / 4: the others beside the longest


def test_trainings_of_the_second_phase_are_processes_where_there_are_gpus(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command lines that they are given do all of it; the JSON comes of what they leave."""
    monkeypatch.setattr(music, "BLOCK", 500)
    monkeypatch.setattr(music.Plan, "gpus", 2)
    calls: list[list[str]] = []

    def run(commands: dict[str, list[str]], gpus: int, logs: Path, look: Callable[[], None]) -> None:
        assert (gpus, logs) == (2, tmp_path / "runs")
        calls.append(list(commands))
        for line in commands.values():
            assert line[:2] == [sys.executable, music.__file__]
            music.main(line[2:])
        look()

    monkeypatch.setattr(side_by_side, "run", run)
    write_yaml(tmp_path / "music.yaml", to_dict(config))
    words = ["--config", str(tmp_path / "music.yaml"), "--json", str(tmp_path / "music.json"), "--commit", COMMIT]
    words += ["--runs", str(tmp_path / "runs"), "--windows", "64,256", "--local-samples", "128", "--minutes", "0.001"]
    music.main(words)
    assert calls == [["pace-local", "pace-256", "pace-64"], ["local"], ["256", "64"]]
    found = json.loads((tmp_path / "music.json").read_text())
    assert found["steps"] == {"first": 4, "second": 4}
    assert [len(row["scores"]) for row in found["trained"].values()] == [3, 3, 3]
    assert len(found["table"]) == 9


def test_processes_run_side_by_side_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(side_by_side, "_BETWEEN_LOOKS", 0.02)
    # Each of the first two waits until the other is there; the third is given the GPU of one that has ended.
    meet = "import os, pathlib, sys, time\nhere = pathlib.Path(sys.argv[1])\n"
    meet += "(here / os.environ['CUDA_VISIBLE_DEVICES']).touch()\n"
    meet += "while len(list(here.glob('[57]'))) < 2: time.sleep(0.01)\nprint(sorted(p.name for p in here.glob('[57]')))"
    words = [sys.executable, "-c", meet, str(tmp_path)]
    looks: list[int] = []
    side_by_side.run(dict.fromkeys("abc", words), 2, tmp_path, lambda: looks.append(1))
    assert {(tmp_path / f"{name}.log").read_text().strip() for name in "abc"} == {"['5', '7']"}
    assert looks
    broken = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    with pytest.raises(SystemExit, match="b failed: no such luck"):
        side_by_side.run({"a": words, "b": broken}, 2, tmp_path, lambda: None)


def test_prompts_are_trained_scored_and_drawn(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "SOUNDS", 2)
    short = replace(config, data=replace(config.data, test=["0.wav", "2.wav"], rate=RATE))
    prompts.run(short, tmp_path / "run", tmp_path / "found.json", COMMIT, minutes=0.01, seconds=0.1)
    prompts.pack(tmp_path / "run", tmp_path / "run.tgz")
    with tarfile.open(tmp_path / "run.tgz") as archive:
        packed = {name for name in archive.getnames() if "." in Path(name).name}
    written = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "run").rglob("*.*")}
    assert packed == {name for name in written if "checkpoints" not in name} != written
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["trained"]["steps"] == found["settings"]["trainer"]["max_steps"] >= 10
    assert found["trained"]["samples"] == 256 * found["trained"]["steps"]
    assert found["evaluation"]["rows"][0]["samples"] == sum(row["samples"] for row in found["evaluation"]["rows"][1:])
    wavs = sorted(path.name for path in (tmp_path / "run" / "samples").glob("*.wav"))
    assert wavs == ["free-1.wav", "free-2.wav", "goes-on-1-1.wav", "goes-on-2-1.wav"]
    assert len(found["sounds"]) == 6
    assert {row["sound"].split(":")[0] for row in found["sounds"][4:]} == {"real"}
    assert not (tmp_path / "run-pace").exists()


def test_the_pace_is_that_of_the_steps(config: TrainConfig, tmp_path: Path) -> None:
    assert pace.samples_a_step(replace(config, trainer=replace(config.trainer, accumulate=3))) == 768
    assert 1e-4 < pace.seconds_a_step(config, tmp_path / "pace") < 10
    longer = pace.fitted(config, 40)
    assert (longer.trainer.max_steps, longer.trainer.validate_every, longer.trainer.max_minutes) == (40, 40, None)


def test_what_is_counted_of_a_sound() -> None:
    rate = 16000
    voice = np.concatenate([sum(tone(1.0, rate, 120.0 * k, 0.2 / k) for k in range(1, 6)), np.zeros(rate)])
    found = prompts.describe(voice, rate)
    assert found["pitch_hz"] == pytest.approx(120, abs=1.5)
    assert found["quiet"] == pytest.approx(0.5, abs=0.02)
    assert found["voiced"] > 0.95
    hiss = prompts.describe(noise(1.0, rate=rate), rate)
    assert hiss["voiced"] < 0.05
    assert hiss["centre_hz"] == pytest.approx(4000, abs=300)
    assert hiss["rms_db"] == pytest.approx(-20, abs=0.1)
    assert prompts.describe(np.zeros(rate), rate)["quiet"] == 1.0


def test_hits_in_a_recording_are_counted(tmp_path: Path) -> None:
    for i in range(9):
        write(tmp_path / "clips" / LABELS[i % 3] / f"g{i // 3}" / "a.wav", noise(0.2, i, 0.1, RATE), RATE)
    store = store_of(tmp_path, rate=RATE)
    model = save(tmp_path / "model", "classify")
    for case in ("silence", "stereo"):
        found = hits.listen(model, store, list(range(9)), case, "cpu")
        assert (found["hits"], found["found"], found["extra"]) == (9, 9, 0)
        assert 0 <= found["onset_error_ms"] < 10  # sounds begin by frames of 10 ms
    rows = [{"start": "0.500", "label": "bell"}, {"start": "2.000", "label": "drum"}]
    counted = hits.counted(store, [0, 3], [0.51, 1.0], rows)  # a bell found late, a drum missed, a sound at no hit
    assert counted == {
        **{"found": 1, "extra": 1, "onset_error_ms": 10.0},
        **{"accuracy": 0.5, "balanced_accuracy": 0.5},
    }
    assert hits.counted(store, [0], [0.5], [])["found"] == 0
    assert hits.onset(np.concatenate([np.zeros(85), np.full(100, 0.5)]), RATE, -50.0) == pytest.approx(0.02)
