"""Stores of clips: found again by content, complete whatever the files, loud as recorded."""

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest

from domains.audio import clips, io, prepare
from domains.audio.config import SourceConfig
from domains.audio.store import AudioStore, open_store, prepare_store
from domains.errors import UserError
from tests.audio.sounds import RATE, make_store, noise, store_of, tone, write


def rejected(store: AudioStore) -> dict[str, str]:
    with (store.path / prepare.REJECTS).open(encoding="utf-8", newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


def write_table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_folders_are_labels_and_groups(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"cat": 3, "dog": 2}, groups=2)
    assert [clip.name for clip in store.clips] == sorted(clip.name for clip in store.clips)
    assert (store.labels, store.groups, len(store)) == (["cat", "dog"], ["g0", "g1"], 5)
    first = store.clips[0]
    assert (first.name, first.label, first.group, first.split) == ("cat/g0/000.wav", "cat", "g0", "")
    assert store.summary() == "5 clips, 0.9 s at 16,000 Hz (0.10 to 0.30 s), 2 labels, 2 groups"
    assert np.array_equal(store.samples(0), noise(0.1, seed=0).astype(np.float32))
    assert store.notes() == []


def test_the_same_content_is_found_again_and_another_is_not(tmp_path: Path) -> None:
    first = make_store(tmp_path / "one", {"cat": 2, "dog": 2})
    assert not first.reused
    again = store_of(tmp_path / "one")
    assert again.reused
    assert again.path == first.path
    moved = make_store(tmp_path / "two", {"cat": 2, "dog": 2})
    assert moved.fingerprint == first.fingerprint
    assert moved.path.name == first.path.name
    assert not store_of(tmp_path / "one", rate=8000).reused
    write(tmp_path / "one" / "clips" / "cat" / "000.wav", noise(seed=99))
    other = store_of(tmp_path / "one")
    assert not other.reused
    assert other.fingerprint != first.fingerprint


def test_bad_files_are_kept_aside_each_with_a_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "clips"
    write(root / "a" / "good.wav", noise())
    write(root / "b" / "good.flac", noise(seed=1))
    (root / "a" / "text.wav").write_text("no sound")
    (root / "a" / "empty.wav").touch()
    (root / "a" / "notes.txt").write_text("hello")
    (root / "a" / ".hidden").write_text("hello")
    write(root / "a" / "nan.wav", np.where(np.arange(8000) == 5, np.nan, tone()), subtype="FLOAT")
    write(root / "a" / "short.wav", noise(0.01))
    write(root / "a" / "silent.wav", np.zeros(8000))
    write(root / "a" / "same.wav", noise())
    write(root / "b" / "contradiction.wav", noise())
    mp3 = write(root / "a" / "cut.mp3", noise(2.0))
    mp3.write_bytes(mp3.read_bytes()[:5000])
    store = store_of(tmp_path)
    assert [clip.name for clip in store.clips] == ["a/good.wav", "b/good.flac"]
    assert rejected(store) == {
        "a/text.wav": io.NO_AUDIO,
        "a/empty.wav": io.EMPTY,
        "a/notes.txt": clips.FOREIGN,
        "a/nan.wav": io.NOT_FINITE,
        "a/short.wav": prepare.SHORT,
        "a/silent.wav": prepare.SILENT,
        "a/same.wav": prepare.DUPLICATE,
        "b/contradiction.wav": prepare.CONTRADICTION,
        "a/cut.mp3": io.CUT_SHORT,
    }
    assert store.rejects == dict.fromkeys(rejected(store).values(), 1)
    assert sum("kept aside" in line and "\n" not in line for line in store.notes()) == 9
    assert np.array_equal(store.samples(1), noise(seed=1).astype(np.float32))


