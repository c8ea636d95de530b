"""The commands that every domain has, with a domain as small as can be; how they record is tested with genomics."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from domains.errors import UserError
from domains.folder import read_json
from domains.session import run_config
from domains.settings import from_dict, read_yaml
from pipelines.cli import Command, Domain, Invocation
from pipelines.commands import Training, evaluate_command, import_command, train_command
from pipelines.config import ImportRunRoot, RunConfig, TrackingConfig
from pipelines.jobs import Report
from pipelines.places import ModelPlace, find_training_data
from pipelines.plots import training_curve
from pipelines.recorder import ModelCard
from tests.toy import ToyConfig, toy_config

REPORT = Report(
    card=ModelCard(code=Path(__file__), inputs={}, outputs={}, packages=(), requires=()),
    draw=lambda rows: training_curve(rows, training="train/error", validation="validation/error", label="error"),
)
TRAINING = Training(ToyConfig, "tests.toy", f"{__name__}:REPORT", "validation/error", "of the slope squared")
OFF = TrackingConfig(enabled=False)


@dataclass
class ToyRoot(ToyConfig):
    tracking: TrackingConfig = field(default_factory=lambda: OFF)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str | None = None


@dataclass
class EvaluateRoot:
    model: str = "one/model"
    out: str | None = None
    tracking: TrackingConfig = field(default_factory=lambda: OFF)


def invocation(word: str, *overrides: str) -> Invocation:
    command = Command(word, "", "", (), (), "", "")
    return Invocation(Domain("toy", "", (command,)), command, overrides)


def root(**settings: object) -> ToyRoot:
    return replace(ToyRoot(**vars(toy_config())), **settings)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_trained_and_gone_on_with() -> None:
    short = replace(toy_config().trainer, max_minutes=1e-6)
    done = train_command(TRAINING, root(run=RunConfig(dir="one"), trainer=short), invocation("train", "seed=0"))
    reached = read_json("one/model/metrics.json")["best/validation/error"]
    first, second = done.result.splitlines()
    assert first == f"model: one/model ({reached:.4f} of the slope squared on validation)"
    assert second == "stopped by trainer.max_minutes=1e-06, before trainer.max_steps"
    assert done.next == (
        "python -m pipelines.toy evaluate model=one/model",
        "python -m pipelines.toy train resume=one",
    )
    assert read_json("one/run.json")["sessions"][0]["command"] == "python -m pipelines.toy train seed=0"
    assert Path("one/plots/loss.png").exists()
    longer = root(resume="one", trainer=replace(short, max_minutes=9.0))
    with pytest.raises(UserError, match=r"leave out seed \(may be given: tracking\.\*, data\.path, trainer\."):
        train_command(TRAINING, longer, invocation("train", "resume=one", "seed=0"))
    done = train_command(TRAINING, longer, invocation("train", "resume=one", "trainer.max_minutes=9"))
    assert len(done.result.splitlines()) == 1
    assert read_json("one/run.json")["status"] == "finished"
    assert run_config("one", ToyConfig).trainer.max_minutes == 1e-6  # config.yaml tells how the run began


def test_the_settings_go_to_another_machine() -> None:
    done = train_command(TRAINING, root(seed=4, run=RunConfig(export="train.yaml")), invocation("train"))
    assert done.result == "settings: train.yaml"
    assert "python -m tests.toy --config train.yaml --run-dir <folder>" in done.next
    assert from_dict(ToyConfig, read_yaml("train.yaml")) == replace(toy_config(), seed=4)
    with pytest.raises(UserError, match=r"run\.export and resume do not go together"):
        train_command(TRAINING, root(resume="one", run=RunConfig(export="other.yaml")), invocation("train"))
    assert [path.name for path in Path().iterdir()] == ["train.yaml"]


class Evaluation:
    def table(self) -> str:
        return "model 0.5, baseline 0.7"

    def to_dict(self) -> dict[str, object]:
        return {"model": {"error": 0.5}}

    def metrics(self) -> dict[str, float]:
        return {"test/error": 0.5}


def test_a_model_is_evaluated_where_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    train_command(TRAINING, root(run=RunConfig(dir="one")), invocation("train"))
    places: list[ModelPlace] = []

    def measure(place: ModelPlace) -> Evaluation:
        places.append(place)
        return Evaluation()

    done = evaluate_command(
        EvaluateRoot(),
        invocation("evaluate"),
        measure,
        lambda _: {"curve": REPORT.draw([])},
        ["predict model=one/model"],
    )
    assert places[0].folder == Path("one/model")
    assert done.result == "evaluation: one/evaluation"
    assert done.next == ("python -m pipelines.toy predict model=one/model",)
    assert "model 0.5, baseline 0.7\n" in capsys.readouterr().out
    found = {path.name for path in Path("one/evaluation").iterdir()}
    assert found == {"table.txt", "evaluation.json", "metrics.json", "curve.png"}
    other = evaluate_command(
        EvaluateRoot(), invocation("evaluate"), measure, lambda _: {}, [], {"context": 8192, "mask_fraction": None}
    )
    assert other.result == "evaluation: one/evaluation-context-8192"  # beside the first, which one compares it with


def test_a_run_is_imported_into_a_record_alone() -> None:
    train_command(TRAINING, root(run=RunConfig(dir="one")), invocation("train"))
    with pytest.raises(UserError, match=r"tracking\.enabled=false leaves nothing to do"):
        import_command(TRAINING, ImportRunRoot("one", OFF), invocation("import-run"))


@dataclass
class Data:
    path: str = "gone.csv"
    stores: str = ""


@dataclass
class Config:
    data: Data = field(default_factory=Data)


@dataclass
class Record:
    config: Config = field(default_factory=Config)
    fingerprint: str = "f"
    source: str = "a.csv"


def test_the_data_of_a_training_is_looked_for_where_it_was_and_among_the_prepared() -> None:
    def missing(data: Data) -> Path:
        raise UserError(f"{data.path}: no such file; check {data.stores}")

    place = ModelPlace(Path("model"), Path("evaluation"), None)
    said = r"^gone\.csv: no such file; check kept; the model was trained on it \(a\.csv\): .* with data\.path=<file>$"
    with pytest.raises(UserError, match=said):
        find_training_data(place, Record(), "kept", missing, Path, key="data.path")
    Path("kept/a-1").mkdir(parents=True)
    Path("kept/a-1/meta.json").write_text('{"fingerprint": "f"}')
    assert find_training_data(place, Record(), "kept", missing, Path, key="data.path") == Path("kept/a-1")
    assert find_training_data(place, Record(), "kept", lambda data: Path(data.stores), Path, key="") == Path("kept")
