import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from domains.errors import UserError
from domains.genomics.config import DataConfig
from domains.genomics.model import FILES, check_genome, load_model, read_record, save_model
from domains.genomics.train import train
from tests.genomics.genomes import make_store, random_bases
from tests.genomics.tiny import tiny_config


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_model_folder_comes_back_whole(tiny, tiny_model, tmp_path):
    loaded = load_model(tiny_model)
    assert not loaded.model.training
    assert (loaded.fingerprint, loaded.source) == (tiny.fingerprint, tiny.source_name)
    assert [region.contig for region in loaded.splits.test] == ["c4"]
    assert loaded.metrics["best/validation/bits_per_base"] < 1.8
    check_genome(loaded, tiny)
    data = json.loads((tiny_model / "data.json").read_text())
    save_model(tmp_path / "again", loaded.model.state_dict(), loaded.config, data, loaded.metrics)
    again = load_model(tmp_path / "again")
    assert (again.hash, again.config, again.splits) == (loaded.hash, loaded.config, loaded.splits)
    tokens = torch.randint(7, 11, (1, 50))
    assert torch.equal(again.model(tokens)[0], loaded.model(tokens)[0])


def test_there_is_nothing_in_it_but_safetensors_and_text(tiny_model):
    assert {path.name for path in tiny_model.iterdir()} == set(FILES)
    assert {path.suffix for path in tiny_model.iterdir()} == {".safetensors", ".json", ".yaml"}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"is no complete model folder \\({name} missing\\)"):
        load_model(folder)


def test_a_folder_that_is_none_is_named(folder, tiny_model, tmp_path):
    with pytest.raises(UserError, match="no such model folder"):
        load_model(tmp_path / "none")
    with pytest.raises(UserError, match="is a run folder; give the model folder in it"):
        load_model(tiny_model.parent)


def spoil_vocabulary(folder):
    table = json.loads((folder / "tokenizer.json").read_text())
    table["vocabulary"]["A"], table["vocabulary"]["T"] = table["vocabulary"]["T"], table["vocabulary"]["A"]
    (folder / "tokenizer.json").write_text(json.dumps(table))


def spoil_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["head.weight"] = weights["head.weight"][:8].contiguous()
    save_file(weights, folder / "model.safetensors")


def spoil_config(folder):
    with (folder / "config.yaml").open("a") as file:
        file.write("sede: 3\n")


def spoil_config_with_code(folder):
    (folder / "config.yaml").write_text("seed: !!python/object/apply:os.mkdir [harm]\n")


def spoil_data(folder):
    (folder / "data.json").write_text('{"source": "x.fa", "fingerprint": "0"}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_vocabulary, "another vocabulary"),
        (spoil_weights, "model.safetensors: cannot be read"),
        (spoil_shape, "the weights do not fit config.yaml"),
        (spoil_config, "sede is no setting; did you mean seed"),
        (spoil_config_with_code, "is not valid YAML"),
        (spoil_data, "data.json: lacks 'splits'"),
    ],
)
def test_a_spoilt_folder_gets_one_clear_line(folder, spoil, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()


def test_another_genome_is_refused(tiny_model, tmp_path):
    other = make_store(tmp_path, {"c4": random_bases(3600)})
    with pytest.raises(UserError, match=r"is not the genome that .* was trained on"):
        check_genome(load_model(tiny_model), other)


def test_it_holds_no_path_of_where_it_was_trained(tiny, tiny_model, tmp_path):
    assert str(tiny.path.parent) not in "".join(
        path.read_text() for path in tiny_model.iterdir() if path.suffix in (".yaml", ".json")
    )
    loaded = load_model(tiny_model)
    assert loaded.config.data == replace(tiny_config(tiny).data, fasta="made.fa", store="")
    data = json.loads((tiny_model / "data.json").read_text())
    for told, kept in (({"fasta": "/home/me/secret/made.fa"}, "made.fa"), ({}, "")):
        config = replace(loaded.config, data=DataConfig(stores="/home/me/secret", **told))
        save_model(tmp_path / "model", loaded.model.state_dict(), config, data, {})
        assert load_model(tmp_path / "model").config.data == DataConfig(fasta=kept)


def test_its_record_is_read_without_the_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")
    assert read_record(folder).source == "made.fa"


def test_mamba1_and_mixed_stacks_go_the_same_way(tiny, tmp_path):
    config = tiny_config(tiny, max_steps=2)
    config.backbone.pattern = ["mamba1", "mamba2"]
    done = train(config, tmp_path / "run", progress=False)
    assert load_model(done.model_dir).config.backbone.pattern == ["mamba1", "mamba2"]
