"""Folders of stores: found again by what they were made from, whole or not there."""

import pytest

from domains.errors import UserError
from domains.folder import write_json
from domains.store_folder import META, build_store, find_by_key, find_store, store_key


def write(fingerprint):
    return lambda folder: write_json(folder / META, {"fingerprint": fingerprint})


def test_a_key_tells_apart_what_a_store_was_made_from():
    assert store_key(1, "ab") == store_key("1", "ab")
    assert len({store_key(1, "ab"), store_key(2, "ab"), store_key(1, "ac"), store_key(1, "ab", "x")}) == 4
    assert len(store_key(1)) == 12


def test_a_store_is_found_by_its_key_and_by_its_fingerprint(tmp_path):
    root = tmp_path / "stores"
    assert find_by_key(root, "0" * 12) is None
    assert find_store(root, "one", str) is None
    one = build_store(root, "my data (1)", store_key("one"), write("one"), "the table of a.csv")
    two = build_store(root, "b", store_key("two"), write("two"), "the table of b.csv")
    assert one.name == f"my_data__1_-{store_key('one')}"
    assert find_by_key(root, store_key("one")) == one
    (root / "a-damaged").mkdir()
    (root / "a-damaged" / META).write_text("{")
    assert find_store(root, "two", lambda path: path) == two
    assert find_store(root, "three", lambda path: path) is None


def test_a_failure_leaves_nothing_behind(tmp_path):
    def full(folder):
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(
        UserError,
        match=r"cannot keep the table of a\.csv \(No space left on device\); make room or give .*data\.stores",
    ):
        build_store(tmp_path, "a", "key", full, "the table of a.csv")
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_uses_the_store_of_the_faster(tmp_path):
    def slow(folder):
        build_store(tmp_path, "a", "key", write("fast"), "a")
        write("slow")(folder)

    path = build_store(tmp_path, "a", "key", slow, "a")
    assert find_store(tmp_path, "fast", lambda found: found) == path
    assert list(tmp_path.iterdir()) == [path]
