import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger
from safetensors.torch import load_file

from domains.checkpoint import Terminated, find_checkpoints
from domains.errors import UserError
from domains.folder import RunFolder, read_json
from domains.genomics.config import TrainConfig
from domains.genomics.model import build_model
from domains.genomics.module import CausalTask
from domains.genomics.tokens import BASES
from domains.genomics.train import main, train
from domains.runlog import read_metrics
from domains.session import run_config
from domains.settings import to_dict, write_yaml
from tests.genomics.genomes import make_store
from tests.genomics.tiny import markov_bases, tiny_config


@pytest.fixture(scope="module")
def store(tiny):
    return tiny


def rows(run_dir):
    """What was measured, without what differs from run to run: times."""
    changing = ("time", "train/bases_per_second")
    return [{k: v for k, v in row.items() if k not in changing} for row in read_metrics(run_dir / "metrics.jsonl")]


def result(run_dir):
    """Rows, weights and metrics of a run, for comparison to the bit."""
    weights = (run_dir / "model" / "model.safetensors").read_bytes()
    metrics = read_json(run_dir / "model" / "metrics.json")
    metrics.pop("train/bases_per_second")
    return rows(run_dir), metrics, weights


class At(Callback):
    """Calls ``act`` at the start of a batch (counted from 1), or of the validation of a step."""

    def __init__(self, act, batch=None, validation=None):
        self.act, self.batch, self.validation = act, batch, validation
        self.batches = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches += 1
        if self.batches == self.batch:
            self.act()

    def on_validation_start(self, trainer, pl_module):
        if trainer.global_step == self.validation:
            self.act()


def crash():
    raise RuntimeError("the power went off")


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module", params=[1, 2], ids=["plain", "accumulated"])
def whole(request, store, tmp_path_factory):
    """A configuration, and what an uninterrupted run of it comes to."""
    config = tiny_config(store, accumulate=request.param)
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train(config, run_dir, progress=False)
    return config, result(run_dir)


