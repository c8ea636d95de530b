"""The folder of forecasts: Parquet files by date of the cut-off, a table of the series set aside, and the manifest.

::

    cutoff=<date>/part-<shard>-<run>.parquet   one row for each series and step ahead
    paths/cutoff=<date>/part-<shard>-<run>-<n>.parquet   sampled paths, where asked for: one row for each step of each
    rejects/<run>-<hash>.parquet               series set aside in a run, and why
    manifest.json                              the files that count; others are left of runs that were killed

What counts is decided in the state folder, by the rename with which states and forecasts become facts together
(:mod:`domains.timeseries.states`); the manifest here repeats it for readers, and is mended by the next run when a run
was killed between the two.
"""

import hashlib
import io
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from domains.errors import UserError
from domains.files import atomic_file, find_temporaries, locked_folder
from domains.folder import read_json, write_json
from domains.timeseries.config import LEVELS
from domains.timeseries.splits import for_people
from domains.timeseries.states import MANIFEST, StateFolder

FORMAT = 1
_PARTS = ("cutoff=*/part-*.parquet", "paths/cutoff=*/part-*.parquet")
_REJECTS = re.compile(r"(\d{8})-[0-9a-f]{8}\.parquet")


class Written(NamedTuple):
    """A file of forecasts or paths: its name relative to the output folder."""

    file: str
    sha256: str


class Reject(NamedTuple):
    """A series that was set aside."""

    series: str
    reason: str
    detail: str


@dataclass(frozen=True)
class ForecastTable:
    """Forecasts of n series.

    Attributes:
        series: n names.
        cutoff: int64 (n,), stamp of the last known row, microseconds. stamps: int64 (n, h), of the steps ahead.
        last: float64 (n,), the last observation.
        centre: float64 (n, h), the mean of prices on a logarithmic scale, of other kinds as it is.
        scale: float64 (n, h), standard deviation in units of the increments.
        quantiles: float64 (n, h, q), in units of the observations.
    """

    series: list[str]
    cutoff: np.ndarray
    stamps: np.ndarray
    last: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    quantiles: np.ndarray

    @classmethod
    def joined(cls, tables: Sequence["ForecastTable"]) -> "ForecastTable":
        """One table of at least one, by name of the series."""
        names = [name for table in tables for name in table.series]
        arrays = (
            np.concatenate([getattr(table, name) for table in tables])
            for name in ("cutoff", "stamps", "last", "centre", "scale", "quantiles")
        )
        return cls(names, *arrays).part(np.argsort(names, kind="stable"))

    def part(self, rows: np.ndarray) -> "ForecastTable":
        """Some of the series, in this order."""
        arrays = (self.cutoff, self.stamps, self.last, self.centre, self.scale, self.quantiles)
        return ForecastTable([self.series[i] for i in rows], *(array[rows] for array in arrays))

    def columns(self) -> dict[str, np.ndarray]:
        """One row for each series and step ahead."""
        h = self.stamps.shape[1]
        plain = {
            "series": np.repeat(np.array(self.series, dtype=object), h),
            "cutoff": np.repeat(self.cutoff, h),
            "step": np.tile(np.arange(1, h + 1), len(self.series)),
            "stamp": self.stamps.ravel(),
            "last": np.repeat(self.last, h),
            "centre": self.centre.ravel(),
            "scale": self.scale.ravel(),
        }
        return plain | {f"q{level:g}": self.quantiles[:, :, j].ravel() for j, level in enumerate(LEVELS)}

    def write(self, out: Path, shard: int, generation: int, model: str) -> tuple[Written, ...]:
        """Parquet files by the date (UTC) of the cut-off, with the version of the model in the column ``model``."""
        import polars as pl

        days = np.array([for_people(int(stamp))[:10] for stamp in self.cutoff])
        written = []
        for day in np.unique(days):
            columns: dict[str, Any] = self.part(np.flatnonzero(days == day)).columns()
            stamps = [pl.col(name).cast(pl.Datetime("us", "UTC")) for name in ("cutoff", "stamp")]
            columns["series"] = pl.Series(columns["series"].tolist(), dtype=pl.String)
            frame = pl.DataFrame(columns).with_columns(*stamps, pl.lit(model).alias("model"))
            name = f"cutoff={day}/part-{shard:05d}-{generation:08d}.parquet"
            (out / name).parent.mkdir(exist_ok=True)
            written.append(Written(name, _write_frame(frame, out / name)))
        return tuple(written)


