"""What a batch job keeps of each series between two runs: a folder that changes by one rename.

``manifest.json`` names the generation that counts: one safetensors file for each shard of series, with its size and
hash, the model that they belong to, and the forecasts that were written with them. Whatever a killed run wrote beside
it is not in the manifest, so it never happened; the next run does it again, under the same names.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from domains.errors import UserError
from domains.files import atomic_file, find_temporaries, locked_folder
from domains.folder import read_json, write_json
from domains.timeseries.absorbed import FACTS, Absorbed
from domains.timeseries.config import CALIBRATION_WINDOW, ForecastConfig
from domains.timeseries.stream import Carried
from domains.timeseries.trailing import Trailing
from domains.timeseries.transforms import Running
from mamba_core.state import State

FORMAT = 3
MANIFEST = "manifest.json"
KEPT_RUNS = 100  # that the manifest tells of, at least
_WRITTEN = ("forecasts", "paths")  # lists of the files that a run wrote
_MODEL, _TRAILING = "model.", "trailing."  # prefixes of the backbone's tensors, and of what trails
_KINDS = {"id": str, "model": str, "shards": int, "generation": int, "files": dict, "runs": list}
_ADDED = {"calibration_window": int, "compare_rows": int}  # since format 2
_FEWEST = 32  # series that a shard is made for when there are not enough to fill one
_SPREAD = 8  # shards that a small table is spread over, for as many processors


class Stored(NamedTuple):
    """A file of the state folder, and what it must hold."""

    path: str
    sha256: str
    bytes: int


@dataclass
class Shard:
    """Series that are kept together.

    Attributes:
        names: of the series.
        carried: running means and backbone state of each; None while there is no series.
        absorbed: what each has absorbed.
        trailing: what was forecast of each, and what came of it; None while there is no series.
    """

    names: list[str] = field(default_factory=list)
    carried: Carried | None = None
    absorbed: list[Absorbed] = field(default_factory=list)
    trailing: Trailing | None = None

    def save(self, path: Path) -> Stored:
        """Write to a safetensors file, atomically."""
        assert self.carried is not None
        assert self.trailing is not None
        tensors = {f"{_MODEL}{name}": t.detach().cpu().contiguous() for name, t in self.carried.state.items()}
        most = max(len(absorbed.times) for absorbed in self.absorbed)
        times, hashes = (np.zeros((len(self.names), most), np.int64) for _ in range(2))
        for i, absorbed in enumerate(self.absorbed):
            kept = len(absorbed.times)
            times[i, :kept], hashes[i, :kept] = absorbed.times, absorbed.hashes.view(np.int64)
        arrays = {
            "names": np.frombuffer(json.dumps(self.names).encode(), np.uint8).copy(),
            "running": np.stack([running.to_array() for running in self.carried.running]),
            "facts": np.stack([absorbed.facts for absorbed in self.absorbed]),
            "times": times,
            "hashes": hashes,
            **{f"{_TRAILING}{name}": array for name, array in self.trailing.to_arrays().items()},
        }
        data = save(tensors | {name: torch.from_numpy(array) for name, array in arrays.items()})
        with atomic_file(path) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return Stored(str(path), hashlib.sha256(data).hexdigest(), len(data))

    @classmethod
    def load(cls, stored: Stored, device: torch.device) -> "Shard":
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            data = Path(stored.path).read_bytes()
            if hashlib.sha256(data).hexdigest() != stored.sha256:
                raise ValueError(f"{len(data):,} bytes, which are not the {stored.bytes:,} that were written")
            tensors = load(data)
            names = json.loads(tensors["names"].numpy().tobytes())
            running, facts, times, hashes = (tensors[name].numpy() for name in ("running", "facts", "times", "hashes"))
            if facts.shape != (len(names), FACTS):
                raise ValueError(f"facts of shape {facts.shape}")
            kept = {
                name.removeprefix(_TRAILING): t.numpy() for name, t in tensors.items() if name.startswith(_TRAILING)
            }
            absorbed = [Absorbed.from_facts(*row) for row in zip(facts, times, hashes, strict=True)]
            trailing = Trailing.from_arrays(kept)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"{stored.path}: cannot be read ({reason}); restore it, or give an empty state folder and the whole "
                "history"
            ) from None
        state = State({key.removeprefix(_MODEL): t for key, t in tensors.items() if key.startswith(_MODEL)})
        return cls(names, Carried(tuple(map(Running.from_array, running)), state.to(device)), absorbed, trailing)

    @staticmethod
    def names_in(path: Path) -> list[str]:
        """The names in a file of any format, without the rest; none when it cannot be read."""
        try:
            with safe_open(path, framework="numpy") as file:
                return list(json.loads(file.get_tensor("names").tobytes()))
        except (OSError, SafetensorError, ValueError):
            return []


def shard_count(series: int, per_shard: int) -> int:
    """Shards of a new folder for so many series."""
    return max(1, -(-series // per_shard), min(_SPREAD, series // _FEWEST))


def shard_of(name: str, shards: int) -> int:
    """The one of ``shards`` that a series belongs to."""
    return crc32(name.encode()) % shards


@dataclass
class StateFolder:
    """The folder, held by this process alone. Made by :func:`open_states`.

    Attributes:
        path: the folder.
        manifest: what the next :meth:`commit` goes on from; with ``reread``, not what the folder says.
        dropped: files of states that the next commit forgets.
    """

    path: Path
    manifest: dict[str, Any]
    dropped: tuple[Path, ...] = ()

    @property
    def id(self) -> str:
        """Tells this folder from others, wherever it is moved."""
        return str(self.manifest["id"])

    @property
    def generation(self) -> int:
        """How many runs have changed the folder."""
        return int(self.manifest["generation"])

    @property
    def compare_rows(self) -> int:
        """Rows of each series that are kept to be compared one by one."""
        return int(self.manifest["compare_rows"])

    @property
    def calibration_window(self) -> int:
        """Outcomes of each series and step ahead that are kept."""
        return int(self.manifest["calibration_window"])

    @property
    def reread(self) -> int:
        """The generation with which whole histories were last read anew; 0 when they never were."""
        return int(self.manifest.get("reread", 0))

    @property
    def runs(self) -> list[dict[str, Any]]:
        """What the last of these runs wrote, as given to :meth:`commit`, with the generation of each."""
        return list(self.manifest["runs"])

    def shard_of(self, name: str) -> int:
        """The shard that a series belongs to, for good: decided by its name alone."""
        return shard_of(name, int(self.manifest["shards"]))

    def present(self, shard: int) -> Stored | None:
        """The file that holds a shard as it was committed; None when it never was."""
        entry = self.manifest["files"].get(str(shard))
        return entry and Stored(str(self.path / entry["name"]), entry["sha256"], entry["bytes"])

    def file(self, shard: int) -> Path:
        """Where the next generation of a shard goes."""
        return self.path / f"shard-{shard:05d}.{self.generation + 1:08d}.safetensors"

    def commit(
        self, files: Mapping[int, Stored], run: Mapping[str, Any], is_listed: Callable[[Mapping[str, Any]], bool]
    ) -> None:
        """Make these files the state, and ``run`` part of the record, in one rename.

        Args:
            files: by shard.
            run: what the run wrote. Files of earlier runs that it ``replaces`` are no longer told of.
            is_listed: whether what an earlier run wrote is listed elsewhere, too; the oldest of these are let go.
        """
        entries = dict(self.manifest["files"])
        for shard, stored in files.items():
            entries[str(shard)] = {
                "name": Path(stored.path).name,
                "sha256": stored.sha256,
                "bytes": stored.bytes,
            }
        generation = self.generation + 1
        runs = [_without(earlier, run) for earlier in self.runs]
        runs = [{**earlier, "listed": earlier.get("listed") or is_listed(earlier)} for earlier in runs]
        runs = [earlier for earlier in runs[: 1 - KEPT_RUNS] if not earlier["listed"]] + runs[1 - KEPT_RUNS :]
        runs.append({"generation": generation, **run})
        manifest = {**self.manifest, "generation": generation, "files": entries, "runs": runs}
        write_json(self.path / MANIFEST, manifest)
        self.manifest = manifest
        _sweep(self.path, manifest)


@contextmanager
def open_states(path: Path, model: str, series: int, config: ForecastConfig) -> Iterator[StateFolder]:
    """The state folder, made when missing, for this process alone.

    Args:
        path: the folder.
        model: hash of the model that the states belong to.
        series: how many a new folder is made for.
        config: settings. ``series_per_shard`` is that of a new folder, ``calibration_window`` stays what it is there
            unless told otherwise, and ``compare_rows`` may grow. With ``reread``, states of another model or window are
            forgotten with the next commit, so that whole histories are read anew.

    Raises:
        UserError: another process works there; it holds other files; or states of another model, window or version
            while ``reread`` is False.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; choose a folder for the states")
    path.mkdir(parents=True, exist_ok=True)
    busy = "another forecast job is at work there; wait for it, or choose another state folder"
    shards = shard_count(series, config.series_per_shard)
    with locked_folder(path, busy) as alone:
        manifest = _read_manifest(path)
        window = _window(manifest) if config.calibration_window is None else config.calibration_window
        kept = {"calibration_window": window, "compare_rows": config.compare_rows}
        new = {"format": FORMAT, "model": model, "shards": shards, **kept, "files": {}}
        if manifest is None:
            manifest = {"id": secrets.token_hex(8), **new, "generation": 0, "runs": []}
            write_json(path / MANIFEST, manifest)
        if alone:
            _sweep(path, manifest)
        problem = _other_states(manifest, new) if manifest["files"] else None
        if problem and not config.reread:
            raise UserError(
                f"{path}: {problem}reread=true with the whole history as data.path, or another state folder"
            )
        if problem or not manifest["files"]:  # what a run that never committed said counts for nothing
            dropped = tuple(path / entry["name"] for entry in manifest["files"].values())
            again = {"reread": manifest["generation"] + 1} if dropped else {}
            yield StateFolder(path, {**manifest, **new, **again}, dropped)
        else:
            rows = max(manifest["compare_rows"], config.compare_rows)
            yield StateFolder(path, {**manifest, "compare_rows": rows})


