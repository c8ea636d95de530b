"""A genome with genes, and models of them, made once."""

import pytest

from domains.genomics.annotation.table import FeatureTable
from domains.genomics.store import GenomeStore
from domains.genomics.train import train
from domains.session import TrainResult
from tests.genomics.annotation.genes import genes_config, genes_genome


@pytest.fixture(scope="session")
def genes(tmp_path_factory: pytest.TempPathFactory) -> tuple[GenomeStore, FeatureTable]:
    return genes_genome(tmp_path_factory.mktemp("genes"))


@pytest.fixture(scope="session")
def classified(genes: tuple[GenomeStore, FeatureTable], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A classifier that has learned something, of windows of 60 bases amid 100."""
    trainer = {"max_steps": 70, "validate_every": 35}
    config = genes_config(*genes, "classify", data={"context": 100}, trainer=trainer)
    return train(config, tmp_path_factory.mktemp("windows") / "run", progress=False)


@pytest.fixture(scope="session")
def segmented(genes: tuple[GenomeStore, FeatureTable], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A segmenter that has learned something."""
    config = genes_config(*genes, "segment", trainer={"max_steps": 60, "validate_every": 30})
    return train(config, tmp_path_factory.mktemp("bases") / "run", progress=False)
