"""What is installed works from any folder, configurations and what is bundled included."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.pipelines.conftest import TINY, write_genome

ROOT = Path(__file__).parents[2]
HOUSES = ("mamba_core", "domains", "pipelines", "configs")


def python(*words: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    (path,) = out.glob("serpentine-*.whl")
    return path


def test_the_wheel_holds_what_the_packages_hold_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == set(HOUSES)
    assert {f"configs/timeseries_{word}.yaml" for word in ("prepare", "train", "evaluate", "forecast")} < names
    assert "domains/timeseries/sample/SOURCE.md" in names
    for house in HOUSES:
        for path in (ROOT / house).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".yaml", ".gz", ".md", ".flac", ".csv"):
                assert path.relative_to(ROOT).as_posix() in names


def test_an_installed_wheel_helps_and_trains_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_genome(elsewhere / "made.fa")
    install = ("--no-deps", "--no-index", "--no-compile", "--quiet", "--target", str(site))
    python("-m", "pip", "install", *install, str(wheel), cwd=elsewhere)

    def installed(*words: str) -> str:
        return python(*words, cwd=elsewhere, PYTHONPATH=str(site), OMP_NUM_THREADS="1")

    where = installed("-c", "import pipelines.genomics, configs; print(pipelines.__file__, configs.__file__)")
    assert all(Path(path).is_relative_to(site) for path in where.split())
    for domain in ("genomics", "timeseries"):
        assert f"usage: python -m pipelines.{domain}" in installed("-m", f"pipelines.{domain}", "--help")
    out = installed("-m", "pipelines.genomics", "train", "experiment=demo", *TINY, "run.dir=one", "tracking=off")
    assert out.startswith("model: one/model")
    assert (elsewhere / "one" / "model" / "model.safetensors").exists()
    sample = "from domains.genomics.sample import sample_genome; print(sample_genome())"
    assert Path(installed("-c", sample).strip()).is_relative_to(site)
