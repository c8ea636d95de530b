import json
import math
from dataclasses import replace

import numpy as np
import pytest

from domains.errors import UserError
from domains.genomics.baselines import MarkovModels
from domains.genomics.config import EvaluateConfig
from domains.genomics.evaluate import evaluate, prefix
from domains.genomics.model import load_model
from domains.genomics.splits import Region
from domains.genomics.stream import score_sequence
from domains.genomics.tokens import reverse_complement
from tests.genomics.genomes import make_store, random_bases

CONFIG = EvaluateConfig(max_order=3, chunk=500)


@pytest.fixture(scope="module")
def evaluation(tiny, tiny_model):
    return evaluate(tiny_model, tiny, CONFIG, device="cpu", progress=False)


def row(evaluation, name):
    return next(row for row in evaluation.rows if row.name == name)


def expected_bits(tiny, tiny_model, keep=None):
    """Bits per base of the test contig c4 on both strands, and Markov's of each order: the plain way."""
    loaded = load_model(tiny_model)
    tokens = tiny.tokens("c4")
    keep = np.ones(len(tokens), bool) if keep is None else keep
    markov = MarkovModels.fit(tiny, loaded.splits.train, 3, loaded.splits.validation)
    other = reverse_complement(tokens)
    nats = np.concatenate([score_sequence(loaded.model, tokens)[keep], score_sequence(loaded.model, other)[keep[::-1]]])
    by_order = [
        -np.nanmean(np.concatenate([markov.log2_probs(tokens, k)[keep], markov.log2_probs(other, k)[keep[::-1]]]))
        for k in range(4)
    ]
    return -np.nanmean(nats) / math.log(2), by_order


def test_both_are_scored_on_the_same_positions_of_both_strands(tiny, tiny_model, evaluation):
    model, by_order = expected_bits(tiny, tiny_model)
    total = row(evaluation, "all")
    assert total.bases == 2 * (3600 - 300)  # c4 holds 300 N
    assert total.model == pytest.approx(model, abs=1e-5)
    assert evaluation.by_order == pytest.approx(by_order, abs=1e-5)
    assert total.markov == evaluation.by_order[evaluation.chosen_order]
    assert evaluation.chosen_order == int(np.argmin(by_order)) == 3  # one more than the chain has, to tell the strands
    assert total.model < 1.8 < evaluation.by_order[0]
    assert (evaluation.whole, evaluation.strands) == (True, "both")


def test_rows_by_contig_and_by_repeat_mask_add_up(tiny, tiny_model, evaluation):
    assert [row.name for row in evaluation.rows] == ["all", "c4", "repeat-masked", "unmasked"]
    assert evaluation.by_contig == [row(evaluation, "c4")]
    masked, unmasked = row(evaluation, "repeat-masked"), row(evaluation, "unmasked")
    assert masked.bases == 2 * 800
    model, by_order = expected_bits(tiny, tiny_model, keep=tiny.soft_mask("c4"))
    assert (masked.model, masked.markov) == pytest.approx((model, by_order[3]), abs=1e-5)
    total = row(evaluation, "all")
    for kind in ("model", "markov"):
        parts = masked.bases * getattr(masked, kind) + unmasked.bases * getattr(unmasked, kind)
        assert parts / total.bases == pytest.approx(getattr(total, kind))


def test_a_genome_without_a_mask_has_no_rows_for_it(tiny, tiny_model, monkeypatch):
    monkeypatch.setattr(type(tiny), "has_soft_mask", False)
    found = evaluate(tiny_model, tiny, CONFIG, progress=False)
    assert [row.name for row in found.rows] == ["all", "c4"]


