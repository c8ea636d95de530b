"""Annotation of genomes: numbers worked out another way, and the same bytes however the work was divided."""

import gzip
import itertools
import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pybigtools
import pytest

from domains.errors import UserError
from domains.genomics import parts, spool, tracks
from domains.genomics.annotation import predict as module
from domains.genomics.annotation import rows, trained
from domains.genomics.annotation.predict import annotate
from domains.genomics.annotation.rows import Places
from domains.genomics.annotation.tables import AnnotationTables
from domains.genomics.annotation.trained import annotate_sequence, load_annotator
from domains.genomics.config import PredictConfig, WindowsConfig
from domains.genomics.store import GenomeStore
from domains.genomics.tokens import N, decode, encode, reverse_complement
from tests.genomics.genomes import make_store, random_bases

KINDS = ["classify", "segment"]
TRACKS = {"classify": ["probability"], "segment": ["CDS", "intron", "start", "stop", "donor", "acceptor"]}
EVERYTHING = PredictConfig(block=1000, tracks=["bedgraph", "bigwig"])


@pytest.fixture(scope="module")
def models(classified, segmented):
    return {"classify": classified.model_dir, "segment": segmented.model_dir}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Contigs around the sizes of windows and tiles, one with a run of N."""
    lengths = {"a": 2777, "b": 59, "c": 1537, "d": 512, "e": 1}
    sequences = {name: random_bases(length, length) for name, length in lengths.items()}
    sequences["c"] = sequences["c"][:600] + "N" * 100 + sequences["c"][700:]
    return make_store(tmp_path_factory.mktemp("odd"), sequences)


def watch(patch, note):
    """Have ``note`` called before each question to a model, with what is asked for."""
    for name in ("window_probabilities", "base_probabilities"):

        def asking(real, loaded, store, what):
            note(tuple(np.asarray(what).ravel().tolist()))
            return real(loaded, store, what)

        patch.setattr(rows, name, partial(asking, getattr(rows, name)))


def make_calls_small(patch):
    patch.setattr(trained, "_ROW_BASES_CPU", 1100)
    patch.setattr(rows, "_RUN", 25)


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Calls of a model are made small, so that there are several; what each was asked for."""
    make_calls_small(monkeypatch)
    asked = []
    watch(monkeypatch, asked.append)
    return asked


def run(model, store, out, config=None, **changes):
    return annotate(model, store, out, replace(config or PredictConfig(), **changes), device="cpu", progress=False)


@pytest.fixture(scope="module")
def whole(models, store, tmp_path_factory):
    """What one process writes, with everything asked for."""
    found = {}
    for kind in KINDS:
        out = tmp_path_factory.mktemp("whole") / "out"
        with pytest.MonkeyPatch.context() as patch:
            make_calls_small(patch)
            run(models[kind], store, out, EVERYTHING)
        found[kind] = contents(out)
    return found


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(folder):
    """All rows of a folder, by contig."""
    frames = {}
    for path in sorted(folder.glob("*.parquet")):
        for contig, frame in pq.read_table(path).to_pandas().groupby("contig", observed=True, sort=False):
            frames.setdefault(contig, []).append(frame.drop(columns="contig").to_numpy(np.float64))
    return {contig: np.concatenate(found) for contig, found in frames.items()}


def bedgraph(folder, track, store):
    """Values of every base of each contig, NaN where there is none."""
    values = {contig.name: np.full(contig.length, np.nan) for contig in store.contigs}
    for path in sorted(folder.glob(f"*.{track}.bedgraph.gz")):
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            contig, start, end, value = line.split("\t")
            assert np.isnan(values[contig][int(start) : int(end)]).all()
            values[contig][int(start) : int(end)] = float(value)
    return values


