"""The training machinery that all domains share: optimizer, run folder, metrics, checkpoints, hardware."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
from torch import nn

from domains.callbacks import Stopwatch
from domains.checkpoint import StopSignals, Terminated, find_checkpoints, newest_checkpoint
from domains.config import OptimizerConfig, TrainerConfig
from domains.errors import UserError
from domains.folder import RunFolder, atomic_folder, read_json, write_json
from domains.hardware import choose_device, describe_hardware, describe_versions, git_commit, peak_flops
from domains.optim import make_optimizer, parameter_groups, warmup_cosine
from domains.runlog import RunLog, read_metrics, truncate_metrics
from domains.task import attention_flops, scan_flops
from domains.trainer import check_trainer
from mamba_core import AttentionConfig, BackboneConfig, CausalLM, Mamba1Config, Mamba2Config


def small_model(pattern=("mamba1", "mamba2"), window=0):
    backbone = BackboneConfig(
        d_model=16,
        n_layers=2,
        pattern=list(pattern),
        mamba1=Mamba1Config(d_state=4),
        mamba2=Mamba2Config(d_state=8, headdim=8),
        attention=AttentionConfig(headdim=8, window=window),
    )
    return CausalLM(16, backbone)


def test_decay_spares_state_space_parameters_norms_and_biases():
    model = small_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, undecayed = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)
    spared = {names[id(p)] for p in undecayed["params"]}
    kept = {names[id(p)] for p in decayed["params"]}
    assert spared | kept == set(names.values())
    assert not spared & kept
    for layer in range(2):
        assert {f"backbone.layers.{layer}.mixer.{name}" for name in ("A_log", "D")} <= spared
        assert {f"backbone.layers.{layer}.mixer.{name}.weight" for name in ("in_proj", "out_proj")} <= kept
    assert model.backbone.layers[0].mixer.A_log.ndim == 2  # by name, not by shape
    assert all("norm" not in name and "bias" not in name for name in kept)
    assert {"embedding.weight", "head.weight"} <= kept


def test_frozen_parameters_are_left_out():
    model = nn.Linear(3, 3)
    model.weight.requires_grad_(False)
    assert [group["weight_decay"] for group in parameter_groups(model, 0.1)] == [0.0]


def test_warmup_rises_in_a_line_and_the_cosine_ends_where_told():
    factor = warmup_cosine(100, 0.1, 0.05)
    assert [factor(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factor(10) == 1.0
    assert factor(55) == pytest.approx(0.05 + 0.95 / 2)
    assert factor(100) == factor(10_000) == pytest.approx(0.05)
    falling = [factor(step) for step in range(10, 101)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_the_extremes_of_warmup_divide_by_nothing(warmup):
    factor = warmup_cosine(4, warmup, 0.0)
    assert all(0 <= factor(step) <= 1 for step in range(6))


def test_the_optimizer_follows_the_configuration():
    optimizer, schedule = make_optimizer(
        small_model(), OptimizerConfig(learning_rate=0.5, warmup_fraction=0.5, betas=(0.8, 0.9)), 4, torch.device("cpu")
    )
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.25, 0.5, 0.5])


def test_scan_flops_count_the_elements_of_the_recurrent_state():
    # 2 layers; mamba1: 32 channels of state 4, mamba2: 32 channels of state 8
    assert scan_flops(small_model(("mamba1",))) == 5 * 2 * 32 * 4
    assert scan_flops(small_model(("mamba1", "mamba2"))) == 5 * (32 * 4 + 32 * 8)


@pytest.mark.parametrize("window", [0, 1, 3, 20])
def test_attention_flops_count_the_keys_that_each_token_sees(window):
    seen = sum(min(t, window or t) for t in range(1, 11)) / 10
    found = attention_flops(small_model(("attention", "mamba2"), window), 10)
    assert found == pytest.approx(2 * 2 * 16 * seen)  # a multiplication and an addition, q k and p v, for each channel
    assert attention_flops(small_model(), 10) == 0


def test_metrics_come_back_as_written_and_nan_becomes_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = RunLog(path)
    log.log_metrics({"loss": 0.1 + 0.2, "bad": math.nan}, step=3)
    assert read_metrics(path)[0]["loss"] == 0.1 + 0.2  # on disk before the log is closed
    log.finalize("success")
    log.log_metrics({"loss": 1.0}, step=4)
    log.finalize("success")
    rows = read_metrics(path)
    assert [(row["step"], row.get("bad")) for row in rows] == [(3, None), (4, None)]
    assert all(row["time"] > 1.7e9 for row in rows)


def test_truncation_drops_later_steps_and_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a": 1.0}\n{"step": 4, "a": 2.0}\n{"step": 4, "b": 3.0}\n{"step": 6, "a": 4.0}\n{"ste')
    assert len(read_metrics(path)) == 4
    truncate_metrics(path, 4)
    assert path.read_text() == '{"step": 2, "a": 1.0}\n{"step": 4, "a": 2.0}\n{"step": 4, "b": 3.0}\n'
    truncate_metrics(tmp_path / "none.jsonl", 0)
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_run_folder_records_its_sessions(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    run.config_path.write_text("{}")
    run.begin("genomics", command="first", hardware={"device": "cpu"}, from_step=0)
    assert run.info()["status"] == "running"
    run.end("stopped", 7)
    again = RunFolder.open(run.path)
    again.begin("genomics", command="second", hardware={"device": "cpu"}, from_step=7)
    again.end("finished", 9)
    info = run.info()
    assert (info["status"], info["step"], info["domain"]) == ("finished", 9, "genomics")
    assert [(s["command"], s["from_step"], s["to_step"]) for s in info["sessions"]] == [
        ("first", 0, 7),
        ("second", 7, 9),
    ]
    assert info["sessions"][0]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert info["started"] == info["sessions"][0]["started"]


def test_overwriting_removes_a_run_and_nothing_else(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    (run.checkpoints / "step-00000001.ckpt").touch()
    with pytest.raises(UserError, match="holds a run already"):
        run.create()
    run.create(overwrite=True)
    assert not find_checkpoints(run.checkpoints)

    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        RunFolder(precious).create(overwrite=True)
    assert (precious / "chapter1.tex").exists()
    with pytest.raises(UserError, match="is a file"):
        RunFolder(precious / "chapter1.tex").create(overwrite=True)
    with pytest.raises(UserError, match="is no run folder"):
        RunFolder.open(precious)


def test_only_one_process_trains_in_a_folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    with run.locked(), pytest.raises(UserError, match="another process is training"), RunFolder(run.path).locked():
        raise AssertionError
    with run.locked():
        pass
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "run.json"]
    with run.locked(), pytest.raises(UserError, match="another process"):
        RunFolder(run.path).create(overwrite=True)
    assert run.info_path.exists()


def test_an_atomic_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as new:
        (new / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(FileNotFoundError), atomic_folder(target) as new:
        shutil.copy(tmp_path / "none", new)
    assert (target / "a").read_text() == "1"
    with atomic_folder(target) as new:
        (new / "b").write_text("3")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "does not hold a table")])
def test_json_that_is_no_table_is_refused(tmp_path, text, message):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_json(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "none.json")
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == read_json(path) == {"a": 1}


def test_the_newest_readable_checkpoint_is_found(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for step in (5, 200, 1000):
        torch.save({"global_step": step}, tmp_path / f"step-{step:08d}.ckpt")
    newest = tmp_path / "step-00001000.ckpt"
    assert newest_checkpoint(tmp_path) == (newest, 1000)
    newest.write_bytes(newest.read_bytes()[:-100])
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-00000200.ckpt", 200)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"global_step": 1, "harm": Harm()}, tmp_path / "step-00000001.ckpt")
    with pytest.raises(UserError, match="no checkpoint can be read"):
        newest_checkpoint(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_stop_signals_are_noted_and_a_second_one_has_its_usual_effect():
    before = signal.getsignal(signal.SIGINT)
    signals = StopSignals()
    signals.install()
    try:
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
    finally:
        signals.restore()
    assert signal.getsignal(signal.SIGINT) is before
    assert "SIGTERM after step 3" in str(Terminated(3))


def test_the_stopwatch_leaves_pauses_out(monkeypatch):
    now = iter([0.0, 10.0, 100.0, 105.0, 105.0, 112.0, 112.0])
    monkeypatch.setattr("domains.callbacks.time.perf_counter", lambda: next(now))
    watch = Stopwatch()
    watch.start()
    watch.stop()
    watch.stop()
    watch.start()
    assert watch.lap() == 15.0
    assert watch.lap() == 7.0


def test_devices_are_chosen_by_word(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="no CUDA device"):
        choose_device("gpu")
    with pytest.raises(UserError, match="auto, cpu or gpu"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("gpu").type == "cuda"
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla T4", None),
    ],
)
def test_the_share_of_peak_is_told_only_where_the_peak_is_known(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None


def test_a_run_says_what_it_ran_on():
    assert describe_hardware(torch.device("cpu"), threads=3)["threads"] == 3
    assert {"python", "torch", "lightning"} <= describe_versions().keys()
    commit = git_commit()
    assert commit is None or len(commit.partition("+")[0]) == 40


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", 0),
        ("accumulate", 0),
        ("log_every", 0),
        ("keep", "first"),
        ("precision", "16-mixed"),
        ("max_minutes", 0.0),
        ("threads", -1),
        ("threads", 100_000),
        ("max_steps", 10**30),
        ("gradient_clip", -1.0),
        ("gradient_clip", math.inf),
    ],
)
def test_a_setting_without_sense_is_named(name, value):
    check_trainer(TrainerConfig())
    with pytest.raises(UserError, match=f"trainer.{name}={value}: "):
        check_trainer(TrainerConfig(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0),
        ("learning_rate", math.inf),
        ("weight_decay", -1.0),
        ("betas", (2.0, 3.0)),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("warmup_fraction", 1.5),
    ],
)
def test_a_setting_of_the_optimizer_without_sense_is_named(name, value):
    with pytest.raises(UserError, match=rf"trainer\.optimizer\.{name}="):
        check_trainer(TrainerConfig(optimizer=OptimizerConfig(**{name: value})))
