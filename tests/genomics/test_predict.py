import errno
import gzip
import json
import math
import os
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from domains import engines
from domains.errors import UserError
from domains.genomics import part_scores, score_tables, spool
from domains.genomics import predict as module
from domains.genomics.config import PredictConfig
from domains.genomics.model import load_model
from domains.genomics.predict import predict
from domains.genomics.stream import score_sequence
from domains.genomics.tokens import reverse_complement
from domains.genomics.train import train
from tests.genomics.genomes import make_store, random_bases
from tests.genomics.tiny import tiny_config

CONFIG = PredictConfig(chunk=300)


def run(model, store, out, config=CONFIG):
    return predict(model, store, out, config, device="cpu", progress=False)


def contents(folder):
    """Files by name; what is not finished as well."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished(folder):
    return {name for name in contents(folder) if not name.startswith(".progress")}


@pytest.fixture(scope="module")
def scores(tiny, tiny_model, tmp_path_factory):
    return run(tiny_model, tiny, tmp_path_factory.mktemp("scores") / "out")


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 1000)


def test_parquet_holds_every_base_with_its_score(tiny, tiny_model, scores):
    table = pq.read_table(scores.out / "c4.parquet")
    assert table.column_names == ["contig", "position", "base", "log_likelihood", "soft_mask"]
    frame = table.to_pandas()
    expected = score_sequence(load_model(tiny_model).model, tiny.tokens("c4"))
    np.testing.assert_allclose(frame.log_likelihood, expected, atol=1e-5)
    assert table["log_likelihood"].null_count == 300
    assert set(frame.contig) == {"c4"}
    assert (frame.position == np.arange(3600)).all()
    assert "".join(frame.base[498:502]) == "".join(frame.base[498:500]) + "NN"
    assert (frame.soft_mask.to_numpy() == tiny.soft_mask("c4")).all()
    origin = json.loads(table.schema.metadata[b"serpentine"])
    assert origin["model"] == load_model(tiny_model).hash


def test_bedgraph_holds_the_same_scores_where_the_base_is_known(tiny, tiny_model, scores):
    lines = gzip.decompress((scores.out / "c4.bedgraph.gz").read_bytes()).decode().splitlines()
    assert len(lines) == 3300
    expected = score_sequence(load_model(tiny_model).model, tiny.tokens("c4"))
    contig, start, stop, score = lines[600].split("\t")
    assert (contig, start, stop) == ("c4", "900", "901")
    assert float(score) == pytest.approx(expected[900], abs=6e-5)
    assert len(score) <= 8


def test_the_manifest_and_the_result_say_what_was_done(tiny, tiny_model, scores):
    assert (scores.written, scores.skipped) == (tiny.names, [])
    manifest = json.loads(scores.manifest.read_text())
    loaded = load_model(tiny_model)
    assert (manifest["model"], manifest["genome"]) == (loaded.hash, tiny.fingerprint)
    assert list(manifest["parts"]) == tiny.names
    assert manifest["parts"]["c4"]["bases"] == 3600
    assert manifest["parts"]["c4"]["scored"] == 3300
    every = np.concatenate([score_sequence(loaded.model, tiny.tokens(name)) for name in tiny.names])
    assert scores.bits_per_base == pytest.approx(-np.nanmean(every) / math.log(2), abs=1e-5)


def test_files_do_not_depend_on_the_chunk(tiny, tiny_model, tmp_path):
    for chunk in (170, 5000):
        run(tiny_model, tiny, tmp_path / str(chunk), replace(CONFIG, chunk=chunk))
    one, other = (pq.ParquetFile(tmp_path / chunk / "c5.parquet") for chunk in ("170", "5000"))
    groups = [one.metadata.row_group(i).num_rows for i in range(one.num_row_groups)]
    assert groups == [1000, 1000, 1000, 1000]
    assert groups == [other.metadata.row_group(i).num_rows for i in range(other.num_row_groups)]
    columns = [table.read()["log_likelihood"].to_numpy() for table in (one, other)]
    np.testing.assert_allclose(*columns, atol=1e-5)


def test_both_strands_stand_beside_their_mean(tiny, tiny_model, tmp_path):
    found = run(tiny_model, tiny, tmp_path / "out", replace(CONFIG, both_strands=True))
    frame = pq.read_table(found.out / "c4.parquet").to_pandas()
    model, tokens = load_model(tiny_model).model, tiny.tokens("c4")
    np.testing.assert_allclose(frame.log_likelihood_forward, score_sequence(model, tokens), atol=1e-5)
    reverse = score_sequence(model, reverse_complement(tokens))[::-1]
    np.testing.assert_allclose(frame.log_likelihood_reverse, reverse, atol=1e-5)
    mean = (frame.log_likelihood_forward + frame.log_likelihood_reverse) / 2
    np.testing.assert_allclose(frame.log_likelihood, mean, atol=1e-6)
    assert {path.name.partition(".")[0] for path in found.out.iterdir()} == {"manifest", *tiny.names}


def test_a_genome_without_a_mask_has_no_column_for_it(tiny_model, tmp_path):
    store = make_store(tmp_path, {"a": random_bases(300)})
    found = run(tiny_model, store, tmp_path / "out")
    assert pq.read_schema(found.out / "a.parquet").names == ["contig", "position", "base", "log_likelihood"]


@pytest.fixture
def calls(monkeypatch):
    """(contig's length, bases read before) of each stream that a job begins; a list of bases ends one with Ctrl-C."""
    stream = part_scores.stream_strand
    seen, breaks = [], []

    def watched(model, read, length, *, first, **options):
        seen.append((length, first))
        for count, piece in enumerate(stream(model, read, length, first=first, **options), first // 300 + 1):
            yield piece
            if breaks and (length, count) == breaks[0]:
                breaks.clear()
                raise KeyboardInterrupt

    monkeypatch.setattr(part_scores, "stream_strand", watched)
    monkeypatch.setattr(engines, "processors", lambda: 1)
    return seen, breaks


@pytest.mark.parametrize("both_strands", [False, True])
def test_a_run_that_broke_goes_on_in_the_middle_of_a_contig(
    tiny, tiny_model, tmp_path, monkeypatch, calls, both_strands
):
    config = replace(CONFIG, both_strands=both_strands)
    seen, breaks = calls
    whole = run(tiny_model, tiny, tmp_path / "whole", config)
    seen.clear()
    monkeypatch.setattr(spool, "SAVE_EVERY", 0)
    breaks.append((2800, 5))
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tiny, tmp_path / "out", config)
    out = tmp_path / "out"
    assert finished(out) == {"c0.bedgraph.gz", "c0.parquet", "c1.bedgraph.gz", "c1.parquet", "manifest.json"}
    seen.clear()
    found = run(tiny_model, tiny, out, config)
    assert (found.skipped, found.written) == (["c0", "c1"], ["c2", "c3", "c4", "c5"])
    assert seen[0] == (2800, 1500)
    assert [first for _, first in seen[1:]] == [0] * (len(seen) - 1)
    assert found.bits_per_base == whole.bits_per_base
    assert contents(out) == contents(whole.out)
    (out / "c3.parquet").unlink()
    assert run(tiny_model, tiny, out, config).written == ["c3"]
    assert contents(out) == contents(whole.out)
    assert run(tiny_model, tiny, out, replace(config, chunk=77)).written == []


def test_what_another_chunk_left_in_a_contig_is_not_gone_on_with(tiny, tiny_model, tmp_path, monkeypatch, calls):
    """Sums would be rounded in another order: the bytes would be those of no run without a break."""
    seen, breaks = calls
    monkeypatch.setattr(spool, "SAVE_EVERY", 0)
    for name in ("chunk", "damaged state", "lost scores"):
        out = tmp_path / name
        breaks.append((2000, 3))
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model, tiny, out)
        left = {path.suffix: path for path in (out / ".progress").rglob("c0.*")}
        assert left.keys() == {".rows", ".state"}
        if name == "damaged state":
            left[".state"].write_bytes(left[".state"].read_bytes()[:-1])
        if name == "lost scores":
            left[".rows"].write_bytes(left[".rows"].read_bytes()[:-4])
        seen.clear()
        config = replace(CONFIG, chunk=600) if name == "chunk" else CONFIG
        run(tiny_model, tiny, out, config)
        assert seen[0] == (2000, 0)
        assert contents(out) == contents(run(tiny_model, tiny, tmp_path / f"{name}, whole", config).out)


