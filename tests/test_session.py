"""One session of a training run: what is checked before it, what it leaves, how it ends and goes on."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback

from domains.checkpoint import Terminated
from domains.errors import UserError
from domains.folder import RunFolder, read_json
from domains.runlog import read_metrics
from domains.session import command_line, open_session, run_config, seeded
from domains.settings import to_dict, write_yaml
from tests.toy import FILES, FREE_ON_RESUME, ToyConfig, build_model, toy_config, train


class CrashAt(Callback):
    """Raises at the start of the batch of that number, counted from 1."""

    def __init__(self, batch):
        self.left = batch

    def on_train_batch_start(self, *_):
        self.left -= 1
        if not self.left:
            raise RuntimeError("the power went off")


def result(run_dir):
    """What must be the same to the bit, however often a run was interrupted."""
    rows = [{k: v for k, v in row.items() if k != "time" and "per_second" not in k} for row in read_metrics(run_dir)]
    return rows, (run_dir.parent / "model" / "model.safetensors").read_bytes()


def test_a_session_leaves_a_run_folder_and_says_what_it_trains(tmp_path, capsys):
    config = toy_config()
    done = train(config, tmp_path / "run", command="the command")
    assert done.finished
    assert {path.name for path in done.model_dir.iterdir()} == set(FILES)
    assert run_config(done.run_dir, ToyConfig) == config
    described = {"source": "line.txt", "fingerprint": "slope 2.0", "parts": [1, 2]}
    assert read_json(done.run_dir / "splits.json") == read_json(done.model_dir / "data.json") == described
    metrics = read_json(done.model_dir / "metrics.json")
    assert (metrics["step"], metrics["best/validation/error"]) == (6.0, done.metrics["best/validation/error"])
    assert not [name for name in metrics if name.startswith("health/")]
    info = RunFolder(done.run_dir).info()
    assert (info["domain"], info["status"], info["sessions"][0]["command"]) == ("toy", "finished", "the command")
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["line.txt: a line", "split by halves"]
    assert said[2].endswith(", 2 parameters, on cpu")


@pytest.mark.parametrize("batch", [1, 6, 12])
def test_a_crashed_session_is_recorded_and_the_next_one_goes_on_to_the_bit(tmp_path, batch):
    config = toy_config()
    whole = train(config, tmp_path / "whole", progress=False).run_dir
    with pytest.raises(RuntimeError, match="power"):
        train(config, tmp_path / "cut", callbacks=[CrashAt(batch)], progress=False)
    assert RunFolder(tmp_path / "cut").info()["status"] == "failed"
    train(config, tmp_path / "cut", resume=True, progress=False)
    assert RunFolder(tmp_path / "cut").info()["status"] == "finished"
    assert result(tmp_path / "cut" / "metrics.jsonl") == result(whole / "metrics.jsonl")


def test_a_resumed_run_keeps_its_settings_but_for_those_that_are_free(tmp_path):
    config = toy_config(max_steps=1)
    train(config, tmp_path / "run", progress=False)

    def resume(config):
        return open_session("toy", config, tmp_path / "run", resume=True, free=FREE_ON_RESUME)

    moved = replace(config, data=replace(config.data, path="elsewhere"))
    assert resume(replace(moved, trainer=replace(config.trainer, checkpoint_every=9, max_minutes=1.0))).resume
    for other, said in (
        (replace(config, seed=1), "seed is 0 in this run and 1 now"),
        (replace(config, data=replace(config.data, slope=3.0)), r"data\.slope is 2\.0 in this run and 3\.0 now"),
    ):
        with pytest.raises(UserError, match=rf"run/config\.yaml: {said}; resume with the run's own settings"):
            resume(other)
    session = resume(config)
    assert session.recorded_data("slope 2.0", "line.txt", "line")["parts"] == [1, 2]
    with pytest.raises(UserError, match=r"^b\.txt: is not the line that this run began with \(line\.txt\); resume"):
        session.recorded_data("slope 3.0", "b.txt", "line")


def test_a_mistake_leaves_nothing_behind_and_a_run_is_replaced_only_when_told(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        train(toy_config(), tmp_path / "run", resume=True)
    for config in (replace(toy_config(), seed=2**63), toy_config(keep="first"), toy_config(accelerator="tpu")):
        with pytest.raises(UserError):
            train(config, tmp_path / "run", progress=False)
    open_session("toy", toy_config(), tmp_path / "run", free=FREE_ON_RESUME)
    assert not (tmp_path / "run").exists()
    train(toy_config(max_steps=1), tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="holds a run already"):
        train(toy_config(), tmp_path / "run", progress=False)
    assert train(toy_config(max_steps=2), tmp_path / "run", overwrite=True, progress=False).metrics["best/step"] == 2.0


def test_the_seed_decides_the_initial_weights_and_nothing_else():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (seeded(build_model, seed).weight for seed in (7, 7, 8))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_command_line_reads_settings_or_those_of_the_run(tmp_path, capsys):
    given = []

    def note(config, run_dir, **options):
        given.append((config, run_dir, options))
        return train(config, run_dir, **options)

    def call(*words):
        return command_line("toy", ToyConfig, note, "Fits a line.", [*words, "--run-dir", str(tmp_path / "run")])

    config = toy_config(max_steps=1)
    write_yaml(tmp_path / "train.yaml", to_dict(config))
    assert call("--config", str(tmp_path / "train.yaml"), "--no-progress") == 0
    assert capsys.readouterr().out == f"model: {tmp_path / 'run' / 'model'}\n"
    assert call("--resume", "--no-progress") == 0
    first, second = given
    assert (first[0], second[0]) == (config, config)
    words = f"--config {tmp_path}/train.yaml --no-progress --run-dir {tmp_path}/run"
    told = {"resume": False, "overwrite": False, "progress": False, "command": f"python -m domains.toy.train {words}"}
    assert first[1:] == (tmp_path / "run", told)
    assert second[2]["resume"]
    assert call() == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'run'}: holds a run already")
    with pytest.raises(UserError):
        call("--debug")
    with pytest.raises(SystemExit):
        call("--help")
    assert "Fits a line." in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [(Terminated(3), 143), (KeyboardInterrupt("stopped"), 130)])
def test_the_command_line_tells_signals_apart(tmp_path, capsys, error, code):
    def stop(*_, **__):
        raise error

    assert command_line("toy", ToyConfig, stop, "", ["--run-dir", str(tmp_path / "run")]) == code
    assert capsys.readouterr().err == f"{error}; go on with --resume\n"
