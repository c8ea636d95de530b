"""Prediction divided: over shards, over Ray, over blocks and runs of small contigs; circular contigs; bigWig."""

import gzip
import json
import struct
import threading
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pybigtools
import pytest

from domains.errors import UserError
from domains.genomics import parts, tracks
from domains.genomics.config import PredictConfig
from domains.genomics.model import load_model
from domains.genomics.predict import predict
from domains.genomics.stream import score_sequence
from domains.genomics.tokens import reverse_complement
from domains.shards import TASK_ID
from tests.genomics.genomes import make_store, random_bases

CONFIG = PredictConfig(chunk=300)


def run(model, store, out, config=CONFIG, **changes):
    return predict(model, store, out, replace(config, **changes), device="cpu", progress=False)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(folder):
    """All rows of a folder of scores, by contig: positions, and scores with NaN."""
    found = {}
    for path in sorted(folder.glob("*.parquet")):
        frame = pq.read_table(path).to_pandas()
        for contig, rows in frame.groupby("contig", observed=True):
            found.setdefault(contig, []).append(rows)
    return found


def scores(folder, contig, column="log_likelihood"):
    rows = table(folder)[contig]
    position = np.concatenate([part.position for part in rows])
    assert (position == np.arange(len(position))).all()
    return np.concatenate([part[column] for part in rows])


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model).model


