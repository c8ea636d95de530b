"""Training and streaming on a GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from domains.genomics.io import Record
from domains.genomics.store import GenomeStore, prepare_store
from domains.genomics.stream import score_sequence
from domains.genomics.train import train
from domains.runlog import read_metrics
from mamba_core import BackboneConfig, CausalLM, Mamba1Config, Mamba2Config
from tests.genomics.tiny import markov_bases, tiny_config

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_the_chunk_changes_no_score(mixer: str) -> None:
    torch.manual_seed(0)
    config = BackboneConfig(
        d_model=64, n_layers=2, pattern=[mixer], mamba1=Mamba1Config(), mamba2=Mamba2Config(d_state=32, headdim=32)
    )
    model = CausalLM(16, config).cuda().eval()
    tokens = np.random.default_rng(0).integers(7, 11, 20_000).astype(np.uint8)
    whole = score_sequence(model, tokens, chunk=20_000)
    for chunk in (1_000, 4_097, 16_384):
        assert np.abs(score_sequence(model, tokens, chunk=chunk) - whole).max() < 1e-5


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GenomeStore:
    """The small genome without Biopython, which machines with GPUs may lack."""
    records = [Record(f"c{i}", markov_bases(3000, i).encode()) for i in range(6)]
    monkeypatch.setattr("domains.genomics.store.read_records", lambda *_: iter(records))
    source = tmp_path / "made.fa"
    source.write_text(">c0\nACGT\n")  # hashed, not read
    return prepare_store(source, tmp_path / "stores", progress=False)


def test_training_in_bf16_learns_and_counts_its_speed(store: GenomeStore, tmp_path: Path) -> None:
    config = tiny_config(store, max_steps=60, checkpoint_every=60, validate_every=20)
    config.trainer.accelerator = "gpu"
    result = train(config, tmp_path / "run", progress=False)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    validation = [row["validation/bits_per_base"] for row in rows if "validation/bits_per_base" in row]
    assert validation[-1] < validation[0] < 2.1
    assert result.metrics["train/bases_per_second"] > 0
    assert result.metrics["train/gpu_memory_bytes"] > 0
