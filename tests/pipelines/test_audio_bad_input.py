"""What the world brings to prepare and train: each bad file a line, the rest goes on; each mistake one line."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from pipelines.audio import AUDIO
from tests.audio.models import RATE
from tests.audio.sounds import noise, tone, write
from tests.audio.test_io import make_bad
from tests.pipelines.conftest import Cli, runner

KINDS = ("text", "zero bytes", "no sample", "nan", "infinite", "cut mp3", "cut wav", "huge rate", "rate")
SMALL = (
    "data.rate=4000",
    "task=classify",
    "data.tokens_per_step=4096",
    "task.classifier.front.width=4",
    "backbone.d_model=16",
    "backbone.n_layers=1",
    "backbone.mamba2.headdim=8",
    "trainer.accelerator=cpu",
    "trainer.max_steps=1",
    "tracking=off",
)


@pytest.fixture
def audio(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs an audio command line in this process."""
    return runner(AUDIO, capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of clips, most of them good, and of none that is."""
    folder = tmp_path_factory.mktemp("made")
    mess = folder / "mess"
    for label in ("hum", "hiss"):
        for i in range(4):
            sound = tone(0.2, RATE, 200.0 + 30 * i) if label == "hum" else noise(0.2, i, rate=RATE)
            write(mess / label / f"{i}.wav", sound, RATE)
    write(mess / "rare" / "alone.wav", tone(0.3, RATE, 900.0), RATE)
    write(mess / "hum" / "clipped.wav", np.clip(tone(0.3, RATE, 150.0, 3.0), -1, 1), RATE)
    write(mess / "hiss" / "half.wav", np.stack([noise(0.2, 9, rate=RATE), np.zeros(800)], axis=1), RATE)
    for kind in KINDS:
        (folder / "one" / kind).mkdir(parents=True)
        path = make_bad(folder / "one" / kind, kind)
        path.rename(mess / "hum" / f"{kind}{path.suffix}")
    (mess / "hum" / "locked.wav").symlink_to("locked.wav")  # cannot be opened, not even by root
    (mess / "notes.txt").write_text("hello")
    (folder / "texts").mkdir()
    for name in ("a.wav", "b.mp3"):
        (folder / "texts" / name).write_text("no sound")
    (folder / "nothing").mkdir()
    (folder / "table.csv").write_text("file,label\na.wav,x\n")
    (folder / "gone.csv").write_text("path,label\nmess/hum/0.wav,hum\ngone.wav,hum\nmess/hiss/0.wav,hiss\n")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with all that was made in it by link."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_prepare_keeps_bad_clips_aside_and_says_so_in_a_line_each(audio: Cli, here: Path) -> None:
    done = audio("prepare", "data.root=mess", "data.rate=4000")
    assert done.code == 0, done.err
    assert "(prepared; 11 clips, " in done.out
    (store,) = Path("stores").glob("mess-*")
    with (store / "rejects.csv").open(newline="") as file:
        rejects = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert rejects == {
        "hum/text.wav": "not audio",
        "hum/zero bytes.wav": "no sample in it",
        "hum/no sample.wav": "no sample in it",
        "hum/nan.wav": "samples that are not numbers",
        "hum/infinite.wav": "samples that are not numbers",
        "hum/cut mp3.mp3": "cut short",
        "hum/cut wav.wav": "cut short",
        "hum/huge rate.wav": "absurd rate in its header",
        "hum/rate.wav": "absurd rate in its header",
        "hum/locked.wav": "cannot be opened",
        "notes.txt": "not sound by its name",
    }
    where = f"(see {store / 'rejects.csv'})"
    lines = done.err.splitlines()
    for line in (
        f"mess: 2 files kept aside: no sample in it {where}",
        f"mess: 2 files kept aside: samples that are not numbers {where}",
        f"mess: 2 files kept aside: cut short {where}",
        f"mess: 2 files kept aside: absurd rate in its header {where}",
        f"mess: 1 file kept aside: not audio {where}",
        f"mess: 1 file kept aside: cannot be opened {where}",
        "mess: 1 with silent channels, which were left out (hiss/half.wav)",
        "mess: one clip alone has the label rare: too few to learn from and to test on",
    ):
        assert line in lines
    assert any(line.startswith("mess: 1 clipped, up to ") and "(hum/clipped.wav)" in line for line in lines)
    assert "found prepared already; 11 clips" in audio("prepare", "data.root=mess", "data.rate=4000").out


def test_a_mess_can_be_trained_on(audio: Cli, here: Path) -> None:
    """The class of one clip is left out; its clip is in no part."""
    done = audio("train", *SMALL, "data.root=mess", "run.dir=run")
    assert done.code == 0, done.err
    assert "one clip alone has the label rare" in done.err
    assert "rare" not in (here / "run" / "splits.json").read_text().replace("the label rare", "")


def test_rows_without_files_are_kept_aside(audio: Cli, here: Path) -> None:
    done = audio("prepare", "data.manifest=gone.csv", "data.rate=4000")
    assert done.code == 0, done.err
    assert "(prepared; 2 clips, " in done.out
    assert any("1 file kept aside: no such file" in line for line in done.err.splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prepare", "data.root=texts"), "texts: no clip is left (2 x not audio); the first: a.wav: not audio ("),
        (("prepare", "data.root=nothing"), "nothing: holds no clip; clips end in one of .wav,"),
        (("prepare", "data.root=nowhere"), "nowhere: no such folder; check data.root"),
        (
            ("prepare", "data.root=table.csv"),
            "table.csv: is a file; give the folder of the clips, or data.manifest=table",
        ),
        (("prepare", "data.manifest=nowhere.csv"), "nowhere.csv: cannot be read (No such file or directory)"),
        (("prepare", "data.manifest=table.csv"), "table.csv: has no column 'path'; it has file, label"),
        (("prepare", "data.manifest=mess/hum/0.wav"), "mess/hum/0.wav: is no table in UTF-8"),
        (("prepare", "data.root=mess", "data.rate=7"), "data.rate=7: must be at least 1000"),
        (("prepare", "data.sample=drums"), "data.sample=drums: must be one of prompts, arrow"),
        (("train", "data.root=mess", "task=sing"), "task=sing: there is no such choice"),
        (("train", *SMALL, "data.root=mess/hum"), "has 0 labels of two clips or more, and nothing can be told apart"),
        (("train", *SMALL, "data.root=mess", "data.test=[kit9]"), "data.test: mess has no clip 'kit9'"),
        (("train", *SMALL, "data.store=nothing"), "nothing: is no store of clips (meta.json is missing)"),
        (("train", *SMALL, "data.root=mess", "data.augment.speed=2"), "data.augment.speed=2.0: must be at most"),
        (
            ("train", *SMALL, "data.root=mess", "task.classifier.front.strides=[8,0]"),
            "front.strides=0: must be at least 1",
        ),
        (("evaluate", "model=nowhere"), "nowhere: no such model folder"),
    ],
)
def test_mistakes_are_one_line(audio: Cli, here: Path, words: tuple[str, ...], message: str) -> None:
    before = sorted(os.listdir())
    done = audio(*words)
    assert done.code == 2, done.err
    assert message in done.errors[-1]
    assert done.errors[-1].startswith("error: ")
    assert "Traceback" not in done.err
    assert sorted(set(os.listdir()) - {"stores"}) == before
    assert not list(Path("stores").glob("*.partial-*"))