@dataclass(frozen=True)
class PathTable:
    """Sampled paths of n series with cut-offs on the same day.

    Attributes:
        series: n names.
        cutoff: int64 (n,), stamp of the last known row, microseconds. stamps: int64 (n, s), of the steps.
        values: float64 (n, c, s), c paths of each series, in units of the observations.
    """

    series: list[str]
    cutoff: np.ndarray
    stamps: np.ndarray
    values: np.ndarray

    def write(self, out: Path, part: str, model: str) -> Written:
        """A Parquet file in the folder of the date (UTC), with the version of the model in the column ``model``."""
        import polars as pl

        n, count, steps = self.values.shape
        numbers = {
            "cutoff": self.cutoff.repeat(count * steps),
            "path": np.tile(np.arange(count).repeat(steps), n),
            "step": np.tile(np.arange(1, steps + 1), n * count),
            "stamp": self.stamps.repeat(count, axis=0).ravel(),
            "value": self.values.ravel(),
        }
        names = pl.Series("series", self.series, dtype=pl.String)[np.arange(n).repeat(count * steps)]
        stamps = [pl.col(name).cast(pl.Datetime("us", "UTC")) for name in ("cutoff", "stamp")]
        frame = pl.DataFrame([names]).with_columns(*(pl.Series(name, column) for name, column in numbers.items()))
        name = f"paths/cutoff={for_people(int(self.cutoff[0]))[:10]}/part-{part}.parquet"
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        return Written(name, _write_frame(frame.with_columns(*stamps, pl.lit(model).alias("model")), out / name))


@dataclass
class OutputFolder:
    """The folder, held by this process alone. Made by :func:`open_output`.

    Attributes:
        path: the folder.
        id: tells it from others, wherever it is moved.
    """

    path: Path
    id: str

    def write_rejects(self, rejects: Sequence[Reject], generation: int) -> str | None:
        """The table of series set aside; its name. The same table gets the same name."""
        import polars as pl

        if not rejects:
            return None
        digest = hashlib.sha256(repr(sorted(map(tuple, rejects))).encode()).hexdigest()
        name = f"rejects/{generation:08d}-{digest[:8]}.parquet"
        (self.path / name).parent.mkdir(exist_ok=True)
        schema = dict.fromkeys(Reject._fields, pl.String)
        _write_frame(pl.DataFrame(sorted(rejects), schema=schema, orient="row"), self.path / name)
        return name

    def superseded(
        self, name: str, new: Sequence[Written], model: str, states: StateFolder
    ) -> tuple[list[str], list[Written]]:
        """Files from before a reread in which forecasts of a model stand that have been made again.

        Args:
            name: files or paths. new: what the present run wrote.
            model: as the manifest has it.
            states: before the run is committed.

        Returns:
            The names of these files, and files of the rest of their rows, written now: other series, which were not in
            the table or have gone on since. They count once the run does.
        """
        import polars as pl

        keys, days = ["series", "cutoff"], {Path(file.file).parent for file in new}
        entries = [e for e in read_json(self.path / MANIFEST)[name] if e["run"] < states.reread and e["model"] == model]
        entries = [e for e in entries if Path(e["file"]).parent in days and (self.path / e["file"]).exists()]
        if not entries:
            return [], []
        again = pl.concat([pl.read_parquet(self.path / file.file, columns=keys).unique() for file in new])
        gone, rest = [], []
        for old in (Path(entry["file"]) for entry in entries):
            frame = pl.read_parquet(self.path / old)
            kept = frame.join(again, on=keys, how="anti", maintain_order="left")
            if len(kept) == len(frame):
                continue
            gone.append(str(old))
            if len(kept):
                name = str(old.with_name(f"{old.stem.partition('-rest-')[0]}-rest-{states.generation + 1:08d}.parquet"))
                rest.append(Written(name, _write_frame(kept, self.path / name)))
        return gone, rest

    def record(self, states: StateFolder, rejects: str | None) -> None:
        """Write the manifest: the files that count, and the series that the last run set aside.

        What the states no longer tell of, as it was listed here before they let it go, stays listed, unless a reread
        replaced it.
        """
        path = self.path / MANIFEST
        before = read_json(path) if path.exists() else {}
        told = {run["generation"] for run in states.runs}
        own = [run for run in states.runs if run["out"] == self.id]
        gone = {file for run in own for file in run.get("replaces", ())}
        lists = {}
        for name, key in (("files", "forecasts"), ("paths", "paths")):
            listed = {e["file"]: e for e in before.get(name, [])}
            kept = [e for e in listed.values() if e["run"] <= states.generation and e["run"] not in told]
            kept = [e for e in kept if e["file"] not in gone]
            kept += [
                {**entry, "run": run["generation"], "model": run["model"]}
                for run in own
                for entry in run.get(key, [])
                # What a reread replaced is not there when older states are brought back.
                if entry["file"] in listed or (self.path / entry["file"]).exists()
            ]
            lists[name] = sorted(kept, key=lambda entry: entry["run"])
        table = {"format": FORMAT, "id": self.id, "states": states.id, **lists, "rejects": rejects}
        if before != table:
            write_json(path, table)

    def is_listed(self, run: Mapping[str, Any]) -> bool:
        """Whether the files of a run that the states tell of are in the manifest of the folder that they are in."""
        if run["out"] == self.id:
            return True  # since the folder was opened
        try:
            table = read_json(Path(run["folder"]) / MANIFEST)
        except UserError:  # moved, or gone
            return False
        listed = {entry["file"] for name in ("files", "paths") for entry in table.get(name, [])}
        wrote = {entry["file"] for key in ("forecasts", "paths") for entry in run.get(key, [])}
        return table.get("id") == run["out"] and wrote <= listed

    def sweep(self, states: StateFolder) -> None:
        """Remove what killed runs left."""
        table = read_json(self.path / MANIFEST)
        counts = {self.path / entry["file"] for name in ("files", "paths") for entry in table[name]}
        dead = [path for pattern in _PARTS for path in self.path.glob(pattern) if path not in counts]
        for path in self.path.glob("rejects/*.parquet"):
            match = _REJECTS.fullmatch(path.name)
            if match and int(match[1]) > states.generation:
                dead.append(path)
        for folder in [
            self.path,
            self.path / "rejects",
            *self.path.glob("cutoff=*"),
            *self.path.glob("paths/cutoff=*"),
        ]:
            dead += find_temporaries(folder, (".parquet", MANIFEST)) if folder.is_dir() else []
        for path in dead:
            path.unlink(missing_ok=True)


