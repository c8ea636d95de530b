"""Batches: whole clips and windows of levels, each a pure function of the seed and its number."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from domains.audio.config import AugmentConfig, DataConfig
from domains.audio.data import (
    AudioDataModule,
    TrainClips,
    ValidationClips,
    check_data,
    class_weights,
)
from domains.audio.splits import make_splits
from domains.audio.store import AudioStore
from domains.audio.tokens import SILENCE
from domains.audio.windows import IGNORE, Piece, TrainWindows, ValidationWindows, make_windows
from domains.batches import Batch
from domains.errors import UserError
from tests.audio.sounds import make_store

WINDOWS = DataConfig(window=1000, tokens_per_step=4000, validation_tokens=10**9)
CLIPS = DataConfig(tokens_per_step=20_000)
LOUD = AugmentConfig(gain_db=6, noise=0.5, speed=0.1, shift_seconds=0.05, band_limit=0.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    return make_store(tmp_path_factory.mktemp("clips"), {"cat": 9, "dog": 3})


def equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_windows_hold_levels_and_what_came_before_them(store: AudioStore) -> None:
    levels = store.tokens(1).astype(np.int64)
    rows = [[Piece(1, 0, 5), Piece(1, 100, 103)], [Piece(1, 7, 16)]]
    batch = make_windows(store, rows, 10, None)
    assert {name: (values.dtype, values.shape) for name, values in batch.items()} == dict.fromkeys(
        ("inputs", "targets", "seq_idx"), (torch.int64, (2, 10))
    )
    assert batch["targets"][0].tolist() == [*levels[:5], *levels[100:103], IGNORE, IGNORE]
    assert batch["inputs"][0].tolist() == [SILENCE, *levels[:4], *levels[99:102], SILENCE, SILENCE]
    assert batch["seq_idx"].tolist() == [[0] * 5 + [1] * 3 + [-1] * 2, [0] * 9 + [-1]]
    assert "seq_idx" not in make_windows(store, [[Piece(1, 7, 17)], [Piece(0, 0, 10)]], 10, None)
    louder = make_windows(store, rows, 10, -3.0)
    assert (louder["targets"] - SILENCE).abs().sum() > (batch["targets"] - SILENCE).abs().sum()


def test_each_pass_of_windows_holds_every_sample_once(store: AudioStore) -> None:
    clips = [0, 2, 5, 7]
    batches = TrainWindows(store, clips, WINDOWS, 100, seed=3)
    total = sum(store.clips[clip].length for clip in clips)
    seen = torch.cat([batch["targets"][batch["targets"] != IGNORE] for batch in _first_pass(batches)])
    assert len(seen) == total
    expected = np.bincount(np.concatenate([store.tokens(clip) for clip in clips]), minlength=256)
    assert np.array_equal(np.bincount(seen.numpy(), minlength=256), expected)


def _first_pass(batches: TrainWindows) -> list[Batch]:
    found, samples = [], 0
    total = sum(batches._store.clips[clip].length for clip in batches._clips)
    while samples < total:
        found.append(batches[len(found)])
        samples += int((found[-1]["targets"] != IGNORE).sum())
    return found


@pytest.mark.parametrize("kind", [TrainWindows, TrainClips])
def test_a_batch_is_a_function_of_seed_and_number(store: AudioStore, kind: type) -> None:
    data = replace(WINDOWS, augment=LOUD)
    batches = kind(store, range(12), data, 200, seed=1)
    for number in (150, 0, 3):
        assert equal(batches[number], kind(store, range(12), data, 999, seed=1)[number])
    assert not equal(batches[0], kind(store, range(12), data, 200, seed=2)[0])
    assert not equal(batches[0], batches[150])
    assert equal(pickle.loads(pickle.dumps(batches))[7], batches[7])
    assert len(batches) == 200
    with pytest.raises(IndexError):
        batches[200]


def test_validation_windows_are_all_or_spread(store: AudioStore) -> None:
    clips = [0, 1, 2, 3]
    total = sum(store.clips[clip].length for clip in clips)
    every = ValidationWindows(store, clips, WINDOWS)
    assert sum(int((every[i]["targets"] != IGNORE).sum()) for i in range(len(every))) == total
    some = ValidationWindows(store, clips, replace(WINDOWS, validation_tokens=total // 3))
    seen = sum(int((some[i]["targets"] != IGNORE).sum()) for i in range(len(some)))
    assert 0.15 * total < seen < 0.5 * total
    with pytest.raises(IndexError):
        every[len(every)]


def test_each_pass_of_clips_holds_every_clip_once_whole_and_padded(store: AudioStore) -> None:
    batches = TrainClips(store, range(12), CLIPS, 100, seed=0, multiple=64)
    clips: list[int] = []
    for number in range(100):
        batch = batches[number]
        b, l = batch["inputs"].shape
        assert b == 1 or b * l <= CLIPS.tokens_per_step + 64 * b
        assert l % 64 == 0
        for row, clip in enumerate(batch["clips"].tolist()):
            length = store.clips[clip].length
            assert (batch["seq_idx"][row] == 0).sum() == length
            assert (batch["seq_idx"][row, length:] == -1).all()
            assert not batch["inputs"][row, length:].any()
            np.testing.assert_array_equal(batch["inputs"][row, :length].numpy(), store.samples(clip))
            assert store.labels[batch["labels"][row]] == store.clips[clip].label
        clips += batch["clips"].tolist()
        if len(clips) == 12:
            break
    assert sorted(clips) == list(range(12))


def test_long_clips_are_cut_in_training_from_a_place_drawn_anew(store: AudioStore) -> None:
    data = replace(CLIPS, max_seconds=0.05)
    batches = TrainClips(store, [0], data, 100, seed=0)
    first, second = batches[0]["inputs"][0], batches[1]["inputs"][0]
    assert first.shape == second.shape == (800,)
    assert not torch.equal(first, second)
    assert torch.equal(ValidationClips(store, [0], data)[0]["inputs"][0], torch.from_numpy(store.samples(0, 0, 800)))


def test_augmentation_is_off_in_validation_and_new_in_each_epoch(store: AudioStore) -> None:
    data = replace(CLIPS, augment=LOUD)
    validation = ValidationClips(store, [0], data)
    assert torch.equal(validation[0]["inputs"][0], torch.from_numpy(store.samples(0)))
    batches = TrainClips(store, [0], data, 100, seed=0)
    first, second = batches[0]["inputs"][0], batches[1]["inputs"][0]
    assert first.shape != second.shape or not torch.equal(first, second)
    assert len(validation) == 1


def test_classes_weigh_the_same_in_training(store: AudioStore) -> None:
    weights = class_weights(store, range(12), balance=True)
    assert weights[:9].sum() == pytest.approx(weights[9:].sum())
    assert weights.mean() == pytest.approx(1)
    assert set(class_weights(store, range(12), balance=False)) == {1.0}
    assert TrainClips(store, [0, 9, 1], CLIPS, 9, 0)[0]["targets"].sum() == pytest.approx(3)
    assert ValidationClips(store, [0, 9, 1], CLIPS)[0]["targets"].sum(1).tolist() == [1.0] * 3


def test_the_data_module(store: AudioStore) -> None:
    splits = make_splits(store, DataConfig(), labelled=True)
    data = replace(WINDOWS, validation_tokens=5000)
    windows = AudioDataModule(store, splits, data, True, max_steps=5, accumulate=2, seed=0)
    assert len(windows.train_batches) == 10
    assert next(iter(windows.val_dataloader()))["targets"].shape[1] == 1000
    clips = AudioDataModule(store, splits, data, False, max_steps=5, accumulate=1, seed=0, multiple=16)
    assert next(iter(clips.train_dataloader()))["inputs"].shape[1] % 16 == 0
    assert {store.clips[i].name for batch in clips.val_dataloader() for i in batch["clips"].tolist()} == set(
        splits.validation
    )


@pytest.mark.parametrize(
    "settings", [{"window": 1}, {"max_seconds": 0}, {"tokens_per_step": 0}, {"level_db": 3.0}, {"workers": -1}]
)
def test_values_without_sense_are_one_line(settings: dict) -> None:
    check_data(DataConfig())
    with pytest.raises(UserError, match=rf"data\.{next(iter(settings))}="):
        check_data(DataConfig(**settings))