def test_an_unreadable_file_is_kept_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "clips" / "good.wav", noise())
    bad = write(tmp_path / "clips" / "bad.wav", noise(seed=1))
    usual = Path.open

    def guarded(self: Path, *args: object, **kwargs: object) -> object:
        if self == bad:
            raise PermissionError(13, "Permission denied")  # the tests may run as root, who may read everything
        return usual(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", guarded)
    assert rejected(store_of(tmp_path)) == {"bad.wav": io.UNREADABLE}


def test_a_table_names_clips_and_bad_rows_are_kept_aside(tmp_path: Path) -> None:
    root = tmp_path / "sounds"
    for i in range(4):
        write(root / f"{i}.wav", noise(seed=i))
    write(tmp_path / "out.wav", noise(seed=9))
    (root / "a.xyz").touch()
    table = write_table(
        root / "labels.csv",
        "\ufeffpath, label, group, split",
        "0.wav, cat, g1, train",
        "1.wav, dog, g2, test",
        "2.wav, cat, g3,",
        "0.wav, dog, g1, train",
        "./1.wav, dog, g2, test",
        "3.wav, dog, g1, dev",
        "gone.wav, dog, g1, train",
        "../out.wav, dog, g1, train",
        "a.xyz, dog, g1, train",
        ", dog, g1, train",
    )
    store = prepare_store(SourceConfig(manifest=str(table), stores=str(tmp_path / "stores")), progress=False)
    assert [(clip.name, clip.label, clip.group, clip.split) for clip in store.clips] == [
        ("0.wav", "cat", "g1", "train"),
        ("1.wav", "dog", "g2", "test"),
        ("2.wav", "cat", "g3", ""),
    ]
    assert store.source_name == "sounds/labels.csv"
    assert store.rejects == {
        clips.NO_PATH: 1,
        clips.OUTSIDE: 1,
        clips.TWICE: 2,
        clips.BAD_SPLIT: 1,
        clips.FOREIGN: 1,
        io.MISSING: 1,
    }


def test_columns_are_known_in_either_case_and_others_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "clips" / "0.wav", noise())
    write(tmp_path / "clips" / "1.wav", noise(seed=1))
    where = {"root": str(tmp_path / "clips"), "stores": str(tmp_path / "stores")}

    def told(*rows: str) -> tuple[AudioStore, list[str]]:
        table = write_table(tmp_path / "t.csv", *rows)
        store = prepare_store(SourceConfig(**where, manifest=str(table)))  # type: ignore[arg-type]
        return store, [line for line in capsys.readouterr().err.splitlines() if "column" in line]

    store, lines = told("Path,LABEL, Group ,Split", "0.wav,cat,g1,test", "1.wav,cat,g2,train")
    clip = store.clips[0]
    assert (clip.name, clip.label, clip.group, clip.split, lines) == ("0.wav", "cat", "g1", "test", [])
    name, known = f"{tmp_path.name}/t.csv: manifest:", "not used; known are path, label, group, split"
    for _ in range(2):  # also where the store is found again
        store, lines = told("path,label,kit,take", "0.wav,cat,k1,1", "1.wav,cat,k2,1")
        assert (store.groups, lines) == ([], [f"{name} columns kit, take are {known}"])
    store, lines = told(",path,lable", "0,0.wav,cat", "1,1.wav,cat")  # the first as pandas writes an index
    assert (store.labels, lines) == ([], [f"{name} column lable is {known}; did you mean 'label'?"])
    with pytest.raises(UserError, match=r"t\.csv: has the column 'group' twice; leave one of them"):
        told("path,group,Group", "0.wav,g1,g2")


