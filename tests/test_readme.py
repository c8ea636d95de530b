"""The README says what the committed results say, and names commands and files that exist."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import report
from pipelines.genomics import GENOMICS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("name", ["demo_cpu", "umaydis_h100"])
def test_bits_per_base(name: str) -> None:
    evaluation = json.loads((RESULTS / f"{name}.json").read_text())["evaluation"]
    total = evaluation["rows"][0]
    orders = evaluation["markov"]["bits_per_base_by_order"]
    for bits in (total["model"], total["markov"], orders[3], orders[8]):
        assert f"{bits:.4f}" in README


def test_the_table_of_the_demo() -> None:
    for row in json.loads((RESULTS / "demo_cpu.json").read_text())["evaluation"]["rows"]:
        cells = (row["name"], f"{row['bases']:,}", f"{row['model']:.4f}", f"{row['markov']:.4f}")
        assert re.search(r"\s+".join(re.escape(cell) for cell in cells), README)


def test_cpu_speed() -> None:
    result = json.loads((RESULTS / "cpu.json").read_text())
    for row in result["rows"]:
        assert f"{row['serpentine_tokens_per_second']:,}" in README
        assert f"{row['ratio']:.2f}" in README


def test_kernel_tables() -> None:
    """Every kernels_<gpu>.json has its block, made from it; no block stands without its file."""
    results = {path.stem: path for path in RESULTS.glob("kernels_*.json")}
    assert set(re.findall(r"<!-- (kernels_\w+) -->", README)) == results.keys()
    for path in results.values():
        assert report.block(json.loads(path.read_text()), f"benchmarks/results/{path.name}") in README, path.name


def test_results_say_where_and_from_what() -> None:
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert re.fullmatch("[0-9a-f]{40}", result["commit"]), path.name
        assert {"cpu", "device"} <= result["hardware"].keys()


def test_commands_and_links_exist() -> None:
    words = {command.word for command in GENOMICS.commands}
    used = set(re.findall(r"python -m pipelines\.genomics ([a-z-]+)", README))
    assert used == words
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
