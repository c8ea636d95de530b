"""Windows labelled by overlap, negatives by composition, and what parts share."""

from dataclasses import replace

import numpy as np
import pytest

from domains.errors import UserError
from domains.genomics.annotation.formats import Contents, Feature
from domains.genomics.annotation.leakage import TrainingWords, canonical_words
from domains.genomics.annotation.table import FeatureTable
from domains.genomics.annotation.windows import (
    LabelledWindows,
    check_windows,
    choose_negatives,
    fraction_of,
    gc_content,
    label_windows,
    read_spans,
)
from domains.genomics.config import DataConfig
from domains.genomics.splits import Region, Splits
from domains.genomics.tokens import N, decode, encode, reverse_complement
from tests.genomics.genomes import make_store, random_bases

CONTIGS = {f"c{i}": random_bases(400, seed=i) for i in range(3)}
SPLITS = Splits([Region("c0", 0, 400)], [Region("c1", 0, 400)], [Region("c2", 0, 400)], "made")
DATA = DataConfig(annotation="given", window=20, negatives="all")


def table(*spans, names=("c0", "c1", "c2")):
    rows = [Feature(name, start, end, 1, "CDS", 0, "t", 1) for name in names for start, end in spans]
    return FeatureTable.of(Contents(rows, list(names), "GFF3"), "made.gff3")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("windows"), CONTIGS)


def labels(windows):
    return dict(zip(windows.starts.tolist(), windows.labels.tolist(), strict=True))


@pytest.mark.parametrize(("overlap", "kept"), [(0.5, [0, 10, 20, 30]), (0.55, [0, 10, 20]), (1.0, [10, 20])])
def test_a_window_is_positive_from_a_share_of_its_bases_and_negative_without_any(store, overlap, kept):
    data = replace(DATA, min_overlap=overlap, stride=10)  # of [0, 20) 11 bases are in it, of [30, 50) 10
    found = labels(label_windows(store, table((9, 40)), SPLITS, data).train)
    assert [start for start, label in found.items() if label] == kept
    assert [start for start, label in found.items() if not label][:2] == [40, 50]


@pytest.mark.parametrize("overlap", [0.05, 0.5, 0.55, 1.0])
def test_windows_between_the_two_kinds_are_left_out_to_the_base(store, overlap):
    found = labels(label_windows(store, table((30, 70)), SPLITS, replace(DATA, min_overlap=overlap, stride=1)).train)
    inside = {start: sum(30 <= base < 70 for base in range(start, start + 20)) for start in range(381)}
    least = {0.05: 1, 0.5: 10, 0.55: 11, 1.0: 20}[overlap]
    assert found == {start: int(bases > 0) for start, bases in inside.items() if bases == 0 or bases >= least}


def test_windows_keep_to_their_contig_their_region_and_known_bases(tmp_path):
    store = make_store(tmp_path, {"c0": "N" * 3 + "A" * 97, "c1": "A" * 100, "c2": "A" * 100, "bare": "A" * 100})
    splits = Splits([Region("c0", 0, 90), Region("bare", 0, 100)], [Region("c1", 0, 100)], [Region("c2", 0, 100)], "")
    found = label_windows(store, table((40, 60)), splits, DATA)
    assert labels(found.train) == {20: 0, 40: 1, 60: 0}  # 15% of the first are N; the last ends behind the region
    assert set(labels(found.test)) == {200, 220, 240, 260, 280}


def test_matched_negatives_have_the_composition_of_the_positives(tmp_path):
    rich, poor = random_bases(4000, 1, "GGCCAT"), random_bases(4000, 2, "GCATAT")
    store = make_store(tmp_path, {"c": rich + poor + rich[:1000]})
    starts = np.arange(0, 8980, 20)
    windows = LabelledWindows(starts, (starts < 4000).astype(np.uint8), 20)
    means = {}
    for how in ("balanced", "matched"):
        chosen = choose_negatives(store, windows, how, np.random.default_rng(0))
        assert chosen.positives * 2 == len(chosen)
        assert (np.diff(chosen.starts) > 0).all()
        gc = gc_content(store, chosen)
        means[how] = gc[chosen.labels == 1].mean() - gc[chosen.labels == 0].mean()
    assert means["balanced"] > 0.15
    assert abs(means["matched"]) < 0.01
    assert len(choose_negatives(store, windows, "all", np.random.default_rng(0))) == len(windows)


