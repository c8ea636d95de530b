"""Labels of recordings: what the streams say, in tables that survive interruptions and bad files."""

import csv
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from domains.audio import io, recordings
from domains.audio import predict as prediction
from domains.audio.config import PredictConfig, SourceConfig
from domains.audio.io import inspect_clip, read_clip
from domains.audio.predict import Prediction, load_streams, predict
from domains.audio.trained import load_model
from domains.audio.whole import clip_probabilities
from domains.errors import UserError
from tests.audio.models import LABELS, RATE, save
from tests.audio.sounds import noise, write
from tests.audio.test_io import BAD, make_bad
from tests.audio.test_stream import scene


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "model", "classify")


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """Three recordings, one of them at another rate, in stereo and in a folder of its own."""
    folder = tmp_path / "incoming"
    write(folder / "a.wav", scene(), RATE, subtype="FLOAT")
    stereo = np.stack([scene(11025)] * 2, axis=1)
    write(folder / "yard" / "b.flac", np.concatenate([stereo, stereo]), 11025, subtype="PCM_24")
    write(folder / "c.wav", np.concatenate([scene()[4000:], scene()]), RATE, subtype="FLOAT")
    return folder


def run(model: Path, root: Path, out: Path, **settings: Any) -> Prediction:
    return predict(model, SourceConfig(root=str(root)), out, PredictConfig(**settings), device="cpu", progress=False)


def rows(out: Path) -> list[dict[str, str]]:
    """Those of all parts that the manifest knows."""
    manifest = json.loads((out / "manifest.json").read_text())
    tables = [(out / part["labels"]).read_text() for part in manifest["parts"].values()]
    return [row for table in tables for row in csv.DictReader(table.splitlines())]


def streamed(model: Path, path: Path, **settings: Any) -> list[dict[str, str]]:
    """What one stream says of a file that it is given in one block."""
    info = inspect_clip(path)
    streams = load_streams(model, slots=1, config=PredictConfig(**settings), device="cpu")
    streams.open("x", info.rate)
    block = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    segments = streams.feed({"x": block})["x"].segments + streams.close("x").segments
    return [
        {"start": f"{s.start:.4f}", "end": f"{s.end:.4f}", "label": s.label, "score": f"{s.score:.4f}"}
        for s in segments
    ]


def close(found: list[dict[str, str]], wanted: list[dict[str, str]]) -> None:
    """Equal, but for the last digit of scores."""
    for row, other in zip(found, wanted, strict=True):
        assert {k: v for k, v in row.items() if k != "score"} == {k: v for k, v in other.items() if k != "score"}
        assert float(row["score"]) == pytest.approx(float(other["score"]), abs=1.5e-4)


def test_files_say_what_their_streams_say(model: Path, incoming: Path, tmp_path: Path) -> None:
    done = run(model, incoming, tmp_path / "out")
    found = rows(tmp_path / "out")
    names = ["a.wav", "c.wav", "yard/b.flac"]
    assert (sorted(done.written), done.skipped, done.rejects) == (names, [], {})
    assert (done.sounds, done.seconds) == (len(found), pytest.approx(2.4 + 3.8 + 4.8))
    assert [row["file"] for row in found] == sorted(row["file"] for row in found)
    for name in names:
        own = [{k: v for k, v in row.items() if k != "file"} for row in found if row["file"] == name]
        assert len(own) >= 2
        close(own, streamed(model, incoming / name))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", "labels-00000.csv", "rejects.csv"}


def test_one_after_another_or_a_single_file_says_the_same(model: Path, incoming: Path, tmp_path: Path) -> None:
    run(model, incoming, tmp_path / "all", longest_seconds=0.2, hold_seconds=0.1)
    run(model, incoming, tmp_path / "each", longest_seconds=0.2, hold_seconds=0.1, streams=1)
    close(rows(tmp_path / "all"), rows(tmp_path / "each"))
    run(model, incoming / "a.wav", tmp_path / "one", longest_seconds=0.2, hold_seconds=0.1)
    close(rows(tmp_path / "one"), [row for row in rows(tmp_path / "all") if row["file"] == "a.wav"])
    close(
        [{k: v for k, v in row.items() if k != "file"} for row in rows(tmp_path / "one")],
        streamed(model, incoming / "a.wav", longest_seconds=0.2, hold_seconds=0.1),
    )


def test_parquet_and_frames(model: Path, incoming: Path, tmp_path: Path) -> None:
    import polars as pl

    out = tmp_path / "out"
    run(model, incoming, out, table="parquet", frames=True)
    run(model, incoming, tmp_path / "csv", frames=True)
    table = pl.read_parquet(out / "labels-00000.parquet")
    assert table.columns == ["file", "start", "end", "label", "score"]
    close([{k: v if isinstance(v, str) else f"{v:.4f}" for k, v in row.items()} for row in table.to_dicts()],
          rows(tmp_path / "csv"))  # fmt: skip
    frames = pl.read_parquet(out / "yard%2Fb.flac.frames.parquet")
    assert frames.columns == ["seconds", *LABELS]
    assert frames["seconds"].is_sorted()
    assert np.allclose(frames.select(LABELS).to_numpy().sum(1), 1, atol=1e-5)
    for sound in table.filter(pl.col("file") == "yard/b.flac").to_dicts():  # as it stood at the end of each sound
        (row,) = frames.filter((pl.col("seconds") - sound["end"]).abs() < 1e-6).to_dicts()
        assert row[sound["label"]] == pytest.approx(sound["score"], abs=1e-6)
    text = (tmp_path / "csv" / "yard%2Fb.flac.frames.csv").read_text().splitlines()
    assert text[0] == "seconds,bell,drum,voice"
    assert len(text) == len(frames) + 1


