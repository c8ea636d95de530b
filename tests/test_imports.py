"""The one-way street of imports: pipelines -> domains -> mamba_core, and which house may know which library."""

import ast
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

HOUSES = {name: Path(str(files(name))) for name in ("mamba_core", "domains", "pipelines")}
DOMAINS = ("genomics", "audio", "timeseries")

# What a house must not import, at the top of a file or inside a function.
FORBIDDEN = {
    "mamba_core": ("domains", "pipelines", "configs", "lightning", "hydra", "omegaconf", "mlflow", "numpy"),
    "domains": ("pipelines", "configs", "hydra", "omegaconf", "mlflow"),
    "pipelines": ("torch", "mamba_core"),  # it knows no tensor shapes
}
# Absent from machines that only train, or slow to import: in domains, inside functions alone.
LATE = (
    "Bio",
    "arch",
    "matplotlib",
    "pandas",
    "polars",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
    "soundfile",
    "statsforecast",
    "torchaudio",
)


def imports(source: str, *, late: bool = True) -> Iterator[str]:
    """Dotted names that a file imports; without ``late`` those that importing the file imports."""
    nodes = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        if late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)


def is_of(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def breaches(house: str, source: str) -> list[str]:
    return [name for name in imports(source) if any(is_of(name, package) for package in FORBIDDEN[house])]


def sources(house: str) -> list[Path]:
    found = sorted(HOUSES[house].rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("house", HOUSES)
def test_no_arrow_points_the_wrong_way(house: str) -> None:
    wrong = {str(path): names for path in sources(house) if (names := breaches(house, path.read_text()))}
    assert not wrong


@pytest.mark.parametrize("house", HOUSES)
def test_imports_are_absolute(house: str) -> None:
    assert not [path for path in sources(house) if any(name.startswith(".") for name in imports(path.read_text()))]


@pytest.mark.parametrize("house", ["domains", "pipelines"])
def test_no_domain_knows_another_and_what_is_shared_knows_none(house: str) -> None:
    for path in sources(house):
        own = path.relative_to(HOUSES[house]).parts[0]
        others = [f"{root}.{domain}" for root in HOUSES for domain in DOMAINS if domain != own]
        assert not [name for name in imports(path.read_text()) if any(is_of(name, other) for other in others)], path


def test_domains_import_late_what_a_training_machine_lacks() -> None:
    for path in sources("domains"):
        early = list(imports(path.read_text(), late=False))
        assert not [name for name in early if any(is_of(name, package) for package in LATE)], path


def test_the_check_sees_a_breach() -> None:
    inside = "def f():\n    from pipelines.cli import main\n"
    assert breaches("domains", inside) == ["pipelines.cli"]
    assert breaches("mamba_core", "import lightning.pytorch as pl") == ["lightning.pytorch"]
    assert list(imports(inside, late=False)) == []
    assert breaches("domains", "import hydralisk, domains.files") == []
