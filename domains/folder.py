"""The run folder: all that a training run leaves behind, readable without any of our code.

::

    config.yaml      every setting, resolved
    run.json         status, times, hardware, versions, command; one entry for each session of a resumed run
    splits.json      fingerprint of the data, and which part of it is for what
    metrics.jsonl    what was measured, one JSON object a line
    checkpoints/     step-00000200.ckpt, for resuming this run alone
    model/           the model folder: what later stages and other people need
"""

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from domains.errors import UserError
from domains.files import atomic_file, locked_folder
from domains.hardware import describe_versions, git_commit


class RunFolder:
    """Paths in a run folder, and its record in run.json."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.info_path = self.path / "run.json"
        self.splits_path = self.path / "splits.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"

    def check_free(self, *, overwrite: bool = False) -> None:
        """Make sure that a new run may start here.

        Raises:
            UserError: the folder holds something other than a run, or a run while ``overwrite`` is False.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; choose a folder for the run")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not self.info_path.exists():
            raise UserError(f"{self.path}: the folder holds other files; choose a new folder for the run")
        if not overwrite:
            raise UserError(f"{self.path}: holds a run already; resume it, overwrite it, or choose another folder")

    def create(self, *, overwrite: bool = False) -> None:
        """Make the folder, empty but for checkpoints/; an earlier run is removed first when ``overwrite`` says so."""
        self.check_free(overwrite=overwrite)
        if self.path.is_dir():
            with self.locked():
                shutil.rmtree(self.path)
        self.checkpoints.mkdir(parents=True)
        write_json(self.info_path, {"status": "new"})

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """Open an existing run folder; a UserError when it is none."""
        run = cls(path)
        for needed in (run.info_path, run.config_path):
            if not needed.exists():
                raise UserError(
                    f"{path}: is no run folder ({needed.name} is missing); give the folder of a training run"
                )
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the lock goes with the process, however that ends.

        Raises:
            UserError: another process holds it.
        """
        with locked_folder(self.path, "another process is training in this folder; wait for it, or stop it"):
            yield

    def info(self) -> dict[str, Any]:
        """What run.json holds."""
        return read_json(self.info_path)

    def begin(self, domain: str, *, command: str | None, hardware: Mapping[str, object], from_step: int) -> None:
        """Record that a session starts."""
        before = self.info() if self.info_path.exists() else {}
        now = _now()
        session = {
            "started": now,
            "ended": None,
            "from_step": from_step,
            "command": command,
            "hardware": dict(hardware),
            "versions": describe_versions(),
            "git_commit": git_commit(),
        }
        info = {"domain": domain, "started": before.get("started", now), "ended": None, "status": "running"}
        write_json(self.info_path, {**info, "sessions": [*before.get("sessions", []), session]})

    def end(self, status: str, step: int | None = None) -> None:
        """Record how the session ended: ``finished``, ``stopped`` (resumable) or ``failed``."""
        info, now = self.info(), _now()
        info["sessions"][-1] |= {"ended": now, "to_step": step}
        write_json(self.info_path, info | {"status": status, "ended": now, "step": step})


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A hidden sibling folder to fill, which takes the place of ``path`` when the block ends well.

    When the block raises, the sibling is removed and ``path`` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():  # two renames, for want of an exchange that works everywhere
            old = path.with_name(f"{temporary.name}.old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object; a UserError when the file is missing, damaged, or holds something else."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); the folder is not complete") from None
    except ValueError:
        raise UserError(f"{path}: is not valid JSON; restore the file") from None
    if not isinstance(table, dict):
        raise UserError(f"{path}: does not hold a table; restore the file")
    return table


def write_json(path: Path | str, table: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, indented for people."""
    with atomic_file(path) as file:
        file.write(json.dumps(table, indent=2).encode("utf-8") + b"\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
