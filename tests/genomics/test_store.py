import errno
import gzip
import json
import pickle
import resource
import shutil
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import domains.genomics.store as store_module
from domains.errors import UserError
from domains.genomics.io import write_fasta
from domains.genomics.store import Contig, GenomeStore, prepare_store
from domains.genomics.tokens import encode
from tests.genomics.genomes import make_store, random_bases

MIXED = {
    "chr1": "NNNNACGTACGTNNacgtnnnACG" + random_bases(3000, 1, "ACGTNacgtnR"),
    "chr2": "N" * 700,
    "chr10": random_bases(501, 2) + "N",
}


def naive_runs(sequence):
    unknown = np.array([letter.upper() not in "ACGT" for letter in f"A{sequence}A"])
    return np.flatnonzero(unknown[1:] != unknown[:-1]).reshape(-1, 2).tolist()


def prepare(folder, text, name="a.fa", **options):
    source = folder / name
    source.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return prepare_store(source, folder / "stores", progress=False, **options)


@pytest.mark.parametrize("block", [1, 7, 250, 1 << 22])
def test_reads_what_the_source_holds_at_random_offsets(tmp_path, monkeypatch, block):
    monkeypatch.setattr(store_module, "_BLOCK", block)
    store = make_store(tmp_path, MIXED)
    rng = np.random.default_rng(0)
    for name, sequence in MIXED.items():
        letters = np.array(list(sequence))
        for _ in range(50):
            start, stop = np.sort(rng.integers(0, len(sequence) + 1, size=2)).tolist()
            assert np.array_equal(store.tokens(name, start, stop), encode(sequence[start:stop]))
            assert np.array_equal(store.soft_mask(name, start, stop), np.char.islower(letters[start:stop]))
        assert store.tokens(name).dtype == np.uint8
        assert len(store.tokens(name)) == len(store.soft_mask(name)) == len(sequence)
        assert store.n_runs(name).tolist() == naive_runs(sequence)
    assert store.total == sum(map(len, MIXED.values()))


def test_contig_table(tmp_path):
    store = make_store(tmp_path, {"a": "ACGTNNacgtnn", "b": "GGG"})
    assert store.contigs == [Contig("a", 0, 12, n=4, lower=4, gc=4), Contig("b", 12, 3, n=0, lower=0, gc=3)]
    assert store.names == ["a", "b"]
    assert store.summary() == "2 contigs, 15 bases, 63.6% GC, 26.67% N, 36.4% repeat-masked"


def test_circular_contigs_are_known_as_such(tmp_path):
    store = prepare(tmp_path, ">a [topology=circular]\nACGT\n>b\nGG\n")
    assert [contig.circular for contig in GenomeStore.open(store.path).contigs] == [True, False]
    assert store.summary().startswith("2 contigs, 1 circular, 6 bases")


def test_stores_of_the_format_before_are_read(tmp_path):
    store = make_store(tmp_path, MIXED)
    meta = json.loads((store.path / "meta.json").read_text())
    contigs = [{k: v for k, v in contig._asdict().items() if k != "circular"} for contig in store.contigs]
    (store.path / "meta.json").write_text(json.dumps(meta | {"format": 1, "contigs": contigs}))
    assert GenomeStore.open(store.path).contigs == store.contigs


def test_many_small_contigs_take_time_and_memory_by_their_number(tmp_path):
    """Not by its square: the table of 20,000 is made and read in a second."""
    sequences = {f"c{i}": "ACGTN"[: 1 + i % 5] for i in range(20_000)}
    store = make_store(tmp_path, sequences)
    assert store.names == list(sequences)
    assert all(store.n_runs(f"c{i}").tolist() == ([[4, 5]] if i % 5 == 4 else []) for i in range(0, 20_000, 501))
    assert store.contig("c19999").length == 5
    assert (store.path / "meta.json").stat().st_size < 50 * len(sequences)


def test_the_bundled_genome(ustilago):
    assert len(ustilago.contigs) == 36
    assert ustilago.total == 19_702_792
    assert ustilago.contig("chr01").length == 2_476_500
    assert sum(contig.n for contig in ustilago.contigs) == 23_100
    assert not ustilago.has_soft_mask
    assert not ustilago.soft_mask("chr01").any()


def test_a_genome_all_in_lower_case_has_no_repeat_mask(tmp_path):
    store = make_store(tmp_path, {"a": "acgtNNacgt"})
    assert not store.has_soft_mask
    assert not store.soft_mask("a").any()
    assert store.tokens("a").tolist() == encode("ACGTNNACGT").tolist()


