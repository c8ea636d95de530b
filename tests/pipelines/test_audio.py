"""Training and evaluating models of sound from the command line, and what of it is in MLflow."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from domains.audio import train as training
from domains.audio.config import EvaluateConfig, TrainConfig
from domains.settings import flatten, from_dict, read_yaml
from pipelines.audio import AUDIO
from pipelines.audio.roots import EvaluateRoot
from pipelines.tracking import linked_run_id
from tests.audio.sounds import noise, tone, write
from tests.pipelines.conftest import TINY, Cli, runner
from tests.pipelines.records import artifacts, client, measured, recorded, runs

SMALL = (
    "data.root=clips",
    "data.window=64",
    "data.tokens_per_step=4096",
    "data.validation_tokens=256",
    "task.generator.widths=[8]",
    "task.generator.pool=[4]",
    "task.generator.layers=2",
    "task.classifier.front.width=4",
    "task.spectrogram.mels=32",
    "trainer.max_steps=4",
    *(word for word in TINY if word.split(".")[0] in ("backbone", "trainer", "tracking") and "max_steps" not in word),
)
FEW = ("device=cpu", "resamples=20")


@pytest.fixture
def audio(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs an audio command line in this process."""
    return runner(AUDIO, capsys)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


def write_clips(folder: Path) -> None:
    """Hisses and hums of four rooms."""
    for room in "abcd":
        for i in range(2):
            write(folder / "hiss" / room / f"{i}.wav", noise(0.1 + 0.02 * i, ord(room) + i))
            write(folder / "hum" / room / f"{i}.flac", tone(0.1 + 0.02 * i, hertz=ord(room) + 100.0 * i))