def test_windows_are_half_a_window_apart_and_the_last_ends_with_the_contig(models, store, tmp_path):
    done = run(models["classify"], store, tmp_path / "out")
    assert (done.written, done.skipped, done.tracks) == (store.names, [], ("probability",))
    assert done.summary() == "5 contigs; probability"
    loaded, found = load_annotator(models["classify"]), table(tmp_path / "out")
    for contig in store.contigs:
        starts = [*range(0, max(contig.length - 60, 0), 30), max(contig.length - 60, 0)]
        assert found[contig.name][:, 0].tolist() == starts
        assert found[contig.name][:, 1].tolist() == [min(start + 60, contig.length) for start in starts]
        tokens = np.concatenate([np.full(20, N, np.uint8), store.tokens(contig.name), np.full(99, N, np.uint8)])
        for start, _, probability in found[contig.name][:: 1 if contig.length < 1000 else 7]:
            at = int(start)
            if np.isnan(probability):
                assert (tokens[20 + at : 80 + at] == N).sum() > 6
            else:
                said = annotate_sequence(loaded, tokens[at : at + 100])["probability"]
                assert probability == pytest.approx(said, abs=1e-6)
    assert np.isnan(found["c"][:, 2]).sum() == 5  # from 570 to 690
    drawn = bedgraph(tmp_path / "out", "probability", store)
    assert not np.isnan(drawn["a"]).any()
    middles = (found["a"][:, 0] + 30).astype(int)
    assert np.abs(drawn["a"][middles] - found["a"][:, 2]).max() <= 5.1e-4
    borders = (middles[1:] + middles[:-1]) // 2
    assert (drawn["a"][borders] == drawn["a"][middles[1:]]).all()
    assert (drawn["a"][borders - 1] == drawn["a"][middles[:-1]]).all()


def test_windows_are_told_up_to_a_tenth_unknown_and_no_further(models, tmp_path):
    bases = random_bases(60, 1)
    contigs = {
        "tenth": "N" * 6 + bases[6:],
        "more": "N" * 7 + bases[7:],
        "short": bases[:54],
        "shorter": bases[:53],
        "both": "N" * 3 + bases[3:57],
        "more_of_both": "N" * 4 + bases[4:57],
    }
    store = make_store(tmp_path, contigs)
    run(models["classify"], store, tmp_path / "out")
    told = {name: not np.isnan(found[:, 2]).any() for name, found in table(tmp_path / "out").items()}
    assert told == {"tenth": True, "more": False, "short": True, "shorter": False, "both": True, "more_of_both": False}


