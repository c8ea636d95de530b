"""The experiment on context, on a small made genome."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import umaydis_long
from domains.genomics.model import load_model
from domains.genomics.stream import score_sequence
from domains.genomics.tokens import reverse_complement
from tests.genomics.tiny import tiny_config

WINDOWS = [16, 64]


def config(tiny, steps=6):
    told = tiny_config(tiny, max_steps=steps, validate_every=3, checkpoint_every=2)
    return replace(told, data=replace(told.data, window=64, tokens_per_step=128, window_warmup=[]))


def run(tiny, folder, commit="a" * 40, **options):
    return umaydis_long.run(
        config(tiny), tiny, WINDOWS, folder / "runs", folder / "long.json", commit, chunk=1000, **options
    )


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(umaydis_long, "BLOCK", 500)
        assert run(tiny, folder)
        umaydis_long.add_markov(config(tiny), tiny, folder / "long.json", "a" * 40)
    return folder


def result(folder):
    return json.loads((folder / "long.json").read_text())


def test_every_cell_is_the_mean_over_both_strands_in_windows_of_the_context(tiny, done):
    table = {(row["window"], row["context"]): row for row in result(done)["table"]}
    assert list(table) == [(window, context) for window in WINDOWS for context in ("16", "64", "stream")]
    tokens = tiny.tokens("c4")
    for (window, context), row in table.items():
        model = load_model(done / "runs" / str(window) / "model").model
        size = 3600 if context == "stream" else int(context)
        nats = [
            score_sequence(model, strand[start : start + size])
            for strand in (tokens, reverse_complement(tokens))
            for start in range(0, 3600, size)
        ]
        assert row["bits_per_base"] == pytest.approx(-np.nanmean(np.concatenate(nats)) / math.log(2), abs=2e-5)
        assert row["by_contig"] == {"c4": row["bits_per_base"]}
    assert table[16, "64"]["from_shortest"] == table[16, "64"]["from_own_shortest"]
    other = table[64, "stream"]["from_shortest"]
    more = table[64, "stream"]["bits_per_base"] - table[16, "16"]["bits_per_base"]
    assert other["difference"] == pytest.approx(more, abs=2e-5)
    assert other["low"] < other["difference"] < other["high"]
    assert "from_shortest" not in table[16, "16"]


def test_all_trainings_are_alike_but_for_the_window(tiny, done):
    found = result(done)
    assert {row["bases"] for row in found["trained"].values()} == {6 * 128}
    assert found["settings"]["data.tokens_per_step"] == 128
    models = [load_model(done / "runs" / str(window) / "model") for window in WINDOWS]
    assert [model.config.data.window for model in models] == WINDOWS
    assert replace(models[0].config, data=models[1].config.data) == models[1].config
    assert found["known"]["c4"][:2] == [1000, 400]  # both strands; 300 N behind base 500


def test_the_table_shows_every_cell_and_the_markov_model(tiny, done):
    text = umaydis_long.markdown(result(done))
    for row in result(done)["table"]:
        assert f"{row['bits_per_base']:.4f}" in text
    assert f"{umaydis_long.mean(result(done), result(done)['markov']['bits']):.4f}" in text
    assert text.splitlines()[0] == "| trained on windows of | 16 | 64 | one stream |"


def test_what_is_done_is_not_done_again(tiny, done, monkeypatch):
    before = (done / "long.json").read_text()
    monkeypatch.setattr(umaydis_long, "train", None)
    assert run(tiny, done)
    assert (done / "long.json").read_text() == before


def test_it_goes_on_where_the_time_was_up(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(umaydis_long, "BLOCK", 500)
    monkeypatch.setattr(umaydis_long, "LAST_PIECE", 0.0)
    scored = []

    def scoring(model, store, regions, context, chunk):
        if len(scored) == 4:
            scored.append(None)
            raise KeyboardInterrupt
        scored.append(context)
        return scores(model, store, regions, context, chunk)

    scores = umaydis_long.model_scores
    monkeypatch.setattr(umaydis_long, "model_scores", scoring)
    assert not run(tiny, tmp_path, seconds=0.0)
    assert not (tmp_path / "long.json").exists()
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path)
    assert [len(row["scores"]) for row in result(tmp_path)["trained"].values()] == [3, 1]
    assert run(tiny, tmp_path)
    assert scored == [16, 64, None, 16, None, 64, None]
    assert [len(row["scores"]) for row in result(tmp_path)["trained"].values()] == [3, 3]
    assert run(tiny, tmp_path, commit="b" * 40)  # another commit: nothing of the old result stays
    assert len(scored) == 13
