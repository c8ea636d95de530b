"""Hidden bases of the test contigs: model and baselines at the same positions, from the same neighbours."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from domains.errors import UserError
from domains.genomics.config import EvaluateConfig, WindowsConfig
from domains.genomics.evaluate import evaluate
from domains.genomics.masked import hidden_log_probs
from domains.genomics.masked_evaluate import _hidden, evaluate_masked
from domains.genomics.model import load_model
from domains.genomics.tokens import A, N
from domains.genomics.two_sided import TwoSidedModels

CONFIG = EvaluateConfig(max_order=4, windows=WindowsConfig(length=1000, halo=100))


@pytest.fixture(scope="module", params=[False, True], ids=["post-hoc", "symmetric"])
def folder(request, masked_models):
    return masked_models[request.param]


@pytest.fixture(scope="module")
def found(folder, tiny):
    return evaluate_masked(folder, tiny, CONFIG, device="cpu", progress=False)


def row(evaluation, name):
    return next(row for row in evaluation.rows if row.name == name)


def test_all_are_asked_the_same_bases(found, folder, tiny):
    """The plain way: each window read by itself."""
    loaded = load_model(folder)
    tokens = tiny.tokens("c4")
    hidden = _hidden(0.15, 0, 0, 3600) & (tokens != N)
    baseline = TwoSidedModels.fit(
        tiny, loaded.splits.train, 2, loaded.splits.validation, lambda n, length: _hidden(0.15, -1 - n, 0, length)
    )
    said = {"model": [], "one strand": []}
    for first in range(0, 3600, 1000):
        start, stop = max(0, first - 100), min(3600, first + 1100)
        window, asked = (torch.from_numpy(t[start:stop])[None] for t in (tokens, hidden))
        own = hidden[start:stop].nonzero()[0] + start
        own = (own >= first) & (own < first + 1000)
        for name, both in (("model", True), ("one strand", False)):
            log_probs = hidden_log_probs(loaded.masked, window, asked, both)[asked].numpy()
            said[name].append(log_probs[own] / math.log(2))
    said = {name: np.concatenate(parts) for name, parts in said.items()}
    said |= {"two-sided": baseline.log2_probs(tokens, hidden), "unigram": baseline.log2_probs(tokens, hidden, 0)}
    if loaded.masked.symmetric:
        del said["one strand"]
    true = tokens[hidden].astype(int) - A
    total = row(found, "all")
    assert total.bases == hidden.sum()
    assert set(total.bits) == set(said)
    for name, log2 in said.items():
        assert total.bits[name] == pytest.approx(-log2[np.arange(len(true)), true].mean(), abs=1e-5)
        assert total.accuracy[name] == pytest.approx((log2.argmax(1) == true).mean(), abs=1e-3)
    assert found.by_flank[baseline.chosen_flank] == pytest.approx(total.bits["two-sided"], abs=1e-6)
    assert found.by_flank[0] == pytest.approx(total.bits["unigram"], abs=1e-6)


def test_a_trained_model_tells_more_than_the_shares_of_letters(found):
    total = row(found, "all")
    assert total.bits["model"] < total.bits["unigram"] - 0.05
    assert total.accuracy["model"] > total.accuracy["unigram"] + 0.03


def test_rows_by_contig_and_by_repeat_mask_add_up(found):
    assert [entry.name for entry in found.rows] == ["all", "c4", "repeat-masked", "unmasked"]
    masked, unmasked, total = (row(found, name) for name in ("repeat-masked", "unmasked", "all"))
    assert masked.bases + unmasked.bases == total.bases
    for name in total.bits:
        parts = masked.bases * masked.bits[name] + unmasked.bases * unmasked.bits[name]
        assert parts / total.bases == pytest.approx(total.bits[name])


def test_masks_are_fixed_and_windows_change_little(found, folder, tiny):
    again = evaluate_masked(folder, tiny, CONFIG, device="cpu", progress=False)
    assert replace(again, seconds=0) == replace(found, seconds=0)
    wide = replace(CONFIG, windows=WindowsConfig(length=4000, halo=0))
    other = evaluate_masked(folder, tiny, wide, device="cpu", progress=False)
    assert row(other, "all").bases == row(found, "all").bases
    assert row(other, "all").bits["model"] == pytest.approx(row(found, "all").bits["model"], abs=2e-3)
    assert row(other, "all").bits["two-sided"] == row(found, "all").bits["two-sided"]


def test_one_strand_alone_and_another_share_of_bases(folder, tiny, found):
    config = replace(CONFIG, both_strands=False, mask_fraction=0.05, max_bases=2000)
    other = evaluate_masked(folder, tiny, config, device="cpu", progress=False)
    assert list(row(other, "all").bits) == ["model", "two-sided", "unigram"]
    assert row(other, "all").bases == pytest.approx(0.05 * 1700, abs=25)
    assert "c4:0-2000 (start of the test regions, 2,000 bases, 0.05 of the known ones hidden)" in other.table()


def test_the_table_and_the_numbers_show_baselines_always(found, tmp_path):
    table, total = found.table().splitlines(), row(found, "all")
    title = "bits per hidden base, made.fa c4:0-3600 (test regions, 3,600 bases, 0.15 of the known ones hidden)"
    assert table[0] == title
    assert "two-sided 2" in table[1]
    assert "unigram" in table[1]
    assert table[2].split()[2] == f"{total.bits['model']:.4f}"
    assert table[2].split()[-1] == f"{total.bits['model'] - total.bits['two-sided']:+.4f}"
    assert f"{total.accuracy['two-sided']:.4f}" in found.table()
    metrics = found.metrics()
    assert metrics["test/bits_per_base"] == total.bits["model"]
    assert metrics["test/two_sided_bits_per_base"] == total.bits["two-sided"]
    assert metrics["test/unigram_accuracy"] == total.accuracy["unigram"]
    assert all(isinstance(value, float) for value in metrics.values())
    found.save(tmp_path / "evaluation.json")
    assert json.loads((tmp_path / "evaluation.json").read_text()) == found.to_dict()


def test_what_makes_no_sense_is_refused(folder, tiny_model, tiny):
    for config, message in (
        (replace(CONFIG, max_bases=0), "max_bases=0"),
        (replace(CONFIG, context=100), "context=100: is for models that predict the next base"),
        (replace(CONFIG, mask_fraction=1.0), "mask_fraction=1.0: must lie between 0 and 1"),
        (replace(CONFIG, windows=WindowsConfig(halo=-2)), "windows.halo=-2"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_masked(folder, tiny, config, progress=False)
    with pytest.raises(UserError, match="is a causal model"):
        evaluate_masked(tiny_model, tiny, CONFIG, progress=False)
    with pytest.raises(UserError, match="is a masked model"):
        evaluate(folder, tiny, EvaluateConfig(max_order=2), progress=False)