def test_all_n(tmp_path):
    store = make_store(tmp_path, {"a": "NNNNACGTNNNN", "b": "NNNACGT"})
    starts = np.arange(store.total - 3 + 1)
    raw = "".join(["NNNNACGTNNNN", "NNNACGT"])
    across = {10, 11}  # the run of N at the end of a and the one at the start of b are two
    expected = [raw[s : s + 3] == "NNN" and s not in across for s in starts]
    assert store.all_n(starts, 3).tolist() == expected
    assert not make_store(tmp_path / "other", {"a": "ACGT"}).all_n(np.array([0, 1]), 2).any()


def test_the_same_bytes_are_found_and_reused(tmp_path):
    first = prepare(tmp_path, ">a\nACGT\n")
    written = (first.path / "meta.json").stat().st_mtime_ns
    second = prepare(tmp_path, ">a\nACGT\n", name="renamed.fasta")
    assert (first.reused, second.reused) == (False, True)
    assert first.path == second.path
    assert first.path.name.startswith("a-")
    assert (first.path / "meta.json").stat().st_mtime_ns == written
    other = prepare(tmp_path, ">a\nACGA\n")
    assert other.path != first.path
    assert not other.reused


def test_store_names_come_from_the_file_without_what_is_no_name(tmp_path):
    assert prepare(tmp_path, ">a\nA\n", "GCF_1.2_my genome.fna.gz").path.name.startswith("GCF_1.2_my_genome-")
    assert prepare(tmp_path, ">a\nC\n", ".fa").path.name.startswith(".fa-")


def test_fingerprint_is_of_the_sequence_alone(tmp_path):
    text = ">a one\nACGTACGT\n>b\nGGCC\n"
    first = prepare(tmp_path, text).fingerprint
    assert len(first) == 64
    assert prepare(tmp_path, text, "b.fa.gz").fingerprint == first
    assert prepare(tmp_path, ">a\nACGT\nacgt\n>b\nGGCC\n").fingerprint == first
    for other in (">a\nACGTACGA\n>b\nGGCC\n", ">c\nACGTACGT\n>b\nGGCC\n", ">a\nACGTACGTG\n>b\nGCC\n"):
        assert prepare(tmp_path, other).fingerprint != first


def test_a_copy_in_another_process_maps_the_file_again(tmp_path):
    store = make_store(tmp_path, {"a": "ACGT" * 100_000})
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).tokens("a"), store.tokens("a"))


@pytest.mark.parametrize("text", [">a\nACGT\n>a\nACGT\n", ">a\nACGT\n>b\n", ">a\nMKVLE\n"])
def test_bad_input_leaves_nothing_behind(tmp_path, text):
    with pytest.raises(UserError, match=r"a\.fa: record"):
        prepare(tmp_path, text)
    assert list((tmp_path / "stores").iterdir()) == []


def test_a_missing_source_makes_no_folder(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        prepare_store(tmp_path / "none.fa", tmp_path / "stores", progress=False)
    assert not (tmp_path / "stores").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.np, "save", full)  # after the bases are written
    with pytest.raises(UserError, match=r"stores: cannot keep the genome of a\.fa \(No space left.*data\.stores"):
        prepare(tmp_path, ">a\nACGT\n")
    assert list((tmp_path / "stores").iterdir()) == []


def test_a_file_that_outgrows_its_limit_leaves_nothing_behind(tmp_path):
    write_fasta(tmp_path / "a.fa", [("a", "ACGT" * 1_000_000)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            prepare_store(tmp_path / "a.fa", tmp_path / "stores", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "stores").iterdir()) == []
    assert prepare_store(tmp_path / "a.fa", tmp_path / "stores", progress=False).total == 4_000_000


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "stores").write_text("")
    with pytest.raises(UserError, match="stores: cannot keep the genome"):
        prepare(tmp_path, ">a\nACGT\n")


def test_preparing_the_same_genome_at_once_gives_one_store(tmp_path):
    source = tmp_path / "a.fa"
    write_fasta(source, [(f"c{i}", random_bases(20_000, i)) for i in range(20)])
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: prepare_store(source, tmp_path / "stores", progress=False), range(4)))
    assert len({store.path for store in stores}) == 1
    assert [path.name for path in (tmp_path / "stores").iterdir()] == [stores[0].path.name]
    assert stores[0].tokens("c19").tolist() == encode(random_bases(20_000, 19)).tolist()


def test_the_slower_of_two_uses_the_store_of_the_faster(tmp_path, monkeypatch):
    write = store_module._write

    def slow(*args):
        monkeypatch.setattr(store_module, "_write", write)
        prepare(tmp_path, ">a\nACGT\n")
        write(*args)

    monkeypatch.setattr(store_module, "_write", slow)
    store = prepare(tmp_path, ">a\nACGT\n")
    assert store.tokens("a").tolist() == [7, 8, 9, 10]
    assert list((tmp_path / "stores").iterdir()) == [store.path]


