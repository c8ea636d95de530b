"""trainer.segment_length: the same training with the memory of one segment, in each domain and through Lightning."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import Tensor

import domains.task
from domains.config import TrainerConfig
from domains.errors import UserError
from domains.genomics.config import TrainConfig
from domains.genomics.module import CausalTask
from domains.genomics.store import GenomeStore
from domains.genomics.train import train
from domains.runlog import read_metrics
from domains.session import run_config
from domains.task import Score, Task
from domains.timeseries.config import HeadConfig
from domains.timeseries.model import Forecaster, Shape
from domains.timeseries.module import ForecastTask
from domains.trainer import check_trainer
from mamba_core import BackboneConfig, Capabilities, CausalLM, Mamba2Config
from mamba_core.segments import in_segments
from tests.genomics.tiny import tiny_config, tiny_store
from tests.toy import ToyTask, build_model

MIXED = BackboneConfig(d_model=16, n_layers=2, mamba2=Mamba2Config(d_state=8, headdim=8))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GenomeStore:
    return tiny_store(tmp_path_factory.mktemp("genome"))


class Calls(Callback):
    """Notes the length of every piece that the model reads while it trains."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def on_train_start(self, trainer: object, pl_module: object) -> None:
        assert isinstance(pl_module, Task)
        pl_module.model.register_forward_hook(
            lambda model, args, output: self.lengths.append(args[0].shape[1]) if model.training else None
        )


def trained(config: TrainConfig, folder: Path, *callbacks: Callback) -> tuple[dict[str, Tensor], list[dict]]:
    """Weights and rows of a run."""
    result = train(config, folder, progress=False, callbacks=callbacks)
    return load_file(result.model_dir / "model.safetensors"), read_metrics(folder / "metrics.jsonl")


def drop_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("time", "train/bases_per_second")} for row in rows]


def test_a_run_in_segments_ends_where_the_plain_run_does(store: GenomeStore, tmp_path: Path) -> None:
    """Accumulation, clipping, warm-up windows shorter than a segment, health, validation."""
    calls = Calls()
    settings = {"accumulate": 2, "gradient_clip": 0.5, "keep": "last"}
    plain = tiny_config(store, **settings)
    cut = tiny_config(store, **settings, segment_length=28, border_states="cpu")
    want, rows = trained(plain, tmp_path / "plain")
    got, segment_rows = trained(cut, tmp_path / "cut", calls)
    for name, weight in want.items():
        assert (got[name] - weight).norm() <= 1e-6 * weight.norm(), name
    assert set(calls.lengths) == {16, 28, 8}  # windows of 16, and of 64 in segments
    assert len(rows) == len(segment_rows)
    health = "health/layer01/grad_norm"
    assert any(health in row for row in rows)
    for one, other in zip(rows, segment_rows, strict=True):
        assert one.keys() == other.keys()
        assert {k: one[k] for k in one if "loss" in k or "norm" in k} == pytest.approx(
            {k: other[k] for k in one if "loss" in k or "norm" in k}, rel=1e-4
        )
    assert run_config(tmp_path / "cut", TrainConfig).trainer.segment_length == 28


def test_a_segment_as_long_as_the_window_changes_no_bit(store: GenomeStore, tmp_path: Path) -> None:
    want, rows = trained(tiny_config(store, max_steps=4), tmp_path / "plain")
    got, others = trained(tiny_config(store, max_steps=4, segment_length=64), tmp_path / "cut")
    assert drop_times(rows) == drop_times(others)
    assert all(torch.equal(got[name], weight) for name, weight in want.items())


def test_half_precision_trains_in_segments(store: GenomeStore, tmp_path: Path) -> None:
    settings = {"precision": "bf16-mixed", "max_steps": 6, "log_every": 1, "keep": "last"}
    _, rows = trained(tiny_config(store, **settings), tmp_path / "plain")
    _, others = trained(tiny_config(store, **settings, segment_length=20), tmp_path / "cut")
    losses = [[row["train/loss"] for row in found if "train/loss" in row] for found in (rows, others)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-2)
    assert losses[1][-1] < losses[1][0]


