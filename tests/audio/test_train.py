"""Training runs on the bundled clips: what they leave, how they go on, what they refuse."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from domains.audio.store import AudioStore
from domains.audio.train import main, train
from domains.audio.trained import FILES, KINDS, SOUND, check_clips, load_model, read_record
from domains.checkpoint import Terminated
from domains.errors import UserError
from domains.folder import RunFolder, read_json, write_json
from domains.runlog import read_metrics
from domains.settings import to_dict, write_yaml
from tests.audio.recipes import small_config

SPEED = "train/samples_per_second"


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """What was measured, without what differs from run to run: times."""
    every = read_metrics(run_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in ("time", SPEED)} for row in every]


def result(run_dir: Path) -> tuple[Any, ...]:
    """Rows and the files of the model folder, for comparison to the bit."""
    names = [name for name in FILES if name not in ("metrics.json", "config.yaml")]
    return rows(run_dir), [(run_dir / "model" / name).read_bytes() for name in names]


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


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(kind: str, stores: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of six steps."""
    folder = tmp_path_factory.mktemp(kind) / "run"
    assert train(small_config(kind, stores), folder, command="the command", progress=False).finished
    return folder


def test_a_run_leaves_its_record(kind: str, run: Path) -> None:
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    checkpoints = {f"checkpoints/step-0000000{step}.ckpt" for step in (4, 6)}
    model = {f"model/{name}" for name in FILES}
    assert found == {"config.yaml", "run.json", "splits.json", "metrics.jsonl"} | model | checkpoints
    info = RunFolder(run).info()
    assert (info["domain"], info["status"], info["step"]) == ("audio", "finished", 6)
    measure = "bits_per_sample" if kind == "generate" else "accuracy"
    assert [row["step"] for row in rows(run) if f"validation/{measure}" in row] == [3, 6]


def test_a_crashed_run_goes_on_to_the_bit(kind: str, run: Path, stores: str, tmp_path: Path) -> None:
    """With dropout in the classifiers: what it leaves out is a matter of the step."""
    config = small_config(kind, stores)
    with pytest.raises(RuntimeError, match="power"):
        train(config, tmp_path / "run", callbacks=[At(crash, 4)], progress=False)
    torch.rand(3)  # whatever was drawn since
    train(config, tmp_path / "run", resume=True, progress=False)
    assert result(tmp_path / "run") == result(run)


def test_a_loaded_model_is_the_one_that_was_saved(kind: str, run: Path, prompts: AudioStore, arrow: AudioStore) -> None:
    loaded = load_model(run / "model")
    store = prompts if kind == "generate" else arrow
    assert (loaded.sound.kind, loaded.sound.rate) == (kind, 16000)
    assert loaded.sound.labels == (() if kind == "generate" else ("backwards", "forwards"))
    assert not loaded.model.training
    assert (loaded.config.data.root, loaded.config.data.store, loaded.config.data.stores) == ("", "", "stores")
    check_clips(loaded, store)
    assert {*loaded.splits.train, *loaded.splits.validation, *loaded.splits.test} == {clip.name for clip in store.clips}
    other = arrow if kind == "generate" else prompts
    with pytest.raises(UserError, match="are not the clips that"):
        check_clips(loaded, other)
    others = [name for name in KINDS if name != kind]
    with pytest.raises(UserError, match=f"was trained with task={kind}; give a model of {others[0]} or {others[1]}"):
        load_model(run / "model", kinds=others)


def test_a_damaged_model_folder_is_told_of(stores: str, tmp_path: Path) -> None:
    train(small_config("classify", stores, steps=1), tmp_path / "run", progress=False)
    model = tmp_path / "run" / "model"
    sound = read_json(model / SOUND)
    for wrong, told in ((sound | {"rate": "fast"}, "is damaged"), (sound | {"levels": 65536}, "does not have")):
        write_json(model / SOUND, wrong)
        with pytest.raises(UserError, match=told):
            read_record(model)
    write_json(model / SOUND, sound | {"labels": ["a", "b", "c"]})
    with pytest.raises(UserError, match=r"model\.safetensors: the weights do not fit"):
        load_model(model)
    (model / SOUND).unlink()
    with pytest.raises(UserError, match=r"sound\.json missing"):
        read_record(model)


def test_sigterm_saves_and_the_run_goes_on_to_the_bit(stores: str, tmp_path: Path) -> None:
    """A generator, in segments, with windows of several documents."""
    config = small_config("generate", stores)
    config.trainer.segment_length = 200
    train(config, tmp_path / "whole", progress=False)
    with pytest.raises(Terminated) as stop:
        train(config, tmp_path / "run", callbacks=[At(terminate, 3)], progress=False)
    assert stop.value.step == 3
    train(config, tmp_path / "run", resume=True, progress=False)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_training_lowers_the_bits(stores: str, tmp_path: Path) -> None:
    config = small_config("generate", stores, steps=50)
    config.trainer.validate_every = config.trainer.checkpoint_every = 50
    train(config, tmp_path / "run", progress=False)
    bits = [row["train/bits_per_sample"] for row in rows(tmp_path / "run") if "train/bits_per_sample" in row]
    assert bits[0] == pytest.approx(8.0, abs=0.3)  # a fair guess among 256 levels
    assert sum(bits[-5:]) / 5 < 7.0


def test_what_decides_numbers_is_not_told_anew(run: Path, kind: str, stores: str) -> None:
    config = small_config(kind, stores)
    with pytest.raises(UserError, match="seed is 0 in this run and 1 now"):
        train(replace(config, seed=1), run, resume=True, progress=False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task.kind", "sing", "task.kind=sing: must be one of generate, classify, spectrogram"),
        ("task.label_smoothing", 2.0, "task.label_smoothing=2.0: must be at most 1"),
        ("task.generator.pool", [4], "generator.pool=[4]: must be as many"),
        ("data.augment.mix", -0.5, "data.augment.mix=-0.5: must be at least 0"),
        ("data.test", ["nobody"], "data.test: sample/prompts.csv has no clip 'nobody'"),
        ("trainer.devices", 2, "trainer.devices=2: audio trains on one device"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    stores: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, message: str
) -> None:
    config = to_dict(small_config("generate", stores))
    *tables, name = key.split(".")
    place = config
    for table in tables:
        place = place[table]
    place[name] = value
    write_yaml(tmp_path / "train.yaml", config)
    assert main(["--config", str(tmp_path / "train.yaml"), "--run-dir", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "run").exists()


MISSING = "Bio, hydra, mlflow, omegaconf, pysam, soundfile"


def test_training_and_evaluation_need_little(stores: str, arrow: AudioStore, tmp_path: Path) -> None:
    """With a prepared store, where files of sound cannot be read and there is neither Hydra nor MLflow."""
    config = small_config("classify", stores, steps=2)
    config.data.store = str(arrow.path)
    write_yaml(tmp_path / "train.yaml", to_dict(config))
    code = f"""
import sys
for name in {MISSING!r}.split(", "):
    sys.modules[name] = None
from domains.audio import evaluate, train
assert train.main(["--config", "train.yaml", "--run-dir", "run", "--no-progress"]) == 0
assert evaluate.main(["--model", "run/model", "--store", {str(arrow.path)!r}, "--json", "found.json"]) == 0
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "found.json")["seed"] == 0
    assert "MFCC + logistic regression" in done.stdout