def _window(manifest: Mapping[str, Any] | None) -> int:
    """Outcomes of each series that are kept where nobody says: as many as there, in whatever states there are."""
    known = manifest.get("calibration_window") if manifest and manifest["files"] else None
    return CALIBRATION_WINDOW if known is None else int(known)


def _other_states(manifest: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Why states cannot be gone on with, and what could be given beside what always can; None when they can."""
    if manifest["format"] != FORMAT:
        return f"holds states of format {manifest['format']}, not {FORMAT}; give "
    if manifest["model"] != new["model"]:
        return f"holds states of another model ({manifest['model'][:12]}); give "
    window = manifest["calibration_window"]
    if window != new["calibration_window"]:
        return f"keeps {window} outcomes of each series; leave out calibration_window, or give "
    return None


def _without(earlier: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier run wrote, but for what a later one into the same folder replaced."""
    gone = set(run.get("replaces", ())) if run["out"] == earlier["out"] else set()
    lists = {key: [entry for entry in earlier.get(key, []) if entry["file"] not in gone] for key in _WRITTEN}
    return {**earlier, **lists} if gone else dict(earlier)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """What the folder says; None when it is empty."""
    if not (path / MANIFEST).exists():
        if any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise UserError(f"{path}: holds other files; choose a new folder for the states")
        return None
    manifest = read_json(path / MANIFEST)
    if manifest.get("format") not in range(1, FORMAT + 1):
        raise UserError(f"{path}: holds no states of format {FORMAT}; choose a new folder for the states")
    kinds = _KINDS | (_ADDED if manifest["format"] > 1 else {})
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    if wrong:
        raise UserError(f"{path / MANIFEST}: is damaged ({wrong[0]} is missing); restore it, or choose another folder")
    return manifest


def _sweep(path: Path, manifest: Mapping[str, Any]) -> None:
    """Remove files of other generations than the one that counts, and what killed processes left."""
    kept = {entry["name"] for entry in manifest["files"].values()}
    for file in [*path.glob("shard-*.safetensors"), *find_temporaries(path, (".safetensors", MANIFEST))]:
        if file.name not in kept:
            file.unlink(missing_ok=True)
