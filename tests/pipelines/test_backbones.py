"""A Transformer and a hybrid through the commands: whatever takes Mamba takes them."""

from pathlib import Path

import pytest

from tests.pipelines.conftest import SMALL, TINY, Cli

CHEAP = ("trainer.max_steps=2", "trainer.health_every=1", "tracking=off", "run.dir=run")
BACKBONES = {
    "transformer": ("backbone=transformer", "backbone.n_layers=2", "backbone.attention.headdim=8"),
    "growing": ("backbone=transformer", "backbone.n_layers=2", "backbone.attention={headdim: 8, window: 0}"),
    "hybrid": ("backbone=hybrid", "backbone.n_layers=3", "backbone.attention={headdim: 8, kv_heads: 1, window: 16}"),
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_genomics(cli: Cli, workspace: Path, kind: str) -> None:
    words = [word for word in TINY if not word.startswith(("backbone.n_layers", "tracking", "trainer.max_steps"))]
    done = cli("train", *words, *CHEAP, *BACKBONES[kind])
    assert done.code == 0, done.err
    for word, *rest in (
        ("evaluate", "max_bases=300"),
        ("predict", "data.fasta=made.fa", "out=scores", "chunk=500"),
        ("generate", "prompt=ACGT", "length=20", "count=2", "out=sample.fa"),
    ):
        done = cli(word, "model=run/model", *rest, "device=cpu", "tracking=off")
        assert done.code == 0, done.err


@pytest.mark.parametrize("kind", BACKBONES)
def test_time_series(series_cli: Cli, series_workspace: Path, kind: str) -> None:
    words = [word for word in SMALL if not word.startswith(("backbone.n_layers", "tracking", "trainer.max_steps"))]
    done = series_cli("train", *words, *CHEAP, *BACKBONES[kind])
    assert done.code == 0, done.err
    for word, *rest in (
        ("evaluate", "max_cutoffs=3", "calibrate=false"),
        ("forecast", "data.path=panel.parquet", "out=forecasts", "state=states"),
    ):
        done = series_cli(word, "model=run/model", *rest, "device=cpu", "tracking=off")
        assert done.code == 0, done.err
