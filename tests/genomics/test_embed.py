"""Embeddings: windows, bases and regions, both strands, layers, coordinates to the base; divided and interrupted."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from domains import engines
from domains.errors import UserError
from domains.genomics import embed as module
from domains.genomics import embeddings, parts, spool
from domains.genomics.annotation.table import read_annotation
from domains.genomics.config import EmbedConfig
from domains.genomics.embed import embed
from domains.genomics.hidden import hidden_states
from domains.genomics.model import load_model
from domains.genomics.tokens import N, reverse_complement
from tests.genomics.genomes import make_store, random_bases

CONFIG = EmbedConfig(window=70, chunk=300)


def run(model, store, out, regions=None, **changes):
    return embed(model, store, out, replace(CONFIG, **changes), regions, device="cpu", progress=False)


def rows(folder):
    found = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))])
    return found.with_columns(pl.col("contig").cast(str))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model).model


def per_base(model, tokens, both=True):
    """float32 (l, d): mean of the strands, from one call on each."""
    with torch.no_grad():
        forward = hidden_states(model, torch.from_numpy(tokens.copy())[None])[0]
        other = hidden_states(model, torch.from_numpy(reverse_complement(tokens).copy())[None])[0].flip(0)
    return ((forward + other) / 2 if both else forward).numpy()


def pooled(values, tokens, window):
    values = np.where(tokens[:, None] == N, np.nan, values)
    with np.errstate(all="ignore"):
        means = [
            np.nanmean(values[i : i + window], axis=0)
            if (tokens[i : i + window] != N).any()
            else np.full(values.shape[1], np.nan)
            for i in range(0, len(values), window)
        ]
    return np.stack(means)


def vectors(frame, width=16):
    return np.stack(
        [np.full(width, np.nan) if one is None else np.asarray(one) for one in frame["embedding"].to_list()]
    )


@pytest.mark.parametrize("both_strands", [False, True])
@pytest.mark.parametrize("window", [1, 70, 300, 1000, 5000])
def test_windows_are_means_of_what_one_call_gives(tiny, tiny_model, model, tmp_path, window, both_strands):
    changes = {"per": "base"} if window == 1 else {"window": window}
    done = run(tiny_model, tiny, tmp_path / "out", both_strands=both_strands, **changes)
    frame = rows(done.out)
    assert done.rows == len(frame) == sum(-(-contig.length // window) for contig in tiny.contigs)
    for name in ("c4", "c5"):  # c4 has 300 N
        tokens, own = tiny.tokens(name), frame.filter(pl.col("contig") == name)
        starts = np.arange(0, len(tokens), window)
        assert own["start"].to_list() == starts.tolist()
        assert own["end"].to_list() == np.minimum(starts + window, len(tokens)).tolist()
        expected = pooled(per_base(model, tokens, both_strands), tokens, window)
        np.testing.assert_allclose(vectors(own), expected, atol=2e-5)
        assert own["embedding"].null_count() == np.isnan(expected[:, 0]).sum()


def test_regions_are_read_with_their_context_to_the_base(tiny, tiny_model, model, tmp_path):
    bed = tmp_path / "genes.bed"
    bed.write_text("c5\t0\t10\ta\t0\t+\nc2\t150\t151\tb\t0\t-\nc5\t1000\t1400\tc\t0\t.\nc5\t3990\t4000\td\t0\t+\n")
    regions = read_annotation(bed)
    done = run(tiny_model, tiny, tmp_path / "out", regions, per="region", context=200)
    frame = rows(done.out)
    assert frame.select("contig", "start", "end", "line").rows() == [
        ("c5", 0, 10, 1),
        ("c2", 150, 151, 2),
        ("c5", 1000, 1400, 3),
        ("c5", 3990, 4000, 4),
    ]
    assert frame["strand"].cast(str).to_list() == ["+", "-", ".", "+"]
    for name, start, end, found in zip(
        *(frame[key] for key in ("contig", "start", "end")), vectors(frame), strict=True
    ):
        tokens = tiny.tokens(name)
        ahead, behind = tokens[max(start - 200, 0) : end], tokens[start : end + 200]
        forward = per_base(model, ahead, both=False)[-(end - start) :]
        reverse = per_base(model, reverse_complement(behind), both=False)[-(end - start) :]
        np.testing.assert_allclose(found, (forward.mean(0) + reverse.mean(0)) / 2, atol=2e-5)


def test_layers_are_those_of_the_residual_stream(tiny, tiny_model, model, tmp_path):
    tokens = tiny.tokens("c0")
    seen = {}
    hooks = [
        block.register_forward_hook(lambda _, args, out, i=i: seen.__setitem__(i, (args[0], out[0])))
        for i, (_, block) in enumerate(model.backbone.blocks())
    ]
    with torch.no_grad():
        hidden_states(model, torch.from_numpy(tokens.copy())[None])
    for hook in hooks:
        hook.remove()
    expected = {0: seen[0][0], 1: seen[1][0], 2: seen[1][1]}
    for layer, values in expected.items():
        run(tiny_model, tiny, tmp_path / str(layer), per="base", layer=layer, both_strands=False)
        found = vectors(rows(tmp_path / str(layer)).filter(pl.col("contig") == "c0"))
        np.testing.assert_allclose(found, values[0, 1:], atol=2e-5)
    with pytest.raises(UserError, match="layer=3: the model has 2 layers; give 0 to 2"):
        run(tiny_model, tiny, tmp_path / "3", layer=3)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_masked_model_reads_both_sides_within_its_halo(tiny, masked_models, tmp_path, symmetric):
    folder = masked_models[symmetric]
    masked = load_model(folder).model
    done = run(folder, tiny, tmp_path / "out", per="base")  # the halo is wider than the contigs
    tokens = tiny.tokens("c1")
    expected = per_base(masked, tokens, both=True)
    found = rows(done.out).filter(pl.col("contig") == "c1")
    np.testing.assert_allclose(vectors(found, expected.shape[1]), expected, atol=2e-5)
    with pytest.raises(UserError, match="of a masked model only what the head sees"):
        run(folder, tiny, tmp_path / "layer", layer=1)


def test_half_precision_and_where_it_comes_from(tiny, tiny_model, tmp_path):
    run(tiny_model, tiny, tmp_path / "single")
    done = run(tiny_model, tiny, tmp_path / "half", dtype="float16")
    schema = pq.read_schema(done.out / "c0.parquet")
    assert str(schema.field("embedding").type).startswith("fixed_size_list<element: halffloat>[16]")
    assert json.loads(schema.metadata[b"serpentine"])["model"] == load_model(tiny_model).hash
    single, half = vectors(rows(tmp_path / "single")), vectors(rows(done.out))
    assert np.array_equal(single.astype(np.float16), half.astype(np.float16), equal_nan=True)
    assert done.summary() == f"{len(half)} rows of 16 numbers"


@pytest.mark.parametrize("per", ["window", "base"])
def test_a_run_that_broke_goes_on_in_the_middle_of_a_contig(tiny, tiny_model, tmp_path, monkeypatch, per):
    whole = run(tiny_model, tiny, tmp_path / "whole", per=per)
    monkeypatch.setattr(spool, "SAVE_EVERY", 0)
    monkeypatch.setattr(engines, "processors", lambda: 1)
    stream, seen = module.pool_strand, []

    def breaking(*args, **options):
        seen.append((args[2], options["reverse"], options["done"]))
        for number, piece in enumerate(stream(*args, **options)):
            if len(seen) == 4 and number == 4:  # the reverse strand of the second contig
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(module, "pool_strand", breaking)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tiny, tmp_path / "out", per=per)
    assert "c0.parquet" in contents(tmp_path / "out")
    seen.append(None)
    run(tiny_model, tiny, tmp_path / "out", per=per)
    length, reverse, done = seen[5]
    assert (length, reverse) == (2400, True)
    assert done > 0
    assert contents(tmp_path / "out") == contents(whole.out)


def test_shards_blocks_and_small_contigs(tiny, tiny_model, model, tmp_path, monkeypatch):
    whole = run(tiny_model, tiny, tmp_path / "whole", block=1400, warmup=100)
    for shard in (1, 0):
        run(tiny_model, tiny, tmp_path / "out", block=1400, warmup=100, shards=2, shard=shard)
    assert contents(tmp_path / "out") == contents(whole.out)
    tokens = tiny.tokens("c5")[1300:2900]
    own = rows(whole.out).filter((pl.col("contig") == "c5") & pl.col("start").is_between(1400, 2799))
    forward = per_base(model, tokens[:1500], both=False)[100:]
    reverse = per_base(model, reverse_complement(tokens[100:]), both=False)[100:][::-1]
    np.testing.assert_allclose(vectors(own), pooled((forward + reverse) / 2, tokens[100:1500], 70), atol=2e-5)

    monkeypatch.setattr(parts, "FEW", 3)
    sequences = {f"c{i}": random_bases(1 + 37 * i, i) for i in range(8)}
    store = make_store(tmp_path, sequences)
    done = run(tiny_model, store, tmp_path / "small")
    assert set(contents(done.out)) == {"manifest.json", "contigs-0000001-0000008.parquet"}
    assert pq.ParquetFile(done.out / "contigs-0000001-0000008.parquet").num_row_groups == 1
    frame = rows(done.out)
    for name in sequences:
        expected = pooled(per_base(model, store.tokens(name)), store.tokens(name), 70)
        np.testing.assert_allclose(vectors(frame.filter(pl.col("contig") == name)), expected, atol=2e-5)


def test_ray_writes_the_bytes_of_one_process(tiny, tiny_model, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (tmp_path / "genes.bed").write_text("c5\t0\t10\nc2\t150\t151\n")
    regions = read_annotation(tmp_path / "genes.bed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for engine in ("local", "ray"):
            run(tiny_model, tiny, tmp_path / engine / "windows", engine=engine)
            run(tiny_model, tiny, tmp_path / engine / "regions", regions, per="region", engine=engine)
        assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    finally:
        ray.shutdown()


def test_an_end_of_a_circular_contig_stands_before_its_start(tiny_model, model, tmp_path):
    store = make_store(tmp_path, {"ring [topology=circular]": random_bases(700, 1)})
    run(tiny_model, store, tmp_path / "out", warmup=300, both_strands=False)
    tokens = store.tokens("ring")
    expected = per_base(model, np.concatenate([tokens[-300:], tokens]), both=False)[300:]
    np.testing.assert_allclose(vectors(rows(tmp_path / "out")), pooled(expected, tokens, 70), atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"per": "gene"}, "per=gene: must be one of window, base, region"),
        ({"per": "region"}, "per=region and data.regions: give data.regions="),
        ({"dtype": "int8"}, "dtype=int8: must be one of float32, float16"),
        ({"window": 0}, "window=0: must be at least 1"),
        ({"window": 10**6}, "window=1000000: must be at most 65,536"),
        ({"block": 100}, "block=100: must be a multiple of window=70"),
        ({"layer": -1}, "layer=-1: must be at least 0"),
    ],
)
def test_settings_without_sense_are_told(tiny, tiny_model, tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        run(tiny_model, tiny, tmp_path / "out", **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bed", "told"),
    [
        ("chrc5\t0\t10\n", r"genes\.bed: made\.fa has no contig 'chrc5'; this genome writes its names without 'chr'"),
        ("c5\t0\t10\nelsewhere\t0\t9\n", "has no contig 'elsewhere'; leave its regions out"),
        ("c5\t0\t4001\n", "line 1: a feature ends at 4,001, but c5 has 4,000 bases"),
    ],
)
def test_regions_that_are_not_the_genomes_are_told(tiny, tiny_model, tmp_path, bed, told):
    (tmp_path / "genes.bed").write_text(bed)
    with pytest.raises(UserError, match=told):
        run(tiny_model, tiny, tmp_path / "out", read_annotation(tmp_path / "genes.bed"), per="region")
    assert not (tmp_path / "out").exists()


def test_a_window_of_the_whole_is_independent_of_the_chunk(model):
    tokens = np.random.default_rng(0).integers(7, 11, 500).astype(np.uint8)
    embedder = embeddings.Embedder(model)
    found = [
        np.concatenate(
            [
                rows
                for rows, _ in embeddings.pool_strand(
                    embedder, lambda a, b: tokens[a:b], 500, window=40, chunk=chunk, reverse=True
                )
            ]
        )
        for chunk in (40, 120, 4000)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, atol=2e-5)
