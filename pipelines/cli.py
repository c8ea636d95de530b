"""The command line of every domain: ``python -m pipelines.<domain> <command> [key=value ...]``.

A domain declares its commands as a :class:`Domain`; everything else is here: help, checking what was typed, composing
and validating the configuration with Hydra, running the command, and turning what went wrong into one line and an
exit code.
"""

import logging
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domains.errors import UserError
from domains.launch import rank, signed
from pipelines.help import describe_command, describe_domain
from pipelines.messages import explain
from pipelines.overrides import check_form, check_keys, suggest

# Hydra composes and sweeps; where runs are written and what is logged is this project's own business.
_HYDRA = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra.sweep.dir=runs/multirun/${now:%Y%m%d-%H%M%S}",
    "hydra.sweep.subdir=${now:%Y%m%d-%H%M%S}-${hydra.job.num}",
)
_SWITCHES = ("-m", "--multirun", "--resolve")
_VALUED = {"--cfg": "job", "-c": "job", "--config-dir": "<folder>", "-cd": "<folder>"}

OK, BUG, MISTAKE, INTERRUPTED, UNREAD, TERMINATED = 0, 1, 2, 130, 141, 143


@dataclass(frozen=True)
class Command:
    """One word of a domain's command line.

    Attributes:
        word: what the user types.
        summary: one line.
        about: a paragraph.
        options: key and meaning of what a user is most likely to set.
        examples: what stands after ``python -m pipelines.<domain>``.
        schema: "module:dataclass" of its configuration; required keys default to ``config.REQUIRED``.
        run: "module:function" of ``(schema instance, Invocation) -> Outcome``.
    """

    word: str
    summary: str
    about: str
    options: tuple[tuple[str, str], ...]
    examples: tuple[str, ...]
    schema: str
    run: str


# Options that the commands of every domain have, as Command.options tells of them.
MODEL = ("model", "model folder of a run, or the id of its MLflow run")
DEVICE = ("device", "auto, cpu or gpu (auto)")
TRACKING = ("tracking.uri", "where MLflow records (MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)")


def import_run(domain: str) -> Command:
    """The command that all domains have in common: the MLflow run of a run folder that was trained elsewhere."""
    return Command(
        word="import-run",
        summary="Record in MLflow a run that was trained elsewhere.",
        about=f"For run folders made by python -m domains.{domain}.train on a machine without MLflow, and for runs "
        "whose tracking server was out of reach. What MLflow has already is not sent again.",
        options=(("run", "run folder"), TRACKING),
        examples=("import-run run=runs/from-the-cluster",),
        schema="pipelines.config:ImportRunRoot",
        run=f"pipelines.{domain}.commands:import_run",
    )


@dataclass(frozen=True)
class Domain:
    """A field, and the commands it answers to. Root configurations are configs/<name>_<word>.yaml.

    Attributes:
        name: as in ``python -m pipelines.<name>``.
        summary: one line.
        commands: its words.
        experiments: those of the recipes in configs/experiment that are its own.
        tasks: those of the files in configs/task that it knows; domains share them.
    """

    name: str
    summary: str
    commands: tuple[Command, ...]
    experiments: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        return f"python -m pipelines.{self.name}"

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(command.word for command in self.commands)

    def root(self, command: Command) -> str:
        """Name of the command's root configuration."""
        return f"{self.name}_{command.word.replace('-', '_')}"

    def groups(self, command: Command) -> dict[str, list[str]]:
        """The groups that the command's configuration chooses from, each with the names of its files."""
        from pipelines import config

        own = {"experiment": sorted(self.experiments), "task": sorted(self.tasks)}
        return {group: own.get(group, names) for group, names in config.groups(self.root(command)).items()}


@dataclass(frozen=True)
class Invocation:
    """What the user typed, and in a sweep the folder that is set aside for this one of its runs."""

    domain: Domain
    command: Command
    overrides: tuple[str, ...]
    sweep_dir: Path | None = None

    @property
    def line(self) -> str:
        """The command line, to be recorded with the run."""
        return self.next(" ".join([self.command.word, *self.overrides]))

    def next(self, words: str) -> str:
        """A command line of the same domain, to tell the user."""
        return f"{self.domain.program} {words}"


@dataclass(frozen=True)
class Outcome:
    """How a command ends: what it made and where, and what to run next, a line each."""

    result: str
    next: tuple[str, ...] = ()


