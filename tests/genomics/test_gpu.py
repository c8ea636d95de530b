"""Training and streaming on a GPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from domains.genomics.io import Record
from domains.genomics.store import GenomeStore, prepare_store
from domains.genomics.stream import score_sequence
from domains.genomics.tokens import encode
from domains.genomics.train import train
from domains.genomics.variants.haplotypes import make_windows
from domains.genomics.variants.likelihood import causal_log_probs
from domains.genomics.variants.masked import masked_ratios
from domains.runlog import read_metrics
from mamba_core import BackboneConfig, CausalLM, Mamba1Config, Mamba2Config, MaskedLM
from tests.genomics.test_variant_likelihood import indels, snvs
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


def test_variants_have_the_scores_of_the_cpu_whatever_a_call_holds() -> None:
    torch.manual_seed(0)
    pattern = ["mamba2", "mamba1"]
    config = BackboneConfig(d_model=64, n_layers=2, pattern=pattern, mamba2=Mamba2Config(d_state=32, headdim=32))
    causal, masked = CausalLM(16, config).eval(), MaskedLM(16, replace(config, bidirectional=True)).eval()
    tokens = encode(markov_bases(3000, 0))
    alleles = [*snvs(tokens, 40), *indels(tokens, 40)]
    windows = make_windows(alleles, 500, 100)
    here = windows.ratios(causal_log_probs(causal, windows)), masked_ratios(masked, alleles, 500, 100)
    causal.cuda()
    masked.cuda()
    for chunk in (3_000, 100_000):
        there = windows.ratios(causal_log_probs(causal, windows, chunk=chunk))
        np.testing.assert_allclose(there, here[0], atol=1e-4)
        np.testing.assert_allclose(masked_ratios(masked, alleles, 500, 100, chunk=chunk), here[1], atol=1e-4)


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
