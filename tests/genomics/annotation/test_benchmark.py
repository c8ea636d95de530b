"""The benchmark's settings fit what they are for, and its report says what the result says."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks import annotation, annotation_frozen, annotation_report
from domains.genomics.annotation.train import check_annotation
from domains.genomics.train import train
from tests.genomics.annotation.genes import genes_config
from tests.genomics.tiny import tiny_config


@pytest.fixture(scope="module")
def language(tiny, tmp_path_factory) -> Path:
    return train(tiny_config(tiny, max_steps=1), tmp_path_factory.mktemp("language") / "run", progress=False).model_dir


@pytest.mark.parametrize("task", annotation.RECIPES)
@pytest.mark.parametrize("start", ["scratch", "causal"])
def test_every_training_has_settings_that_make_sense(language: Path, task: str, start: str) -> None:
    place = argparse.Namespace(
        store=Path("store"), annotation=Path("genes"), steps=None, device="gpu", seed=0, workers=1
    )
    for share in annotation.shares_of(task):
        config = annotation.settings_of(task, share, start, {"causal": language}, place)
        check_annotation(config)
        assert config.data.label_fraction == share
        assert config.data.tokens_per_step % (config.data.context or config.data.window) == 0
        assert bool(config.task.pretrained) == (start == "causal")
        if start == "scratch":  # of the sizes of what is pre-trained
            assert config.backbone.d_model == 16


@pytest.mark.parametrize("kind", ["classify", "segment"])
def test_a_row_tells_of_the_steps_that_were_done(genes, kind: str, tmp_path: Path) -> None:
    config = genes_config(*genes, kind, trainer={"max_steps": 2, "validate_every": 1})
    row, windows = annotation.one_training(config, tmp_path / "run", 60.0)
    assert (row["finished"], row["steps"], row["steps_asked"]) == (True, 2, 2)
    assert row["bases"] == 2 * config.data.tokens_per_step
    assert [seen["step"] for seen in row["validation"]] == [1, 2]
    assert (windows is not None) == (kind == "classify")


def test_intervals_are_of_the_difference_and_hold_it() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    good, poor = labels + rng.normal(0, 0.7, 600), labels + rng.normal(0, 2, 600)
    value, low, high = annotation_report.interval(labels, good, poor, np.arange(600) // 10)
    assert 0 < low < value < high < 0.5
    assert annotation_report.interval(labels, good, good, np.arange(600) // 10) == [0, 0, 0]


def test_tables_show_every_start_and_baseline_by_share_of_the_labels() -> None:
    rows = [
        {"task": "windows", "start": start, "labels": share, "test": {"all": {"auc": auc}}} | more
        for start, share, auc, more in (
            ("scratch", 1.0, 0.91, {}),
            ("causal", 1.0, 0.97, {"less_scratch": [0.06, 0.05, 0.07]}),
            ("causal", 0.1, 0.95, {}),
        )
    ]
    rows.append({"task": "bases", "start": "causal", "labels": 1.0, "test": {"classes": [{"f1": 0.5}, {"f1": 0.9}]}})
    known = {"windows-1.0": {"5-mer logistic": {"auc": 0.9543}, "Markov 6 log-odds": {"auc": 0.9647}}}
    known |= {"windows-0.1": {"Markov 4 log-odds": {"auc": 0.94}}}
    text = "\n".join(annotation_report.table({"rows": rows, "baselines": known}))
    assert "| windows of 200 bases, AUC | 10% of the labels | 100% of the labels |" in text
    assert "| scratch | - | 0.9100 |" in text
    assert "| causal | 0.9500 | 0.9700 (+0.0600 [+0.0500, +0.0700]) |" in text
    assert "| Markov log-odds | 0.9400 | 0.9647 |" in text
    assert "| causal | - | 0.9000 |" in text


def test_a_head_on_states_learns_from_both_strands_alike() -> None:
    rng = np.random.default_rng(0)
    labels = annotation_frozen.torch.from_numpy(rng.integers(0, 2, 300))
    own, other = (
        annotation_frozen.torch.from_numpy((rng.normal(size=(300, 8)) + labels.numpy()[:, None]).astype(np.float32))
        for _ in range(2)
    )
    head = annotation_frozen.fit_head((own, other), labels, (own, other), labels, classes=2, epochs=20)
    said = head((own, other))
    assert ((said[:, 1] > 0.5) == labels.numpy()).mean() > 0.9
    assert np.allclose(said, head((other, own)), atol=1e-5)
