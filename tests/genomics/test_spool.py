import numpy as np
import pytest
import torch

from domains.genomics import spool as module
from domains.genomics.spool import Spool
from mamba_core import State

ORIGIN = {"model": "abc", "chunk": 5}


def state(number):
    return State({"layers.0.ssm": torch.full((1, 2), float(number)), "read": torch.tensor([number])})


@pytest.fixture(autouse=True)
def save_always(monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", 0)


@pytest.mark.parametrize("width", [1, 3])
def test_rows_and_the_state_behind_them_come_back(tmp_path, monkeypatch, width):
    rows = np.random.default_rng(0).random((10, width), np.float32).squeeze()
    with Spool(tmp_path / "a", ORIGIN, width) as spool:
        assert (spool.rows, spool.state) == (0, None)
        spool.append(rows[:4], state(4))
        monkeypatch.setattr(module, "SAVE_EVERY", 1e9)
        spool.append(rows[4:9], state(9))  # on the disk, but no state says so
        assert np.array_equal(spool.read(2, 7), rows[2:7])
    with Spool(tmp_path / "a", ORIGIN, width) as spool:
        assert spool.rows == 4
        assert spool.state.keys() == state(4).keys()
        assert all(torch.equal(spool.state[name], state(4)[name]) for name in spool.state)
        spool.append(rows[4:], None)
        assert np.array_equal(spool.read(0, 10), rows)
        assert np.array_equal(spool.read(10, 10), rows[10:])
        spool.remove()
    assert list(tmp_path.iterdir()) == []


def test_rows_that_need_no_state_have_none(tmp_path):
    with Spool(tmp_path / "a", ORIGIN) as spool:
        spool.append(np.ones(3), None)
    with Spool(tmp_path / "a", ORIGIN) as spool:
        assert (spool.rows, spool.state) == (3, None)


@pytest.mark.parametrize("damage", ["origin", "state", "rows", "no rows", "no state"])
def test_what_is_damaged_or_of_another_job_is_begun_anew(tmp_path, damage):
    with Spool(tmp_path / "a", ORIGIN) as spool:
        spool.append(np.ones(3), state(3))
    files = {"state": tmp_path / "a.state", "rows": tmp_path / "a.rows"}
    if damage in files:
        files[damage].write_bytes(files[damage].read_bytes()[:-1])
    if damage.startswith("no "):
        files[damage[3:]].unlink()
    with Spool(tmp_path / "a", ORIGIN | ({"chunk": 6} if damage == "origin" else {})) as spool:
        assert (spool.rows, spool.state) == (0, None)
        spool.append(np.zeros(2), state(2))
        assert spool.read(0, 2).tolist() == [0, 0]