def test_a_smaller_share_of_the_labels_is_part_of_a_larger_one():
    windows = LabelledWindows(np.arange(1000), (np.arange(1000) % 4 == 0).astype(np.uint8), 10)
    tenth, half = (fraction_of(windows, share, seed=3) for share in (0.1, 0.5))
    assert (len(tenth), tenth.positives, half.positives) == (100, 25, 125)
    assert set(tenth.starts.tolist()) < set(half.starts.tolist())
    assert not np.array_equal(fraction_of(windows, 0.1, seed=4).starts, tenth.starts)
    assert len(fraction_of(windows, 1e-9, seed=0)) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"min_overlap": 0.0}, "min_overlap=0"),
        ({"min_overlap": 1.5}, "min_overlap=1.5"),
        ({"negatives": "none"}, "matched, balanced, all"),
        ({"context": 10}, "at least data.window=20"),
        ({"stride": 0}, "data.stride=0"),
        ({"label_fraction": 0.0}, "label_fraction=0"),
    ],
)
def test_settings_that_make_no_sense(change, said):
    with pytest.raises(UserError, match=said):
        check_windows(replace(DATA, **change))


def test_parts_without_one_of_the_kinds_are_told(store):
    with pytest.raises(UserError, match=r"no positive window for CDS; lower data.min_overlap"):
        label_windows(store, table((5, 10)), SPLITS, replace(DATA, min_overlap=1.0))
    with pytest.raises(UserError, match="no negative window"):
        label_windows(store, table((0, 400)), SPLITS, DATA)


def test_spans_are_padded_with_n_where_the_contig_ends(store):
    at = np.array([0, 400, 790])
    found = read_spans(store, at, 40, lead=10)
    assert decode(found[0]) == "N" * 10 + CONTIGS["c0"][:30]
    assert decode(found[1]) == "N" * 10 + CONTIGS["c1"][:30]
    assert decode(found[2]) == CONTIGS["c1"][380:] + "N" * 20


def test_words_of_both_strands_are_one_and_n_breaks_them():
    tokens = encode(random_bases(200, 5))
    tokens[100] = N
    words, known = canonical_words(tokens)
    back, _ = canonical_words(reverse_complement(tokens))
    assert np.array_equal(words, back[::-1])
    assert np.flatnonzero(~known).tolist() == list(range(70, 101))
    assert len(np.unique(words[known])) == known.sum()
    straight = {min(decode(tokens[i : i + 31]), decode(reverse_complement(tokens[i : i + 31]))) for i in range(30)}
    assert len({int(word) for word in words[:30]}) == len(straight)


def test_leakage_finds_copies_on_either_strand_and_nothing_else(tmp_path):
    copied = random_bases(100, 11)
    turned = decode(reverse_complement(encode(copied)))
    store = make_store(
        tmp_path, {"a": random_bases(300, 1) + copied, "b": random_bases(300, 2) + turned + random_bases(200, 3)}
    )
    train = LabelledWindows(np.arange(0, 400, 100), np.zeros(4, np.uint8), 100)
    held = LabelledWindows(np.arange(400, 1000, 100), np.zeros(6, np.uint8), 100)
    words = TrainingWords(store, train)
    assert words.containment(held).tolist() == [0, 0, 0, 1, 0, 0]
    report = words.compare("test", held)
    assert (report.near, report.touched, report.windows, report.shared, report.kept) == (1, 1, 6, 70, 1.0)
    assert TrainingWords(store, train.take(np.array([0]))).compare("test", held).shared == 0
    seen = TrainingWords(store, train.take(np.array([2])), lead=0, length=200)  # the copy is in its context
    assert seen.compare("test", held).near == 1