def test_the_options_reach_the_core(store: GenomeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []

    def noted(*args: object, **options: object) -> object:
        seen.append(options)
        return in_segments(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(domains.task, "in_segments", noted)
    config = tiny_config(store, max_steps=3, segment_length=20, truncate_every=2, border_states="cpu")
    trained(config, tmp_path / "run")
    assert seen
    assert all(options == {"length": 20, "truncate_every": 2, "border_states": "cpu"} for options in seen)


@pytest.mark.parametrize("training", [True, False])
def test_forecasts_in_segments_score_the_same(training: bool) -> None:
    """A packed batch; training has gradients, validation none."""
    torch.manual_seed(0)
    shape = Shape(("volume",), (), (), 2)
    model = Forecaster(shape, MIXED, HeadConfig()).double()
    for weight in (model.out.weight, model.direct.weight):
        torch.nn.init.normal_(weight, std=0.3)
    b, l, h = 2, 50, shape.horizon
    batch = {
        "inputs": torch.randn(b, l, shape.features, dtype=torch.float64),
        "cells": torch.randint(0, 168, (b, l, h)),
        "known": torch.randn(b, l, h, shape.known, dtype=torch.float64),
        "target": torch.randn(b, l, h, dtype=torch.float64),
        "weight": torch.rand(b, l, h, dtype=torch.float64),
        "seq_idx": torch.tensor([[0] * 23 + [1] * 20 + [-1] * 7, [0] * 50]),
    }
    found = []
    for length in (None, 16):
        model.zero_grad()
        task = ForecastTask(model, TrainerConfig(segment_length=length))
        with torch.set_grad_enabled(training):
            score = task._score(batch, training=training)
        grads = {}
        if training:
            (score.total / score.weight).backward()
            grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((score, grads))
    (whole, grads), (cut, others) = found
    # The head's loss is computed in float32.
    assert (cut.total - whole.total).abs() <= 1e-6 * whole.total.abs()
    assert (cut.weight - whole.weight).abs() <= 1e-9 * whole.weight
    assert grads.keys() == others.keys()
    assert all((others[name] - grad).norm() <= 1e-5 * grad.norm() for name, grad in grads.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segment_length": 0}, "trainer.segment_length=0: must be at least 1"),
        ({"segment_length": -5}, "trainer.segment_length=-5: must be at least 1"),
        ({"segment_length": 8, "truncate_every": 0}, "trainer.truncate_every=0: must be at least 1"),
        ({"truncate_every": 2}, "trainer.truncate_every=2: needs trainer.segment_length"),
        ({"border_states": "disk"}, "trainer.border_states=disk: must be one of device, cpu"),
    ],
)
def test_settings_without_sense_are_named(settings: dict, message: str) -> None:
    check_trainer(TrainerConfig(segment_length=8, truncate_every=2, border_states="cpu"))
    with pytest.raises(UserError, match=message):
        check_trainer(TrainerConfig(**settings))


def test_what_cannot_be_cut_is_refused_before_anything_is_written(
    store: GenomeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name: a mixer that looks ahead, and a task that was not written for it."""
    with pytest.raises(UserError, match=r"trainer\.segment_length=8: ToyTask does not train in segments"):
        ToyTask(build_model(), TrainerConfig(segment_length=8))
    model = CausalLM(16, MIXED)
    mixer = model.backbone.layers[1].mixer
    monkeypatch.setattr(
        type(mixer), "capabilities", Capabilities(causal=False, streams=False, steps=False, packs=False)
    )
    with pytest.raises(
        UserError, match=r"trainer\.segment_length=8: backbone\.layers\.0\.mixer \(Mamba2\) is not caus"
    ):
        CausalTask(model, TrainerConfig(segment_length=8))
    CausalTask(model, TrainerConfig())
    config = tiny_config(store, segment_length=8)
    with pytest.raises(UserError, match="a causal model reads in one direction"):  # told before segments are
        train(replace(config), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_scores_of_segments_add_up_without_a_known_base() -> None:
    """A segment of weight 0 is no division by 0, and its gradients are zeros."""
    task = CausalTask(CausalLM(16, MIXED), TrainerConfig(segment_length=4))
    targets = torch.full((1, 12), -100)
    targets[:, 8:] = 7
    batch = {"inputs": torch.full((1, 12), 7), "targets": targets, "weights": torch.ones(1, 12)}
    score = task._score(batch, training=True)
    assert isinstance(score, Score)
    assert score.weight == 4
    score.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.model.parameters())
