"""What users of time series get wrong: one clear line, exit code 2, and nothing half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipelines.cli import main
from pipelines.timeseries import TIMESERIES
from tests.pipelines.conftest import SMALL, Cli, Finished
from tests.timeseries.panels import panel


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def only_line(done: Finished) -> str:
    assert done.code == 2, done.err
    assert len(done.errors) == 1, done.err
    assert done.errors[0].startswith("error: ")
    assert not done.out
    return done.errors[0].removeprefix("error: ")


def with_y(y: pl.Expr) -> Callable[[Path], None]:
    return lambda path: panel().with_columns(y=y).write_csv(path)


TABLES: list[tuple[str, Callable[[Path], None], str]] = [
    ("empty.csv", lambda path: path.write_bytes(b"") and None, "empty.csv: holds no rows; give a table with a header"),
    ("header.csv", lambda path: path.write_text("unique_id,ds,y\n") and None, "header.csv: holds no rows"),
    ("constant.csv", with_y(pl.lit(7.0)), "constant.csv: no series is left (4 x constant series); lower data.min_rows"),
    ("missing.csv", with_y(pl.lit(None)), "missing.csv: no series is left (4 x no observation)"),
    ("text.csv", with_y(pl.lit("dear")), "text.csv: column y holds no number (row 1: 'dear'); name another column"),
    ("minus.csv", with_y(-pl.col("y")), "minus.csv: no series is left"),
    ("days.csv", lambda path: panel().with_columns(ds=pl.lit("then")).write_csv(path), "days.csv: column ds holds no "),
    ("column.csv", lambda path: panel().rename({"y": "Y"}).write_csv(path), "column.csv: has no column 'y' (data.targ"),
    ("short.csv", lambda path: panel().head(9).write_csv(path), "short.csv: no series is left (1 x fewer than 64 obs"),
    ("broken.parquet", lambda path: path.write_bytes(b"PAR1" * 9) and None, "broken.parquet: cannot be read as Parque"),
    ("table.xlsx", lambda path: path.write_bytes(b"PK") and None, "table.xlsx: is neither CSV nor Parquet by its name"),
]


@pytest.mark.parametrize(("name", "write", "told"), TABLES, ids=[name for name, _, _ in TABLES])
def test_a_bad_table_is_told_and_leaves_nothing(
    series_cli: Cli, workspace: Path, name: str, write: Callable[[Path], None], told: str
) -> None:
    write(Path(name))
    before = everything(workspace)
    word = "train" if name == "empty.csv" else "prepare"
    assert only_line(series_cli(word, f"data.path={name}")).startswith(told)
    assert everything(workspace) - before <= {workspace / "stores"}


def test_no_such_file(series_cli: Cli, workspace: Path) -> None:
    before = everything(workspace)
    for word, path in (("prepare", "nowhere.csv"), ("train", "nowhere/"), ("prepare", "nowhere/*.csv")):
        line = only_line(series_cli(word, f"data.path={path}"))
        assert line.startswith((f"{path}: no such file or folder; check data.path", f"{path}: holds or matches no fil"))
    assert everything(workspace) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prepare", "data.tarket=y"], "unknown key 'data.tarket'; did you mean data.target or"),
        (["train", "horizon=3"], "unknown key 'horizon'; did you mean data.horizon?"),
        (["evaluate", "model=x", "data.target=y"], "unknown key 'data.target'"),
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["predict"], "there are prepare, train, evaluate, forecast, import-run"),
        (["train", "data.horizon=soon"], "data.horizon=soon: must be a whole number"),
        (["train", "data.past=volume"], "data.past takes a list; write data.past=["),
        (["prepare", "data.target=3"], "target must be a column or a list of columns, not 3"),
        (["prepare", "data.target=[y,[z]]"], "target must be a column or a list of columns"),
        (["train", "experiment=demo"], "experiment=demo: there is no such choice; there are dowjones, sp500, usdchf"),
        (["forecast", "model=x", "data.path=y", "state=z"], "out is missing; give out=<value>, as in python -m pip"),
        (["forecast", "model=x", "data.path=y", "out=z"], "state is missing; give state=<value>"),
        (["forecast", "model=x", "state=y", "out=z"], "data.path is missing; give data.path=<value>"),
        (["forecast", "data.path=x", "state=y", "out=z"], "model is missing; give model=<value>"),
        (["evaluate"], "model is missing; give model=<value>"),
        (["import-run"], "run is missing; give run=<value>"),
        (["evaluate", "model=nowhere"], "nowhere: no such model folder; give the model/ folder of a finished run"),
        (
            ["evaluate", "model=stores"],
            "stores: is no complete model folder (model.safetensors, config.yaml, scaler.js",
        ),
        (["forecast", "model=stores", "data.path=x", "out=y", "state=z"], "stores: is no complete model folder"),
        (["evaluate", f"model={'0' * 32}"], f"has no run {'0' * 32}"),
        (["train", "resume=nowhere"], "nowhere: is neither a run folder nor an MLflow run id"),
        (["train", "data.store=stores"], "stores: is no prepared table (meta.json is missing)"),
    ],
)
def test_what_was_typed_wrong(series_cli: Cli, series_workspace: Path, words: list[str], told: str) -> None:
    (series_workspace / "stores").mkdir()
    before = everything(series_workspace)
    assert told in only_line(series_cli(*words))
    assert everything(series_workspace) == before


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.test=soon", "data.test=soon: is neither a stamp such as 2000-01-01 nor a share such as 0.2"),
        ("data.test=1999-01-01", "panel.parquet: the validation part holds no forecast of 2 steps"),
        ("data.horizon=400", "panel.parquet: the training part holds no forecast of 400 steps"),
        ("data.zone=Mars", "Mars"),
        ("data.past=[holiday]", "column 'holiday' is named as data.past and as data.future; keep one"),
        ("head.kind=cauchy", "head.kind=cauchy: must be one of student_t, mixture, quantiles, normal"),
        ("tracking.uri=./mlruns", "./mlruns: MLflow no longer records into a folder"),
    ],
)
def test_a_training_that_cannot_be_leaves_no_run(
    series_cli: Cli, series_workspace: Path, override: str, told: str
) -> None:
    key = override.partition("=")[0]
    line = only_line(series_cli("train", *(word for word in SMALL if not word.startswith(f"{key}=")), override))
    assert told in line
    assert not (series_workspace / "runs").exists()


@pytest.fixture(scope="session")
def series_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder made without MLflow, and its table beside it."""
    folder = tmp_path_factory.mktemp("desk")
    panel().write_parquet(folder / "panel.parquet")
    words = [word.replace("panel.parquet", str(folder / "panel.parquet")) for word in SMALL]
    where = [f"data.stores={folder / 'stores'}", f"run.dir={folder / 'run'}", "tracking=off"]
    assert main(TIMESERIES, ["train", *words, *where, "trainer.max_steps=2"]) == 0
    return folder / "run"


