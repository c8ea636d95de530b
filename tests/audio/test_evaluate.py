"""Evaluations: the numbers are those of the clips, the baselines are beside them, folds and seeds are pooled."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domains.audio.bits import MODEL, BitsEvaluation, first_samples, sample_bits
from domains.audio.config import EvaluateConfig
from domains.audio.evaluate import evaluate, main
from domains.audio.metrics import Naming
from domains.audio.models.generator import Generator
from domains.audio.naming import NamingEvaluation, class_probabilities, group_lines
from domains.audio.pooled import pool
from domains.audio.store import AudioStore
from domains.audio.tokens import SILENCE
from domains.audio.train import train
from domains.audio.trained import load_model
from domains.errors import UserError
from tests.audio.recipes import small_config

FEW = EvaluateConfig(resamples=50)


@pytest.fixture(scope="module")
def generator(stores: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator") / "run"
    config = small_config("generate", stores, steps=20)
    config.data.test = ["forwards/number-00.flac", "forwards/spelling-q.flac"]
    return train(config, folder, progress=False).model_dir


@pytest.fixture(scope="module")
def classifier(stores: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small_config("classify", stores), tmp_path_factory.mktemp("named") / "run", progress=False).model_dir


@pytest.fixture(scope="module")
def bits(generator: Path, prompts: AudioStore) -> BitsEvaluation:
    config = EvaluateConfig(resamples=50, contexts=[700], chunk=3000)
    found = evaluate(generator, prompts, config, device="cpu", progress=False)
    assert isinstance(found, BitsEvaluation)
    return found


@pytest.fixture(scope="module")
def named(classifier: Path, arrow: AudioStore) -> NamingEvaluation:
    found = evaluate(classifier, arrow, FEW, device="cpu", progress=False)
    assert isinstance(found, NamingEvaluation)
    return found


def test_bits_of_samples_are_those_of_one_call(generator: Path, prompts: AudioStore) -> None:
    """Whatever the calls; and forgetting is beginning anew with the sample before."""
    model = load_model(generator).model
    assert isinstance(model, Generator)
    levels = prompts.tokens(0, 0, 2000)
    with torch.no_grad():
        before = torch.from_numpy(np.concatenate([[SILENCE], levels[:-1]]).astype(np.int64))
        logits, _ = model(before[None])
        wanted = -logits[0].double().log_softmax(-1)[range(2000), levels.tolist()] / np.log(2)
        fresh, _ = model(before[None, 1400:])
        after = -fresh[0].double().log_softmax(-1)[range(600), levels[1400:].tolist()] / np.log(2)
    for chunk in (100_000, 333):
        np.testing.assert_allclose(sample_bits(model, levels, chunk=chunk), wanted, atol=1e-4)
        found = sample_bits(model, levels, chunk=chunk, context=700)
        np.testing.assert_allclose(found[:700], wanted[:700], atol=1e-4)
        np.testing.assert_allclose(found[1400:], after, atol=1e-4)
    assert not np.allclose(found[700:], wanted[700:], atol=1e-3)


def test_bits_by_clip_and_by_context_add_up_to_all(bits: BitsEvaluation, prompts: AudioStore) -> None:
    total, *clips = bits.rows
    assert [row.name for row in clips] == ["forwards/number-00.flac", "forwards/spelling-q.flac"]
    assert total.samples == sum(prompts.clips[prompts.index(row.name)].length for row in clips)
    for rows in (clips, bits.by_context):
        assert sum(row.samples for row in rows) == total.samples
        for name in (MODEL, "linear", "context"):
            mean = sum(row.samples * getattr(row, name) for row in rows) / total.samples
            assert mean == pytest.approx(getattr(total, name))
    assert [(row.before, row.most) for row in bits.by_context] == [(0, 1023), (1024, 8191), (8192, 65_535)]
    assert bits.by_context[0].samples == 2048
    assert bits.differences["linear"].value == pytest.approx(total.model - total.linear)
    assert bits.differences["linear"].units == 2
    assert 3 < total.linear < total.context < 8
    assert bits.forgetting[700] >= total.model - 0.02


def test_the_table_of_bits_says_what_json_and_tracker_say(bits: BitsEvaluation, tmp_path: Path) -> None:
    total = bits.rows[0]
    metrics = bits.metrics()
    assert metrics["test/bits_per_sample"] == total.model
    assert metrics["test/linear_bits_per_sample"] == total.linear
    assert metrics["test/bits_per_sample_context_700"] == bits.forgetting[700]
    table = bits.table()
    for value in (total.model, total.linear, total.context, bits.forgetting[700]):
        assert f"{value:.4f}" in table
    assert bits.linear_name in table
    assert "model - context" in table
    for row, span in zip(bits.by_context, ("0 to 1,023", "1,024 to 8,191", "8,192 to 65,535"), strict=True):
        assert any(line.startswith(f"{span} ") and f"{row.samples:,}" in line for line in table.splitlines())
    assert bits.by_context[-1]._replace(before=524_288, most=None).span == "524,288 and more"
    bits.save(tmp_path / "bits.json")
    kept = json.loads((tmp_path / "bits.json").read_text())
    assert kept["rows"][0] == total._asdict()
    assert kept["hardware"]["device"] == "cpu"


def test_few_samples_are_the_first_of_the_clips(prompts: AudioStore) -> None:
    length = prompts.clips[3].length
    assert first_samples(prompts, [3, 5], None) == {3: length, 5: prompts.clips[5].length}
    assert first_samples(prompts, [3, 5], length + 10) == {3: length, 5: 10}
    assert first_samples(prompts, [3, 5], 10) == {3: 10}


def test_clips_are_named_by_their_likeliest_class(named: NamingEvaluation, classifier: Path, arrow: AudioStore) -> None:
    loaded = load_model(classifier)
    test = loaded.splits.clips(arrow, "test")
    assert [row.name for row in named.clips] == [arrow.clips[clip].name for clip in test]
    probabilities = class_probabilities(loaded, arrow, test, FEW)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    for row, own in zip(named.clips, probabilities, strict=True):
        assert row.called["model"] == arrow.labels[own.argmax()]
        assert list(row.probabilities.values()) == pytest.approx(own.tolist(), abs=1e-5)
        assert row.label == row.name.split("/")[0]
    hits = sum(row.called["model"] == row.label for row in named.clips)
    assert named.methods["model"].accuracy == pytest.approx(hits / len(test))
    alone, _ = loaded.model(torch.from_numpy(arrow.samples(test[3]))[None])
    np.testing.assert_allclose(alone.double().softmax(-1)[0].detach(), probabilities[3], atol=1e-4)


def test_long_clips_are_heard_from_their_beginning(classifier: Path, arrow: AudioStore) -> None:
    loaded = load_model(classifier)
    short = class_probabilities(loaded, arrow, [0], EvaluateConfig(max_seconds=0.2))
    alone, _ = loaded.model(torch.from_numpy(arrow.samples(0, 0, 3200))[None])
    np.testing.assert_allclose(short[0], alone.double().softmax(-1)[0].detach(), atol=1e-4)
    assert not np.allclose(short, class_probabilities(loaded, arrow, [0], FEW), atol=1e-4)


def test_names_stand_beside_their_baselines(named: NamingEvaluation, tmp_path: Path) -> None:
    assert list(named.methods) == ["model", "majority", "MFCC + logistic regression"]
    assert named.methods["majority"].balanced_accuracy == 0.5
    assert {name: set(found) for name, found in named.differences.items()} == {
        name: {"clips", "groups"} for name in ("majority", "MFCC + logistic regression")
    }
    difference = named.differences["majority"]["clips"]
    assert difference.value == pytest.approx(named.methods["model"].balanced_accuracy - 0.5)
    assert "not shown" in str(difference) or difference.low * difference.high > 0
    table, metrics = named.table(), named.metrics()
    assert "groups: too few" not in table  # nine words
    few = {name: {**found, "groups": found["groups"]._replace(units=4)} for name, found in named.differences.items()}
    assert group_lines(few) == ["4 groups: too few for an interval to mean much"]
    assert group_lines(few)[0] in replace(named, differences=few).table().splitlines()
    for name, naming in named.methods.items():
        key = "" if name == "model" else f"{'majority' if name == 'majority' else 'mfcc_logistic_regression'}/"
        assert metrics[f"test/{key}balanced_accuracy"] == naming.balanced_accuracy
        assert any(line.startswith(name) and f"{naming.accuracy:.3f}" in line for line in table.splitlines())
    named.save(tmp_path / "named.json")
    assert "NaN" not in (tmp_path / "named.json").read_text()


def fold(names: dict[str, str], seed: int, called: str, baseline: str = "a", sure: float = 0.9) -> dict[str, Any]:
    """An evaluation of clips (name -> label), all of which were called one name."""
    rows = [
        {
            "name": name,
            "label": label,
            "group": name[0],
            "called": {"model": called, "majority": baseline},
            "probabilities": {called: sure, "b" if called == "a" else "a": 1 - sure},
        }
        for name, label in names.items()
    ]
    methods = dict.fromkeys(("model", "majority"), None)
    return {
        "kind": "classify",
        "labels": ["a", "b"],
        "fingerprint": "f",
        "seed": seed,
        "methods": methods,
        "clips": rows,
    }


X, Y = {"x1": "a", "x2": "b"}, {"y1": "b", "y2": "b", "y3": "a"}


def test_folds_and_seeds_are_pooled() -> None:
    """Seed 0 names x all a and y all b, seed 1 both all a, less surely."""
    evaluations = [fold(X, 0, "a"), fold(Y, 0, "b"), fold(Y, 1, "a", sure=0.6), fold(X, 1, "a", sure=0.6)]
    found = pool(evaluations, resamples=100)
    assert (found.names, found.groups, found.seeds) == (["x1", "x2", "y1", "y2", "y3"], [*"xxyyy"], [0, 1])
    first, second = found.methods["model"]
    assert first.confusion.tolist() == [[1, 1], [1, 2]]
    assert second.confusion.tolist() == [[2, 0], [3, 0]]
    assert found.together.confusion.tolist() == first.confusion.tolist()
    assert found.balanced_accuracy == pytest.approx((first.balanced_accuracy + 0.5) / 2)
    (majority,) = found.methods["majority"]
    assert isinstance(majority, Naming)
    by_clips = found.differences["majority"]["clips"]
    assert by_clips.value == pytest.approx(found.balanced_accuracy - 0.5)
    assert (by_clips.units, found.differences["majority"]["groups"].units) == (5, 2)
    assert f"{found.balanced_accuracy:.3f}" in found.table()
    assert "2 groups: too few for an interval to mean much" in found.table().splitlines()
    assert json.loads(json.dumps(found.to_dict()))["balanced_accuracy"] == found.balanced_accuracy


def test_files_of_folds_are_pooled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, found in (("x", fold(X, 0, "a")), ("y", fold(Y, 0, "b"))):
        (tmp_path / name).write_text(json.dumps(found))
    assert main(["--pool", str(tmp_path / "x"), str(tmp_path / "y"), "--json", str(tmp_path / "both")]) == 0
    expected = pool([fold(X, 0, "a"), fold(Y, 0, "b")])
    assert json.loads((tmp_path / "both").read_text()) == expected.to_dict()
    assert capsys.readouterr().out == f"{expected.table()}\n"
    assert main(["--pool", str(tmp_path / "x"), str(tmp_path / "x")]) == 2
    assert "error: x1: was named twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ([], "there is no evaluation to pool"),
        ([fold(X, 0, "a"), fold(X, 0, "a")], "x1: was named twice with seed 0"),
        ([fold(X, 0, "a"), fold(Y, 1, "a")], "seed 1 named other clips than seed 0"),
        ([fold(X, 0, "a"), fold(Y, 0, "a") | {"fingerprint": "g"}], "of other clips, labels or kinds"),
    ],
)
def test_what_does_not_belong_together_is_not_pooled(evaluations: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pool(evaluations)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_seconds": 0}, "max_seconds=0: must be at least"),
        ({"chunk": 0}, "chunk=0: must be at least 1"),
        ({"contexts": [0]}, "contexts=0: must be at least 1"),
        ({"max_samples": 0}, "max_samples=0: must be at least 1"),
        ({"resamples": 0}, "resamples=0: must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, prompts: AudioStore, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path, prompts, EvaluateConfig(**settings))


def test_the_command_line_of_a_machine_that_only_trains(
    generator: Path, prompts: AudioStore, arrow: AudioStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(generator), "--device", "cpu"]
    assert main([*words, "--store", str(arrow.path)]) == 2
    assert "error: sample/arrow.csv: are not the clips that" in capsys.readouterr().err
    few = ["--max-samples", "1500", "--contexts", "100"]
    assert main([*words, "--store", str(prompts.path), *few, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows = found["rows"]
    assert [row["samples"] for row in rows] == [1500, 1500]
    assert "the first of" in found["note"]
    assert list(found["forgetting"]) == ["100"]
    assert f"{rows[0]['model']:.4f}" in capsys.readouterr().out
