"""Which part of a batch is whose: shares, and what is said of settings that cannot be. Processes themselves are tested
in tests/core/test_context_parallel.py and tests/pipelines/test_multi_gpu.py."""

from pathlib import Path

import pytest
import torch

from domains.config import TrainerConfig
from domains.errors import UserError
from domains.launch import rank, signed
from domains.parallel import ALONE, WHOLE, Share, share_of
from mamba_core import BackboneConfig
from tests.toy import toy_config, train


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As torchrun starts the sixth of eight processes."""
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_single_process_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # somebody else's
    assert share_of(TrainerConfig()) == WHOLE
    assert WHOLE.first
    assert WHOLE.rows(5) == slice(0, 5)
    assert WHOLE.tokens(7) == [slice(0, 7)]
    assert signed("so") == "so"
    total = torch.tensor(0.1)
    assert ALONE.sum(total)[0] is total


def test_a_process_of_many_has_its_rows_and_tokens(launched: pytest.MonkeyPatch) -> None:
    share = share_of(TrainerConfig(devices=8, context_parallel=2, segment_length=3))
    assert share == Share(group=2, groups=4, place=1, places=2, segment=3)
    assert not share.first
    assert share.processes == 8
    assert share.rows(8) == slice(4, 6)
    assert share.tokens(16) == [slice(3, 6), slice(9, 12), slice(14, 16)]
    assert rank() == 5
    assert signed("so") == "rank 5: so"


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_every_row_is_somebodys(count: int) -> None:
    rows = [row for group in range(4) for row in range(count)[Share(group=group, groups=4).rows(count)]]
    assert rows == list(range(count))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"devices": 4}, "trainer.devices=4: torchrun started 8 processes; give both one number"),
        ({}, "trainer.devices=1: torchrun started 8 processes; give both one number"),
        ({"devices": 8, "context_parallel": 3}, "trainer.context_parallel=3: must divide trainer.devices=8"),
    ],
)
def test_settings_that_are_not_torchruns(settings: dict[str, int], told: str, launched: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as error:
        share_of(TrainerConfig(**settings))
    assert str(error.value) == told


def test_batches_that_cannot_be_shared_evenly() -> None:
    share = Share(groups=2, places=2)
    share.check(rows=4, length=64)
    with pytest.raises(UserError, match=r"^trainer.context_parallel=2: does not divide windows of 63 tokens$"):
        share.check(rows=4, length=63)
    with pytest.raises(UserError, match=r"^trainer.devices=4: 2 groups of 2 cannot share the 3 windows of 64 tokens"):
        share.check(rows=3, length=64)


def test_a_model_that_cannot_be_split_is_named() -> None:
    model = BackboneConfig(d_model=64, n_layers=2, pattern=["mlp", "attention"]).build()
    WHOLE.check_model(model)
    with pytest.raises(UserError, match=r"^trainer.context_parallel=2: layers.1.mixer \(Attention\) cannot work on a"):
        Share(places=2).check_model(model)


def test_a_domain_whose_batches_are_not_shared_trains_on_one_device(tmp_path: Path) -> None:
    """Told so at once, not to start torchrun first."""
    with pytest.raises(UserError, match=r"^trainer.devices=8: toy trains on one device$"):
        train(toy_config(devices=8), tmp_path / "run")
    assert not (tmp_path / "run").exists()