def test_clips_get_one_label_each(model: Path, incoming: Path, tmp_path: Path) -> None:
    """A model in one direction hears files of any length for it; one in both directions those that it may hold."""
    both = save(tmp_path / "both", "classify", bidirectional=True, level_db=-20.0)
    pictures = save(tmp_path / "pictures", "spectrogram")
    one = save(tmp_path / "one", "classify", level_db=-20.0)
    for folder, settings in ((model, {"mode": "clips"}), (both, {}), (pictures, {}), (one, {"mode": "clips"})):
        out = tmp_path / f"out-{folder.name}"
        done = run(folder, incoming, out, **settings)
        loaded = load_model(folder)
        assert done.sounds == 3
        for row in rows(out):
            samples = read_clip(incoming / row["file"], RATE)
            said = clip_probabilities(loaded.model, samples, loaded.sound.level_db)  # type: ignore[arg-type]
            assert (row["label"], float(row["start"])) == (LABELS[said.argmax()], 0.0)
            assert float(row["end"]) == pytest.approx(len(samples) / RATE, abs=1e-3)
            assert float(row["score"]) == pytest.approx(said.max(), abs=2e-4)
    done = run(both, incoming, tmp_path / "short", clip_seconds=4.0)
    assert done.rejects == {prediction.TOO_LONG: 1}
    assert {row["file"] for row in rows(tmp_path / "short")} == {"a.wav", "c.wav"}


def test_a_recording_is_brought_to_the_level_of_the_training(incoming: Path, tmp_path: Path) -> None:
    """However loud it is, as long as its quiet is quiet."""
    model = save(tmp_path / "model", "classify", level_db=-20.0)
    soft = read_clip(incoming / "a.wav", RATE)
    write(incoming / "loud.wav", 2.5 * soft, RATE, subtype="FLOAT")
    run(model, incoming, tmp_path / "out")
    found = rows(tmp_path / "out")
    close([{**row, "file": ""} for row in found if row["file"] == "loud.wav"],
          [{**row, "file": ""} for row in found if row["file"] == "a.wav"])  # fmt: skip
    info = inspect_clip(incoming / "a.wav")
    gain = recordings.recording_gain(incoming / "a.wav", info, RATE, PredictConfig(lead_seconds=0), -20.0)
    kept = np.concatenate([soft[1200:3200], soft[4000:7200], soft[8000:8880]])  # what is held after each is heard too
    assert 20 * np.log10(gain) == pytest.approx(-20 - 10 * np.log10(np.square(kept).mean()), abs=1e-3)