@pytest.fixture
def whole(audio: Cli, workspace: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which everything was done once: the current folder of tests that only look at it."""
    if not any(shared.iterdir()):
        (shared / "mlflow.db").write_bytes((workspace / "mlflow.db").read_bytes())
        monkeypatch.chdir(shared)
        write_clips(shared / "clips")
        where = f"tracking.uri=sqlite:///{shared}/mlflow.db"
        words = (
            ("prepare", "data.root=clips"),
            ("train", *SMALL, "task=classify", "data.test=[d]", "run.dir=names", where),
            ("evaluate", "model=names", *FEW, where),
            ("train", *SMALL, "data.test=[d]", "run.dir=draws", where),
            ("evaluate", "model=draws/model", "contexts=[100]", *FEW, where),
        )
        done = [audio(*line) for line in words]
        assert [one.code for one in done] == [0] * 5, [one.err for one in done]
        (shared / "told.json").write_text(json.dumps([one.out for one in done]))
    monkeypatch.chdir(shared)
    return shared


def told(folder: Path, command: int) -> list[str]:
    """What a command said on stdout, line by line."""
    return json.loads((folder / "told.json").read_text())[command].splitlines()


def test_every_command_says_what_it_made_and_what_comes_next(whole: Path) -> None:
    prepared, trained, evaluated = (told(whole, i) for i in range(3))
    store = prepared[1].removeprefix("next: python -m pipelines.audio train data.store=")
    assert prepared[0].startswith(f"store: {store} (prepared; 16 clips, 1.8 s at 16,000 Hz")
    assert (whole / store / "meta.json").exists()
    assert trained[0].startswith("model: names/model (")
    assert trained[0].endswith(" nats a clip on validation)")
    best = json.loads((whole / "draws" / "model" / "metrics.json").read_text())["best/validation/bits_per_sample"]
    assert told(whole, 3)[0] == f"model: draws/model ({best:.4f} bits per sample on validation)"
    assert trained[2] == "next: python -m pipelines.audio evaluate model=names/model"
    assert evaluated[0].startswith("4 test clips of clips; split by group: train ")
    assert f"evaluation: {Path('names/evaluation')}" in evaluated
    assert any(line.startswith("MFCC + logistic regression") for line in evaluated)
    assert told(whole, 4)[0].startswith("bits per sample, 4 test clips")


@pytest.mark.parametrize("run", ["names", "draws"])
def test_a_run_is_in_mlflow_whole(whole: Path, run: str) -> None:
    run_id = linked_run_id(whole / run) or ""
    (found,) = [one for one in runs(whole) if one.info.run_id == run_id]
    assert (found.info.status, found.info.run_name) == ("FINISHED", run)
    assert client(whole).get_experiment(found.info.experiment_id).name == "audio"
    settings = flatten(yaml.safe_load((whole / run / "config.yaml").read_text()))
    assert {key: "null" if value is None else str(value) for key, value in settings.items()} == found.data.params
    metrics = json.loads((whole / run / "evaluation" / "metrics.json").read_text())
    assert {key: found.data.metrics[key] for key in metrics} == metrics
    assert {at: value for at, value in recorded(whole, run_id).items() if at[0] not in metrics} == measured(whole / run)
    kept = set(artifacts(whole, run_id))
    plots = {f"plots/{path.name}" for path in (whole / run / "evaluation").glob("*.png")}
    assert plots
    assert kept >= plots | {"plots/loss.png", "evaluation/table.txt", "evaluation/evaluation.json"}


@pytest.mark.parametrize("run", ["names", "draws"])
def test_an_evaluation_says_the_same_everywhere(whole: Path, run: str) -> None:
    folder = whole / run / "evaluation"
    table = (folder / "table.txt").read_text()
    assert "\n".join(told(whole, 2 if run == "names" else 4)).startswith(table.rstrip())
    details, metrics = (json.loads((folder / name).read_text()) for name in ("evaluation.json", "metrics.json"))
    if run == "names":
        assert metrics["test/balanced_accuracy"] == details["methods"]["model"]["balanced_accuracy"]
        assert {clip["group"] for clip in details["clips"]} == {"d"}
    else:
        assert metrics["test/bits_per_sample"] == details["rows"][0]["model"]
        assert metrics["test/bits_per_sample_context_100"] == details["forgetting"]["100"]


def test_clips_are_found_again_or_asked_for(
    whole: Path, workspace: Path, audio: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model folder without its run: where the user says, then among what is prepared; other clips are refused."""
    monkeypatch.chdir(workspace)
    model = shutil.copytree(whole / "names" / "model", workspace / "alone")
    words = ("evaluate", f"model={model}", *FEW, "tracking.enabled=false", "out=out")
    lost = audio(*words)
    assert lost.code == 2
    assert "the model was trained on it (clips): say where it is now with data.root=<file>" in lost.errors[-1]
    assert audio(*words, f"data.root={whole / 'clips'}").code == 0
    assert audio(*words).code == 0
    write(workspace / "others" / "hiss" / "0.wav", noise(0.2, 99))
    refused = audio(*words, "data.root=others")
    assert refused.code == 2
    assert "others: are not the clips that" in refused.errors[-1]


def test_a_run_that_was_trained_elsewhere_is_imported(whole: Path, workspace: Path, audio: Cli) -> None:
    exported = workspace / "train.yaml"
    words = (
        "train",
        *SMALL,
        "task=spectrogram",
        "data.test=[d]",
        f"data.root={whole / 'clips'}",
        "task.spectrogram.mels=32",
    )
    assert audio(*words, f"data.stores={workspace / 'stores'}", f"run.export={exported}").code == 0
    config = from_dict(TrainConfig, read_yaml(exported), "train.yaml")
    training.train(config, workspace / "run", progress=False)
    where = f"tracking.uri=sqlite:///{workspace}/mlflow.db"
    done = audio("import-run", f"run={workspace / 'run'}", where)
    assert done.code == 0, done.err
    run_id = linked_run_id(workspace / "run") or ""
    assert recorded(workspace, run_id) == measured(workspace / "run")
    assert "plots/loss.png" in artifacts(workspace, run_id)


def test_a_trained_generator_is_gone_on_with(
    whole: Path, workspace: Path, audio: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    clips = [f"data.root={whole / 'clips'}" if word.startswith("data.root") else word for word in SMALL]
    words = ("train", *clips, "tracking.enabled=false", "data.test=[d]", "run.dir=mine")
    for pretrained, size, said in (
        ("draws", "16", "is a run folder; give the model folder in it"),
        ("names/model", "16", "is a model of task=classify; give a generator"),
        ("draws/model", "24", "backbone.d_model=24: "),
    ):
        done = audio(*words, f"task.pretrained={whole / pretrained}", f"backbone.d_model={size}")
        assert (done.code, len(done.errors)) == (2, 1)
        assert said in done.err
        assert not Path("mine").exists()
    voice = shutil.copytree(whole / "draws", workspace / "voice") / "model"
    done = audio(*words, f"task.pretrained={voice}", "trainer.max_steps=8", "trainer.max_minutes=0.000001")
    assert done.code == 0, done.err
    assert "weights and sizes from voice (trained on clips)" in done.err
    shutil.rmtree(voice)
    done = audio("train", "resume=mine", "trainer.max_minutes=10", "tracking.enabled=false")
    assert done.code == 0, done.err
    assert "stopped" not in done.out
    assert "bits per sample on validation" in done.out


def test_defaults_are_those_of_the_domain() -> None:
    for name, value in vars(EvaluateConfig()).items():
        assert getattr(EvaluateRoot(), name) == value
