"""Masked models over whole genomes: windows' scores in every file, the halo's error in the manifest, gone on with."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from domains.errors import UserError
from domains.genomics import masked_parts, parts, spool
from domains.genomics.config import PredictConfig, WindowsConfig
from domains.genomics.masked_windows import Source, halo_error, masked_scores, score_masked_sequence
from domains.genomics.model import load_model
from domains.genomics.predict import predict
from domains.genomics.store import prepare_store
from tests.genomics.genomes import make_store, random_bases

CONFIG = PredictConfig(mask_every=4, windows=WindowsConfig(length=500, halo=100))


@pytest.fixture(scope="module")
def folder(masked_models):
    return masked_models[False]


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder).masked


def run(folder, store, out, config=CONFIG, **changes):
    return predict(folder, store, out, replace(config, **changes), device="cpu", progress=False)


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def scores(path):
    frame = pq.read_table(path).to_pandas()
    return {contig: rows.log_likelihood.to_numpy() for contig, rows in frame.groupby("contig", observed=True)}


def expected(model, store, contig, config=CONFIG, circular=False):
    tokens = store.tokens(contig)
    source = Source(lambda a, b: tokens.take(range(a, b), mode="wrap"), len(tokens), circular)
    return np.concatenate(list(masked_scores(model, source, 0, len(tokens), config)))


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_base_has_the_score_of_its_window(masked_models, tiny, tmp_path, symmetric):
    folder = masked_models[symmetric]
    model, both = load_model(folder).masked, replace(CONFIG, both_strands=True)
    found = run(folder, tiny, tmp_path / "out", both)
    assert pq.read_schema(found.out / "c4.parquet").names == [
        "contig",
        "position",
        "base",
        "log_likelihood",
        "soft_mask",
    ]
    every = {name: scores(found.out / f"{name}.parquet")[name] for name in tiny.names}
    np.testing.assert_allclose(every["c4"], expected(model, tiny, "c4", both), atol=1e-5)
    bits = -np.nanmean(np.concatenate(list(every.values())), dtype=np.float64) / np.log(2)
    assert found.bits_per_base == pytest.approx(bits, abs=1e-5)
    assert bits < 1.95
    manifest = json.loads(found.manifest.read_text())
    assert (manifest["mask_every"], manifest["window"], manifest["halo"]) == (4, 500, 100)
    tokens = tiny.tokens("c4")
    told = halo_error(model, Source(lambda a, b: tokens[a:b], 3600), 0, 3600, both)
    entry = manifest["parts"]["c4"]["halo_error"]
    for name, value in told.items():
        assert entry[name] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)
    assert 0 < told["max"] < 0.1


def test_a_run_that_broke_goes_on_behind_the_last_window(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "SAVE_EVERY", 0.0)
    store = make_store(tmp_path, {"a": random_bases(2400)})
    whole = run(folder, store, tmp_path / "whole")
    begun = []

    def breaking(model, source, start, stop, config):
        begun.append(start)
        for number, found in enumerate(masked_scores(model, source, start, stop, config)):
            if len(begun) == 1 and number == 3:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(masked_parts, "masked_scores", breaking)
    with pytest.raises(KeyboardInterrupt):
        run(folder, store, tmp_path / "out")
    again = run(folder, store, tmp_path / "out")
    assert begun == [0, 1500]
    assert (again.written, contents(again.out)) == (["a"], contents(whole.out))
    assert run(folder, store, again.out).skipped == ["a"]


def test_blocks_and_runs_of_small_contigs_have_the_same_scores(folder, model, tmp_path, monkeypatch):
    lengths = {"a": 90, "b": 1300, "c": 200, "d": 1, "e": 350}
    store = make_store(tmp_path, {name: random_bases(n, seed=n) for name, n in lengths.items()})
    blocks = run(folder, store, tmp_path / "blocks", block=700)
    cut = [scores(blocks.out / f"b.{part}.parquet")["b"] for part in ("0000000000-0000000700", "0000000700-0000001300")]
    np.testing.assert_array_equal(np.concatenate(cut), expected(model, store, "b"))
    monkeypatch.setattr(parts, "FEW", 2)
    monkeypatch.setattr(parts, "GROUP", 1000)
    found = run(folder, store, tmp_path / "runs")
    together = {}
    for path in found.out.glob("*.parquet"):
        together |= scores(path)
    assert len(list(found.out.glob("*.parquet"))) < 5
    for name in lengths:
        np.testing.assert_allclose(together[name], expected(model, store, name), atol=1e-5)


def test_circular_contigs_are_read_round_their_ends(folder, model, tmp_path):
    sequence = random_bases(1300, seed=5)
    for kind in ("linear", "circular"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "made.fa").write_text(f">p topology={kind} [topology={kind}]\n{sequence}\n")
    stores = {
        kind: prepare_store(tmp_path / kind / "made.fa", tmp_path / kind / "stores", progress=False)
        for kind in ("linear", "circular")
    }
    assert stores["circular"].contig("p").circular
    for kind, store in stores.items():
        found = run(folder, store, tmp_path / kind / "out")
        own = scores(found.out / "p.parquet")["p"]
        np.testing.assert_allclose(own, expected(model, store, "p", circular=kind == "circular"), atol=1e-5)
        assert found.notes == []


def test_other_windows_are_other_scores(folder, tmp_path):
    store = make_store(tmp_path, {"a": random_bases(300)})
    found = run(folder, store, tmp_path / "out")
    before = contents(found.out)
    for changes, message in (
        ({"windows": WindowsConfig(length=500, halo=200)}, "holds scores with halo=100"),
        ({"mask_every": 5}, "holds scores with mask_every=4"),
        ({"both_strands": True}, "holds scores with both_strands=False"),
    ):
        with pytest.raises(UserError, match=message):
            run(folder, store, found.out, **changes)
    with pytest.raises(UserError, match="mask_every=1"):
        run(folder, store, tmp_path / "new", mask_every=1)
    assert contents(found.out) == before
    np.testing.assert_allclose(
        scores(found.out / "a.parquet")["a"],
        score_masked_sequence(load_model(folder).masked, store.tokens("a"), CONFIG),
        atol=1e-6,
    )
