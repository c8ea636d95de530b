"""Labels of recordings and drawn sounds from the command line, and what of them is in MLflow."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from domains.audio.bits import sample_bits
from domains.audio.config import GenerateConfig, PredictConfig
from domains.audio.io import read_clip
from domains.audio.tokens import encode
from domains.audio.trained import load_model
from domains.audio.whole import clip_probabilities
from pipelines.audio import AUDIO
from pipelines.audio.players import PAGE, write_players
from pipelines.audio.roots import GenerateRoot, PredictRoot
from pipelines.tracking import linked_run_id
from tests.audio.models import LABELS, RATE, save
from tests.audio.sounds import noise, tone, write
from tests.audio.test_io import make_bad
from tests.audio.test_stream import scene
from tests.pipelines.conftest import TINY, Cli, runner
from tests.pipelines.records import artifacts, client

SMALL = (
    "data.root=clips",
    "data.rate=4000",
    "data.window=64",
    "data.tokens_per_step=2048",
    "data.validation_tokens=256",
    "task.generator.widths=[8]",
    "task.generator.pool=[4]",
    "task.generator.layers=2",
    "task.classifier.front.width=4",
    "trainer.max_steps=2",
    *(word for word in TINY if word.split(".")[0] in ("backbone", "trainer", "tracking") and "max_steps" not in word),
)
DRAW = ("seconds=0.02", "count=2", "seed=3", "device=cpu")


@pytest.fixture
def audio(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs an audio command line in this process."""
    return runner(AUDIO, capsys)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def whole(audio: Cli, workspace: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a generator and a classifier were trained and used once."""
    if not any(shared.iterdir()):
        (shared / "mlflow.db").write_bytes((workspace / "mlflow.db").read_bytes())
        monkeypatch.chdir(shared)
        for i in range(4):
            write(Path(f"clips/hiss/{i}.wav"), noise(0.1 + 0.01 * i, i, rate=RATE), RATE)
            write(Path(f"clips/hum/{i}.wav"), tone(0.1 + 0.01 * i, RATE, 200.0 + 10 * i), RATE)
        write(Path("incoming/x.wav"), scene(), RATE)
        where = f"tracking.uri=sqlite:///{shared}/mlflow.db"
        words = (
            ("train", *SMALL, "task=generate", "run.dir=draws", where),
            ("generate", "model=draws", "prompt=clips/hum/0.wav", *DRAW, "out=samples", where),
            ("train", *SMALL, "task=classify", "run.dir=names", where),
            ("predict", "model=names/model", "data.root=incoming", "out=labels", "device=cpu", where),
        )
        done = [audio(*line) for line in words]
        assert [one.code for one in done] == [0, 0, 0, 0], [one.err for one in done]
        (shared / "told.json").write_text(json.dumps([one.out for one in done]))
    monkeypatch.chdir(shared)
    return shared


def told(folder: Path, command: int) -> list[str]:
    return json.loads((folder / "told.json").read_text())[command].splitlines()


def test_the_commands_say_what_they_made_and_what_comes_next(whole: Path) -> None:
    assert told(whole, 1) == [
        "sounds: samples/sample-1.wav to sample-2.wav",
        f"MLflow run: {linked_run_id(whole / 'draws')} in sqlite:///mlflow.db",
        "next: open samples/players.html in a browser",
        "      mlflow ui --backend-store-uri sqlite:///mlflow.db",
    ]
    rows = list(csv.DictReader((whole / "labels" / "labels-00000.csv").read_text().splitlines()))
    assert told(whole, 3) == [
        f"labels: labels (1 recording; in all {len(rows)} sounds in 2.4 s of recordings)",
        "next: read labels/labels-*.csv",
    ]
    assert {row["label"] for row in rows} <= {"hiss", "hum"}
    assert (rows[0]["file"], rows[0]["start"], rows[0]["end"]) == ("x.wav", "0.3000", "0.6000")


def test_drawn_sounds_can_be_played_in_mlflow(whole: Path) -> None:
    run_id = linked_run_id(whole / "draws") or ""
    kept = {name for name in artifacts(whole, run_id) if name.startswith("samples/")}
    assert kept == {f"samples/sample-{i}.{ending}" for i in (1, 2) for ending in ("wav", "json", "png")} | {
        f"samples/{PAGE}"
    }
    page = (whole / "samples" / PAGE).read_text()
    sounds = re.findall(r'<audio controls src="data:audio/wav;base64,([^"]+)"></audio>', page)
    import base64

    assert [base64.b64decode(sound) for sound in sounds] == [
        (whole / "samples" / f"sample-{i}.wav").read_bytes() for i in (1, 2)
    ]
    assert "seed 3" in page
    assert 'src="sample' not in page  # MLflow shows the page without the files beside it
    assert (whole / "samples" / "sample-1.png").read_bytes().startswith(b"\x89PNG")
    assert client(whole).get_run(run_id).info.status == "FINISHED"


def test_sounds_of_a_run_from_elsewhere_are_imported(whole: Path, audio: Cli, workspace: Path) -> None:
    """As the benchmark of the prompts leaves them: WAV and JSON in the run folder, no pictures."""
    import shutil

    run = Path(shutil.copytree(whole / "draws", workspace / "draws"))
    (run / "mlflow.json").unlink()
    (run / "samples").mkdir()
    for name in ("sample-1.wav", "sample-1.json"):
        shutil.copy(whole / "samples" / name, run / "samples")
    done = audio("import-run", f"run={run}", f"tracking.uri=sqlite:///{workspace}/mlflow.db")
    assert done.code == 0, done.err
    kept = {name for name in artifacts(workspace, linked_run_id(run) or "") if name.startswith("samples/")}
    assert kept == {f"samples/{name}" for name in ("sample-1.wav", "sample-1.json", "sample-1.png", PAGE)}


def test_the_same_line_gives_the_same_bytes(whole: Path, audio: Cli, workspace: Path) -> None:
    out = workspace / "again"
    words = ("model=draws/model", "prompt=clips/hum/0.wav", *DRAW, f"out={out}", "tracking=off")
    done = audio("generate", *words)
    assert done.code == 0, done.err
    assert "MLflow run" not in done.out
    for i in (1, 2):
        assert (out / f"sample-{i}.wav").read_bytes() == (whole / "samples" / f"sample-{i}.wav").read_bytes()


def test_sounds_of_another_draw_are_not_replaced(audio: Cli, workspace: Path) -> None:
    save(workspace / "model", "generate")
    words = ("generate", "model=model", *DRAW, "out=sounds")
    assert audio(*words).code == 0
    before = {path.name: path.read_bytes() for path in Path("sounds").iterdir()}
    other = audio(*words, "count=1")
    assert (other.code, other.errors) == (
        2,
        ["error: sounds: holds sounds drawn with count=2; choose another out folder"],
    )
    assert {path.name: path.read_bytes() for path in Path("sounds").iterdir()} == before
    again = audio(*words)
    assert again.code == 0, again.err
    assert Path("sounds/sample-1.wav").read_bytes() == before["sample-1.wav"]


def test_a_page_escapes_names_and_shows_the_first_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.audio import players

    monkeypatch.setattr(players, "_MOST", 1)
    sounds = [write(tmp_path / f"{i}<b>.wav", noise(0.01), RATE) for i in range(2)]
    files = write_players(tmp_path, sounds)
    page = (tmp_path / PAGE).read_text()
    assert page.count("<audio") == 1
    assert "0&lt;b&gt;.wav" in page
    assert "<b>" not in page
    assert len(files) == 5


@pytest.fixture
def pyfunc(whole: Path, request: pytest.FixtureRequest) -> Any:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{whole}/mlflow.db")
    return mlflow.pyfunc.load_model(f"runs:/{linked_run_id(whole / request.param)}/model")


@pytest.mark.parametrize("pyfunc", ["names"], indirect=True)
def test_the_mlflow_model_names_paths_and_arrays(whole: Path, pyfunc: Any) -> None:
    loaded = load_model(whole / "names" / "model")
    paths = [f"clips/{label}/{i}.wav" for label in ("hiss", "hum") for i in range(2)]
    found = pyfunc.predict(pd.DataFrame({"path": paths}, index=[5, 6, 7, 8]))
    assert list(found.columns) == ["seconds", "label", "score", "p_hiss", "p_hum"]
    assert list(found.index) == [5, 6, 7, 8]
    said = np.stack([clip_probabilities(loaded.model, read_clip(path, RATE)) for path in paths])  # type: ignore[arg-type]
    np.testing.assert_allclose(found[["p_hiss", "p_hum"]], said, atol=1e-6)
    assert list(found["label"]) == [("hiss", "hum")[i] for i in said.argmax(1)]
    np.testing.assert_allclose(found["score"], said.max(1), atol=1e-6)
    arrays = pyfunc.predict(pd.DataFrame({"samples": [read_clip(path, RATE) for path in paths]}))
    np.testing.assert_allclose(arrays[["p_hiss", "p_hum"]], said, atol=1e-6)
    fast = pyfunc.predict(pd.DataFrame({"samples": [tone(0.1, 16000, 200.0)], "rate": [16000]}))
    slow = pyfunc.predict(pd.DataFrame({"samples": [tone(0.1, RATE, 200.0)]}))
    assert fast["seconds"][0] == slow["seconds"][0] == pytest.approx(0.1)
    np.testing.assert_allclose(fast["p_hum"], slow["p_hum"], atol=0.02)  # the filter rounds off the ends
    for frame, message in (
        (pd.DataFrame({"file": ["a"]}), "neither a column 'path' of files nor a column 'samples' of arrays"),
        (pd.DataFrame({"path": ["nowhere.wav"]}), r"nowhere\.wav: no such file"),
        (pd.DataFrame({"samples": [[0.0, float("nan")]]}), "row 1: samples are to be finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            pyfunc.predict(frame)


@pytest.mark.parametrize("pyfunc", ["draws"], indirect=True)
def test_the_mlflow_model_of_a_generator_tells_bits(whole: Path, pyfunc: Any) -> None:
    found = pyfunc.predict(pd.DataFrame({"path": ["clips/hum/1.wav"]}))
    levels = encode(read_clip("clips/hum/1.wav", RATE))
    bits = sample_bits(load_model(whole / "draws" / "model").model, levels, chunk=10_000)  # type: ignore[arg-type]
    assert found["bits_per_sample"][0] == pytest.approx(bits.mean(), rel=1e-6)
    assert found["seconds"][0] == pytest.approx(0.11)


def test_bad_recordings_are_a_line_each_and_the_rest_goes_on(audio: Cli, workspace: Path) -> None:
    """What the world brings: each kind once, from the command line."""
    save(workspace / "model", "classify")
    incoming = workspace / "incoming"
    write(incoming / "good.wav", scene(), RATE)
    loud = tone(0.5, RATE, amplitude=2.0)
    write(incoming / "clipped.wav", np.clip(loud, -1, 1), RATE)
    write(incoming / "half.wav", np.stack([scene(), np.zeros_like(scene())], axis=1), RATE)
    for kind in ("text", "zero bytes", "no sample", "nan", "cut mp3", "huge rate"):
        (workspace / kind).mkdir()
        path = make_bad(workspace / kind, kind)
        path.rename(incoming / f"{kind}{path.suffix}")
    (incoming / "locked.wav").symlink_to("locked.wav")  # cannot be opened, not even by root
    done = audio("predict", "model=model", "data.root=incoming", "out=labels", "device=cpu")
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("kept aside: ")]
    assert len(lines) == 7
    for name, reason in (
        ("text.wav", "not audio"),
        ("zero bytes.wav", "no sample in it"),
        ("no sample.wav", "no sample in it"),
        ("nan.wav", "samples that are not numbers (the first at"),
        ("cut mp3.mp3", "cut short"),
        ("huge rate.wav", "absurd rate in its header"),
        ("locked.wav", "cannot be opened"),
    ):
        assert any(line.startswith(f"kept aside: {name}: {reason}") for line in lines), (name, lines)
    told = done.err.splitlines()
    assert "half.wav: 1 of 2 channels silent, and left out" in told
    assert any(re.fullmatch(r"clipped\.wav: clipped, \d+\.\d\d% of the samples at full scale", line) for line in told)
    rows = list(csv.DictReader((workspace / "labels" / "labels-00000.csv").read_text().splitlines()))
    by_file = {name: [row for row in rows if row["file"] == name] for name in ("good.wav", "clipped.wav", "half.wav")}
    assert sum(map(len, by_file.values())) == len(rows)
    assert [row["start"] for row in by_file["half.wav"]] == [row["start"] for row in by_file["good.wav"]]
    assert {row["label"] for row in rows} <= set(LABELS)
    assert "  2 files kept aside: no sample in it (see labels/rejects.csv)" in done.out.splitlines()
    again = audio("predict", "model=model", "data.root=incoming", "out=labels", "device=cpu")
    assert again.out.startswith(f"labels: labels (0 recordings, 3 done before; in all {len(rows)} sounds in ")


def test_where_no_recording_can_be_used_the_command_fails(audio: Cli, workspace: Path) -> None:
    save(workspace / "model", "classify")
    Path("incoming").mkdir()
    Path("incoming/a.wav").write_text("no sound")
    words = ("predict", "model=model", "data.root=incoming", "out=labels", "device=cpu")
    done = audio(*words)
    assert (done.code, done.out) == (2, "")
    assert done.errors[-1].startswith("error: incoming: no recording can be used; the first: a.wav: not audio (")
    assert "see labels/rejects.csv" in done.errors[-1]
    write(Path("incoming/b.wav"), scene(), RATE)
    done = audio(*words)
    assert done.code == 0, done.err
    assert "  1 file kept aside: not audio (see labels/rejects.csv)" in done.out.splitlines()


def test_a_table_of_recordings_may_name_files_that_are_not_there(audio: Cli, workspace: Path) -> None:
    save(workspace / "model", "spectrogram")
    write(workspace / "there.wav", scene(), RATE)
    (workspace / "list.csv").write_text("path\nthere.wav\nnowhere.wav\n\n,\n../outside.wav\n")
    done = audio("predict", "model=model", "data.manifest=list.csv", "out=labels", "table=parquet")
    assert done.code == 0, done.err
    import polars as pl

    assert pl.read_parquet("labels/labels-00000.parquet").height == 1
    rejects = list(csv.DictReader(Path("labels/rejects.csv").read_text().splitlines()))
    assert {(row["file"], row["reason"]) for row in rejects} == {
        ("nowhere.wav", "no such file"),
        ("", "row without a path"),
        ("../outside.wav", "path outside the root"),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind, a sound, a text and a folder."""
    folder = tmp_path_factory.mktemp("made")
    save(folder / "model", "classify")
    save(folder / "both", "classify", bidirectional=True)
    save(folder / "draws", "generate")
    write(folder / "a.wav", scene(), RATE)
    (folder / "text.wav").write_text("no sound")
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").touch()
    return folder


@pytest.fixture
def models(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: ``made``."""
    monkeypatch.chdir(made)
    return made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("predict", "model=model", "out=labels"), "data.root is missing; give data.root=<folder of recordings"),
        (("predict", "model=model", "data.root=nowhere", "out=labels"), "nowhere: no such folder; check data.root"),
        (("predict", "model=model", "data.root=empty", "out=labels"), "empty: holds no clip"),
        (("predict", "model=nowhere", "data.root=empty", "out=labels"), "nowhere: no such model folder"),
        (("predict", "model=model", "data.root=a.wav", "out=labels", "quiet_db=10"), "quiet_db=10.0: must lie between"),
        (
            ("predict", "model=both", "data.root=a.wav", "out=labels", "mode=stream"),
            "mode=stream wants one that streams",
        ),
        (("predict", "model=draws", "data.root=a.wav", "out=labels"), "was trained with task=generate"),
        (("predict", "model=model", "data.root=a.wav", "out=a.wav"), "a.wav: is a file; choose a folder"),
        (("predict", "model=model", "data.root=a.wav", "out=empty"), "empty: holds other files"),
        (("generate", "model=model", "out=sounds"), "was trained with task=classify"),
        (("generate", "model=draws", "out=sounds", "prompt=text.wav"), "text.wav: not audio"),
        (("generate", "model=draws", "out=sounds", "prompt=nowhere.wav"), "nowhere.wav: no such file"),
        (("generate", "model=draws", "out=sounds", "seconds=0"), "seconds=0.0: must be at least"),
        (("generate", "model=draws", "out=a.wav"), "a.wav: is a file; choose a folder"),
    ],
)
def test_mistakes_are_one_line(audio: Cli, models: Path, words: tuple[str, ...], message: str) -> None:
    before = sorted(os.listdir())
    done = audio(*words)
    assert (done.code, len(done.errors)) == (2, 1)
    assert done.errors[0].startswith("error: ")
    assert message in done.errors[0]
    assert sorted(os.listdir()) == before


def test_commands_take_the_defaults_of_the_domain() -> None:
    for root, config in ((PredictRoot(), PredictConfig()), (GenerateRoot(), GenerateConfig())):
        assert {key: getattr(root, key) for key in vars(config)} == vars(config)


@pytest.mark.parametrize("word", ["predict", "generate"])
def test_help_has_an_example_that_composes(audio: Cli, word: str) -> None:
    done = audio(word, "--help")
    assert done.code == 0
    assert ("begins with the prompt" in " ".join(done.out.split())) is (word == "generate")
    (example,) = re.findall(rf"python -m pipelines\.audio ({word} model=.*)", done.out)
    assert audio(*example.split(), "--cfg", "job").code == 0
