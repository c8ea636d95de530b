"""The experiment on masked models, on a small made genome."""

import json
from functools import partial

import pytest

from benchmarks import masked
from domains.genomics.config import EvaluateConfig
from domains.genomics.model import load_model
from tests.genomics.tiny import masked_config


def test_variants_are_measured_once_and_gone_on_with(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(masked, "WIDE", 4000)
    monkeypatch.setattr(masked, "HALOS", (0, 4096))
    monkeypatch.setattr(masked, "EvaluateConfig", partial(EvaluateConfig, max_order=4))
    config = masked_config(tiny, symmetric=True, max_steps=4, validate_every=2, checkpoint_every=2)
    where = (tmp_path / "runs", tmp_path / "masked.json", "a" * 40)
    assert masked.run(config, ["symmetric"], *where, 1000)
    first = json.loads(where[1].read_text())
    assert masked.run(config, ["symmetric", "post_hoc"], *where, 1000)
    result = json.loads(where[1].read_text())
    assert result["variants"]["symmetric"] == first["variants"]["symmetric"]
    assert load_model(tmp_path / "runs" / "symmetric" / "model").masked.symmetric
    row = result["variants"]["post_hoc"]
    assert not load_model(tmp_path / "runs" / "post_hoc" / "model").masked.symmetric
    assert row["bases"] == 4 * 512
    assert [step for step, _ in row["validation"]] == [2, 4]
    nats = row["halo"]["nats"]
    assert nats["4096"]["max"] == 0.0  # the contig is shorter than a window
    lines = masked.table(result)
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| symmetric", "| post_hoc", "| two-sided", "| unigram"]
    test = row["tests"]["0.15"]["rows"][0]
    assert f"| {test['bits']['model']:.4f} | {test['accuracy']['model']:.4f} |" in lines[3]
    assert f"| {test['bits']['one strand']:.4f} |" in lines[3]
    assert not masked.run(config, ["one_way"], *where, 1.0)  # the time is up
    folder = tmp_path / "runs" / "symmetric" / "model"
    options = {"length": 500, "wide": 2000, "halos": [0, 200], "windows": 2}
    masked.check(folder, config, where[1], where[2], options)
    checks = json.loads(where[1].read_text())["checks"]
    assert checks["strand_float64"] < 1e-10
    assert checks["halo"]["windows"] == [500, 2500]
    assert checks["halo"]["nats"]["200"]["max"] < checks["halo"]["nats"]["0"]["max"]
    with pytest.raises(KeyError):
        masked.recipe_of(config, "another", 1.0)
