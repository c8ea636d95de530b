"""A genome with genes, made once."""

import pytest

from domains.genomics.annotation.table import FeatureTable
from domains.genomics.store import GenomeStore
from tests.genomics.annotation.genes import genes_genome


@pytest.fixture(scope="session")
def genes(tmp_path_factory: pytest.TempPathFactory) -> tuple[GenomeStore, FeatureTable]:
    return genes_genome(tmp_path_factory.mktemp("genes"))