def test_a_run_learns_and_leaves_its_record(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(store, max_steps=60, checkpoint_every=20)
    done = train(config, tmp_path / "run", command="the command")
    assert done.finished
    assert done.metrics["best/validation/bits_per_base"] < 1.8  # the chain has 1.66; knowing nothing costs 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing from Lightning beside it
    found = {str(path.relative_to(done.run_dir)) for path in done.run_dir.rglob("*") if path.is_file()}
    model = {
        f"model/{name}" for name in ("model.safetensors", "config.yaml", "tokenizer.json", "data.json", "metrics.json")
    }
    checkpoints = {"checkpoints/step-00000040.ckpt", "checkpoints/step-00000060.ckpt"}
    assert found == {"config.yaml", "run.json", "splits.json", "metrics.jsonl"} | model | checkpoints
    assert run_config(done.run_dir, TrainConfig) == config
    info = RunFolder(done.run_dir).info()
    assert (info["status"], info["sessions"][0]["command"]) == ("finished", "the command")
    said = capsys.readouterr().err
    assert "validation" in said
    assert "split into whole contigs" in said
    assert "100%" in said


def test_rows_stand_where_they_should(whole):
    config, (found, _, _) = whole
    steps = {
        name: [row["step"] for row in found if name in row]
        for name in ("train/loss", "validation/bits_per_base", "health/layer01/dt_p50", "health/layer00/grad_norm")
    }
    assert steps == {
        "train/loss": [3, 6, 9, 10],
        "validation/bits_per_base": [4, 8, 10],
        "health/layer01/dt_p50": [5, 10],
        "health/layer00/grad_norm": [5, 10],
    }
    assert [row["train/window"] for row in found if "train/window" in row] == [64.0, 64.0, 64.0, 64.0]
    assert found[-2]["train/bases"] == 10 * 192 * config.trainer.accumulate
    assert found[0]["train/learning_rate"] == pytest.approx(1e-2 * 0.97, rel=0.02)


@pytest.mark.parametrize("step", [2, 5, 8, 9, 10])
def test_a_crashed_run_goes_on_to_the_bit(whole, tmp_path, step):
    config, expected = whole
    in_last_batch = At(crash, batch=step * config.trainer.accumulate)
    with pytest.raises(RuntimeError, match="power"):
        train(config, tmp_path / "run", callbacks=[in_last_batch], progress=False)
    assert RunFolder(tmp_path / "run").info()["status"] == "failed"
    train(config, tmp_path / "run", resume=True, progress=False)
    assert result(tmp_path / "run") == expected
    assert RunFolder(tmp_path / "run").info()["status"] == "finished"


def test_a_crash_in_a_validation_whose_step_has_a_checkpoint_due(whole, tmp_path):
    config, expected = whole
    config = replace(config, trainer=replace(config.trainer, checkpoint_every=4))
    with pytest.raises(RuntimeError, match="power"):
        train(config, tmp_path / "run", callbacks=[At(crash, validation=8)], progress=False)
    assert [path.name for path in find_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000004.ckpt"]
    train(config, tmp_path / "run", resume=True, progress=False)
    assert result(tmp_path / "run") == expected


@pytest.mark.parametrize("when", [{"batch": 1}, {"batch": 7}, {"batch": 8}, {"validation": 4}])
def test_sigterm_finishes_the_step_and_saves_it(whole, tmp_path, when):
    config, expected = whole
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as stop:
        train(config, tmp_path / "run", callbacks=[At(terminate, **when)], progress=False)
    assert signal.getsignal(signal.SIGTERM) is handler
    saved = find_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert saved.name == f"step-{stop.value.step:08d}.ckpt"
    accumulate = config.trainer.accumulate
    assert stop.value.step == when.get("validation", -(-when.get("batch", 0) // accumulate))
    assert RunFolder(tmp_path / "run").info()["status"] == "stopped"
    train(config, tmp_path / "run", resume=True, progress=False)
    assert result(tmp_path / "run") == expected


def test_ctrl_c_saves_as_well(store, tmp_path):
    config = tiny_config(store)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", callbacks=[At(lambda: signal.raise_signal(2), batch=2)], progress=False)
    assert find_checkpoints(tmp_path / "run" / "checkpoints")[0].name == "step-00000002.ckpt"


@pytest.mark.parametrize("when", ["before the first step", "twice"])
def test_ctrl_c_is_never_a_bare_exit(store, tmp_path, when):
    class Twice(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    class Before(Callback):
        def on_fit_start(self, trainer, pl_module):
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(
            tiny_config(store), tmp_path / "run", callbacks=[Twice() if when == "twice" else Before()], progress=False
        )
    assert signal.getsignal(signal.SIGINT) is handler
    assert RunFolder(tmp_path / "run").info()["status"] == "failed"


def test_half_precision_trains_as_well(store, tmp_path):
    config = tiny_config(store, precision="bf16-mixed", health_every=2)
    done = train(config, tmp_path / "run", progress=False)
    assert done.metrics["validation/bits_per_base"] < 2.01
    weights = load_file(done.model_dir / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_a_run_killed_with_kill_9_goes_on_to_the_bit(store, tmp_path):
    config = tiny_config(store, max_steps=120, checkpoint_every=10, validate_every=15)
    write_yaml(tmp_path / "train.yaml", to_dict(config))
    run_dir = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "domains.genomics.train", "--config", "train.yaml", "--run-dir", "killed"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (run_dir / "checkpoints" / "step-00000020.ckpt").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert read_json(run_dir / "run.json")["status"] == "running"
    assert not (run_dir / "model").exists()
    train(run_config(run_dir, TrainConfig), run_dir, resume=True, progress=False)
    train(config, tmp_path / "whole", progress=False)
    assert result(run_dir) == result(tmp_path / "whole")
    steps = [(row["step"], name) for row in rows(run_dir) for name in row if name != "step"]
    assert len(steps) == len(set(steps))
    sessions = read_json(run_dir / "run.json")["sessions"]
    assert [session["from_step"] >= 20 for session in sessions] == [False, True]


def test_the_time_limit_validates_saves_and_can_be_lifted(whole, store, tmp_path):
    config, expected = whole
    short = replace(config, trainer=replace(config.trainer, max_minutes=1e-6))
    done = train(short, tmp_path / "run", progress=False)
    assert not done.finished
    assert done.metrics["validation/bits_per_base"] > 0
    assert (done.model_dir / "model.safetensors").exists()
    assert read_json(done.run_dir / "run.json")["status"] == "stopped"
    assert rows(done.run_dir)[-1]["step"] == 1
    done = train(config, tmp_path / "run", resume=True, progress=False)
    assert done.finished
    last = {name: value for name, value in expected[0][-1].items() if name.startswith("validation/")}
    assert rows(done.run_dir)[-1] == {"step": 10, **last}


def test_a_finished_run_can_be_resumed_to_no_effect(store, tmp_path):
    config = tiny_config(store)
    train(config, tmp_path / "run", progress=False)
    before = result(tmp_path / "run")
    done = train(config, tmp_path / "run", resume=True, progress=False)
    assert done.finished
    assert result(tmp_path / "run") == before


def test_resuming_keeps_to_the_settings_and_the_genome_of_the_run(store, tmp_path):
    config = tiny_config(store)
    with pytest.raises(UserError, match="is no run folder"):
        train(config, tmp_path / "none", resume=True, progress=False)
    train(config, tmp_path / "run", progress=False)
    for other in (replace(config, seed=1), replace(config, trainer=replace(config.trainer, max_steps=11))):
        with pytest.raises(UserError, match=r"(seed is 0|trainer.max_steps is 10) in this run and"):
            train(other, tmp_path / "run", resume=True, progress=False)
    another = make_store(tmp_path / "genome", {f"c{i}": markov_bases(3000, 50 + i) for i in range(6)})
    moved = replace(config, data=replace(config.data, store=str(another.path)))
    with pytest.raises(UserError, match="is not the genome that this run began with"):
        train(moved, tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"test": ["c9"]}, "has no contig 'c9'"),
        ({"window": 9000}, "every contig is shorter than the window"),
        ({"window_warmup": [1]}, "window_warmup"),
        ({"store": "none"}, "is no prepared genome"),
        ({"window": 1}, "data.window=1: must be at least 2"),
        ({"tokens_per_step": 0}, "data.tokens_per_step=0: must be at least 1"),
        ({"validation_tokens": -5}, "data.validation_tokens=-5: must be at least 1"),
        ({"soft_mask_weight": -3.0}, "data.soft_mask_weight=-3.0: must be at least 0"),
        ({"soft_mask_weight": float("inf")}, "data.soft_mask_weight=inf: must be finite"),
        ({"workers": -1}, "data.workers=-1: must be at least 0"),
        ({"workers": 10**6}, "data.workers=1000000: must be at most .* processors of this machine"),
    ],
)
def test_a_mistake_leaves_nothing_behind(store, tmp_path, data, message):
    config = tiny_config(store)
    config = replace(config, data=replace(config.data, **data))
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [10**23, -(2**63) - 1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(store, tmp_path, seed):
    with pytest.raises(UserError, match=rf"^seed={seed}: must lie between"):
        train(replace(tiny_config(store), seed=seed), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63 - 1])
def test_the_extremes_of_the_seed_train(store, tmp_path, seed):
    config = replace(tiny_config(store, max_steps=1, validate_every=100), seed=seed)
    assert train(config, tmp_path / "run", progress=False).finished


def test_a_mistake_in_the_backbone_is_the_users(store, tmp_path):
    config = tiny_config(store)
    config.backbone.pattern = ["mamba9"]
    with pytest.raises(UserError, match=r"backbone: .*mamba9"):
        train(config, tmp_path / "run", progress=False)


def test_a_loss_that_is_no_number_stops_the_run(store, tmp_path):
    config = tiny_config(store, gradient_clip=0.0)
    config.trainer.optimizer.learning_rate = 1e30
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d+; one likely cause is .*rate=1e\+30"):
        train(config, tmp_path / "run", progress=False)
    assert RunFolder(tmp_path / "run").info()["status"] == "failed"
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


class Spoil(Callback):
    """Makes a weight NaN at the start of a batch (counted from 0), or of the validation of a step."""

    def __init__(self, batch=None, validation=None):
        self.batch, self.validation = batch, validation

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch:
            self.spoil(pl_module)

    def on_validation_start(self, trainer, pl_module):
        if trainer.global_step == self.validation:
            self.spoil(pl_module)

    def spoil(self, pl_module):
        with torch.no_grad():
            pl_module.model.head.weight[BASES] = float("nan")


@pytest.mark.parametrize(
    ("trainer", "spoil", "said", "kept"),
    [
        ({"validate_every": 100, "checkpoint_every": 2}, Spoil(batch=5), "sum of the losses", 4),
        ({"validate_every": 4, "checkpoint_every": 4}, Spoil(validation=8), "validation/loss", 4),
    ],
    ids=["between rows", "in a validation"],
)
def test_a_diverged_run_keeps_its_last_good_checkpoint(store, tmp_path, trainer, spoil, said, kept):
    config = tiny_config(store, max_steps=20, log_every=100, **trainer)
    with pytest.raises(UserError, match=rf"the ({said}) is nan at step \d+; one likely cause"):
        train(config, tmp_path / "run", callbacks=[spoil], progress=False)
    newest = find_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert newest.name == f"step-{kept:08d}.ckpt"
    weights = torch.load(newest, weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())
    assert train(config, tmp_path / "run", resume=True, progress=False).finished


def test_the_best_weights_are_those_of_the_best_validation(store, tmp_path):
    class Worse(Callback):
        """Spoils the model after step 8, so that the best validation lies behind."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 8:
                with torch.no_grad():
                    pl_module.model.head.weight.mul_(-3)

    config = tiny_config(store)
    done = train(config, tmp_path / "best", callbacks=[Worse()], progress=False)
    assert done.metrics["best/step"] == 8.0
    assert done.metrics["best/validation/bits_per_base"] < done.metrics["validation/bits_per_base"]
    assert read_json(done.model_dir / "metrics.json")["weights_step"] == 8.0
    last = replace(config, trainer=replace(config.trainer, keep="last"))
    ended = train(last, tmp_path / "last", callbacks=[Worse()], progress=False)
    assert read_json(ended.model_dir / "metrics.json")["weights_step"] == 10.0
    one, other = (load_file(run.model_dir / "model.safetensors")["head.weight"] for run in (done, ended))
    assert not torch.equal(one, other)


def test_loggers_and_callbacks_of_others_are_served(store, tmp_path):
    class Recorder(Logger):
        name, version = "recorder", ""

        def __init__(self):
            super().__init__()
            self.rows, self.ended = [], None

        def log_metrics(self, metrics, step=None):
            self.rows.append({"step": step, **metrics})

        def log_hyperparams(self, params, *args, **kwargs):
            raise AssertionError

        def finalize(self, status):
            self.ended = status

    recorder = Recorder()
    stopping = EarlyStopping("validation/bits_per_base", patience=1, min_delta=10.0)
    done = train(tiny_config(store), tmp_path / "run", loggers=[recorder], callbacks=[stopping], progress=False)
    times = ("time",)
    written = [{k: v for k, v in row.items() if k not in times} for row in read_metrics(done.run_dir / "metrics.jsonl")]
    assert recorder.rows == written
    assert recorder.ended == "success"
    assert not done.finished  # nothing improves by 10 bits, so the second validation is the last
    assert written[-1]["step"] == 8
    assert find_checkpoints(done.run_dir / "checkpoints")[0].name == "step-00000008.ckpt"


def test_training_leaves_the_process_as_it_was(store, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tiny_config(store, max_steps=1, threads=2), tmp_path / "run", progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_the_command_line_trains_resumes_and_answers_for_mistakes(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "train.yaml", to_dict(tiny_config(store)))
    command = ["--config", "train.yaml", "--run-dir", "run", "--no-progress"]
    assert main(command) == 0
    assert capsys.readouterr().out == "model: run/model\n"
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    assert main(["--run-dir", "run", "--resume", "--no-progress"]) == 0
    (tmp_path / "train.yaml").write_text("trainer: {max_stpes: 3}")
    capsys.readouterr()
    assert main(["--config", "train.yaml", "--run-dir", "other"]) == 2
    said = capsys.readouterr().err
    assert said == "error: train.yaml: trainer.max_stpes is no setting; did you mean trainer.max_steps?\n"
    with pytest.raises(UserError):
        main(["--config", "train.yaml", "--run-dir", "other", "--debug"])
    assert not (tmp_path / "other").exists()


BARE = """
import importlib.machinery, runpy, sys

find = importlib.machinery.PathFinder.find_spec
absent = {"hydra", "omegaconf", "mlflow", "Bio", "polars", "pyarrow"}
importlib.machinery.PathFinder.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)
sys.argv[0] = "train"
runpy.run_module("domains.genomics.train", run_name="__main__")
"""


def test_a_machine_that_only_trains_needs_few_packages(store, tmp_path):
    write_yaml(tmp_path / "train.yaml", to_dict(tiny_config(store, max_steps=2)))
    done = subprocess.run(
        [sys.executable, "-c", BARE, "--config", "train.yaml", "--run-dir", "run", "--no-progress"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "model: run/model\n", "")


def test_flops_follow_the_stated_formula(store):
    config = tiny_config(store)
    task = CausalTask(build_model(config), config.trainer)
    outside = sum(p.numel() for name, p in task.model.named_parameters() if not name.startswith("embedding"))
    state = 2 * 32 * 8  # layers, channels, state
    assert task.flops_per_unit() == 6 * outside + 3 * 5 * state
