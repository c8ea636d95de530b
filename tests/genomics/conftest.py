"""Genomes and a trained model, made once for all tests of a process."""

from pathlib import Path

import pytest

from domains.genomics.sample import sample_genome
from domains.genomics.store import GenomeStore, prepare_store
from domains.genomics.train import train
from tests.genomics.tiny import masked_config, tiny_config, tiny_store


@pytest.fixture(scope="session")
def ustilago(tmp_path_factory: pytest.TempPathFactory) -> GenomeStore:
    return prepare_store(sample_genome(), tmp_path_factory.mktemp("stores"), progress=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GenomeStore:
    """A small made genome of one Markov chain; see tests.genomics.tiny."""
    return tiny_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny: GenomeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a short training run on the small genome."""
    config = tiny_config(tiny, max_steps=60, checkpoint_every=60, validate_every=20)
    return train(config, tmp_path_factory.mktemp("runs") / "run", progress=False).model_dir


@pytest.fixture(scope="session")
def masked_models(tiny: GenomeStore, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Model folders of two short trainings on hidden bases, by whether the model is symmetric."""
    folders = {}
    for symmetric in (False, True):
        config = masked_config(tiny, symmetric=symmetric, max_steps=40, checkpoint_every=40, validate_every=40)
        folders[symmetric] = train(config, tmp_path_factory.mktemp("runs") / "run", progress=False).model_dir
    return folders
