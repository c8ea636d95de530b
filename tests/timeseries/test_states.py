"""The state folder: what counts in it, and what becomes of the rest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domains.errors import UserError
from domains.timeseries import states
from domains.timeseries.absorbed import Absorbed
from domains.timeseries.config import ForecastConfig
from domains.timeseries.states import MANIFEST, Shard, StateFolder, Stored, open_states
from domains.timeseries.stream import Carried
from domains.timeseries.trailing import Recent, Trailing
from domains.timeseries.transforms import Running
from mamba_core.state import State

CPU = torch.device("cpu")
HORIZON = 6


def make_shard(names: list[str], seed: int = 0) -> Shard:
    rng = np.random.default_rng(seed)
    series = len(names)
    width = Running.width(2)
    running = tuple(Running.from_array(np.append([1.5, 10.0 + i, 7.0], rng.random(width - 3))) for i in range(series))
    state = State({"layers.0.ssm": torch.rand(series, 3, 2).double(), "layers.0.seq_idx": torch.arange(series)})
    times = np.arange(300) * 1_000_000
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    counts = [5 + 290 * (i % 2) for i in range(series)]
    absorbed = [Absorbed().absorb(times[:count], hashes[:count], keep=256) for count in counts]
    return Shard(list(names), Carried(running, state), absorbed, make_trailing(rng, np.minimum(counts, HORIZON)))


def make_trailing(rng: np.random.Generator, counts: np.ndarray) -> Trailing:
    """Without covariates, of a model of width 4."""
    rows = int(counts.sum())
    whole, none = rng.integers(0, 9, (3, rows)), np.zeros((rows, 0))
    x, scale = rng.random((2, rows))
    made = rng.random((rows, 4)), rng.random((rows, 3))
    recent = Recent(whole[0], whole[1].astype(np.int32), none.astype(np.float32), x, whole[2], scale, none, none, *made)
    scores = rng.standard_normal((len(counts), HORIZON, 20)).astype(np.float32)
    scores[:, :, :7] = np.nan
    return Trailing(recent, counts, scores)


def open_and_hold(path: Path, model: str = "m", series: int = 100, **config: Any):
    return open_states(path, model, series, ForecastConfig(**config))


def commit(folder: StateFolder, *shards: int, names: tuple[str, ...] = ("a", "b")) -> None:
    files = {shard: make_shard(list(names)).save(folder.file(shard)) for shard in shards}
    folder.commit(files, {"out": "x"}, lambda run: True)


def test_a_shard_comes_back_bit_by_bit(tmp_path: Path) -> None:
    shard = make_shard(["a", "Ägypten/close", "c"])
    stored = shard.save(tmp_path / "shard.safetensors")
    assert stored.bytes == (tmp_path / "shard.safetensors").stat().st_size
    found = Shard.load(stored, CPU)
    assert found.names == shard.names
    assert found.carried is not None
    assert shard.carried is not None
    for name, tensor in shard.carried.state.items():
        assert found.carried.state[name].dtype == tensor.dtype
        assert torch.equal(found.carried.state[name], tensor)
    for one, other in zip(found.carried.running, shard.carried.running, strict=True):
        assert np.array_equal(one.to_array(), other.to_array())
    for mine, theirs in zip(found.absorbed, shard.absorbed, strict=True):
        assert np.array_equal(mine.facts, theirs.facts)
        assert np.array_equal(mine.times, theirs.times)
        assert np.array_equal(mine.hashes, theirs.hashes)
    assert found.trailing is not None
    assert shard.trailing is not None
    for name, array in shard.trailing.to_arrays().items():
        assert found.trailing.to_arrays()[name].dtype == array.dtype
        assert np.array_equal(found.trailing.to_arrays()[name], array, equal_nan=True)
    assert found.save(tmp_path / "again.safetensors").sha256 == stored.sha256


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "other"])
def test_a_damaged_state_file_is_told_in_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "shard.safetensors"
    stored = make_shard(["a"]).save(path)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-8] if damage == "cut" else data)
    if damage == "other":  # a file that is what the manifest says, and no state
        path.write_bytes(b"not a state")
        stored = Stored(str(path), hashlib.sha256(b"not a state").hexdigest(), 11)
    with pytest.raises(
        UserError, match=r"shard.safetensors: cannot be read \(.*\); restore it, or give an empty"
    ) as told:
        Shard.load(stored, CPU)
    assert "\n" not in str(told.value)


def test_nothing_counts_before_the_commit(tmp_path: Path) -> None:
    with open_and_hold(tmp_path / "s") as folder:
        commit(folder, 0, 3)
        first = folder.id
    with open_and_hold(tmp_path / "s") as folder:
        make_shard(["z"]).save(folder.file(0))
        (folder.path / ".manifest.json.0123abcd").write_text("half")
        before = (folder.path / MANIFEST).read_bytes()
    with open_and_hold(tmp_path / "s") as folder:
        assert (folder.id, folder.generation) == (first, 1)
        assert (folder.path / MANIFEST).read_bytes() == before
        names = {path.name for path in folder.path.iterdir()}
        assert names == {MANIFEST, "shard-00000.00000001.safetensors", "shard-00003.00000001.safetensors"}
        kept = folder.present(0)
        assert kept is not None
        assert Shard.load(kept, CPU).names == ["a", "b"]
        assert folder.present(1) is None


def test_a_commit_replaces_what_changed_and_keeps_the_rest(tmp_path: Path) -> None:
    with open_and_hold(tmp_path / "s") as folder:
        commit(folder, 0, 1)
        commit(folder, 1, names=("a", "b", "c"))
        assert [run["generation"] for run in folder.runs] == [1, 2]
    with open_and_hold(tmp_path / "s") as folder:
        names = {path.name for path in folder.path.iterdir()}
        assert names == {MANIFEST, "shard-00000.00000001.safetensors", "shard-00001.00000002.safetensors"}
        one = folder.present(1)
        assert one is not None
        assert len(Shard.load(one, CPU).names) == 3


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        open_and_hold(tmp_path / "s"),
        pytest.raises(UserError, match="another forecast job is at work there; wait for it"),
        open_and_hold(tmp_path / "s"),
    ):
        pass


def test_a_series_stays_in_its_shard(tmp_path: Path) -> None:
    with open_and_hold(tmp_path / "s", series=10_000) as folder:
        assert folder.shard_of("123456789") == 0xCBF43926 % 20  # the published check value of CRC-32
        counts = np.bincount([folder.shard_of(f"s{i}") for i in range(10_000)])
        assert (len(counts), counts.min() > 400, counts.max() < 600) == (20, True, True)
        commit(folder, 0)
    with open_and_hold(tmp_path / "s", series=5, series_per_shard=1) as folder:
        assert folder.manifest["shards"] == 20


@pytest.mark.parametrize(("series", "shards"), [(1, 1), (63, 1), (64, 2), (200, 6), (2000, 8), (4001, 9)])
def test_small_tables_are_spread_over_processors(tmp_path: Path, series: int, shards: int) -> None:
    with open_and_hold(tmp_path / "s", series=series) as folder:
        assert folder.manifest["shards"] == shards


def test_what_a_run_without_commit_said_counts_for_nothing(tmp_path: Path) -> None:
    with open_and_hold(tmp_path / "s", model="old", series=3) as folder:
        first = folder.id
        make_shard(["a"]).save(folder.file(0))
    with open_and_hold(tmp_path / "s", model="new", series=2000) as folder:
        assert (folder.id, folder.generation, folder.manifest["shards"], folder.manifest["model"]) == (
            first,
            0,
            8,
            "new",
        )
        assert folder.present(0) is None


def test_states_of_another_model_stay_until_a_reread_commits(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with open_and_hold(path, model="first" * 3) as folder:
        commit(folder, 0, 1)
    with (
        pytest.raises(UserError, match=r"s: holds states of another model \(firstfirstfi\); give reread=true with the"),
        open_and_hold(path, model="second"),
    ):
        pass
    with open_and_hold(path, model="second", reread=True) as folder:
        assert folder.present(0) is None
        make_shard(["z"]).save(folder.file(0))  # and is killed
    with open_and_hold(path, model="first" * 3) as folder:
        old = folder.present(1)
        assert old is not None
        assert Shard.load(old, CPU).names == ["a", "b"]
    with open_and_hold(path, model="second", series=2000, reread=True) as folder:
        commit(folder, 2)
        assert (folder.generation, folder.manifest["shards"], len(folder.runs)) == (2, 8, 2)
    with open_and_hold(path, model="second", reread=True) as folder:  # said again, it asks for nothing
        assert folder.present(2) is not None
        assert folder.present(0) is None
        assert len(list(path.iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"notes.txt": "x"}, "s: holds other files; choose a new folder for the states"),
        ({"shard-00000.00000001.safetensors": "x"}, "s: holds other files"),
        ({MANIFEST: "{"}, "manifest.json: is not valid JSON; restore the file"),
        ({MANIFEST: '{"format": 9}'}, "s: holds no states of format 3; choose a new folder"),
        (
            {MANIFEST: '{"format": 1, "id": "x", "model": 3}'},
            r"manifest.json: is damaged \(model is missing\); restore",
        ),
    ],
)
def test_other_folders_are_refused_and_left_alone(tmp_path: Path, content: dict[str, str], message: str) -> None:
    path = tmp_path / "s"
    path.mkdir()
    for name, text in content.items():
        (path / name).write_text(text)
    with pytest.raises(UserError, match=message), open_and_hold(path):
        pass
    assert {file.name: file.read_text() for file in path.iterdir()} == content


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("x")
    with pytest.raises(UserError, match="s: is a file; choose a folder for the states"), open_and_hold(tmp_path / "s"):
        pass


def test_the_manifest_is_written_before_anything_else(tmp_path: Path) -> None:
    with open_and_hold(tmp_path / "s") as folder:
        assert json.loads((folder.path / MANIFEST).read_text())["id"] == folder.id


def test_rows_to_compare_may_grow(tmp_path: Path) -> None:
    for given, expected in ((300, 300), (256, 300), (500, 500)):
        with open_and_hold(tmp_path / "s", compare_rows=given) as folder:
            assert folder.compare_rows == expected
            commit(folder, 0)


def test_states_of_an_earlier_format_are_let_go_by_a_reread_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with open_and_hold(path) as folder:
        commit(folder, 0, names=("a", "b"))
        commit(folder, 1, names=("c",))
    manifest = json.loads((path / MANIFEST).read_text())
    for name in ("calibration_window", "compare_rows"):
        del manifest[name]
    (path / MANIFEST).write_text(json.dumps({**manifest, "format": 1}))
    with (
        pytest.raises(
            UserError, match=r"s: holds states of format 1, not 3; give reread=true with the whole history as"
        ),
        open_and_hold(path),
    ):
        pass
    with open_and_hold(path, reread=True) as folder:
        assert folder.present(0) is None
        assert sorted(name for file in folder.dropped for name in Shard.names_in(file)) == ["a", "b", "c"]
        commit(folder, 0)
        assert (folder.generation, folder.manifest["format"], len(folder.runs)) == (3, 3, 3)
    with open_and_hold(path) as folder:
        assert folder.dropped == ()
        assert Shard.names_in(folder.path / "nothing") == []


def test_runs_are_let_go_once_they_are_listed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "KEPT_RUNS", 3)
    asked: list[int] = []

    def is_listed(run: Mapping[str, Any]) -> bool:
        asked.append(run["generation"])
        return run["generation"] not in (2, 4) or len(asked) > 30

    with open_and_hold(tmp_path / "s") as folder:
        for _ in range(8):
            folder.commit({0: make_shard(["a"]).save(folder.file(0))}, {"out": "x"}, is_listed)
        assert [run["generation"] for run in folder.runs] == [2, 4, 6, 7, 8]
        assert asked[-3:] == [2, 4, 7]  # what was listed once is not asked for again
        asked += [0] * 30
        folder.commit({0: make_shard(["a"]).save(folder.file(0))}, {"out": "x"}, is_listed)
        assert [run["generation"] for run in folder.runs] == [7, 8, 9]