@contextmanager
def open_output(path: Path, states: StateFolder) -> Iterator[OutputFolder]:
    """The output folder, made when missing, for this process alone, freed of what killed runs left.

    Raises:
        UserError: another process works there; or it holds other files, or forecasts of another state folder or of a
            later one than this.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; choose a folder for the forecasts")
    if path.resolve() == states.path.resolve():
        raise UserError(f"{path}: is the state folder; choose another folder for the forecasts")
    path.mkdir(parents=True, exist_ok=True)
    busy = "another forecast job is at work there; wait for it, or choose another out folder"
    with locked_folder(path, busy) as alone:
        rejects = None
        if (path / MANIFEST).exists():
            table = read_json(path / MANIFEST)
            if table.get("format") != FORMAT or "states" not in table or "id" not in table:
                raise UserError(f"{path}: holds other files; choose a new out folder")
            if table["states"] != states.id:
                raise UserError(f"{path}: holds forecasts of another state folder; choose another out folder")
            latest = max((entry["run"] for name in ("files", "paths") for entry in table[name]), default=0)
            if latest > states.generation:  # the manifest here never runs ahead: it is written behind the states
                raise UserError(
                    f"{path}: holds forecasts of run {latest}, but {states.path} is of run {states.generation}, an "
                    "older copy; bring the later states back, or choose another out folder"
                )
            output, rejects = OutputFolder(path, str(table["id"])), table.get("rejects")
        elif any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise UserError(f"{path}: holds other files; choose a new out folder")
        else:
            output = OutputFolder(path, secrets.token_hex(8))
        output.record(states, rejects)
        if alone:
            output.sweep(states)
        yield output


def _write_frame(frame: Any, path: Path) -> str:
    """Write a Polars frame as Parquet, atomically; its sha256."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()
