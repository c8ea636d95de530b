"""Splits and batches: what is trained on, and that none of it looks ahead."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domains.errors import UserError
from domains.timeseries.clock import Clock
from domains.timeseries.config import DataConfig
from domains.timeseries.data import Piece, TrainBatches, ValidationBatches, Windows, cut, pack
from domains.timeseries.history import cumulated
from domains.timeseries.splits import make_splits, splits_from_dict
from domains.timeseries.store import SeriesStore

DATA = DataConfig(test="2015-03-01", validation="2014-12-01", horizon=2, window=64, tokens_per_step=256)


def test_parts_begin_at_the_same_stamp_and_outcomes_lie_within_them(store: SeriesStore) -> None:
    splits = make_splits(store, DATA)
    for i in range(len(store)):
        time = store.time[store.series(i)]
        assert time[splits.train_ends[i] - 1] < splits.validation <= time[splits.train_ends[i]]
        train, validation, test = (
            splits.train_cutoffs(i),
            splits.validation_cutoffs(i),
            splits.test_cutoffs(i, len(time)),
        )
        assert time[train.stop - 1 + 2] < splits.validation
        assert splits.validation <= time[validation.start + 1]
        assert time[validation.stop - 1 + 2] < splits.test <= time[test.start + 1]
        assert test.stop - 1 + 2 == len(time) - 1


def test_an_embargo_is_left_out_behind_each_border(store: SeriesStore) -> None:
    plain, careful = (make_splits(store, replace(DATA, embargo=n)) for n in (0, 5))
    assert careful.validation_cutoffs(0).start == plain.validation_cutoffs(0).start + 5
    assert careful.test_cutoffs(0, 400).start == plain.test_cutoffs(0, 400).start + 5
    assert careful.train_cutoffs(0) == plain.train_cutoffs(0)


def test_shares_are_of_all_rows(store: SeriesStore) -> None:
    splits = make_splits(store, replace(DATA, test="0.25", validation="0.2"))
    assert (store.time >= splits.test).mean() == pytest.approx(0.25, abs=0.01)
    before = store.time[store.time < splits.test]
    assert (before >= splits.validation).mean() == pytest.approx(0.2, abs=0.01)
    again = splits_from_dict(store, splits.to_dict(), "here")
    assert np.array_equal(again.train_ends, splits.train_ends)
    assert again.test == splits.test


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": "soon"}, "data.test=soon: is neither a stamp such as 2000-01-01 nor a share such as 0.2"),
        ({"test": "1.5"}, "data.test=1.5: a share must lie between 0 and 1"),
        ({"test": "2031-01-01"}, "the test part holds no forecast of 2 steps"),
        ({"validation": "1990-01-01"}, "the training part holds no forecast"),
        ({"horizon": 0}, "data.horizon=0: must be at least 1"),
    ],
)
def test_borders_that_make_no_sense(store: SeriesStore, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        make_splits(store, replace(DATA, **change))


def test_targets_are_outcomes_over_their_spread(store: SeriesStore) -> None:
    splits = make_splits(store, DATA)
    piece = Piece(1, 30, 80, int(splits.train_ends[1]))
    batch = Windows(store, Clock.flat(), 64, 2).batch([[piece]])
    history = store.history(1)
    want = cumulated(history.x, history.kind, np.arange(30, 80), 2)
    got = (batch["target"] * batch["spread"])[0, :50].numpy()
    known = batch["weight"][0, :50].numpy() == 1
    assert np.array_equal(known, ~np.isnan(want))
    assert np.allclose(got[known], want[known], rtol=1e-5, atol=1e-7)
    assert (batch["seq_idx"][0].numpy() == np.repeat([0, -1], [50, 14])).all()
    assert not batch["weight"][0, 50:].any()


def test_every_cutoff_is_in_one_piece(store: SeriesStore) -> None:
    parts = [(0, range(3, 100), 120), (1, range(0, 40), 60)]
    pieces = cut(parts, 32, np.array([7, 32]))
    for series, cutoffs, end in parts:
        rows = [row for p in pieces if p.series == series for row in range(p.start, p.stop)]
        assert rows == list(cutoffs)
        assert all(p.end == end for p in pieces if p.series == series)
    assert max(p.stop - p.start for p in pieces) <= 32
    packed = pack(pieces, 32)
    assert [p for row in packed for p in row] == pieces
    assert all(sum(p.stop - p.start for p in row) <= 32 for row in packed)


def test_batches_are_a_function_of_seed_and_number(store: SeriesStore) -> None:
    splits = make_splits(store, DATA)
    one, other = (TrainBatches(store, splits, Clock.flat(), DATA, 40, 0) for _ in range(2))
    for number in (35, 3, 17):
        expected, got = one[number], other[number]
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert not torch.equal(one[3]["inputs"], TrainBatches(store, splits, Clock.flat(), DATA, 40, 1)[3]["inputs"])


def changed_after(store: SeriesStore, row: int, folder: Path) -> SeriesStore:
    """The same series, other observations from ``row`` of each on."""
    other = SeriesStore.open(store.path)
    target = np.array(store.target)
    for i in range(len(store)):
        part = store.series(i)
        target[part.start + row : part.stop] *= np.random.default_rng(i).uniform(0.5, 2.0, part.stop - part.start - row)
    other.target = target
    return other


@pytest.mark.parametrize("batches", [TrainBatches, ValidationBatches])
def test_no_batch_knows_what_comes_after_its_part(store: SeriesStore, tmp_path: Path, batches: type) -> None:
    splits = make_splits(store, DATA)
    end = int(splits.train_ends.min() if batches is TrainBatches else splits.validation_ends.min())
    other = changed_after(store, int(splits.validation_ends.max()), tmp_path)
    if batches is TrainBatches:
        other = changed_after(store, int(splits.train_ends.max()), tmp_path)
        sets = [TrainBatches(s, splits, Clock.flat(), DATA, 30, 0) for s in (store, other)]
    else:
        sets = [ValidationBatches(s, splits, Clock.flat(), DATA) for s in (store, other)]
    assert end > 0
    for number in range(min(len(sets[0]), 30)):
        one, two = (s[number] for s in sets)
        assert all(torch.equal(one[name], two[name]) for name in one), number


def test_inputs_know_nothing_of_the_rows_behind_them(store: SeriesStore, tmp_path: Path) -> None:
    splits = make_splits(store, DATA)
    rng = np.random.default_rng(0)
    for cutoff in rng.integers(30, 150, 6):
        piece = Piece(0, int(cutoff) - 20, int(cutoff) + 20, int(splits.train_ends[0]))
        batches = [
            Windows(s, Clock.flat(), 64, 2).batch([[piece]])
            for s in (store, changed_after(store, int(cutoff) + 1, tmp_path))
        ]
        for name in ("inputs", "cells", "known", "spread"):
            assert torch.equal(batches[0][name][0, :21], batches[1][name][0, :21]), name
        assert not torch.equal(batches[0]["inputs"][0, 21:40], batches[1]["inputs"][0, 21:40])
