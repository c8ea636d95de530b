"""Folders of results: claimed by one process, gone on with by the same job, refused to another."""

import errno
from dataclasses import replace

import pytest

from domains.errors import UserError
from domains.files import FolderInUse, locked_folder
from domains.folder import read_json
from domains.manifest import Plan, disk_errors, make_entry, open_manifest
from domains.shards import Shard

PLAN = Plan(
    holds="forecasts",
    parts="series",
    identity={"format": 1, "model": "abc"},
    settings={"horizon": 24},
    notes={"source": "a.csv"},
    endings=(".txt",),
)


def record(manifest, part, text="done"):
    (manifest.out / f"{part}.txt").write_text(text)
    manifest.record(part, {"table": f"{part}.txt"}, {"rows": len(text)})


@pytest.fixture
def out(tmp_path):
    """A folder with the parts a and b."""
    with open_manifest(tmp_path / "deep" / "out", PLAN) as manifest:
        assert not manifest.is_done("a")
        record(manifest, "a")
        record(manifest, "b")
    return manifest.out


def test_what_is_done_is_known_to_the_next_process(out):
    table = read_json(out / "manifest.json")
    assert list(table) == ["format", "model", "horizon", "source", "series"]
    assert {key: value for key, value in table["series"]["a"].items() if key != "files"} == {
        "table": "a.txt",
        "rows": 4,
    }
    assert table["series"]["a"]["files"]["a.txt"]["bytes"] == 4
    with open_manifest(out, replace(PLAN, notes={"source": "renamed.csv"})) as manifest:
        assert [manifest.is_done(part) for part in ("a", "b", "c")] == [True, True, False]
        assert manifest.parts["b"]["rows"] == 4


@pytest.mark.parametrize("damage", ["gone", "done.", "DONE"])
def test_a_part_whose_file_was_damaged_is_not_done(out, damage):
    (out / "a.txt").unlink() if damage == "gone" else (out / "a.txt").write_text(damage)
    with open_manifest(out, PLAN) as manifest:
        assert [manifest.is_done(part) for part in ("a", "b")] == [False, True]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"identity": {"format": 1, "model": "xyz"}}, "holds forecasts with another model; choose another out folder"),
        ({"parts": "contigs"}, "holds other results than forecasts; choose another out folder"),
        ({"settings": {"track": "a"}}, "holds other results than forecasts; choose another out folder"),
        ({"settings": {"horizon": 12}}, "holds forecasts with horizon=24; choose another out folder"),
    ],
)
def test_results_of_another_job_are_refused_and_kept(out, change, said):
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match=said), open_manifest(out, replace(PLAN, **change)):
        raise AssertionError
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_folders_with_other_files_are_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for place in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UserError, match="holds other files; choose a new out folder"), open_manifest(place, PLAN):
            raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_leftovers_of_the_dead_are_swept_and_a_live_process_keeps_others_out(out):
    for name in (".c.txt.0123abcd", ".manifest.json.0123abcd"):
        (out / name).touch()
    busy = "another process is writing forecasts there; wait for it"
    with locked_folder(out), pytest.raises(UserError, match=busy), open_manifest(out, PLAN):
        raise AssertionError
    assert (out / ".c.txt.0123abcd").exists()
    with open_manifest(out, PLAN):
        assert {path.name for path in out.iterdir()} == {"a.txt", "b.txt", "manifest.json"}


def test_a_full_disk_is_told_in_one_line(tmp_path):
    said = r"cannot be written \(No space left on device\); put that right and run again"
    with pytest.raises(UserError, match=said), disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), open_manifest(tmp_path / "file" / "out", PLAN):
        raise AssertionError


ORDER = ["a", "b", "c", "d"]


def shard(index):
    return Shard(index, 2)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path):
    """What one process leaves."""
    with open_manifest(tmp_path / "whole", PLAN) as manifest:
        for part in ORDER:
            record(manifest, part)
        assert manifest.close(ORDER)
    return contents(tmp_path / "whole")


def test_shards_work_side_by_side_and_the_last_leaves_what_one_process_would(tmp_path, whole):
    out = tmp_path / "out"
    with open_manifest(out, PLAN, shard(0)) as first, open_manifest(out, PLAN, shard(1)) as second:
        for part in ("c", "a"):
            record(first, part)
        (first.progress / "b.txt").write_text("half")
        record(second, "d")
        (out / ".b.txt.0123abcd").touch()
        with pytest.raises(FolderInUse), open_manifest(out, PLAN):
            raise AssertionError
        with pytest.raises(FolderInUse, match="shard 1 of 2 there"), open_manifest(out, PLAN, shard(1)):
            raise AssertionError
        assert not first.close(["a", "c"])
    assert {"manifest.0-of-2.json", "manifest.1-of-2.json"} < names(out)
    with open_manifest(out, PLAN, shard(1)) as second:
        assert [second.is_done(part) for part in ORDER] == [True, False, True, True]
        assert list(second.parts) == ["d"]
    with open_manifest(out, PLAN) as manifest:  # nobody else is at work: what the killed left is gone
        assert not (out / ".b.txt.0123abcd").exists()
        assert not manifest.close(ORDER)
        assert {"manifest.0-of-2.json", ".progress"} < names(out)
        (out / "b.txt").write_text("done")
        manifest.enter("b", make_entry(out, {"table": "b.txt"}, {"rows": 4}))
        assert manifest.close(ORDER)
    assert contents(out) == whole


def test_shards_that_look_one_after_the_other_whether_they_were_the_last(tmp_path, whole):
    out = tmp_path / "out"
    for index in range(2):
        with open_manifest(out, PLAN, shard(index)) as manifest:
            for part in ORDER[2 * index : 2 * index + 2]:
                record(manifest, part)
        with open_manifest(out, PLAN) as manifest:
            assert manifest.close(ORDER) == (index == 1)
    assert contents(out) == whole


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_folder_that_is_complete_is_not_written_again(tmp_path, whole):
    path = tmp_path / "whole" / "manifest.json"
    before = path.stat().st_mtime_ns
    with open_manifest(tmp_path / "whole", PLAN) as manifest:
        assert manifest.close(ORDER)
    assert path.stat().st_mtime_ns == before


def test_a_file_of_all_parts_is_noted_and_its_damage_noticed(out):
    with open_manifest(out, PLAN) as manifest:
        assert not manifest.has_whole("all.txt")
        (out / "all.txt").write_text("ab")
        manifest.record_whole("all.txt", {"rows": 8})
    with open_manifest(out, PLAN) as manifest:
        assert manifest.has_whole("all.txt")
        (out / "all.txt").write_text("AB")
        assert not manifest.has_whole("all.txt")
        (out / "all.txt").unlink()
        assert not manifest.has_whole("all.txt")
    assert read_json(out / "manifest.json")["whole"]["all.txt"]["rows"] == 8


def test_a_part_without_a_file_that_is_wanted_is_not_done(out):
    with open_manifest(out, PLAN) as manifest:
        assert manifest.is_done("a", ["table"])
        assert not manifest.is_done("a", ["table", "track"])


def test_a_shard_of_another_job_is_refused(out):
    with (
        pytest.raises(UserError, match="another model"),
        open_manifest(out, replace(PLAN, identity={"format": 1, "model": "xyz"}), shard(0)),
    ):
        raise AssertionError
    with open_manifest(out, PLAN, shard(0)) as manifest:  # goes on with what one process began
        assert manifest.is_done("a")
    with (
        pytest.raises(UserError, match="holds forecasts with horizon=24"),
        open_manifest(out, replace(PLAN, settings={"horizon": 12})),
    ):
        raise AssertionError