def test_what_models_cannot_do_is_one_line(model: Path, incoming: Path, tmp_path: Path) -> None:
    both = save(tmp_path / "both", "classify", bidirectional=True)
    generator = save(tmp_path / "generator", "generate")
    for folder, settings, message in (
        (both, {"mode": "stream"}, "hears whole clips, from both ends, and mode=stream wants one that streams"),
        (both, {"frames": True}, "frames=true wants one that streams; give mode=clips frames=false"),
        (generator, {}, "was trained with task=generate; give a model of classify or spectrogram"),
        (model, {"mode": "whole"}, "mode=whole: must be auto, stream or clips"),
        (model, {"table": "xls"}, "table=xls: must be csv or parquet"),
        (model, {"streams": 0}, "streams=0: must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            run(folder, incoming, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_bad_files_are_kept_aside_with_a_line_each(
    model: Path, incoming: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = [kind for kind in BAD if kind != "missing"]
    for kind in kinds:
        (tmp_path / kind).mkdir()
        path = make_bad(tmp_path / kind, kind)
        path.rename(incoming / f"{kind}{path.suffix}")
    (incoming / "notes.txt").write_text("hello")
    locked = write(incoming / "locked.wav", noise(0.1), RATE)
    locked.unlink()
    locked.symlink_to(locked.name)  # a link to itself cannot be opened, not even by root
    predict(model, SourceConfig(root=str(incoming)), tmp_path / "out", PredictConfig(), device="cpu")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kept aside: ")]
    with (tmp_path / "out" / "rejects.csv").open(newline="") as file:
        found = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    expected = {f"{kind}.{kind[4:] if kind.startswith('cut ') else 'wav'}": BAD[kind] for kind in kinds}
    assert found == {**expected, "notes.txt": "not sound by its name", "locked.wav": io.UNREADABLE}
    assert len(told) == len(found)
    assert {row["file"] for row in rows(tmp_path / "out")} == {"a.wav", "c.wav", "yard/b.flac"}


def test_where_no_recording_can_be_used_is_one_line(model: Path, tmp_path: Path) -> None:
    """And what comes later is labelled all the same."""
    incoming, out = tmp_path / "incoming", tmp_path / "out"
    incoming.mkdir()
    (incoming / "notes.txt").write_text("hello")
    for name in ("b.wav", "a.wav"):
        (incoming / name).write_text("no sound")
    for _ in range(2):  # the second time from the manifest
        with pytest.raises(
            UserError, match=r"incoming: no recording can be used; the first: a\.wav: not audio \(.*\); see"
        ) as caught:
            run(model, incoming, out)
        assert str(out / "rejects.csv") in str(caught.value)
    assert len((out / "rejects.csv").read_text().splitlines()) == 4
    write(incoming / "c.wav", scene(), RATE)
    done = run(model, incoming, out)
    assert (done.written, done.rejects[io.NO_AUDIO]) == (["c.wav"], 2)
    assert {row["file"] for row in rows(out)} == {"c.wav"}


def test_a_second_call_does_what_is_missing(
    model: Path, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first part; then a damaged table, a file that has come, one that was mended, one that went."""
    monkeypatch.setattr(prediction, "_MOST", 1)
    whole = tmp_path / "whole"
    run(model, incoming, whole, frames=True)
    out, write_part = tmp_path / "out", prediction._label_part

    def killed(*arguments: Any) -> Any:
        if (out / "labels-00000.csv").exists():
            raise KeyboardInterrupt
        return write_part(*arguments)

    monkeypatch.setattr(prediction, "_label_part", killed)
    with pytest.raises(KeyboardInterrupt):
        run(model, incoming, out, frames=True)
    assert len({row["file"] for row in rows(out)}) == 1
    monkeypatch.setattr(prediction, "_label_part", write_part)
    done = run(model, incoming, out, frames=True)
    assert (len(done.written), len(done.skipped)) == (2, 1)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert sorted(map(str, rows(out))) == sorted(map(str, rows(whole)))
    assert run(model, incoming, out, frames=True).written == []
    (out / "labels-00001.csv").write_text("file\n")
    (incoming / "d.wav").write_text("no sound")
    done = run(model, incoming, out, frames=True)
    assert (done.written, done.rejects) == (["c.wav"], {io.NO_AUDIO: 1})
    assert sorted(map(str, rows(out))) == sorted(map(str, rows(whole)))
    write(incoming / "d.wav", scene(), RATE, subtype="FLOAT")
    (incoming / "a.wav").unlink()
    os.utime(incoming / "c.wav", (1, 1))  # another time, the same content
    done = run(model, incoming, out, frames=True)
    assert (done.written, done.rejects, len(done.skipped)) == (["d.wav"], {}, 2)
    assert {row["file"] for row in rows(out)} == {"a.wav", "c.wav", "d.wav", "yard/b.flac"}
    assert (out / "rejects.csv").read_text() == "file,reason,detail\n"
    write(incoming / "d.wav", scene()[100:], RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=r"d\.wav: has changed since its labels were written"):
        run(model, incoming, out, frames=True)
    with pytest.raises(UserError, match=r"holds labels with frames=True; choose another out folder"):
        run(model, incoming, out)
    with pytest.raises(UserError, match="holds labels with another model"):
        run(save(tmp_path / "other", "classify", seed=2), incoming, out, frames=True)


def test_a_file_that_is_cut_while_it_is_read_is_kept_aside(
    model: Path, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = recordings.read_mixed

    def shrinking(path: Path, *arguments: Any) -> Any:
        yield from read(path, *arguments)
        if path.name == "c.wav":
            raise io.ClipError(path, io.DAMAGED)

    monkeypatch.setattr(recordings, "read_mixed", shrinking)
    done = run(model, incoming, tmp_path / "out", frames=True)
    assert done.rejects == {io.DAMAGED: 1}
    assert {row["file"] for row in rows(tmp_path / "out")} == {"a.wav", "yard/b.flac"}
    assert not list((tmp_path / "out").glob("*c.wav*"))


def test_a_long_recording_takes_the_memory_of_a_few_blocks(model: Path, tmp_path: Path) -> None:
    path, minutes = tmp_path / "long.wav", 40
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for i in range(minutes):
            block = 1e-4 * np.random.default_rng(i).standard_normal(60 * RATE)
            block[: RATE // 2] += noise(0.5, i, 0.2, RATE)
            file.write(block)
    tracemalloc.start()
    done = run(model, path, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.sounds == minutes
    assert peak < 9e6 < 4 * minutes * 60 * RATE  # that is the whole as float32


@pytest.mark.gpu
def test_a_gpu_says_what_the_cpu_says(model: Path, incoming: Path, tmp_path: Path) -> None:
    run(model, incoming, tmp_path / "cpu", frames=True)
    predict(model, SourceConfig(root=str(incoming)), tmp_path / "gpu", PredictConfig(frames=True), device="gpu")
    close(rows(tmp_path / "gpu"), rows(tmp_path / "cpu"))