@pytest.fixture
def series_run(series_elsewhere: Path, tmp_path: Path) -> Path:
    """A copy of a trained run, for tests that change it."""
    return Path(shutil.copytree(series_elsewhere, tmp_path / "copied"))


def test_a_run_is_not_replaced_unasked(series_cli: Cli, series_workspace: Path, series_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in everything(series_run)}
    line = only_line(series_cli("train", *SMALL, f"run.dir={series_run}"))
    assert f"give resume={series_run} to go on with it, run.overwrite=true to replace it" in line
    line = only_line(series_cli("train", f"resume={series_run}", "data.horizon=3"))
    assert "leave out data.horizon " in line
    assert {path: path.stat().st_mtime_ns for path in everything(series_run)} == before


def test_a_finished_run_is_resumed_to_no_effect(series_cli: Cli, workspace: Path, series_run: Path) -> None:
    before = (series_run / "model" / "model.safetensors").read_bytes()
    done = series_cli("train", f"resume={series_run}", "tracking=off")
    assert done.code == 0, done.err
    assert (series_run / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluate", "data.path=other.parquet"], "other.parquet: does not hold the series that copied/model was trai"),
        (["evaluate", "baselines=[niave]"], "baselines: there is none named 'niave'; choose among naive"),
        (["evaluate", "series=[AA]"], "panel.parquet: has no series 'AA'"),
        (["evaluate", "out=panel.parquet"], "panel.parquet: is a file; choose a folder to write into"),
        (["evaluate", "stride=0"], "stride=0: must be at least 1"),
        (["forecast", "data.path=panel.parquet", "out=panel.parquet", "state=s"], "panel.parquet: is a file"),
        (["forecast", "data.path=panel.parquet", "out=copied", "state=s"], "copied: holds other files"),
        (["forecast", "data.path=nowhere.csv", "out=o", "state=s"], "nowhere.csv: no such file or folder"),
        (["forecast", "data.path=bare.parquet", "out=o", "state=s"], "bare.parquet: has no column 'volume' (data.past"),
        (["forecast", "data.path=panel.parquet", "out=o", "state=s", "engine=spark"], "engine=spark: "),
        (
            ["forecast", "data.path=panel.parquet", "out=o", "state=s", "calibrate=true"],
            "calibrate=True: must be one of",
        ),
        (
            ["forecast", "data.path=panel.parquet", "data.past=[]", "out=o", "state=s"],
            "panel.parquet: data.past is [], but copied/mo",
        ),
    ],
)
def test_a_model_and_a_table_that_do_not_fit(
    series_cli: Cli, series_workspace: Path, series_run: Path, words: list[str], told: str
) -> None:
    panel(seed=1).write_parquet("other.parquet")
    panel().drop("volume").write_parquet("bare.parquet")
    word, *rest = words
    done = series_cli(word, "model=copied", "device=cpu", "tracking=off", *rest)
    assert done.code == 2
    assert done.errors[-1].startswith(f"error: {told}")
    assert not done.out
    assert not Path("o").exists() or not list(Path("o").rglob("*.parquet"))
    assert not (series_run / "evaluation").exists()