@pytest.fixture(scope="module")
def whole(tiny, tiny_model, tmp_path_factory):
    """What one process writes, with everything asked for."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(tiny_model, tiny, out, **EVERYTHING)
    return contents(out)


EVERYTHING = {"both_strands": True, "tracks": ["bedgraph", "bigwig"], "block": 1500, "warmup": 200}


def test_shards_write_the_bytes_of_one_process(tiny, tiny_model, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = run(tiny_model, tiny, out, **EVERYTHING, shards=3, shard=1)
    assert (first.shard.index, first.shard.count, first.skipped) == (1, 3, [])
    assert first.missing == 15 - len(first.written) > 0
    assert first.summary().startswith(f"shard 1 of 3: {len(first.written)} parts; ")
    assert set(first.written) == parts_of(out)
    assert "scores.bw" not in contents(out)
    second = run(tiny_model, tiny, out, **EVERYTHING, shards=3, shard=0)
    again = run(tiny_model, tiny, out, **EVERYTHING, shards=3, shard=0)
    assert (again.written, again.skipped) == ([], second.written)
    monkeypatch.setenv(TASK_ID, "2")
    last = run(tiny_model, tiny, out, **EVERYTHING, shards=3)
    assert last.missing == 0
    assert contents(out) == whole
    entries = json.loads(last.manifest.read_text())["parts"]
    own = [entries[name] for name in last.written]  # a shard tells of what it did
    bits = np.average([entry["bits_per_base"] for entry in own], weights=[entry["scored"] for entry in own])
    assert last.bits_per_base == pytest.approx(bits, abs=1e-12)
    assert last.bits_per_base != run(tiny_model, tiny, out, **EVERYTHING).bits_per_base
    assert contents(out) == whole


def parts_of(out):
    return {
        str(rows.contig.iloc[0]) + f":{rows.position.iloc[0]}-{rows.position.iloc[-1] + 1}"
        for found in table(out).values()
        for rows in found
    }


def test_shards_at_the_same_time(tiny, tiny_model, whole, tmp_path):
    """The one that ends last completes the folder, whichever that is."""
    done = []
    threads = [
        threading.Thread(
            target=lambda shard=shard: done.append(
                run(tiny_model, tiny, tmp_path / "out", **EVERYTHING, shards=3, shard=shard)
            )
        )
        for shard in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(one.missing for one in done) == 0
    assert contents(tmp_path / "out") == whole


def test_what_a_shard_left_is_done_without_shards(tiny, tiny_model, whole, tmp_path):
    run(tiny_model, tiny, tmp_path / "out", **EVERYTHING, shards=2, shard=1)
    with pytest.raises(UserError, match="holds scores with both_strands=True"):
        run(tiny_model, tiny, tmp_path / "out", shards=2, shard=0)
    rest = run(tiny_model, tiny, tmp_path / "out", **EVERYTHING)
    assert rest.skipped
    assert contents(tmp_path / "out") == whole


def test_ray_writes_the_bytes_of_one_process(tiny, tiny_model, whole, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        run(tiny_model, tiny, tmp_path / "out", **EVERYTHING, engine="ray")
        assert contents(tmp_path / "out") == whole
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shards": 2, "shard": 0, "engine": "ray"}, "shards and engine=ray do not go together"),
        ({"shards": 2, "shard": 2}, "shard=2: must be at most 1"),
        ({"engine": "dask"}, "engine=dask: must be one of"),
        ({"engine": "ray", "workers": 0}, "workers=0: must be at least 1"),
        ({"tracks": ["wig"]}, "there is no 'wig'; there are bedgraph, bigwig"),
        ({"block": 0}, "block=0: must be at least 1"),
        ({"warmup": -1}, "warmup=-1: must be at least 0"),
    ],
)
def test_settings_without_sense_are_told(tiny, tiny_model, tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        run(tiny_model, tiny, tmp_path / "out", **changes)
    assert not list(tmp_path.iterdir())


def test_blocks_do_not_know_of_each_other_and_a_warm_up_makes_up_for_it(tiny, tiny_model, model, tmp_path):
    tokens = tiny.tokens("c5")
    whole_contig = score_sequence(model, tokens)
    off = {}
    for warmup in (0, 50, 2000):
        run(tiny_model, tiny, tmp_path / str(warmup), block=1500, warmup=warmup)
        found = scores(tmp_path / str(warmup), "c5")
        alone = np.concatenate(
            [
                score_sequence(model, tokens[max(i - warmup, 0) : i + 1500])[-min(1500, 4000 - i) :]
                for i in range(0, 4000, 1500)
            ]
        )
        np.testing.assert_allclose(found, alone, atol=1e-5)
        off[warmup] = np.abs(found - whole_contig).max()
    assert off[0] > 10 * off[50] > 0
    assert off[2000] < 1e-5  # blocks begin at 1,500 and 3,000: for one of them all that is before it has been read


def test_the_other_strand_warms_up_behind_the_block(tiny, tiny_model, model, tmp_path):
    run(tiny_model, tiny, tmp_path / "out", block=1500, warmup=100, both_strands=True)
    tokens = tiny.tokens("c5")
    strand = score_sequence(model, reverse_complement(tokens[1500:3100]))[100:][::-1]
    found = scores(tmp_path / "out", "c5", "log_likelihood_reverse")
    np.testing.assert_allclose(found[1500:3000], strand, atol=1e-5)


@pytest.mark.parametrize("both_strands", [False, True])
def test_small_contigs_share_files_and_are_scored_as_if_alone(tiny_model, model, tmp_path, monkeypatch, both_strands):
    monkeypatch.setattr(parts, "FEW", 3)
    monkeypatch.setattr(parts, "GROUP", 3000)
    lengths = [1, 2, 299, 300, 301, 1000, 5, 40, 3, 4000, 7, 200, 200, 200]
    sequences = {f"c{i}": random_bases(length, i, "ACGTN" if i % 2 else "acgT") for i, length in enumerate(lengths)}
    store = make_store(tmp_path, sequences)
    found = run(tiny_model, store, tmp_path / "out", both_strands=both_strands)
    assert found.written == ["contigs 1-9", "c9", "contigs 11-14"]
    for name in sequences:
        expected = score_sequence(model, store.tokens(name), both_strands=both_strands)
        np.testing.assert_allclose(scores(tmp_path / "out", name), expected, atol=1e-5)
    rows = table(tmp_path / "out")
    assert list(rows) == ["c9", *(f"c{i}" for i in range(14) if i != 9)]
    for name, (frame,) in rows.items():
        assert "".join(frame.base) == sequences[name].upper()
        assert (frame.soft_mask == np.char.islower(list(sequences[name]))).all()
    lines = gzip.decompress((tmp_path / "out" / "contigs-0000011-0000014.bedgraph.gz").read_bytes()).decode()
    assert [line.split("\t")[0] for line in lines.splitlines()][:8] == ["c10"] * 7 + ["c11"]
    for shard in (1, 0):
        run(tiny_model, store, tmp_path / "shards", both_strands=both_strands, shards=2, shard=shard)
    assert contents(tmp_path / "shards") == contents(tmp_path / "out")


def test_thousands_of_contigs_make_few_files(tiny_model, tmp_path):
    store = make_store(tmp_path, {f"contig{i}": "ACGTTGCA"[: 1 + i % 8] * 3 for i in range(5000)})
    run(tiny_model, store, tmp_path / "out", chunk=16384)
    names = {"manifest.json", "contigs-0000001-0005000.parquet", "contigs-0000001-0005000.bedgraph.gz"}
    assert contents(tmp_path / "out").keys() == names
    frame = pq.read_table(tmp_path / "out" / "contigs-0000001-0005000.parquet").to_pandas()
    assert list(frame.contig.unique()) == store.names


def test_more_contigs_than_a_bigwig_takes_are_told_before_anything_is_scored(tiny, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(tracks, "MOST_CONTIGS", 5)
    with pytest.raises(UserError, match="has 6 contigs, and a bigWig file takes at most 5; give tracks="):
        run(tiny_model, tiny, tmp_path / "out", tracks=["bigwig"])
    assert not list(tmp_path.iterdir())


def test_before_a_circular_contig_stands_its_end(tiny_model, model, tmp_path):
    sequence = random_bases(800, 1)
    store = make_store(tmp_path, {"ring [topology=circular]": sequence, "line": sequence})
    linear = run(tiny_model, store, tmp_path / "linear", both_strands=True)
    assert linear.notes == [
        "made.fa: circular contigs (ring) are read as linear ones; with warmup=65536 the bases before their start are "
        "those of their end"
    ]
    assert np.array_equal(scores(linear.out, "ring"), scores(linear.out, "line"))
    found = run(tiny_model, store, tmp_path / "ring", warmup=500, both_strands=True)
    assert found.notes == []
    tokens = store.tokens("ring")
    forward = score_sequence(model, np.concatenate([tokens[-500:], tokens]))[500:]
    np.testing.assert_allclose(scores(found.out, "ring", "log_likelihood_forward"), forward, atol=1e-5)
    backward = score_sequence(model, reverse_complement(np.concatenate([tokens, tokens[:500]])))[500:][::-1]
    np.testing.assert_allclose(scores(found.out, "ring", "log_likelihood_reverse"), backward, atol=1e-5)
    assert np.array_equal(scores(found.out, "line"), scores(linear.out, "line"))
    assert np.abs(forward - score_sequence(model, tokens))[:5].max() > 1e-3


def read_names(path):
    """Names in the tree of a bigWig file, in the order in which it holds them (Kent et al. 2010, supplement)."""
    content = path.read_bytes()
    (tree,) = struct.unpack_from("<Q", content, 8)
    key, _, count = struct.unpack_from("<IIQ", content, tree + 8)
    leaf, _, here = struct.unpack_from("<BBH", content, tree + 32)
    assert (leaf, here) == (1, count)
    entries = [tree + 36 + i * (key + 8) for i in range(count)]
    return [content[at : at + key].rstrip(b"\0").decode() for at in entries]


def test_a_bigwig_holds_every_value_unrounded_and_finds_contigs_by_name(tiny_model, tmp_path):
    sequences = {"chr2": random_bases(700, 2), "chr10": "N" * 200 + random_bases(900, 1) + "N", "unknown": "N" * 50}
    store = make_store(tmp_path, {**sequences, "chr1": random_bases(300, 3)})
    found = run(tiny_model, store, tmp_path / "out", tracks=["bigwig"])
    names = {path.name for path in found.out.iterdir()}
    assert names == {"manifest.json", "scores.bw", *(f"{name}.parquet" for name in store.names)}
    path = found.out / "scores.bw"
    assert read_names(path) == ["chr1", "chr10", "chr2"]
    with pybigtools.open(str(path)) as track:
        assert track.chroms() == {"chr1": 300, "chr10": 1101, "chr2": 700}
        for name in ("chr1", "chr2", "chr10"):
            wanted = scores(found.out, name)
            values = track.values(name, 0, len(wanted), missing=np.nan).astype(np.float32)
            assert np.array_equal(values, wanted, equal_nan=True)
        start, stop, value = next(iter(track.records("chr10")))
        assert (start, stop) == (200, 201)
        assert np.float32(value) == scores(found.out, "chr10")[200]


def test_a_bigwig_is_made_of_scores_that_are_there_and_once(tiny, tiny_model, tmp_path, monkeypatch):
    first = run(tiny_model, tiny, tmp_path / "out")
    again = run(tiny_model, tiny, tmp_path / "out", tracks=["bedgraph", "bigwig"])
    assert again.written == []
    at_once = run(tiny_model, tiny, tmp_path / "at once", tracks=["bedgraph", "bigwig"])
    assert contents(first.out) == contents(at_once.out)
    monkeypatch.setattr(tracks, "write_bigwig", None)  # would fail
    run(tiny_model, tiny, tmp_path / "out", tracks=["bedgraph", "bigwig"])
    assert run(tiny_model, tiny, tmp_path / "out", tracks=[]).written == []


def test_a_bigwig_of_somebody_else_stays(tiny, tiny_model, tmp_path):
    out = run(tiny_model, tiny, tmp_path / "out").out
    (out / "scores.bw").write_bytes(b"theirs")
    for how in ({}, {"shards": 1, "shard": 0}):
        with pytest.raises(UserError, match=r"scores\.bw: is there already, and not of these results; move it away"):
            run(tiny_model, tiny, out, tracks=["bedgraph", "bigwig"], **how)
        assert (out / "scores.bw").read_bytes() == b"theirs"
    (out / "scores.bw").unlink()
    run(tiny_model, tiny, out, tracks=["bedgraph", "bigwig"])
    (out / "scores.bw").write_bytes(b"damaged")  # its own is made again, as parts are
    run(tiny_model, tiny, out, tracks=["bedgraph", "bigwig"])
    assert (out / "scores.bw").stat().st_size > 100


def test_a_bedgraph_that_was_not_asked_for_can_be_had_later(tiny, tiny_model, tmp_path):
    run(tiny_model, tiny, tmp_path / "out", tracks=[])
    assert not list((tmp_path / "out").glob("*.bedgraph.gz"))
    assert run(tiny_model, tiny, tmp_path / "out").written == tiny.names
    assert contents(tmp_path / "out") == contents(run(tiny_model, tiny, tmp_path / "whole").out)


def test_a_genome_of_n_has_no_bigwig(tiny_model, tmp_path):
    found = run(tiny_model, make_store(tmp_path, {"a": "NNNN"}), tmp_path / "out", tracks=["bigwig"])
    assert set(contents(found.out)) == {"manifest.json", "a.parquet"}
    assert np.isnan(found.bits_per_base)


@pytest.mark.parametrize("trouble", ["no room", "interrupted", "cut short"])
def test_a_bigwig_that_cannot_be_written_leaves_nothing_and_is_made_later(
    tiny, tiny_model, tmp_path, monkeypatch, trouble
):
    with monkeypatch.context() as patch:
        if trouble == "no room":
            patch.setattr(tracks, "_BYTES", 10**15)
            error, told = UserError, r"scores\.bw: no space is left for a bigWig file of up to .* GB"
        if trouble == "interrupted":
            rows = tracks._Rows.__iter__

            def interrupted(self):
                self.error = KeyboardInterrupt()
                yield next(rows(self))

            patch.setattr(tracks._Rows, "__iter__", interrupted)
            error, told = KeyboardInterrupt, None
        if trouble == "cut short":
            rows = tracks._Rows.__iter__
            patch.setattr(
                tracks._Rows, "__iter__", lambda self: (row for row, _ in zip(rows(self), range(9), strict=False))
            )
            error, told = UserError, r"cannot be written \(the bigWig file holds 9 values of"
        with pytest.raises(error, match=told):
            run(tiny_model, tiny, tmp_path / "out", tracks=["bigwig"])
    assert not [name for name in contents(tmp_path / "out") if ".bw" in name]
    found = run(tiny_model, tiny, tmp_path / "out", tracks=["bigwig"])
    assert found.written == []
    assert "scores.bw" in contents(tmp_path / "out")
