"""Model folders: whole or refused, whatever a domain adds to them."""

import hashlib
import stat

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from domains.audio.trained import FILES as SOUND
from domains.errors import UserError
from domains.genomics.model import FILES as GENOMICS
from domains.model_folder import (
    check_complete,
    load_weights,
    model_files,
    read_config,
    read_data,
    read_metrics,
    write_model_folder,
)
from domains.timeseries.trained import FILES as SERIES
from tests.toy import ToyConfig

FILES = model_files("own.txt")


@pytest.fixture
def folder(tmp_path):
    own = {"own.txt": lambda path: path.write_text("ours")}
    weights = {"weight": torch.arange(6.0).reshape(2, 3).T, "bias": torch.ones(3)}  # not contiguous
    write_model_folder(tmp_path / "model", weights, ToyConfig(seed=3), {"source": "a"}, {"loss": 0.5}, own)
    return tmp_path / "model"


def test_a_folder_comes_back_whole(folder):
    assert {path.name for path in folder.iterdir()} == set(FILES)
    check_complete(folder, FILES)
    model = nn.Linear(2, 3)
    sha256 = load_weights(folder, model)
    assert sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert model.weight.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert read_config(folder, ToyConfig) == ToyConfig(seed=3)
    assert read_data(folder, lambda data: data["source"]) == "a"
    assert read_metrics(folder) == {"loss": 0.5}
    assert (folder / "own.txt").read_text() == "ours"
    modes = {stat.S_IMODE((folder / name).stat().st_mode) for name in ("model.safetensors", "config.yaml")}
    assert len(modes) == 1  # who may read the settings may read the weights


def test_a_writer_that_fails_leaves_the_earlier_folder(folder):
    def fail(_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_model_folder(folder, {}, ToyConfig(seed=4), {}, {}, {"own.txt": fail})
    assert read_config(folder, ToyConfig).seed == 3
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_what_is_missing_or_damaged_is_named(folder, tmp_path):
    with pytest.raises(UserError, match="none: no such model folder"):
        check_complete(tmp_path / "none", FILES)
    with pytest.raises(UserError, match=r"is a run folder; give the model folder in it, .*model"):
        check_complete(tmp_path, FILES)
    with pytest.raises(UserError, match=r"data\.json: lacks 'splits'; restore the file or train again"):
        read_data(folder, lambda data: data["splits"])
    with pytest.raises(UserError, match="weights do not fit config"):
        load_weights(folder, nn.Linear(3, 3))
    save_file({"weight": torch.zeros(3, 2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="weights do not fit config"):  # no bias
        load_weights(folder, nn.Linear(2, 3))
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        load_weights(folder, nn.Linear(2, 3))
    (folder / "own.txt").unlink()
    (folder / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"is no complete model folder \(own\.txt, metrics\.json missing\)"):
        check_complete(folder, FILES)


@pytest.mark.parametrize(
    ("wanted", "field", "given", "other"),
    [
        (SOUND, "sound", GENOMICS, "genomics"),
        (SOUND, "sound", SERIES, "time series"),
        (GENOMICS, "genomics", SOUND, "sound"),
        (SERIES, "time series", SOUND, "sound"),
    ],
)
def test_a_model_of_another_field_is_called_so(tmp_path, wanted, field, given, other):
    for name in given:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f": is a model of {other}, not of {field}; give another model folder"):
        check_complete(tmp_path, wanted)
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"is no complete model folder \(metrics\.json missing\)"):
        check_complete(tmp_path, given)
