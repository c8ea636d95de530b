"""Shared by every test: one CPU thread (two workers share two cores), and the gpu mark."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def gpu_memory_is_handed_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """What PyTorch keeps for later would be missing to the workers beside this one."""
    yield
    if "gpu" in request.node.keywords:
        torch.cuda.empty_cache()