def test_a_damaged_model_is_told(series_cli: Cli, workspace: Path, series_run: Path) -> None:
    (series_run / "model" / "scaler.json").write_text("{}")
    line = only_line(series_cli("evaluate", "model=copied", "tracking=off"))
    assert line.startswith("copied/model/scaler.json: holds no scaler ('past'); restore the file or train again")


def test_runs_and_models_of_another_domain(
    series_cli: Cli, cli: Cli, workspace: Path, series_run: Path, trained_elsewhere: Path
) -> None:
    shutil.copytree(trained_elsewhere, "dna")
    line = only_line(series_cli("evaluate", "model=dna", "tracking=off"))
    assert line == "dna/model: is a model of genomics, not of time series; give another model folder"
    for word, key in (("import-run", "run"), ("train", "resume")):
        line = only_line(series_cli(word, f"{key}=dna"))
        assert line == f"dna: is a run of 'genomics'; give it to python -m pipelines.genomics {word}"
        line = only_line(cli(word, f"{key}=copied"))
        assert line == f"copied: is a run of 'timeseries'; give it to python -m pipelines.timeseries {word}"


def test_a_table_that_moved_is_asked_for(series_cli: Cli, workspace: Path, series_run: Path) -> None:
    config = (series_run / "config.yaml").read_text()
    table = json.dumps(str(workspace / "gone.parquet"))
    lines = [f"  path: {table}" if line.startswith("  path:") else line for line in config.splitlines()]
    (series_run / "config.yaml").write_text("\n".join(lines))
    line = only_line(series_cli("evaluate", "model=copied", "tracking=off"))
    assert line.startswith(f"{workspace}/gone.parquet: no such file")
    assert "say where it is now with data.path=<file>" in line
