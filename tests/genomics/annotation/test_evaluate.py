"""Evaluation of trained models, their baselines, and scores worked out another way."""

import json

import numpy as np
import pytest

from domains.errors import UserError
from domains.genomics.annotation.codon import CodonModel, allowed, mirrored
from domains.genomics.annotation.data import Tile
from domains.genomics.annotation.evaluate import evaluate, main
from domains.genomics.annotation.labels import CLASS_OF_STATE, CODING, INTERGENIC, INTRON, label_bases
from domains.genomics.annotation.metrics import reliability, score_binary
from domains.genomics.annotation.trained import load_annotator, read_annotator
from domains.genomics.config import EvaluateConfig, WindowsConfig
from domains.genomics.model import load_model


@pytest.fixture
def classifier(classified):
    return classified.model_dir


@pytest.fixture
def segmenter(segmented):
    return segmented.model_dir


def test_windows_are_scored_beside_baselines_on_the_same_windows(genes, classifier):
    found = evaluate(classifier, *genes, EvaluateConfig(), device="cpu", progress=False)
    names = [method.name for method in found.methods]
    assert names[:3] == ["model", "5-mer logistic", "5-mer logistic, 100 bases"]
    assert names[3].startswith("Markov ")
    assert names[4] == "majority"
    scores = {method.name: method.all for method in found.methods}
    assert scores["5-mer logistic"].auc > 0.9
    assert scores[names[3]].auc > 0.9
    assert (scores["majority"].auc, scores["majority"].mcc, scores["majority"].ap) == (0.5, 0.0, 0.5)
    assert {row.contig for row in found.by_contig} == {"c4"}
    assert found.by_contig[0].scores["model"] == scores["model"].auc
    assert found.locus.genes
    assert max(found.locus.positions) < found.locus.end
    table = found.table()
    assert f"{scores['model'].auc:.4f}" in table
    assert json.loads(json.dumps(found.to_dict()))["methods"]["model"]["all"]["auc"] == scores["model"].auc
    assert found.metrics()["test/auc"] == scores["model"].auc
    assert found.metrics()["test/5_mer_logistic/auc"] == scores["5-mer logistic"].auc
    alone = evaluate(classifier, *genes, EvaluateConfig(baselines=False), device="cpu", progress=False)
    assert [method.name for method in alone.methods] == ["model"]
    assert alone.methods[0] == found.methods[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"both_strands": False}, "both_strands=false: means nothing to a model of annotation; leave it out"),
        ({"chunk": 512}, "chunk=512: means nothing"),
        ({"windows": WindowsConfig(halo=64)}, "windows.halo=64: means nothing"),
        ({"mask_fraction": 0.1}, "mask_fraction=0.1: means nothing"),
        ({"context": 512}, "context=512: means nothing"),
        ({"max_order": 3}, "max_order=3: means nothing"),
    ],
)
def test_settings_that_mean_nothing_are_refused(genes, classifier, changes, told):
    with pytest.raises(UserError, match=told):
        evaluate(classifier, *genes, EvaluateConfig(**changes), device="cpu", progress=False)


def test_bases_are_scored_beside_codon_models(genes, segmenter):
    found = evaluate(segmenter, *genes, EvaluateConfig(locus="c4:100-600"), device="cpu", progress=False)
    scores = {method.name: method for method in found.methods}
    assert list(scores) == ["model", "Markov 3 codon HMM", "Markov 5 codon HMM", "CDS everywhere"]
    store, table = genes
    labels = label_bases(store, table)
    contig = store.contig("c4")
    coding = CLASS_OF_STATE[labels.states[contig.offset : contig.offset + contig.length]] == 1
    share = coding.mean()
    assert scores["CDS everywhere"].classes[1].f1 == pytest.approx(2 * share / (1 + share))
    assert scores["Markov 3 codon HMM"].classes[1].f1 > 0.9  # the genes are made of codons
    assert scores["model"].classes[1].bases == coding.sum()
    assert [site.bases for site in found.sites][:2] == [3 * 15, 3 * 15]
    assert (found.locus.start, found.locus.end, len(found.locus.tracks)) == (100, 600, 6)
    assert found.metrics()["test/cds_f1"] == scores["model"].classes[1].f1
    json.dumps(found.to_dict())
    with pytest.raises(UserError, match=r"locus=c4:9-99999: lies outside"):
        evaluate(segmenter, *genes, EvaluateConfig(locus="c4:9-99999"), device="cpu", progress=False)


