"""Files and folders that appear whole or not at all, and what the killed leave of them."""

import os

import pytest

from domains import files
from domains.errors import UserError
from domains.files import atomic_file, find_temporaries, locked_folder, partial_folder, sweep_partials


def test_an_atomic_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_file(target) as file:
        file.write(b"first")
        assert not target.exists()
    with pytest.raises(TypeError), atomic_file(target) as file:
        file.write("not bytes")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"first")]


def test_temporaries_are_told_from_other_files(tmp_path):
    for name in (".a.txt", "a.txt.0123abcd", ".a.txt.0123abc", ".a.bin.0123abcd", ".a.txt.0123wxyz"):
        (tmp_path / name).touch()
    with atomic_file(tmp_path / "a.txt"):
        (found,) = find_temporaries(tmp_path, (".txt",))
        assert found.name.startswith(".a.txt.")
    assert find_temporaries(tmp_path, (".txt",)) == []


def test_a_lock_keeps_others_out_and_leaves_no_trace(tmp_path):
    with locked_folder(tmp_path) as held:
        assert held
        with pytest.raises(UserError, match="is taken"), locked_folder(tmp_path, "is taken"):
            raise AssertionError
    with locked_folder(tmp_path, "is taken"):
        assert list(tmp_path.iterdir()) == []


def test_a_sweep_takes_what_the_dead_left_and_nothing_else(tmp_path):
    for name in ("dead.partial-0123abcd", "mine.partial-x", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").touch()
    with partial_folder(tmp_path / "alive") as alive:
        sweep_partials(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {alive.name, "mine.partial-x", "other"}
    assert not alive.exists()
    sweep_partials(tmp_path / "nowhere")


def no_locks(*_):
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("system", ["no fcntl", "no locks"])
def test_without_locks_nobody_is_kept_out_and_nothing_is_swept(tmp_path, monkeypatch, system):
    if system == "no fcntl":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with partial_folder(tmp_path / "alive") as alive, locked_folder(tmp_path, "is taken") as held:
        assert not held
        sweep_partials(tmp_path)
        assert os.listdir(tmp_path) == [alive.name]
