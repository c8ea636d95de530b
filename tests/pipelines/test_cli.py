"""Help, typing mistakes, exit codes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from domains.errors import UserError
from pipelines import config
from pipelines.audio import AUDIO
from pipelines.cli import Command, Domain, Invocation, Outcome, Stopped, main
from pipelines.genomics import GENOMICS
from pipelines.timeseries import TIMESERIES
from tests.pipelines.conftest import Cli

DOMAINS = [GENOMICS, AUDIO, TIMESERIES]
COMMANDS = [(domain, command) for domain in DOMAINS for command in domain.commands]


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_help_names_every_command_with_an_example(domain: Domain, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(domain, ["--help"]) == 0
    out = capsys.readouterr().out
    for command in domain.commands:
        assert command.summary in out
        assert f"{domain.program} {command.examples[0]}" in out


@pytest.mark.parametrize(
    ("domain", "command"), COMMANDS, ids=[f"{domain.name}-{command.word}" for domain, command in COMMANDS]
)
def test_help_of_a_command_is_true(domain: Domain, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(domain, [command.word, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(example in out for example in command.examples)
    keys = config.keys(config.load(command.schema))
    for key, _ in command.options:
        assert key in out
        assert key in keys or key in domain.groups(command)
    for word in (word for example in command.examples for word in example.split()[1:]):
        key = word.partition("=")[0]
        assert key in keys or key in domain.groups(command), word
    assert callable(config.load(command.run))


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_help_lists_the_choices_that_ship(domain: Domain) -> None:
    train = next(command for command in domain.commands if command.word == "train")
    groups, meanings = domain.groups(train), dict(train.options)
    assert groups["experiment"]
    for group in ("backbone", "trainer", "experiment"):
        assert all(choice in meanings[group] for choice in groups[group])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["forecast"], "there are prepare, train, evaluate, predict, score, embed, generate, import-run"),
        ([], "no command given"),
        (["train", "data.fastaa=x.fa"], "unknown key 'data.fastaa'; did you mean data.fasta"),
        (["train", "max_steps=3"], "did you mean trainer.max_steps?"),
        (["train", "zzz.qqq=3"], "--cfg job shows every key"),
        (["evaluate", "modle=x"], "did you mean model?"),
        (["train", "+data.fasta=x"], "write data.fasta=<value>, without '+'"),
        (["train", "backbone=mambo"], "backbone=mambo: there is no such choice; did you mean mamba"),
        (["train", "experiment=paper"], "there are demo, umaydis_cds"),
        (["train", "trainer.max_steps=many"], "trainer.max_steps=many: must be a whole number"),
        (["train", "trainer.max_steps=1.5"], "trainer.max_steps=1.5: must be a whole number"),
        (["train", "trainer.optimizer.learning_rate=fast"], "trainer.optimizer.learning_rate=fast: must be a number"),
        (["train", "tracking.enabled=perhaps"], "tracking.enabled=perhaps: must be true or false"),
        (["train", "trainer.optimizer.betas=[1,2,3]"], "trainer.optimizer.betas must be a list of 2"),
        (["train", "data.test=chr20"], "data.test takes a list; write data.test=["),
        (["train", "seed=null"], "seed must have a value"),
        (["train", "data.fasta="], "data.fasta= has no value"),
        (["train", "my.fa"], "'my.fa' is not key=value"),
        (["train", "data.fasta=~/my.fa"], "write the folder in full: data.fasta=$HOME/my.fa"),
        (["train", "data.fasta=my(1).fa"], "put the value in quotes: data.fasta='\"my(1).fa\"'"),
        (["train", "data.fasta=${nowhere}"], "nowhere"),
        (["train", "--frobnicate"], "unknown option --frobnicate"),
        (["train", "--cfg"], "--cfg has no value"),
        (["evaluate"], "model is missing; give model=<value>, as in python -m pipelines.genomics evaluate model="),
        (["predict", "model=m", "out=o"], "data.fasta is missing"),
        (["generate", "model=m"], "out is missing"),
        (["import-run"], "run is missing"),
    ],
)
def test_a_typing_mistake_is_told_in_one_line(cli: Cli, tmp_path: Path, words: list[str], told: str) -> None:
    done = cli(*words)
    assert done.code == 2
    assert told in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert not done.out


def test_quotes_let_any_name_through(cli: Cli, workspace: Path) -> None:
    done = cli("prepare", 'data.fasta="my (1),=.fa"')
    assert done.err == "error: my (1),=.fa: no such file; check the path\n"


def test_debug_shows_the_traceback_of_a_mistake(cli: Cli) -> None:
    done = cli("prepare", "data.fasta=nowhere.fa", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err
    assert "error: nowhere.fa: no such file" in done.err


def raises(error: BaseException) -> Domain:
    """A domain whose only command fails; its root is that of genomics prepare."""
    _ERRORS[:] = [error]
    command = Command("prepare", "", "", (), ("",), "pipelines.genomics.roots:PrepareRoot", f"{__name__}:fail")
    return Domain("genomics", "", (command,))


_ERRORS: list[BaseException] = []


def fail(root: object, invocation: Invocation) -> Outcome:
    raise _ERRORS[0]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("x.fa:\nis bad"), 2, "error: x.fa: is bad"),
        (Stopped("stopped after step 3; go on with: resume", 143), 143, "stopped after step 3; go on with: resume"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "/etc/x"), 2, "error: /etc/x: may not be written or read by you"),
        (OSError(28, "No space left on device", "runs/a"), 2, "error: runs/a: no space is left; make room"),
        (
            IsADirectoryError(21, "Is a directory", ".x", None, "x"),
            2,
            "error: x: a folder stands where a file is wanted",
        ),
        (NotADirectoryError(20, "Not a directory", "a/b"), 2, "error: a/b: a file stands where a folder is wanted"),
        (OSError(27, "File too large", "runs/a"), 2, "error: runs/a: files may not grow that large here"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 2, "error: the GPU has too little memory"),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str) -> None:
    assert main(raises(error), ["prepare"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == 1


@pytest.mark.parametrize("error", [ZeroDivisionError("ours"), OSError(5, "Input/output error")])
def test_a_fault_of_ours_is_1_and_shows_where(capsys: pytest.CaptureFixture[str], error: BaseException) -> None:
    assert main(raises(error), ["prepare"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "in fail" in shown
    assert shown.endswith("please report it with the lines above\n")


def told_to_stop(root: object, invocation: Invocation) -> Outcome:
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError


def terminated() -> int:
    command = Command("prepare", "", "", (), ("",), "pipelines.genomics.roots:PrepareRoot", f"{__name__}:told_to_stop")
    return main(Domain("genomics", "", (command,)), ["prepare"])


def test_sigterm_ends_in_one_line_and_is_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminated() == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_who_handles_sigterm_already_goes_on_doing_so() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: received.append(signum))
    try:
        assert terminated() == 1  # the command went on, to its AssertionError
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


SLOW = """
import sys, time
from domains.genomics import predict, store
from pipelines.cli import main
from pipelines.genomics import GENOMICS

