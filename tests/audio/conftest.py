"""The bundled clips, prepared once for all tests of a process."""

import pytest

from domains.audio.config import SourceConfig
from domains.audio.store import AudioStore, prepare_store


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="session")
def prompts(stores: str) -> AudioStore:
    return prepare_store(SourceConfig(stores=stores), progress=False)


@pytest.fixture(scope="session")
def arrow(stores: str) -> AudioStore:
    return prepare_store(SourceConfig(stores=stores, sample="arrow"), progress=False)