SLOW = """
import sys, time
from domains import engines
from domains.genomics import part_scores, predict as module, spool
from domains.genomics.config import PredictConfig
from domains.genomics.store import GenomeStore
stream = part_scores.stream_strand
def slow(model, read, length, **options):
    for number, piece in enumerate(stream(model, read, length, **options)):
        yield piece
        if length == 2400 and number == 5:  # the second contig
            print("scored", flush=True)
            time.sleep(60)
part_scores.stream_strand, module.ROWS, spool.SAVE_EVERY = slow, 1000, 0
engines.processors = lambda: 1
model, store, out = sys.argv[1:]
module.predict(model, GenomeStore.open(store), out, PredictConfig(chunk=300), device="cpu", progress=False)
"""


def test_a_killed_process_is_gone_on_with_and_a_live_one_is_left_alone(tiny, tiny_model, tmp_path, calls):
    out = tmp_path / "out"
    slow = subprocess.Popen(
        [sys.executable, "-c", SLOW, tiny_model, tiny.path, out],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with slow:
        try:
            assert slow.stdout.readline() == "scored\n"
            (out / ".c1.parquet.0123abcd").touch()  # a file that was being written
            before = contents(out)
            with pytest.raises(UserError, match="out: another process is writing scores there; wait for it"):
                run(tiny_model, tiny, out)
            assert contents(out) == before
        finally:
            slow.kill()
    assert contents(out) == before
    assert run(tiny_model, tiny, out).skipped == ["c0"]
    assert calls[0][0] == (2400, 1800)
    assert contents(out) == contents(run(tiny_model, tiny, tmp_path / "whole").out)


def test_a_folder_that_was_left_before_its_manifest_is_used(tiny_model, tmp_path):
    store = make_store(tmp_path, {"a": random_bases(300)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".manifest.json.0123abcd").write_text("{")
    run(tiny_model, store, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"manifest.json", "a.parquet", "a.bedgraph.gz"}


def overwritten(path):
    path.write_bytes(bytes(path.stat().st_size))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [overwritten, cut])
@pytest.mark.parametrize("name", ["a.parquet", "a.bedgraph.gz"])
def test_a_finished_file_that_was_damaged_is_made_again(tiny_model, tmp_path, damage, name):
    store = make_store(tmp_path, {"a": random_bases(300), "b": random_bases(300)})
    found = run(tiny_model, store, tmp_path / "out")
    whole = contents(found.out)
    damage(found.out / name)
    again = run(tiny_model, store, found.out)
    assert (again.written, again.skipped) == (["a"], ["b"])
    assert contents(found.out) == whole


def test_a_folder_in_the_place_of_a_file_is_told(tiny_model, tmp_path):
    store = make_store(tmp_path, {"a": random_bases(300)})
    path = run(tiny_model, store, tmp_path / "out").out / "a.parquet"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="out: cannot be written"):
        run(tiny_model, store, tmp_path / "out")