SLOW = """
import sys, time
import domains.genomics.store as store
write = store._write
def slow(*args):
    write(*args)
    print("written", flush=True)
    time.sleep(60)
store._write = slow
store.prepare_store(sys.argv[1], sys.argv[2], progress=False)
"""


def test_what_a_killed_process_left_is_swept_and_what_a_live_one_writes_is_not(tmp_path):
    write_fasta(tmp_path / "b.fa", [("b", "ACGT")])
    stores = tmp_path / "stores"
    slow = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path / "b.fa", stores], stdout=subprocess.PIPE, text=True)
    with slow:
        try:
            assert slow.stdout.readline() == "written\n"
            (partial,) = stores.iterdir()
            first = prepare(tmp_path, ">a\nACGT\n")
            assert set(stores.iterdir()) == {partial, first.path}
            assert (partial / "bases.bin").stat().st_size == 4
        finally:
            slow.kill()
    assert set(stores.iterdir()) == {partial, first.path}
    assert prepare(tmp_path, ">a\nACGT\n").reused
    assert list(stores.iterdir()) == [first.path]


def test_preparing_holds_a_few_times_the_largest_record(tmp_path):
    bases = 8_000_000
    write_fasta(tmp_path / "a.fa", [("a", b"ACGT" * (bases // 4)), ("b", b"A")])
    tracemalloc.start()
    prepare_store(tmp_path / "a.fa", tmp_path / "stores", progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * bases + 3 * store_module._BLOCK + 16e6  # pieces, text, bytes; blocks; modules


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is no prepared genome \(meta\.json is missing\); run prepare"):
        GenomeStore.open(tmp_path)
    with pytest.raises(UserError, match="is no prepared genome"):
        GenomeStore.open(tmp_path / "none")


def test_damaged_stores_are_refused(tmp_path):
    def spoilt(change):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(good.path, copy)
        change(copy)
        with pytest.raises(UserError, match=r"copy: .*; .*prepare the genome again|run prepare") as caught:
            GenomeStore.open(copy)
        return str(caught.value)

    good = make_store(tmp_path, {"a": "ACGT" * 10})
    meta = json.loads((good.path / "meta.json").read_text())
    assert "format 99" in spoilt(lambda path: (path / "meta.json").write_text(json.dumps(meta | {"format": 99})))
    assert "cannot be read" in spoilt(lambda path: (path / "meta.json").write_text("{"))
    assert "cannot be read" in spoilt(lambda path: (path / "meta.json").write_text("{}"))
    assert "cut short" in spoilt(lambda path: (path / "bases.bin").write_bytes(b"\7" * 39))
    assert "bases.bin is missing" in spoilt(lambda path: (path / "bases.bin").unlink())
    assert "cannot be read" in spoilt(lambda path: (path / "n_runs.npy").write_bytes(b"nothing"))


def test_n_runs_are_never_unpickled(tmp_path):
    store = make_store(tmp_path, {"a": "ACGT"})
    np.save(store.path / "n_runs.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        GenomeStore.open(store.path)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("chr1", "did you mean '1'"),
        ("chrX", "did you mean 'X'"),
        ("scafold_12", "did you mean 'scaffold_12'"),
        ("NC_001", "did you mean 'NC_001.2'"),
        ("01", "did you mean '1'"),
        ("zzzz", "it has 1, X, scaffold_12, NC_001.2, c5 and 1 more"),
    ],
)
def test_an_unknown_contig_is_answered_with_the_nearest(tmp_path, asked, answer):
    store = make_store(tmp_path, dict.fromkeys(["1", "X", "scaffold_12", "NC_001.2", "c5", "c6"], "ACGT"))
    with pytest.raises(UserError, match=answer) as caught:
        store.contig(asked)
    assert str(caught.value).startswith(f"made.fa: has no contig '{asked}'; ")


def test_chr_is_told_apart_the_other_way_round(tmp_path):
    store = make_store(tmp_path, {"chr1": "ACGT", "chr2": "ACGT"})
    with pytest.raises(UserError, match="writes its names with 'chr': did you mean 'chr1'"):
        store.contig("1")


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 5), (3, 2), (5, 5)])
def test_stretches_outside_a_contig_are_refused(tmp_path, start, stop):
    store = make_store(tmp_path, {"a": "ACGT", "b": "ACGT"})
    with pytest.raises(UserError, match=rf"a:{start}-{stop} lies outside the contig; it has 4 bases"):
        store.tokens("a", start, stop)
