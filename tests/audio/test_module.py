"""The tasks: what a batch is scored at, in segments too, and what training draws."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from domains.audio.config import AugmentConfig, DataConfig, TrainConfig
from domains.audio.data import TrainClips, ValidationClips
from domains.audio.module import ClassifyTask, GenerateTask, make_task
from domains.audio.store import AudioStore
from domains.audio.trained import CLASSIFY, GENERATE, SPECTROGRAM, Sound, build_model
from domains.audio.windows import IGNORE, Piece, make_windows
from domains.config import TrainerConfig
from domains.errors import UserError
from tests.audio.recipes import small_config

LABELS = ("backwards", "forwards")


def task_of(kind: str, trainer: TrainerConfig | None = None) -> GenerateTask | ClassifyTask:
    config = small_config(kind)
    if trainer is not None:
        config = replace(config, trainer=trainer)
    torch.manual_seed(0)
    model = build_model(config, Sound(kind, 16000, () if kind == GENERATE else LABELS, None))
    task = make_task(model, config)
    assert isinstance(task, GenerateTask | ClassifyTask)
    return task


def randomise(task: GenerateTask | ClassifyTask) -> None:
    """Heads start at 0: give them something to say."""
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))


def test_bits_per_sample_are_those_of_the_levels_that_came(prompts: AudioStore) -> None:
    task = task_of(GENERATE)
    randomise(task)
    batch = make_windows(prompts, [[Piece(0, 0, 300), Piece(1, 5, 105)], [Piece(2, 64, 576)]], 512, None)
    score = task.score(batch, training=True)
    logits, _ = task.model(batch["inputs"], seq_idx=batch["seq_idx"])
    log_p = logits.double().log_softmax(-1)
    expected = [
        -log_p[b, t, level]
        for b, row in enumerate(batch["targets"].tolist())
        for t, level in enumerate(row)
        if level != IGNORE
    ]
    assert int(score.weight) == len(expected) == 912
    assert score.total.item() == pytest.approx(torch.stack(expected).sum().item(), rel=1e-5)
    assert task.describe(math.log(2) * 4, "validation")["validation/bits_per_sample"] == pytest.approx(4)
    assert task.size(batch) == (1024, 512)


def test_generators_train_in_segments_with_the_same_gradient(prompts: AudioStore) -> None:
    """Windows with several documents and padding among them, cut where no block of the stages ends."""
    batch = make_windows(prompts, [[Piece(0, 0, 700), Piece(1, 5, 105)], [Piece(2, 64, 1024)]], 1024, None)
    found = {}
    for length in (None, 250):
        task = task_of(GENERATE, TrainerConfig(segment_length=length)).double()
        randomise(task)
        score = task._score(batch, training=True)
        (score.total / score.weight).backward()
        gradients = {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}
        found[length] = (float(score.total), float(score.weight), gradients)
    whole, cut = found[None], found[250]
    assert cut[:2] == pytest.approx(whole[:2], rel=1e-6)  # logits go to float32 before the loss
    assert cut[2].keys() == whole[2].keys() == dict(task_of(GENERATE).model.named_parameters()).keys()
    for name, gradient in whole[2].items():
        torch.testing.assert_close(cut[2][name], gradient, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", [CLASSIFY, SPECTROGRAM])
def test_classifiers_do_not_train_in_segments(kind: str) -> None:
    with pytest.raises(UserError, match="segment_length=250: ClassifyTask does not train in segments"):
        task_of(kind, TrainerConfig(segment_length=250))


@pytest.mark.parametrize("kind", [CLASSIFY, SPECTROGRAM])
def test_a_classifier_is_scored_by_weighted_cross_entropy(arrow: AudioStore, kind: str) -> None:
    task = task_of(kind).eval()
    randomise(task)
    data = DataConfig(tokens_per_step=40_000)
    batch = ValidationClips(arrow, [0, 1, 60], data)[0]
    assert len(batch["labels"]) == 3
    batch["targets"] = batch["targets"] * torch.tensor([[1.0], [2.0], [0.5]])
    task.on_validation_epoch_start()
    score = task.score(batch, training=False)
    logits, _ = task.model(batch["inputs"], seq_idx=batch["seq_idx"])
    nats = -logits.double().log_softmax(-1)[range(3), batch["labels"]]
    assert float(score.weight) == 3.5
    assert float(score.total) == pytest.approx(float(nats @ torch.tensor([1.0, 2.0, 0.5]).double()), rel=1e-5)
    right = int((logits.argmax(1) == batch["labels"]).sum())
    assert task.describe(1.0, "validation")["validation/accuracy"] == pytest.approx(right / 3)
    assert task.describe(1.0, "train") == {"train/loss": 1.0}


def test_smoothed_labels_spread_over_all_classes_in_training_alone(arrow: AudioStore) -> None:
    config = small_config(CLASSIFY)
    config.task.label_smoothing = 0.2
    torch.manual_seed(0)
    task = make_task(build_model(config, Sound(CLASSIFY, 16000, LABELS, None)), config).eval()
    assert isinstance(task, ClassifyTask)
    randomise(task)
    batch = ValidationClips(arrow, [0, 60], DataConfig(tokens_per_step=40_000))[0]
    plain, smooth = (task.score(batch, training=training) for training in (False, True))
    logits, _ = task.model(batch["inputs"], seq_idx=batch["seq_idx"])
    even = -logits.double().log_softmax(-1).mean(1).sum()
    assert float(smooth.total) == pytest.approx(0.8 * float(plain.total) + 0.2 * float(even), rel=1e-5)


def test_a_clip_that_sounds_along_shares_the_label(arrow: AudioStore) -> None:
    """Half of the power is half of the label; what is heard is the sum of both, at the power of one."""
    data = DataConfig(tokens_per_step=60_000, level_db=-25.0, augment=AugmentConfig(mix=1.0))
    batches = TrainClips(arrow, range(len(arrow)), data, 3, seed=1)
    batch = batches[0]
    assert torch.equal(batch["inputs"], batches[0]["inputs"])
    shares = batch["targets"] / batch["targets"].sum(1, keepdim=True)
    assert ((shares > 0.01) & (shares < 0.99)).any()
    torch.testing.assert_close(batch["targets"].sum(1), torch.ones(len(shares)))
    plain = TrainClips(arrow, range(len(arrow)), replace(data, augment=AugmentConfig()), 3, seed=1)[0]
    assert torch.equal(plain["clips"], batch["clips"])
    assert not torch.equal(plain["inputs"], batch["inputs"])
    level = [float(x[real >= 0].square().mean()) for x, real in zip(batch["inputs"], batch["seq_idx"], strict=True)]
    assert np.mean(level) == pytest.approx(10**-2.5, rel=0.25)


def test_settings_that_make_no_sense() -> None:
    config = TrainConfig()
    config.task.generator.widths = [8]
    with pytest.raises(UserError, match=r"generator\.widths"):
        build_model(config, Sound(GENERATE, 16000, (), None))
