"""Training runs: what they leave, how they go on, what they refuse, and that they know nothing of what comes later."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from domains.checkpoint import Terminated
from domains.config import TrainerConfig
from domains.errors import UserError
from domains.folder import RunFolder, read_json
from domains.runlog import read_metrics
from domains.settings import to_dict, write_yaml
from domains.timeseries.config import HeadConfig, TrainConfig
from domains.timeseries.store import prepare_store
from domains.timeseries.train import train
from domains.timeseries.trained import FILES
from tests.timeseries.conftest import small_config
from tests.timeseries.panels import COVARIATES, TEST, VALIDATION, panel, panel_config

SPEED = "train/steps_per_second"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("panel") / "panel.parquet"
    panel().write_parquet(path)
    return path


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """What was measured, without what differs from run to run: times."""
    every = read_metrics(run_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in ("time", SPEED)} for row in every]


def result(run_dir: Path) -> tuple[Any, ...]:
    """Rows, metrics and the files of the model folder, for comparison to the bit."""
    metrics = read_json(run_dir / "model" / "metrics.json")
    metrics.pop(SPEED)
    names = ("model.safetensors", "scaler.json", "calibration.json", "data.json")
    return rows(run_dir), metrics, [(run_dir / "model" / name).read_bytes() for name in names]


class At(Callback):
    """Calls ``act`` at the start of a batch, counted from 1."""

    def __init__(self, act: Any, batch: int) -> None:
        self.act, self.batch = act, batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.batch:
            self.act()


def crash() -> None:
    raise RuntimeError("the power went off")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(prices: Path, trained: Path) -> tuple[TrainConfig, tuple[Any, ...]]:
    """A configuration, and what an uninterrupted run of it comes to."""
    return small_config(prices), result(trained.parent)


def test_a_run_in_segments_ends_where_the_plain_run_does(prices: Path, trained: Path, tmp_path: Path) -> None:
    config = small_config(prices)
    cut = replace(config, trainer=replace(config.trainer, segment_length=24, border_states="cpu"))
    done = train(cut, tmp_path / "run", progress=False)
    plain, found = (load_file(folder / "model.safetensors") for folder in (trained, done.model_dir))
    assert any(not torch.equal(found[name], tensor) for name, tensor in plain.items())  # it was cut
    assert all((found[name] - tensor).abs().max() < 1e-3 for name, tensor in plain.items())


def test_a_run_leaves_its_record(prices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = train(small_config(prices), tmp_path / "run", command="the command")
    assert done.finished
    found = {str(path.relative_to(done.run_dir)) for path in done.run_dir.rglob("*") if path.is_file()}
    checkpoints = {"checkpoints/step-00000004.ckpt", "checkpoints/step-00000006.ckpt"}
    model = {f"model/{name}" for name in FILES}
    assert found == {"config.yaml", "run.json", "splits.json", "metrics.jsonl"} | model | checkpoints
    info = RunFolder(done.run_dir).info()
    assert (info["domain"], info["status"]) == ("timeseries", "finished")
    assert info["sessions"][0]["command"] == "the command"
    measured = rows(done.run_dir)
    assert [row["step"] for row in measured if "validation/loss" in row] == [3, 6]
    assert {"train/loss", "train/learning_rate", "train/steps"} <= measured[0].keys()
    said = capsys.readouterr().err
    assert "prices.parquet: 4 series, 1,684 rows" in said
    assert "validation from 2014-12-01T00:00:00, test from 2015-03-01T00:00:00; 2 steps ahead" in said


def test_training_lowers_the_loss(table: Path, tmp_path: Path) -> None:
    """On the training part itself, which a model of this size can learn by heart: the loss is the right way round."""
    trainer = TrainerConfig(max_steps=60, validate_every=60, checkpoint_every=60, log_every=20, accelerator="cpu")
    trainer.optimizer.learning_rate = 1e-2
    train(replace(panel_config(table), trainer=trainer), tmp_path / "run", progress=False)
    losses = [row["train/loss"] for row in rows(tmp_path / "run") if "train/loss" in row]
    assert losses[-1] < losses[0] - 0.03


@pytest.mark.parametrize("step", [3, 6])
def test_a_crashed_run_goes_on_to_the_bit(whole: Any, tmp_path: Path, step: int) -> None:
    config, expected = whole
    with pytest.raises(RuntimeError, match="power"):
        train(config, tmp_path / "run", callbacks=[At(crash, step)], progress=False)
    assert RunFolder(tmp_path / "run").info()["status"] == "failed"
    train(config, tmp_path / "run", resume=True, progress=False)
    assert result(tmp_path / "run") == expected
    assert RunFolder(tmp_path / "run").info()["status"] == "finished"


def test_sigterm_saves_and_the_run_goes_on_to_the_bit(whole: Any, tmp_path: Path) -> None:
    config, expected = whole
    with pytest.raises(Terminated) as stop:
        train(config, tmp_path / "run", callbacks=[At(terminate, 5)], progress=False)
    assert stop.value.step == 5
    train(config, tmp_path / "run", resume=True, progress=False)
    assert result(tmp_path / "run") == expected


def test_resuming_keeps_to_the_settings_and_the_series_of_the_run(
    prices: Path, table: Path, trained: Path, tmp_path: Path
) -> None:
    config = small_config(prices)
    run = trained.parent
    before = result(run)
    with pytest.raises(UserError, match=r"config\.yaml: seed is 0 in this run and 1 now"):
        train(replace(config, seed=1), run, resume=True, progress=False)
    with pytest.raises(UserError, match=r"data\.test is '2015-03-01' in this run"):
        train(replace(config, data=replace(config.data, test="0.2")), run, resume=True, progress=False)
    pl.read_parquet(prices).with_columns(pl.col("y") * 2).write_parquet(tmp_path / "doubled.parquet")
    other = replace(config.data, path=str(tmp_path / "doubled.parquet"))
    with pytest.raises(UserError, match=r"doubled\.parquet: is not the table of series that this run began with"):
        train(replace(config, data=other), run, resume=True, progress=False)
    assert result(run) == before
    with pytest.raises(UserError, match="is no run folder"):
        train(config, tmp_path / "none", resume=True, progress=False)


def test_a_resumed_run_may_find_its_table_elsewhere(whole: Any, prices: Path, tmp_path: Path) -> None:
    config, expected = whole
    with pytest.raises(RuntimeError, match="power"):
        train(config, tmp_path / "run", callbacks=[At(crash, 4)], progress=False)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "prices.parquet").write_bytes(prices.read_bytes())
    moved = replace(config.data, path=str(tmp_path / "moved" / "prices.parquet"), stores=str(tmp_path / "stores"))
    train(replace(config, data=moved), tmp_path / "run", resume=True, progress=False)
    assert result(tmp_path / "run") == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"horizon": 0}}, r"^data\.horizon=0: must be at least 1"),
        ({"data": {"embargo": -1}}, r"^data\.embargo=-1: must be at least 0"),
        ({"data": {"window": 4}}, r"^data\.window=4: must be at least 8"),
        ({"data": {"tokens_per_step": 0}}, r"^data\.tokens_per_step=0: must be at least 1"),
        ({"data": {"validation_tokens": 0}}, r"^data\.validation_tokens=0: must be at least 1"),
        ({"data": {"workers": 10**6}}, r"^data\.workers=1000000: must be at most .* processors of this machine"),
        ({"data": {"test": "soon"}}, r"^data\.test=soon: is neither a stamp .* nor a share"),
        ({"data": {"test": "2031-01-01"}}, r"^panel\.parquet: the test part holds no forecast of 2 steps"),
        ({"data": {"validation": "2013-03-05"}}, r"^panel\.parquet: the training part holds no forecast of 2 steps"),
        ({"data": {"kind": "share"}}, r"^data\.kind=share: must be one of price"),
        ({"data": {"store": "none"}}, r"^none: is no prepared table"),
        ({"data": {"path": "none.csv"}}, r"^none\.csv: no such file"),
        ({"data": {"past": ["volumes"]}}, r"panel\.parquet: has no column 'volumes' \(data\.past\); did you mean"),
        ({"head": {"kind": "cauchy"}}, r"head\.kind=cauchy: must be one of student_t, mixture, quantiles, normal"),
        ({"head": {"loss": "qlike"}}, r"head\.loss=qlike: with head\.kind=student_t it must be one of nll, crps"),
        ({"head": {"kind": "mixture", "components": 0}}, r"head\.components=0: a mixture has at least 1"),
        ({"trainer": {"max_steps": 0}}, r"^trainer\.max_steps=0: must be at least 1"),
        ({"seed": 2**63}, r"^seed=9223372036854775808: must lie between"),
    ],
)
def test_a_mistake_leaves_nothing_behind(table: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    config = panel_config(table)
    for name, values in settings.items():
        new = replace(getattr(config, name), **values) if isinstance(values, dict) else values
        config = replace(config, **{name: new})
    with pytest.raises(UserError, match=message) as error:
        train(config, tmp_path / "run", progress=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


HEADS = [
    HeadConfig("student_t", "nll"),
    HeadConfig("student_t", "crps", mean=False),
    HeadConfig("mixture", "nll", components=2),
    HeadConfig("mixture", "crps"),
    HeadConfig("quantiles"),
    HeadConfig("normal", "nll"),
    HeadConfig("normal", "qlike", mean=False),
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{head.kind}-{head.loss}")
@pytest.mark.parametrize("horizon", [1, 3])
def test_every_head_trains(table: Path, tmp_path: Path, head: HeadConfig, horizon: int) -> None:
    config = panel_config(table, data={"horizon": horizon})
    trainer = replace(config.trainer, max_steps=2, validate_every=2)
    done = train(replace(config, head=head, trainer=trainer), tmp_path / "run", progress=False)
    losses = [row[key] for row in rows(done.run_dir) for key in row if key.endswith("/loss")]
    assert len(losses) == 3
    assert np.isfinite(losses).all()


def saved(config: TrainConfig, folder: Path) -> dict[str, bytes]:
    model = train(config, folder, progress=False).model_dir
    return {path.name: path.read_bytes() for path in model.iterdir()}


def altered(table: Path, folder: Path, since: str, until: str = "2100-01-01") -> Path:
    """The panel with other prices and other past covariates from one day to before another, in a folder of its own."""
    later = (pl.col("ds") >= pl.lit(since).str.to_date()) & (pl.col("ds") < pl.lit(until).str.to_date())
    frame = pl.read_parquet(table)
    noise = pl.Series(np.random.default_rng(7).uniform(0.5, 2.0, len(frame)))
    changes = [
        pl.when(later).then(pl.col(name) * noise).otherwise(pl.col(name)).alias(name) for name in ("y", "volume")
    ]
    folder.mkdir()
    frame.with_columns(changes).write_parquet(folder / table.name)
    return folder / table.name


def test_no_weight_scaler_or_calibration_knows_the_test_part(table: Path, tmp_path: Path) -> None:
    one = saved(panel_config(table), tmp_path / "one")
    other = saved(panel_config(altered(table, tmp_path / "later", TEST)), tmp_path / "other")
    for name in ("model.safetensors", "scaler.json", "calibration.json"):
        assert one[name] == other[name], name
    assert rows(tmp_path / "one") == rows(tmp_path / "other")
    assert one["data.json"] != other["data.json"]  # they were trained on different tables


def test_no_weight_or_scaler_knows_the_validation_part(table: Path, tmp_path: Path) -> None:
    """But for which step's weights are best, and there is but one validation here."""
    one = saved(panel_config(table), tmp_path / "one")
    other = saved(panel_config(altered(table, tmp_path / "later", VALIDATION)), tmp_path / "other")
    assert one["model.safetensors"] == other["model.safetensors"]
    assert one["scaler.json"] == other["scaler.json"]
    assert one["calibration.json"] != other["calibration.json"]