def test_a_folder_of_other_scores_is_refused_and_kept(tiny, tiny_model, scores, tmp_path):
    before = contents(scores.out)
    other_model = train(tiny_config(tiny, max_steps=1), tmp_path / "run", progress=False).model_dir
    other_genome = make_store(tmp_path, {"c4": random_bases(3600)})
    for arguments, message in (
        ((other_model, tiny, scores.out), "holds scores with another model"),
        ((tiny_model, other_genome, scores.out), "holds scores with another genome"),
        ((tiny_model, tiny, scores.out, replace(CONFIG, both_strands=True)), "holds scores with both_strands=False"),
        ((tiny_model, tiny, tiny_model), "holds other files"),
        ((tiny_model, tiny, scores.manifest), "holds other files"),
        ((tiny_model, tiny, tmp_path / "new", replace(CONFIG, chunk=0)), "chunk=0"),
    ):
        with pytest.raises(UserError, match=message):
            run(*arguments)
    assert contents(scores.out) == before
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_whole_files_alone(tiny, tiny_model, tmp_path, monkeypatch):
    write = score_tables.ScoreTables.write

    def full(self, start, *rest):
        if start >= 1000 and self._part.name == "c1":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, start, *rest)

    monkeypatch.setattr(score_tables.ScoreTables, "write", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        run(tiny_model, tiny, tmp_path / "out", replace(CONFIG, both_strands=True))
    done = finished(tmp_path / "out")
    assert {name for name in done if name.startswith("c1")} == set()
    assert "manifest.json" in done


def test_memory_does_not_grow_with_the_contig(tiny_model, tmp_path):
    peaks = []
    for length in (5_000, 5_000, 100_000):  # the first call loads pyarrow
        store = make_store(tmp_path / str(len(peaks)), {"a": random_bases(length)})
        tracemalloc.start()
        run(tiny_model, store, tmp_path / f"out{len(peaks)}", replace(CONFIG, chunk=1000))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1]


def test_odd_contig_names_come_back_from_the_files(tiny_model, tmp_path):
    store = make_store(tmp_path, {"a/b|c": random_bases(300)})
    found = run(tiny_model, store, tmp_path / "out")
    entry = json.loads(found.manifest.read_text())["parts"]["a/b|c"]
    assert set(pq.read_table(found.out / entry["parquet"])["contig"].to_pylist()) == {"a/b|c"}
    with suppress(StopIteration), gzip.open(found.out / entry["bedgraph"], "rt") as file:
        assert next(file).startswith("a/b|c\t0\t1\t")
