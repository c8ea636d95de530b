"""The experiments on the prompts and on music, on small made sounds."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import hits, music, pace, prompts
from domains.audio.bits import sample_bits
from domains.audio.config import TrainConfig
from domains.audio.trained import load_model
from domains.config import TrainerConfig
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


def test_music_is_scored_at_every_context(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(music, "BLOCK", 500)
    path = tmp_path / "music.json"
    result = music.run(config, WINDOWS, tmp_path / "runs", path, COMMIT, chunk=1000)
    music.add_baselines(config, path)
    found = json.loads(path.read_text())
    assert found["test"] == ["0.wav"]
    assert sorted(found["known"]) == ["0.wav", "1.wav"]
    assert {row["samples"] for row in found["trained"].values()} == {2 * 256}
    table = {(row["window"], row["forgets_after"]): row for row in found["table"] if "window" in row}
    assert set(table) == {(window, context) for window in WINDOWS for context in ("64", "256", "never")}
    store = music.AudioStore.open(config.data.store)
    for (window, context), row in table.items():
        loaded = load_model(tmp_path / "runs" / str(window) / "model")
        forgets = None if context == "never" else int(context)
        bits = [sample_bits(loaded.model, store.tokens(i), chunk=77, context=forgets) for i in (0, 1)]  # type: ignore[arg-type]
        assert row["bits_per_sample"] == pytest.approx(np.concatenate(bits).mean(), abs=2e-4)
        assert row["by_piece"]["1.wav"] == pytest.approx(bits[1].mean(), abs=2e-4)
    gain = table[256, "never"]["bits_per_sample"] - table[64, "64"]["bits_per_sample"]
    told = table[256, "never"]["from_shortest"]
    assert told["difference"] == pytest.approx(gain, abs=2e-5)
    assert told["low"] <= told["difference"] <= told["high"]
    assert [row["baseline"] for row in found["table"] if "baseline" in row] == list(found["baselines"])
    assert music.markdown(found).count("\n| 256 |") == 2
    # A second call finds all of it; another commit begins anew.
    monkeypatch.setattr(music, "train", None)
    assert music.run(config, WINDOWS, tmp_path / "runs", path, COMMIT)["trained"] == result["trained"]
    with pytest.raises(TypeError):
        music.run(config, WINDOWS, tmp_path / "others", path, "b" * 40)


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
