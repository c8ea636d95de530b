"""A genome with something to learn, and settings that train on it in a second."""

from pathlib import Path

import numpy as np

from domains.genomics.config import TrainConfig
from domains.genomics.store import GenomeStore
from domains.settings import from_dict
from tests.genomics.genomes import make_store


def markov_bases(length: int, seed: int) -> str:
    """Bases of one fixed second-order Markov chain of 1.66 bits per base."""
    chain = np.random.default_rng(7).dirichlet([0.7] * 4, size=(4, 4)).cumsum(-1)
    draws = np.random.default_rng([7, seed]).random(length)
    bases = [0, 0]
    for draw in draws:
        bases.append(min(3, int(np.searchsorted(chain[bases[-2], bases[-1]], draw))))
    return "".join("ACGT"[base] for base in bases[2:])


def tiny_store(folder: Path) -> GenomeStore:
    """Six contigs of 2,000 to 4,000 bases; c4 has a run of N and a lower-case stretch."""
    contigs = {f"c{i}": markov_bases(2000 + 400 * i, i) for i in range(6)}
    c4 = contigs["c4"]
    contigs["c4"] = c4[:500] + "N" * 300 + c4[800:1200] + c4[1200:2000].lower() + c4[2000:]
    return make_store(folder, contigs)


def tiny_config(store: GenomeStore, **trainer: object) -> TrainConfig:
    """Ten steps on CPU with one thread, a length warm-up, and a validation every four steps."""
    settings = {
        "data": {
            "store": str(store.path),
            "test": ["c4"],
            "validation": ["c1"],
            "window": 64,
            "tokens_per_step": 192,
            "validation_tokens": 256,
            "window_warmup": [16],
        },
        "backbone": {"d_model": 16, "n_layers": 2, "mamba2": {"d_state": 8, "headdim": 8}},
        "trainer": {
            "accelerator": "cpu",
            "threads": 1,
            "max_steps": 10,
            "log_every": 3,
            "health_every": 5,
            "validate_every": 4,
            "checkpoint_every": 3,
            "optimizer": {"learning_rate": 1e-2},
            **trainer,
        },
    }
    return from_dict(TrainConfig, settings)


def masked_config(store: GenomeStore, *, symmetric: bool, **trainer: object) -> TrainConfig:
    """:func:`tiny_config` for hidden bases, with a backbone that sees both sides."""
    config = tiny_config(store, **trainer)
    config.task.kind = "mlm"
    config.backbone.bidirectional = True
    config.backbone.reverse_complement = symmetric
    config.data.tokens_per_step = 512
    config.data.window_warmup = []
    return config