def test_a_window_is_drawn_up_to_where_the_stretch_of_its_neighbour_begins(models, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "window_probabilities", lambda loaded, store, starts: (starts / 1000).astype(np.float32))
    store = make_store(tmp_path, {"c": random_bases(200, 1), "d": random_bases(60, 2), "e": random_bases(61, 3)})
    run(models["classify"], store, tmp_path / "out")
    drawn = {
        name: [line.split("\t")[1:] for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
        for name in store.names
        for path in [tmp_path / "out" / f"{name}.probability.bedgraph.gz"]
    }
    # windows of 60 from 0, 30, 60, 90, 120 and 140: the borders lie midway between their middles
    assert drawn["c"] == [
        ["0", "45", "0"],
        ["45", "75", "0.03"],
        ["75", "105", "0.06"],
        ["105", "135", "0.09"],
        ["135", "160", "0.12"],
        ["160", "200", "0.14"],
    ]
    assert drawn["d"] == [["0", "60", "0.2"]]
    assert drawn["e"] == [["0", "30", "0.26"], ["30", "61", "0.261"]]


TILES = {  # start, stop, and the bases that count, of windows of 512 that overlap by 128 or more
    "a": [
        (0, 512, 0, 445),
        (378, 890, 445, 822),
        (755, 1267, 822, 1200),
        (1133, 1644, 1200, 1577),
        (1510, 2022, 1577, 1955),
        (1887, 2399, 1955, 2332),
        (2265, 2777, 2332, 2777),
    ],
    "c": [
        (0, 512, 0, 384),
        (257, 769, 384, 641),
        (513, 1024, 641, 896),
        (768, 1280, 896, 1153),
        (1025, 1537, 1153, 1537),
    ],
}


def test_bases_are_told_by_tiles_whose_edges_overlap(models, store, tmp_path):
    done = run(models["segment"], store, tmp_path / "out")
    assert done.tracks == ("intergenic", *TRACKS["segment"])
    loaded, found = load_annotator(models["segment"]), table(tmp_path / "out")
    for contig in store.contigs:
        expected = []
        for start, stop, first, last in TILES.get(contig.name, [(0, contig.length, 0, contig.length)]):
            said = annotate_sequence(loaded, store.tokens(contig.name, start, stop))
            expected.append(np.array([said[track] for track in done.tracks]).T[first - start : last - start])
        wanted = np.concatenate(expected)
        wanted[store.tokens(contig.name) == N] = np.nan
        assert found[contig.name][:, 0].tolist() == list(range(contig.length))
        np.testing.assert_allclose(found[contig.name][:, 1:], wanted, atol=1e-6)
    assert np.allclose(found["a"][:, 1:4].sum(1), 1, atol=1e-5)
    drawn = bedgraph(tmp_path / "out", "CDS", store)
    for contig, values in drawn.items():
        np.testing.assert_allclose(values, found[contig][:, 2], atol=5.1e-4)
    assert not list((tmp_path / "out").glob("*.intergenic.*"))


def test_bases_of_the_other_strand_get_the_same_answers(models, tmp_path):
    """Of contigs of several windows, whose tiles are as the mirror wants them."""
    lengths = [513, 514, 895, 896, 897, 1280, 1281, 1664, 1665, 2047, 2500, 2501, 3333]
    sequences = {f"c{length}": random_bases(length, length) for length in lengths}
    turned = {name: decode(reverse_complement(encode(bases))) for name, bases in sequences.items()}
    for out, contigs in (("one", sequences), ("other", turned)):
        run(models["segment"], make_store(tmp_path / out, contigs), tmp_path / out / "out")
    one, other = (table(tmp_path / out / "out") for out in ("one", "other"))
    for name in sequences:
        np.testing.assert_allclose(one[name][:, 1:], other[name][::-1, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_change_no_number(models, store, tmp_path, calls, kind):
    """Not a bit of one: the model is asked the same questions, wherever a contig is cut."""
    run(models[kind], store, tmp_path / "whole")
    asked = set(calls)
    calls.clear()
    cut = run(models[kind], store, tmp_path / "cut", block=700)
    assert set(calls) == asked
    borders = [("a", 0, 700), ("a", 700, 1400), ("a", 1400, 2100), ("a", 2100, 2777)]
    borders += [("c", 0, 700), ("c", 700, 1537)]  # what is left behind 1400 is less than a segmenter's window
    if kind == "classify":
        borders[-1:] = [("c", 700, 1400), ("c", 1400, 1537)]
    names = [f"{contig}:{start}-{stop}" for contig, start, stop in borders]
    assert cut.written == [*names[:4], "b", *names[4:], "d", "e"]
    first, second = table(tmp_path / "whole"), table(tmp_path / "cut")
    assert all(np.array_equal(first[name], second[name], equal_nan=True) for name in store.names)
    for track in TRACKS[kind]:
        first, second = (bedgraph(tmp_path / out, track, store) for out in ("whole", "cut"))
        assert all(np.array_equal(first[name], second[name], equal_nan=True) for name in store.names)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_write_the_bytes_of_one_process(models, store, whole, tmp_path, kind):
    out = tmp_path / "out"
    first = run(models[kind], store, out, EVERYTHING, shards=2, shard=1)
    assert first.missing > 0
    assert first.summary().startswith(f"shard 1 of 2: {len(first.written)} parts; {first.missing} left to other shards")
    assert not list(out.glob("*.bw"))
    with pytest.raises(UserError, match="holds annotation with block=1000"):
        run(models[kind], store, out, shards=2, shard=0)
    last = run(models[kind], store, out, EVERYTHING, shards=2, shard=0)
    assert last.missing == 0
    assert not set(first.written) & set(last.written)
    assert contents(out) == whole[kind]
    assert {f"{track}.bw" for track in TRACKS[kind]} <= whole[kind].keys()


def test_ray_writes_the_bytes_of_one_process(models, genes, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.undo()  # actors make calls of the usual size
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for kind in KINDS:
            for engine in ("local", "ray"):
                run(models[kind], genes[0], tmp_path / kind / engine, EVERYTHING, engine=engine)
            assert contents(tmp_path / kind / "ray") == contents(tmp_path / kind / "local")
    finally:
        ray.shutdown()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_broke_goes_on_in_the_middle_of_a_contig(models, store, whole, tmp_path, monkeypatch, calls, kind):
    monkeypatch.setattr(spool, "SAVE_EVERY", 0.0)
    monkeypatch.setattr("domains.engines.processors", lambda: 1)
    out, settings = tmp_path / "out", replace(EVERYTHING, block=None)
    run(models[kind], store, tmp_path / "whole", settings)
    asked = len(calls)
    calls.clear()

    def breaking(_):
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        watch(patch, breaking)
        with pytest.raises(KeyboardInterrupt):
            run(models[kind], store, out, settings)
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json", ".rows", ".state"}
    done = run(models[kind], store, out, settings)
    assert done.written == store.names
    assert len(calls) == asked  # the two that were answered were not asked again
    assert contents(out) == contents(tmp_path / "whole")
    (out / "c.parquet").write_bytes(b"damaged")
    again = run(models[kind], store, out, settings)
    assert (again.written, len(again.skipped)) == (["c"], 4)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_small_contigs_share_files_and_are_told_as_if_alone(models, tmp_path, monkeypatch, kind):
    lengths = [1, 2, 59, 60, 61, 100, 600, 40, 1100, 7, 513, 90]
    store = make_store(tmp_path, {f"c{i}": random_bases(length, i, "ACGTN") for i, length in enumerate(lengths)})
    settings = {"tracks": ["bedgraph", "bigwig"]}
    run(models[kind], store, tmp_path / "alone", **settings)
    monkeypatch.setattr(parts, "FEW", 3)
    monkeypatch.setattr(parts, "GROUP", 1000)
    found = run(models[kind], store, tmp_path / "out", **settings)
    assert found.written == ["contigs 1-8", "c8", "contigs 10-12"]
    stems = ("contigs-0000001-0000008", "c8", "contigs-0000010-0000012")
    kinds = ("parquet", *(f"{track}.bedgraph.gz" for track in TRACKS[kind]))
    files = {f"{stem}.{ending}" for stem in stems for ending in kinds}
    assert contents(tmp_path / "out").keys() == {"manifest.json", *files, *(f"{track}.bw" for track in TRACKS[kind])}
    alone, together = table(tmp_path / "alone"), table(tmp_path / "out")
    assert list(together) == ["c8", *(name for name in store.names if name != "c8")]
    for name in store.names:
        np.testing.assert_allclose(together[name], alone[name], rtol=0, atol=1e-6)
    for track in TRACKS[kind]:
        one, other = (bedgraph(tmp_path / out, track, store) for out in ("alone", "out"))
        assert all(np.allclose(one[name], other[name], atol=1.1e-3, equal_nan=True) for name in store.names)
    for shard in (1, 0):
        run(models[kind], store, tmp_path / "shards", **settings, shards=2, shard=shard)
    assert contents(tmp_path / "shards") == contents(tmp_path / "out")


def test_thousands_of_contigs_make_few_files(models, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "_ROW_BASES_CPU", 1 << 15)
    monkeypatch.setattr(rows, "_RUN", 1 << 14)
    store = make_store(tmp_path, {f"contig{i}": "ACGTTGCA"[: 1 + i % 8] * 3 for i in range(1100)})
    run(models["classify"], store, tmp_path / "out")
    stem = "contigs-0000001-0001100"
    assert contents(tmp_path / "out").keys() == {"manifest.json", f"{stem}.parquet", f"{stem}.probability.bedgraph.gz"}
    frame = pq.read_table(tmp_path / "out" / f"{stem}.parquet").to_pandas()
    assert list(frame.contig) == store.names
    assert (frame.end == [contig.length for contig in store.contigs]).all()


def test_a_stretch_of_a_bedgraph_ends_with_its_contig(tmp_path):
    """Though the next one has its first value where the last one's ended, and the same."""
    store = make_store(tmp_path, {"a": "ACGTA", "b": "NNNNNACG", "c": "ACG"})
    contig, position = np.array([[0, i] for i in range(5)] + [[1, i] for i in range(8)]).T
    places = Places(contig, position, position + 1, position, position + 1)
    values = np.full((13, 1), 0.25, np.float32)
    values[5:10] = np.nan
    for name, cuts in (("once", (0, 13)), ("in pieces", (0, 2, 5, 10, 13))):
        with (
            (tmp_path / "table").open("wb") as table,
            (tmp_path / name).open("wb") as graph,
            AnnotationTables(table, {"p": graph}, store, ("position",), ("p",), "") as tables,
        ):
            for some in map(slice, cuts[:-1], cuts[1:]):
                tables.write(Places(*(column[some] for column in places)), values[some])
        assert gzip.decompress((tmp_path / name).read_bytes()) == b"a\t0\t5\t0.25\nb\t5\t8\t0.25\n"


@pytest.mark.parametrize("kind", KINDS)
def test_bigwig_holds_every_value_unrounded(models, store, tmp_path, kind):
    out = tmp_path / "out"
    run(models[kind], store, out, block=1000)
    before = contents(out)
    later = run(models[kind], store, out, EVERYTHING, tracks=["bigwig"])
    assert later.written == []  # it is made of what is there
    assert contents(out).keys() - before.keys() == {f"{track}.bw" for track in TRACKS[kind]}
    found = table(out)
    for number, track in enumerate(TRACKS[kind]):
        drawn = bedgraph(out, track, store)
        with pybigtools.open(str(out / f"{track}.bw")) as file:
            told = [contig for contig in store.contigs if not np.isnan(drawn[contig.name]).all()]
            assert file.chroms() == {contig.name: contig.length for contig in told}
            for contig in told:
                values = file.values(contig.name, 0, contig.length, missing=np.nan)
                np.testing.assert_allclose(values, drawn[contig.name], atol=5.1e-4)
                exact = found[contig.name][:, 2 + number]
                if kind == "segment":
                    assert np.array_equal(values, exact, equal_nan=True)
                else:
                    assert set(values[~np.isnan(values)]) == set(exact[~np.isnan(exact)])
            if kind == "classify":
                assert len(list(file.records("a"))) <= len(found["a"])  # a row for each stretch


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_contig(models, tmp_path, monkeypatch, kind):
    def silent(loaded, store, what):
        if kind == "classify":
            return np.zeros(len(what), np.float32)
        return ((one, *np.zeros((2, one.last - one.first, 3), np.float32)) for one in what)

    for name in ("window_probabilities", "base_probabilities"):
        monkeypatch.setattr(rows, name, silent)
    monkeypatch.setattr(module, "ROWS", 1000)
    monkeypatch.setattr(module, "_tracks", lambda loaded: tuple("abcdef") if kind == "segment" else ("probability",))
    peaks = []
    for length in (60_000, 600_000):
        store = make_store(tmp_path / str(length), {"c": "ACGT" * (length // 4)})
        store = GenomeStore.open(store.path)
        tracemalloc.start()
        run(models[kind], store, tmp_path / str(length) / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 300_000, peaks


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"block": 100}, "block=100: must be at least 512, the window of this model"),
        ({"shards": 2, "shard": 0, "engine": "ray"}, "shards and engine=ray do not go together"),
        ({"shards": 2, "shard": 2}, "shard=2: must be at most 1"),
        ({"both_strands": True}, "both_strands=true: means nothing to a model of annotation; leave it out"),
        ({"warmup": 64}, "warmup=64: means nothing to a model of annotation; leave it out"),
        ({"chunk": 512}, "chunk=512: means nothing"),
        ({"mask_every": 4}, "mask_every=4: means nothing"),
        ({"windows": WindowsConfig(length=512)}, "windows.length=512: means nothing"),
        ({"windows": WindowsConfig(halo=64)}, "windows.halo=64: means nothing"),
        ({"tracks": ["wig"]}, "there is no 'wig'; there are bedgraph, bigwig"),
        ({"tracks": ["bigwig"]}, "has 5 contigs, and a bigWig file takes at most 4; give tracks="),
    ],
)
def test_settings_without_sense_are_told(models, store, tmp_path, monkeypatch, changes, told):
    monkeypatch.setattr(tracks, "MOST_CONTIGS", 4)
    with pytest.raises(UserError, match=told):
        run(models["segment"], store, tmp_path / "out", **changes)
    assert not list(tmp_path.iterdir())


def test_tracks_may_be_left_out_and_circular_contigs_are_told(models, tmp_path):
    store = make_store(tmp_path, {"ring [topology=circular]": random_bases(300, 1), "line": random_bases(70, 2)})
    done = run(models["classify"], store, tmp_path / "out", tracks=[])
    assert done.notes == ["made.fa: circular contigs (ring) are read as linear ones"]
    assert contents(done.out).keys() == {"manifest.json", "ring.parquet", "line.parquet"}
    later = run(models["classify"], store, tmp_path / "out")
    assert later.written == ["ring", "line"]
    assert all(a != b for a, b in itertools.pairwise(sorted(contents(done.out))))