def test_a_table_elsewhere_is_read_against_the_root(tmp_path: Path) -> None:
    write(tmp_path / "clips" / "x" / "0.wav", noise())
    table = write_table(tmp_path / "t.tsv", "label\tpath", "cat\tx/0.wav")
    assert store_of(tmp_path, manifest=str(table)).clips[0].label == "cat"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["file,label", "a.wav,cat"], "has no column 'path'; it has file, label"),
        (["path,label", "gone.wav,cat"], r"holds no clip \(1 x no such file\)"),
        ([""], "has no column 'path'"),
    ],
)
def test_a_table_that_gives_nothing_is_one_line(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        store_of(tmp_path, manifest=str(write_table(tmp_path / "t.csv", *rows)))


def test_nothing_to_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        store_of(tmp_path)
    (tmp_path / "clips").mkdir()
    with pytest.raises(UserError, match="holds no clip; clips end in one of"):
        store_of(tmp_path)
    (tmp_path / "clips" / "a.wav").write_text("no sound")
    with pytest.raises(UserError, match=r"no clip is left \(1 x not audio\); the first: a\.wav: not audio \("):
        store_of(tmp_path)
    assert not list((tmp_path / "stores").iterdir())
    with pytest.raises(UserError, match=r"data\.rate=10"):
        store_of(tmp_path, rate=10)


def test_loudness_is_kept_and_can_be_restored(tmp_path: Path) -> None:
    write(tmp_path / "clips" / "soft.wav", tone(amplitude=0.001), subtype="PCM_24")
    write(tmp_path / "clips" / "loud.wav", tone(amplitude=3.0), subtype="FLOAT")
    store = store_of(tmp_path)
    loud, soft = store.clips
    assert (loud.scale, soft.scale) == (4.0, 2.0**-9)
    assert loud.rms_db == pytest.approx(20 * np.log10(3.0 / np.sqrt(2)), abs=0.01)
    assert soft.rms_db == pytest.approx(20 * np.log10(0.001 / np.sqrt(2)), abs=0.01)
    np.testing.assert_allclose(store.samples(0), tone(amplitude=3.0), atol=4 / 60000)
    np.testing.assert_allclose(store.samples(1), tone(amplitude=0.001), atol=2e-7)
    brought = store.samples(1, level_db=-20)
    assert 10 * np.log10(np.mean(np.square(brought))) == pytest.approx(-20, abs=0.01)
    np.testing.assert_allclose(brought / store.gain(1, -20), store.samples(1), rtol=1e-5)
    assert np.abs(store.samples(0, level_db=-1)).max() == pytest.approx(1.0)  # no louder than full scale


def test_clipping_and_silent_channels_are_noted(tmp_path: Path) -> None:
    x = tone(amplitude=0.5)
    write(tmp_path / "clips" / "half.wav", np.stack([x, np.zeros_like(x)], axis=1))
    x[:80] = 1.0
    write(tmp_path / "clips" / "clipped.wav", x)
    store = store_of(tmp_path)
    assert store.notes() == [
        "1 clipped, up to 1.00% of the samples at full scale (clipped.wav)",
        "1 with silent channels, which were left out (half.wav)",
    ]
    np.testing.assert_allclose(store.samples(1), tone(amplitude=0.5), atol=1e-4)


def test_doubtful_labels_are_noted(tmp_path: Path) -> None:
    assert "label cat, dog equals a group" in make_store(tmp_path / "a", {"cat/x": 2, "dog/y": 2}).notes()[0]
    assert "one clip alone has the label dog" in make_store(tmp_path / "b", {"cat": 2, "dog": 1}).notes()[0]
    assert (
        "every group has one label"
        in make_store(tmp_path / "c", {"cat/x": 1, "cat/z": 1, "dog/y": 1, "dog/w": 1}).notes()[0]
    )
    notes = make_store(tmp_path / "d", {"cat/x": 2, "cat/y": 2, "dog/y": 2}).notes()
    assert "label dog occurs in one group alone" in notes[0]
    assert make_store(tmp_path / "e", {"": 3}).notes() == []


def test_opening(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"cat": 2, "dog": 2})
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again.samples(3, 10, 20), store.samples(3, 10, 20))
    assert store.index("cat/001.wav") == 1
    with pytest.raises(UserError, match=r"has no clip 'cat/01.wav'; did you mean 'cat/001.wav'"):
        store.index("cat/01.wav")
    assert open_store(SourceConfig(store=str(store.path))).fingerprint == store.fingerprint
    with pytest.raises(UserError, match=r"was prepared with data\.rate=16000, not 8000"):
        open_store(SourceConfig(store=str(store.path), rate=8000))
    with pytest.raises(UserError, match="is no store of clips"):
        AudioStore.open(tmp_path / "nowhere")
    with (store.path / prepare.SAMPLES).open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match="cut short"):
        AudioStore.open(store.path)
    (store.path / "meta.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match="format 0"):
        AudioStore.open(store.path)


def test_a_failed_preparation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "clips" / "a.wav", noise())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "_write_rejects", full)
    with pytest.raises(UserError, match="No space left on device"):
        store_of(tmp_path)
    assert not list((tmp_path / "stores").iterdir())


def test_the_bundled_clips(prompts: AudioStore, arrow: AudioStore) -> None:
    assert (len(prompts), len(arrow), arrow.labels, len(arrow.groups)) == (47, 94, ["backwards", "forwards"], 47)
    assert prompts.rate == RATE
    assert not prompts.rejects
    assert not arrow.rejects
    backwards, forwards = arrow.index("backwards/spelling-a.flac"), arrow.index("forwards/spelling-a.flac")
    assert np.array_equal(arrow.samples(backwards), arrow.samples(forwards)[::-1])