@pytest.mark.parametrize("chunk", [100, 128, 500, 100_000])
def test_with_a_context_all_models_forget_at_the_same_places(tiny, tiny_model, chunk):
    """Windows of 128 from the start of each strand, each scored as if it were alone."""
    found = evaluate(tiny_model, tiny, replace(CONFIG, chunk=chunk, context=128), progress=False)
    loaded = load_model(tiny_model)
    markov = MarkovModels.fit(tiny, loaded.splits.train, 3, loaded.splits.validation)
    windows = [
        strand[start : start + 128]
        for strand in (tiny.tokens("c4"), reverse_complement(tiny.tokens("c4")))
        for start in range(0, 3600, 128)
    ]
    nats = np.concatenate([score_sequence(loaded.model, window) for window in windows])
    assert row(found, "all").model == pytest.approx(-np.nanmean(nats) / math.log(2), abs=1e-6)
    for order in range(4):
        log2 = np.concatenate([markov.log2_probs(window, order) for window in windows])
        assert found.by_order[order] == pytest.approx(-np.nanmean(log2), abs=1e-6)
    assert "3,600 bases, context of 128 bases at most)" in found.table()
    assert found.to_dict()["context"] == 128


@pytest.mark.parametrize("chunk", [1, 3, 100_000])
def test_the_chunk_changes_nothing(tiny, tiny_model, chunk):
    config = replace(CONFIG, max_bases=150, chunk=500)
    expected = evaluate(tiny_model, tiny, config, progress=False)
    found = evaluate(tiny_model, tiny, replace(config, chunk=chunk), progress=False)
    assert found.by_order == pytest.approx(expected.by_order, abs=1e-6)
    assert row(found, "all").model == pytest.approx(row(expected, "all").model, abs=1e-5)


def test_the_table_shows_model_and_markov_always(evaluation):
    lines = evaluation.table().splitlines()
    total = row(evaluation, "all")
    assert lines[0] == "bits per base, both strands of made.fa c4:0-3600 (test regions, 3,600 bases)"
    assert lines[1].split() == ["bases", "model", "Markov", "3", "model", "-", "Markov"]
    difference = f"{total.model - total.markov:+.4f}"
    assert lines[2].split() == ["all", "6,600", f"{total.model:.4f}", f"{total.markov:.4f}", difference]
    assert {line.index(f"{r.model:.4f}") for line, r in zip(lines[2:6], evaluation.rows, strict=True)} == {
        lines[2].index(f"{total.model:.4f}")
    }
    assert lines[-1].split()[2:] == [f"{bits:.4f}" for bits in evaluation.by_order]


def test_numbers_are_there_for_trackers_and_as_json(evaluation, tmp_path):
    metrics = evaluation.metrics()
    assert metrics["test/bits_per_base"] == row(evaluation, "all").model
    assert metrics["test/markov_bits_per_base"] == metrics["test/markov_3_bits_per_base"]
    assert all(isinstance(value, float) for value in metrics.values())
    evaluation.save(tmp_path / "evaluation.json")
    table = json.loads((tmp_path / "evaluation.json").read_text())
    assert table["rows"][0]["model"] == metrics["test/bits_per_base"]
    assert table["regions"] == [{"contig": "c4", "start": 0, "stop": 3600}]
    assert table == evaluation.to_dict()


def test_a_prefix_is_named_in_the_table(tiny, tiny_model):
    found = evaluate(tiny_model, tiny, replace(CONFIG, max_bases=1000, both_strands=False), progress=False)
    assert "forward strand of made.fa c4:0-1000 (start of the test regions, 1,000 bases)" in found.table()
    assert row(found, "all").bases == 700
    assert not found.whole


def test_the_prefix_cuts_the_last_region():
    regions = [Region("a", 10, 20), Region("b", 0, 100), Region("c", 0, 5)]
    assert prefix(regions, None) == regions
    assert prefix(regions, 10) == [Region("a", 10, 20)]
    assert prefix(regions, 30) == [Region("a", 10, 20), Region("b", 0, 20)]
    assert prefix(regions, 1000) == regions


def test_another_genome_and_settings_without_sense_are_refused(tiny, tiny_model, tmp_path):
    other = make_store(tmp_path, {"c4": random_bases(3600)})
    with pytest.raises(UserError, match="is not the genome"):
        evaluate(tiny_model, other, CONFIG, progress=False)
    for config, message in (
        (replace(CONFIG, max_bases=0), "max_bases=0"),
        (replace(CONFIG, chunk=0), "chunk=0"),
        (replace(CONFIG, context=0), "context=0"),
        (replace(CONFIG, max_order=99), "max_order=99"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(tiny_model, tiny, config, progress=False)