def slow(function):
    def wait(*args, **options):
        result = function(*args, **options)
        print("waits", flush=True)
        time.sleep(60 if sys.argv[1] == "prepare" else 5)  # threads end at their next block
        return result
    return wait

if sys.argv[1] == "prepare":
    store._write_record = slow(store._write_record)
else:
    predict.ScoreTables.write = slow(predict.ScoreTables.write)
sys.exit(main(GENOMICS, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "words",
    [["prepare"], ["predict", "model=copied", "out=scores", "device=cpu", "both_strands=true"]],
    ids=["prepare", "predict"],
)
def test_sigterm_leaves_nothing_half_done(workspace: Path, run_folder: Path, words: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words, "data.fasta=made.fa"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("waits")  # two threads may speak at once
    process.terminate()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert err.splitlines()[-1] == "stopped by SIGTERM"
    assert "Traceback" not in err
    if words == ["prepare"]:
        assert list((workspace / "stores").iterdir()) == []
    else:  # contigs that were at their end are whole, the others wait in .progress
        left = {path.name for path in (workspace / "scores").iterdir()}
        assert {name for name in left if name.startswith(".")} == {".progress"}
        assert "c4.parquet" not in left


def test_a_command_ends_with_its_result_and_what_comes_next(cli: Cli, workspace: Path) -> None:
    done = cli("prepare", "data.fasta=made.fa")
    assert done.code == 0
    result, following = done.out.splitlines()
    (store,) = (workspace / "stores").iterdir()
    assert result.startswith(f"store: stores/{store.name} (prepared; 5 contigs, 7,500 bases")
    assert following == f"next: python -m pipelines.genomics train data.store=stores/{store.name}"
    assert "found prepared already" in cli("prepare", "data.fasta=made.fa").out


def test_nothing_is_left_beside_the_result(cli: Cli, workspace: Path) -> None:
    before = sorted(workspace.iterdir())
    cli("prepare", "data.fasta=made.fa")
    assert sorted(workspace.iterdir()) == sorted([*before, workspace / "stores"])


def test_cfg_shows_every_key_and_runs_nothing(cli: Cli, workspace: Path) -> None:
    done = cli("train", "--cfg", "job", "experiment=demo")
    assert done.code == 0
    assert "max_steps:" in done.out
    assert not (workspace / "runs").exists()


def test_argv_repeated_by_a_launcher_is_understood(cli: Cli) -> None:
    done = cli("--config-name=genomics_import_run", "hydra.run.dir=.", "hydra.output_subdir=null", "run=nowhere")
    assert done.err == "error: nowhere: is neither a run folder nor an MLflow run id; look into runs/\n"


def test_a_folder_of_ones_own_configurations_is_found(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer:\n  max_steps: 77\n")
    done = cli("train", "--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job")
    assert done.code == 0
    assert "max_steps: 77" in done.out


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        ("'train', '--help'", ("torch", "hydra", "omegaconf", "mlflow", "lightning", "numpy")),
        ("'trian'", ("torch", "hydra", "mlflow", "lightning")),
        ("'train', 'backbone=mambo'", ("torch", "mlflow", "lightning")),
        ("'train', 'data.fastaa=x'", ("mlflow", "lightning", "matplotlib", "polars")),
        ("'train', 'seed=x'", ("mlflow", "lightning", "matplotlib", "polars")),
        ("'train', 'data.pastt=x'", ("mlflow", "lightning", "matplotlib", "polars", "arch", "scipy")),
    ],
)
def test_help_and_mistakes_answer_before_anything_slow_is_imported(words: str, absent: tuple[str, ...]) -> None:
    domain = "timeseries" if "past" in words else "genomics"
    code = (
        f"import sys\nfrom pipelines.cli import main\nfrom pipelines.{domain} import {domain.upper()} as domain\n"
        f"code = main(domain, [{words}])\nprint(code, *[name for name in {absent} if name in sys.modules], sep=',')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ("0" if "help" in words else "2")


def test_the_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.genomics", "trian"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command 'trian'")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_went_away_is_no_fault() -> None:
    """As in ``... --help | head -1``: a pipe without a reader ends the command quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.genomics", "evaluate", "--help"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