def test_the_command_line_without_hydra(genes, classifier, tmp_path, capsys):
    store, table = genes
    words = ["--store", str(store.path), "--annotation", str(table.path), "--device", "cpu"]
    assert main(["--model", str(classifier), *words, "--out", str(tmp_path / "found.json")]) == 0
    assert "5-mer logistic" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["model_hash"] == load_annotator(classifier).hash
    assert main(["--model", str(tmp_path), *words, "--out", str(tmp_path / "other.json")]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_model_of_annotation_is_no_language_model(genes, classifier, tiny_model):
    with pytest.raises(UserError, match="task=causal; this wants one of classify or segment"):
        read_annotator(tiny_model)
    with pytest.raises(UserError, match="model of task=classify"):
        load_model(classifier)


def test_posteriors_of_the_codon_model_are_those_of_all_paths(genes):
    """Forward and backward against the sum over every path, on a stretch of five bases."""
    store, table = genes
    labels = label_bases(store, table)
    contigs = [(c.offset, c.offset + c.length) for c in store.contigs]
    model = CodonModel(store, labels, contigs[:3], contigs[3:], order=2)
    start = store.contig("c4").offset + 300
    found = model._posterior([Tile(start, start + 5, start, start + 5)])[0]
    emitted = np.exp(model.log_likelihood(start, start + 5)).astype(np.float64)
    paths = np.indices((13,) * 5).reshape(5, -1)
    weight = model._prior[paths[0]] * emitted[0, paths[0]]
    for t in range(1, 5):
        weight = weight * model._transitions[paths[t - 1], paths[t]] * emitted[t, paths[t]]
    for t in range(5):
        expected = np.bincount(paths[t], weights=weight, minlength=13) / weight.sum()
        assert found[t] == pytest.approx(expected, abs=1e-5)


def test_every_pair_of_states_in_an_annotation_is_allowed_on_either_strand(genes):
    states = label_bases(*genes).states
    for strand in (states, mirrored(states)):
        inside = (strand[:-1] < 13) & (strand[1:] < 13)
        assert allowed()[strand[:-1][inside], strand[1:][inside]].mean() > 0.9999  # contigs lie on end
    assert np.array_equal(mirrored(mirrored(states)), states)
    assert mirrored(np.array([CODING, INTRON, INTERGENIC], np.uint8)).tolist() == [0, INTRON + 3 + 1, CODING + 3]


def test_binary_scores_by_hand():
    found = score_binary(np.array([1, 1, 1, 0, 0]), np.array([0.9, 0.8, 0.3, 0.4, 0.1]))
    assert found.auc == pytest.approx(5 / 6)  # of six pairs one is the wrong way round
    assert found.ap == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert (found.f1, found.accuracy) == (pytest.approx(0.8), pytest.approx(0.8))
    assert found.mcc == pytest.approx((2 * 2 - 0 * 1) / np.sqrt(2 * 3 * 2 * 3))
    assert found.brier == pytest.approx((0.01 + 0.04 + 0.49 + 0.16 + 0.01) / 5)
    assert found.ece == pytest.approx((0.1 + 0.2 + 0.7 + 0.4 + 0.1) / 5)
    alone = score_binary(np.array([1, 1]), np.array([0.9, 0.2]))
    assert np.isnan([alone.auc, alone.ap]).all()
    assert alone.mcc == 0
    table = reliability(np.array([1, 0, 1]), np.array([1.0, 0.95, 0.05]))
    assert table.count.tolist() == [1, *[0] * 8, 2]
    assert (table.true[0], table.true[9]) == (1, 0.5)
