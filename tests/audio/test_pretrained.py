"""Going on from a trained generator: its weights and sizes, what is recorded and refused, and resuming without it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from domains.audio.config import EvaluateConfig, TrainConfig
from domains.audio.evaluate import evaluate
from domains.audio.store import AudioStore
from domains.audio.train import train
from domains.audio.trained import load_model, read_record
from domains.errors import UserError
from mamba_core import BackboneConfig
from tests.audio.models import RATE, save, settings
from tests.audio.recipes import small_config
from tests.audio.sounds import noise, store_of, write


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    folder = tmp_path_factory.mktemp("made")
    for i in range(4):
        write(folder / "clips" / f"{i}.wav", noise(0.2 + 0.02 * i, i, rate=RATE), RATE)
    return store_of(folder, rate=RATE)


@pytest.fixture(scope="module")
def voice(store: AudioStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a generator that was trained on clips 0 and 1, and tested on 2."""
    config = of_clips(store, settings("generate"), test="2.wav", validation="3.wav")
    return train(config, tmp_path_factory.mktemp("voice") / "voice", progress=False).model_dir


def of_clips(store: AudioStore, config: TrainConfig, *, test: str, validation: str, steps: int = 2) -> TrainConfig:
    """Training on made clips."""
    data = replace(config.data, store=str(store.path), window=64, tokens_per_step=256, validation_tokens=256)
    data = replace(data, test=[test], validation=[validation])
    trainer = replace(small_config("generate", steps=steps).trainer, checkpoint_every=1, validate_every=2)
    return replace(config, data=data, trainer=trainer)


def onward(store: AudioStore, voice: Path | str, **splits: str) -> TrainConfig:
    """Training that starts from ``voice`` and asks for no sizes."""
    config = replace(TrainConfig(), task=replace(TrainConfig().task, pretrained=str(voice)))
    return of_clips(store, config, **{"test": "2.wav", "validation": "3.wav"} | splits)


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.allclose(first[name], second[name], 0, 1e-20) for name in first)


def test_it_starts_from_the_weights_with_their_sizes_and_says_so(
    store: AudioStore, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = onward(store, voice)
    still.trainer.optimizer.learning_rate = 1e-30
    done = train(still, tmp_path / "still", progress=True)
    assert same(done.model_dir, voice)
    told = capsys.readouterr().err
    assert "weights and sizes from voice (trained on clips)" in told
    assert "warning" not in told  # the split is the same
    moved = train(onward(store, voice), tmp_path / "moved", progress=False)
    assert not same(moved.model_dir, voice)
    record = read_record(moved.model_dir)
    assert record.pretrained["model"] == load_model(voice).hash
    assert (record.config.task.pretrained, record.config.backbone.d_model) == ("voice", 16)
    assert record.config.task.generator.widths == [8, 12]
    assert read_record(voice).pretrained == {}
    assert str(voice.parent) not in (moved.model_dir / "config.yaml").read_text()  # no path travels


def test_held_out_clips_that_it_was_trained_on_are_told_of(
    store: AudioStore, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = train(onward(store, voice, test="0.wav"), tmp_path / "run", progress=True)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "voice was trained on 1 of the test clips and 0 of the validation clips" in line
    found = evaluate(done.model_dir, store, EvaluateConfig(resamples=10), device="cpu", progress=False)
    assert "the model that it started from was trained on 1 of the test clips" in found.table()
    assert found.to_dict()["pretrained"]["trained_on_test"] == 1


class Stop(Callback):
    """Ends a training at the start of a batch, counted from 1."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.batch:
            raise RuntimeError("the power went off")


def test_a_resumed_run_needs_the_folder_no_more(store: AudioStore, voice: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(voice, tmp_path / "copied" / "model"))
    config = onward(store, copied)
    whole = train(config, tmp_path / "whole", progress=False)
    with pytest.raises(RuntimeError, match="power"):
        train(config, tmp_path / "cut", callbacks=[Stop(2)], progress=False)
    shutil.rmtree(copied)
    resumed = train(config, tmp_path / "cut", resume=True, progress=False)
    assert same(resumed.model_dir, whole.model_dir)
    assert (resumed.model_dir / "data.json").read_bytes() == (whole.model_dir / "data.json").read_bytes()


def test_a_run_without_a_checkpoint_starts_from_the_same_weights_alone(
    store: AudioStore, voice: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(voice, tmp_path / "copied" / "model"))
    config = onward(store, copied)
    with pytest.raises(RuntimeError, match="power"):
        train(config, tmp_path / "cut", callbacks=[Stop(1)], progress=False)
    save(copied, "generate", seed=2)
    with pytest.raises(UserError, match="copied holds other weights than this run began with"):
        train(config, tmp_path / "cut", resume=True, progress=False)
    shutil.rmtree(copied)
    with pytest.raises(UserError, match="no such model folder"):
        train(config, tmp_path / "cut", resume=True, progress=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backbone": BackboneConfig(d_model=24)}, r"backbone.d_model=24: .* has 16; leave it out"),
        ({"generator": [8, 8]}, r"task.generator.widths=\[8, 8\]: .* has \[8, 12\]; leave it out"),
        ({"kind": "classify"}, "is for task=generate; leave it out for task=classify"),
        ({"pretrained": "nowhere"}, "nowhere: no such model folder"),
        ({"pretrained": "names"}, "is a model of task=classify; give a generator"),
        ({"store": ""}, "hears 4,000 samples a second and the clips have 16,000"),
        ({"store": "other"}, "hears 4,000 samples a second and the clips have 16,000"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    store: AudioStore, voice: Path, prompts: AudioStore, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    config = onward(store, voice)
    if "backbone" in change:
        config = replace(config, backbone=change["backbone"])
    if "generator" in change:
        config.task.generator.widths = change["generator"]
    if "kind" in change:
        config.task.kind = change["kind"]
    if "pretrained" in change:
        config.task.pretrained = change["pretrained"]
        if change["pretrained"] == "names":
            config.task.pretrained = str(save(tmp_path / "names", "classify"))
    if "store" in change:
        where = str(prompts.path) if change["store"] else ""
        config = replace(config, data=replace(config.data, store=where, rate=16000, test=None, validation=None))
    with pytest.raises(UserError, match=said):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