def test_the_training_part_decides_all(table: Path, tmp_path: Path) -> None:
    """Otherwise the tests above say nothing."""
    one = saved(panel_config(table), tmp_path / "one")
    other = saved(panel_config(altered(table, tmp_path / "early", "2013-08-01", VALIDATION)), tmp_path / "other")
    assert all(one[name] != other[name] for name in ("model.safetensors", "scaler.json", "calibration.json"))


@pytest.mark.parametrize("column", [name for names in COVARIATES.values() for name in names])
def test_every_covariate_is_read(table: Path, tmp_path: Path, column: str) -> None:
    one = saved(panel_config(table), tmp_path / "one")
    (tmp_path / "changed").mkdir()
    other = pl.col("size") + 5 if column == "size" else pl.int_range(pl.len()).sin()
    pl.read_parquet(table).with_columns(other.alias(column)).write_parquet(tmp_path / "changed" / table.name)
    two = saved(panel_config(tmp_path / "changed" / table.name), tmp_path / "two")
    assert one["model.safetensors"] != two["model.safetensors"]


BARE = """
import importlib.machinery, runpy, sys

find = importlib.machinery.PathFinder.find_spec
absent = {"hydra", "omegaconf", "mlflow", "Bio", "polars", "pyarrow", "pandas", "arch", "statsforecast"}
importlib.machinery.PathFinder.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)
sys.argv[0] = "train"
runpy.run_module("domains.timeseries.train", run_name="__main__")
"""


def test_a_machine_that_only_trains_needs_few_packages(table: Path, tmp_path: Path) -> None:
    config = panel_config(table)
    config.trainer.threads = 1  # another number of threads rounds in another way, and this process may have any
    store = prepare_store(config.data, progress=False)
    write_yaml(tmp_path / "train.yaml", to_dict(replace(config, data=replace(config.data, store=str(store.path)))))
    done = subprocess.run(
        [sys.executable, "-c", BARE, "--config", "train.yaml", "--run-dir", "run", "--no-progress"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "model: run/model\n", "")
    train(config, tmp_path / "here", progress=False)
    there = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert there == (tmp_path / "here" / "model" / "model.safetensors").read_bytes()
