import contextlib
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.errors import UserError
from domains.genomics.config import DataConfig
from domains.genomics.splits import Region, Splits, make_splits
from tests.genomics.genomes import bare_store


def names(regions):
    return [region.contig for region in regions]


def bases(regions):
    return sum(region.length for region in regions)


def check_no_overlap(splits, gap):
    """No base in two parts, and parts of one contig lie a gap apart."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    placed = [(part, region) for part, regions in parts.items() for region in regions]
    for (part, one), (other_part, other) in itertools.combinations(placed, 2):
        if one.contig == other.contig:
            assert part != other_part
            assert max(one.start, other.start) - min(one.stop, other.stop) >= gap


GENOME = {f"chr{i}": 100_000 * i for i in range(1, 24)} | {f"scrap{i}": 500 * i for i in range(1, 10)}


def test_named_contigs_are_held_out_whole():
    splits = make_splits(bare_store(GENOME), DataConfig(test=["chr20", "chr21", "chr20"], validation=["chr5"]))
    assert splits.test == [Region("chr20", 0, 2_000_000), Region("chr21", 0, 2_100_000)]
    assert splits.validation == [Region("chr5", 0, 500_000)]
    assert set(names(splits.train)) == set(GENOME) - {"chr20", "chr21", "chr5"}
    assert "\n" not in splits.note
    assert "test 14.8% (chr20, chr21)" in splits.note
    assert "8 contigs shorter than the window unused in training" in splits.note  # scrap1 to scrap8


def test_validation_is_drawn_from_what_the_named_test_leaves():
    splits = make_splits(bare_store(GENOME), DataConfig(test=["chr23"]))
    assert names(splits.test) == ["chr23"]
    assert "chr23" not in names(splits.validation)
    assert bases(splits.validation) / sum(GENOME.values()) == pytest.approx(0.05, abs=0.02)


def test_fractions_are_met_by_contigs_of_all_sizes():
    splits = make_splits(bare_store(GENOME), DataConfig())
    total = sum(GENOME.values())
    assert bases(splits.test) / total == pytest.approx(0.1, abs=0.02)
    assert bases(splits.validation) / total == pytest.approx(0.05, abs=0.02)
    sizes = sorted(region.length for region in splits.test)
    assert sizes[0] < 1_000_000 < sizes[-1]
    check_no_overlap(splits, gap=0)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == len(GENOME)


def test_the_same_genome_is_always_split_the_same_way():
    backwards = dict(reversed(GENOME.items()))
    one, other = (make_splits(bare_store(genome), DataConfig()) for genome in (GENOME, backwards))
    assert set(names(one.test)) == set(names(other.test))
    assert set(names(one.validation)) == set(names(other.validation))


def test_one_contig_is_cut_into_blocks_with_a_gap_of_a_window():
    splits = make_splits(bare_store({"chr": 1_000_000}), DataConfig(window=10_000))
    assert splits.train == [Region("chr", 0, 833_000)]
    assert splits.validation == [Region("chr", 843_000, 892_000)]
    assert splits.test == [Region("chr", 902_000, 1_000_000)]
    assert splits.note.startswith("split into blocks of chr, 10,000 bases apart, for want of contigs: train 85.0%")
    assert "\n" not in splits.note
    check_no_overlap(splits, gap=10_000)


def test_two_contigs_are_too_few_for_three_parts():
    splits = make_splits(bare_store({"plasmid": 50_000, "chr": 1_000_000}), DataConfig())
    assert names(splits.train) == ["chr", "plasmid"]
    assert names(splits.validation) == names(splits.test) == ["chr"]
    check_no_overlap(splits, gap=4096)


def test_the_one_contig_that_a_named_test_leaves_is_cut_into_two():
    splits = make_splits(bare_store({"a": 1_000_000, "b": 100_000}), DataConfig(test=["b"]))
    assert splits.test == [Region("b", 0, 100_000)]
    assert names(splits.train) == names(splits.validation) == ["a"]
    assert bases(splits.train) + bases(splits.validation) == 1_000_000 - 4096


def test_the_one_contig_that_named_parts_leave_is_trained_on_whole():
    splits = make_splits(bare_store({"a": 9000, "b": 5000, "c": 100}), DataConfig(validation=["b"], test=["c"]))
    assert splits.train == [Region("a", 0, 9000)]


lengths = st.lists(st.integers(1, 3_000_000), min_size=1, max_size=40)
fraction = st.floats(0.01, 0.4)


@settings(max_examples=200, deadline=None)
@given(lengths, fraction, fraction, st.integers(2, 100_000))
def test_any_genome_is_split_without_overlap(sizes, test, validation, window):
    store = bare_store({f"c{i}": size for i, size in enumerate(sizes)})
    data = DataConfig(test_fraction=test, validation_fraction=validation, window=window)
    if sum(size >= window for size in sizes) < 3:
        with contextlib.suppress(UserError):
            check_no_overlap(make_splits(store, data), gap=window)
        return
    splits = make_splits(store, data)  # with three usable contigs there is always a way
    check_no_overlap(splits, gap=window)
    for part in (splits.train, splits.validation, splits.test):
        assert any(region.length >= window for region in part)
        for region in part:
            assert 0 <= region.start < region.stop <= store.contig(region.contig).length


@settings(max_examples=50, deadline=None)
@given(st.integers(100, 10_000_000), fraction, fraction, st.integers(2, 1_000_000))
def test_the_window_that_a_message_names_works(length, test, validation, window):
    store = bare_store({"a": length})
    data = DataConfig(test_fraction=test, validation_fraction=validation, window=min(window, length))
    try:
        make_splits(store, data)
    except UserError as error:
        data.window = int(str(error).split("data.window=")[1].split()[0])
        if data.window > 2:
            make_splits(store, data)


def test_splits_survive_json():
    splits = make_splits(bare_store({"chr": 1_000_000}), DataConfig())
    assert Splits.from_dict(json.loads(json.dumps(splits.to_dict()))) == splits


@pytest.mark.parametrize("table", [{}, [], {"train": [{"contig": "a"}], "validation": [], "test": [], "note": ""}])
def test_a_table_that_is_no_splits_is_refused(table):
    with pytest.raises(UserError, match="not one of splits"):
        Splits.from_dict(table)


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        (
            {"test": ["chr1", "chr99"]},
            r"data\.test: made\.fa: has no contig 'chr99'; it has chr1, .*data=genome",
        ),
        ({"validation": ["1"]}, r"data\.validation: .* with 'chr': did you mean 'chr1'"),
        ({"test": ["chr3"], "validation": ["chr3"]}, r"contig chr3 is in data\.test and data\.validation"),
        ({"window": 10_000_000}, r"every contig is shorter than the window of 10,000,000 .*longest has 2,300,000"),
        ({"test": list(GENOME)}, "nothing is left to train on"),
        ({"test": [name for name in GENOME if "chr" in name]}, "every validation contig|too short|nothing is left"),
        ({"validation": ["scrap1"]}, "every validation contig is shorter than the window"),
        ({"test": []}, r"data\.test=\[\]: name a contig"),
        ({"test_fraction": 0.0}, r"data\.test_fraction=0\.0: must lie between 0 and 1"),
        ({"validation_fraction": 1.5}, r"data\.validation_fraction=1\.5: must lie"),
        ({"test_fraction": 0.6, "validation_fraction": 0.5}, "leave nothing to train on"),
        ({"window": 1}, r"data\.window=1: must be at least 2"),
    ],
)
def test_mistakes_are_answered_in_one_line(told, answer):
    with pytest.raises(UserError, match=answer) as caught:
        make_splits(bare_store(GENOME), DataConfig(**told))
    assert "\n" not in str(caught.value)