class Stopped(SystemExit):
    """The job was told to stop, and does so in good order: it unwinds like sys.exit. The message says how to go on."""

    code: int

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def main(domain: Domain, arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Codes: 0, 2 for a user's mistake (one line on stderr), 1 for a fault of ours (with its traceback), 130 after Ctrl-C,
    143 after SIGTERM, 141 when what stdout is piped into has ended. ``--debug`` shows the traceback of everything.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    with warnings.catch_warnings(), _sigterm_raises():
        if not debug:
            _quieten()
        try:
            _dispatch(domain, [word for word in words if word != "--debug"])
            sys.stdout.flush()
        except Stopped as stop:
            return _fail(str(stop), stop.code, debug)
        except KeyboardInterrupt:
            return _fail("interrupted", INTERRUPTED, debug)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                return UNREAD
            line = explain(error)
            if line is not None:
                return _fail(f"error: {line}", MISTAKE, debug)
            return _fail("this is a fault in Serpentine; please report it with the lines above", BUG, True)
    return OK


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Raise on SIGTERM, whose usual effect runs no ``finally``. Training takes the signal over while it trains."""
    in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    if not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(*_: object) -> None:
        raise Stopped("stopped by SIGTERM", TERMINATED)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _nobody_reads() -> bool:
    """Whether what stdout is piped into has ended, as ``head`` does. What is left in the buffer then goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # a pipe without a reader tells so unasked
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _fail(line: str, code: int, show_traceback: bool) -> int:
    if show_traceback:
        traceback.print_exc()
    print(signed(line), file=sys.stderr)
    return code


def _dispatch(domain: Domain, words: list[str]) -> None:
    if not words:
        raise UserError(f"no command given; commands: {', '.join(domain.words)}; {domain.program} --help explains them")
    word, rest = words[0], words[1:]
    if word in ("-h", "--help", "help"):
        print(describe_domain(domain))
        return
    command = _find(domain, word)
    if "-h" in rest or "--help" in rest:
        print(describe_command(domain, command))
        return
    flags, overrides = _split(rest)
    _compose_and_run(domain, command, flags, overrides)


def _find(domain: Domain, word: str) -> Command:
    # A launcher that starts the program again (DDP) repeats argv as it was rewritten for Hydra.
    word = word.removeprefix(f"--config-name={domain.name}_").replace("_", "-")
    for command in domain.commands:
        if command.word == word:
            return command
    hint = suggest(word, domain.words)
    known = "" if hint.startswith("there are") else f" there are {', '.join(domain.words)}"
    raise UserError(f"unknown command {word!r}; {hint}{known}")


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, and the overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, _ = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
        elif word in _SWITCHES or (name in _VALUED and equals):
            flags.append(word)
        elif word in _VALUED:
            if (value := next(remaining, None)) is None:
                raise UserError(f"{word} has no value; write {word} {_VALUED[word]}")
            flags += [word, value]
        else:
            raise UserError(f"unknown option {word}; there are --help, --debug, --cfg job, --multirun, --config-dir")
    return flags, overrides


def _compose_and_run(domain: Domain, command: Command, flags: list[str], overrides: list[str]) -> None:
    """Check the overrides, the cheap checks first, then let Hydra compose the configuration and call back."""
    from pipelines import config

    root = domain.root(command)
    groups = domain.groups(command)
    typed = [text for text in overrides if text not in _HYDRA]
    own_groups = any(flag.startswith(("--config-dir", "-cd")) for flag in flags)
    check_form(typed, {} if own_groups else groups)
    schema = config.load(command.schema)
    check_keys(typed, config.keys(schema), groups)
    config.register(root, schema)

    failures: list[BaseException] = []

    def task(composed: object) -> None:
        # Hydra prints about an exception that it sees, so it sees none; a sweep stops at its first failure.
        if failures:
            return
        try:
            settings = _build(domain, command, schema, composed)
            _report(config.load(command.run)(settings, _invocation(domain, command)))
        except BaseException as error:
            failures.append(error)

    _with_hydra(root, [*flags, *_HYDRA, *typed], task)
    if failures:
        raise failures[0]


def _build(domain: Domain, command: Command, schema: type, composed: Any) -> Any:
    from omegaconf.errors import MissingMandatoryValue

    from pipelines.config import build

    try:
        return build(schema, composed)
    except MissingMandatoryValue as error:
        key = error.full_key
        example = f"{domain.program} {command.examples[0]}"
        raise UserError(f"{key} is missing; give {key}=<value>, as in {example}") from error


def _with_hydra(root: str, words: list[str], task: Callable[[object], None]) -> None:
    """``@hydra.main`` over rewritten arguments: so help, sweeps and launchers that start the program again work."""
    import hydra

    before = sys.argv
    sys.argv = [before[0], f"--config-name={root}", *words]
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, rather than print and exit
    try:
        hydra.main(config_path="pkg://configs", version_base="1.3")(task)()
    finally:
        sys.argv = before
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]


def _invocation(domain: Domain, command: Command) -> Invocation:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    job = HydraConfig.get()
    sweep_dir = Path(os.path.relpath(job.runtime.output_dir)) if job.mode == RunMode.MULTIRUN else None
    return Invocation(domain, command, tuple(job.overrides.task), sweep_dir)


def _report(outcome: Outcome) -> None:
    if rank() > 0:  # the first process speaks
        return
    print(outcome.result)
    for i, line in enumerate(outcome.next):
        print(f"{'next:' if i == 0 else '     '} {line}")


def _quieten() -> None:
    """Hide what other packages say about themselves; ``--debug`` shows it."""
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
