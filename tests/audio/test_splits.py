"""Parts of whole groups, of names that decide alone, and of what the table or the settings say."""

import json
from pathlib import Path

import pytest

from domains.audio.config import DataConfig
from domains.audio.splits import Splits, leave_one_group_out, make_splits
from domains.audio.store import AudioStore
from domains.errors import UserError
from tests.audio.sounds import make_store, noise, store_of, write


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    return make_store(tmp_path_factory.mktemp("grouped"), {"cat": 20, "dog": 10, "owl": 10}, groups=10)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    return make_store(tmp_path_factory.mktemp("plain"), {"cat": 30, "dog": 10})


def parts(splits: Splits) -> tuple[list[str], list[str], list[str]]:
    return splits.train, splits.validation, splits.test


def groups_of(store: AudioStore, names: list[str]) -> set[str]:
    return {store.clips[store.index(name)].group for name in names}


def test_no_group_is_torn_apart_and_every_label_is_shared_out(grouped: AudioStore) -> None:
    splits = make_splits(grouped, DataConfig(), labelled=True)
    assert sorted(name for names in parts(splits) for name in names) == [clip.name for clip in grouped.clips]
    held = [groups_of(grouped, names) for names in parts(splits)]
    assert sum(map(len, held)) == 10
    assert [len(groups) for groups in held] == [7, 1, 2]
    assert splits.note.startswith("split by group: train 28 clips of 7 groups; validation 4 clips of g")
    assert splits.warnings == []
    for names in parts(splits):
        assert {name.split("/")[0] for name in names} == {"cat", "dog", "owl"}


def test_without_groups_names_decide_and_labels_are_shared_out(plain: AudioStore) -> None:
    splits = make_splits(plain, DataConfig(), labelled=True)
    assert [len(names) for names in parts(splits)] == [28, 4, 8]
    assert sum(name.startswith("dog") for name in splits.test) == 2
    assert splits.note.startswith("split by name")
    assert make_splits(plain, DataConfig(), labelled=True) == splits
    unlabelled = make_splits(plain, DataConfig(), labelled=False)
    assert [len(names) for names in parts(unlabelled)] == [28, 4, 8]


def test_parts_as_named(grouped: AudioStore, plain: AudioStore) -> None:
    splits = make_splits(grouped, DataConfig(test=["g3"], validation=["g4", "g5"]), labelled=True)
    assert [groups_of(grouped, names) for names in (splits.test, splits.validation)] == [{"g3"}, {"g4", "g5"}]
    splits = make_splits(plain, DataConfig(test=["cat/000.wav"]), labelled=False)
    assert splits.test == ["cat/000.wav"]
    assert len(splits.validation) == 4


def test_parts_as_the_table_says(tmp_path: Path) -> None:
    for i in range(8):
        write(tmp_path / "clips" / f"{i}.wav", noise(0.1, seed=i))
    rows = ["path,group,split", *(f"{i}.wav,g{i % 4},{'test' if i < 2 else ''}" for i in range(8))]
    (tmp_path / "clips" / "t.csv").write_text("\n".join(rows))
    store = store_of(tmp_path, manifest=str(tmp_path / "clips" / "t.csv"))
    splits = make_splits(store, DataConfig(), labelled=False)
    assert splits.test == ["0.wav", "1.wav"]
    assert groups_of(store, splits.validation) not in ({"g0"}, {"g1"}) or splits.warnings
    assert splits.note.startswith("split by the table")
    assert splits.warnings == ["group g0, g1 is in more than one part: scores tell less than they seem to"]


def test_folds_leave_out_one_group_each(grouped: AudioStore, plain: AudioStore) -> None:
    folds = leave_one_group_out(grouped, DataConfig(), labelled=True)
    assert [group for group, _ in folds] == grouped.groups
    assert sorted(name for _, splits in folds for name in splits.test) == [clip.name for clip in grouped.clips]
    for group, splits in folds:
        assert groups_of(grouped, splits.test) == {group}
        assert group not in groups_of(grouped, splits.train + splits.validation)
    with pytest.raises(UserError, match="folds need three groups, and it has 0"):
        leave_one_group_out(plain, DataConfig(), labelled=True)


def test_a_class_of_one_clip_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"cat": 6, "dog": 6, "owl": 1})
    splits = make_splits(store, DataConfig(), labelled=True)
    assert sum(map(len, parts(splits))) == 12
    assert not [name for names in parts(splits) for name in names if name.startswith("owl")]
    assert sum(map(len, parts(make_splits(store, DataConfig(), labelled=False)))) == 13


def test_labels_that_training_lacks_are_told(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"cat/a": 3, "cat/b": 3, "dog/b": 3, "dog/c": 3, "owl/d": 3})
    splits = make_splits(store, DataConfig(test=["d"], validation=["a"]), labelled=True)
    assert "label owl is in the test part and not in training: always told wrong" in splits.warnings
    assert "label cat, dog is not in the test part: nothing is known of it" in splits.warnings


def test_splits_are_plain_values(grouped: AudioStore) -> None:
    splits = make_splits(grouped, DataConfig(), labelled=True)
    assert Splits.from_dict(json.loads(json.dumps(splits.to_dict()))) == splits
    assert [grouped.clips[i].name for i in splits.clips(grouped, "test")] == splits.test
    with pytest.raises(UserError, match="is not one of splits"):
        Splits.from_dict({"train": []})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test": ["g33"]}, "data.test: clips has no group 'g33'; it has g3"),
        ({"test": []}, r"data\.test=\[\]: name a group"),
        ({"test": ["g1"], "validation": ["g1"]}, "'g1' is in data.test and in data.validation"),
        ({"test_fraction": 0.0}, r"data\.test_fraction=0\.0: must lie between 0 and 1"),
        ({"test_fraction": 0.6, "validation_fraction": 0.5}, "leave nothing to train on"),
        ({"test": [f"g{i}" for i in range(10)]}, "no group is left for the train part of 10"),
    ],
)
def test_mistakes_are_one_line(grouped: AudioStore, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_splits(grouped, DataConfig(**settings), labelled=True)


def test_nothing_to_tell_apart_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 1 label of two clips or more, and nothing can be told apart"):
        make_splits(make_store(tmp_path, {"cat": 4, "dog": 1}), DataConfig(), labelled=True)
