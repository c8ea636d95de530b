"""What a batch job keeps of each series between two runs: a folder that changes by one rename.

``manifest.json`` names the generation that counts: one safetensors file for each shard of series, with its size and
hash, the model that they belong to, and the forecasts that were written with them. Whatever a killed run wrote beside
it is not in the manifest, so it never happened; the next run does it again, under the same names.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from domains.errors import UserError
from domains.files import atomic_file, find_temporaries, locked_folder
from domains.folder import read_json, write_json
from domains.timeseries.absorbed import FACTS, TAIL, Absorbed
from domains.timeseries.stream import Carried
from domains.timeseries.transforms import Running
from mamba_core.state import State

FORMAT = 1
MANIFEST = "manifest.json"
_MODEL = "model."  # prefix of the backbone's tensors
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
    """

    names: list[str] = field(default_factory=list)
    carried: Carried | None = None
    absorbed: list[Absorbed] = field(default_factory=list)

    def save(self, path: Path) -> Stored:
        """Write to a safetensors file, atomically."""
        assert self.carried is not None
        tensors = {f"{_MODEL}{name}": t.detach().cpu().contiguous() for name, t in self.carried.state.items()}
        times, hashes = (np.zeros((len(self.names), TAIL), np.int64) for _ in range(2))
        for i, absorbed in enumerate(self.absorbed):
            kept = len(absorbed.times)
            times[i, :kept], hashes[i, :kept] = absorbed.times, absorbed.hashes.view(np.int64)
        arrays = {
            "names": np.frombuffer(json.dumps(self.names).encode(), np.uint8).copy(),
            "running": np.stack([running.to_array() for running in self.carried.running]),
            "facts": np.stack([absorbed.facts for absorbed in self.absorbed]),
            "times": times,
            "hashes": hashes,
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
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"{stored.path}: cannot be read ({reason}); restore it, or give an empty state folder and the whole "
                "history"
            ) from None
        absorbed = [Absorbed.from_facts(*row) for row in zip(facts, times, hashes, strict=True)]
        state = State({key.removeprefix(_MODEL): t for key, t in tensors.items() if key.startswith(_MODEL)})
        return cls(names, Carried(tuple(map(Running.from_array, running)), state.to(device)), absorbed)


@dataclass
class StateFolder:
    """The folder, held by this process alone. Made by :func:`open_states`.

    Attributes:
        path: the folder.
        manifest: what the next :meth:`commit` goes on from; with ``reread``, not what the folder says.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def id(self) -> str:
        """Tells this folder from others, wherever it is moved."""
        return str(self.manifest["id"])

    @property
    def generation(self) -> int:
        """How many runs have changed the folder."""
        return int(self.manifest["generation"])

    @property
    def runs(self) -> list[dict[str, Any]]:
        """What these runs wrote, as given to :meth:`commit`, with the generation of each."""
        return list(self.manifest["runs"])

    def shard_of(self, name: str) -> int:
        """The shard that a series belongs to, for good: decided by its name alone."""
        return crc32(name.encode()) % int(self.manifest["shards"])

    def present(self, shard: int) -> Stored | None:
        """The file that holds a shard as it was committed; None when it never was."""
        entry = self.manifest["files"].get(str(shard))
        return entry and Stored(str(self.path / entry["name"]), entry["sha256"], entry["bytes"])

    def file(self, shard: int) -> Path:
        """Where the next generation of a shard goes."""
        return self.path / f"shard-{shard:05d}.{self.generation + 1:08d}.safetensors"

    def commit(self, files: Mapping[int, Stored], run: Mapping[str, Any]) -> None:
        """Make these files the state, and ``run`` part of the record, in one rename."""
        entries = dict(self.manifest["files"])
        for shard, stored in files.items():
            entries[str(shard)] = {
                "name": Path(stored.path).name,
                "sha256": stored.sha256,
                "bytes": stored.bytes,
            }
        generation = self.generation + 1
        runs = [*self.runs, {"generation": generation, **run}]
        manifest = {**self.manifest, "generation": generation, "files": entries, "runs": runs}
        write_json(self.path / MANIFEST, manifest)
        self.manifest = manifest
        _sweep(self.path, manifest)


@contextmanager
def open_states(path: Path, model: str, series: int, per_shard: int, *, reread: bool) -> Iterator[StateFolder]:
    """The state folder, made when missing, for this process alone.

    Args:
        path: the folder.
        model: hash of the model that the states belong to.
        series: how many a new folder is made for. per_shard: how many of them are kept together at most.
        reread: forget states of another model with the next commit, so that whole histories are read anew.

    Raises:
        UserError: another process works there; it holds other files; or states of another model while ``reread`` is
            False.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; choose a folder for the states")
    path.mkdir(parents=True, exist_ok=True)
    busy = "another forecast job is at work there; wait for it, or choose another state folder"
    with locked_folder(path, busy) as alone:
        shards = max(1, -(-series // per_shard), min(_SPREAD, series // _FEWEST))
        manifest = _read_manifest(path)
        if manifest is None:
            manifest = {"format": FORMAT, "id": secrets.token_hex(8), "model": model, "shards": shards}
            manifest |= {"generation": 0, "files": {}, "runs": []}
            write_json(path / MANIFEST, manifest)
        if alone:
            _sweep(path, manifest)
        if manifest["files"] and manifest["model"] != model and not reread:
            raise UserError(
                f"{path}: holds states of another model ({manifest['model'][:12]}); give reread=true with the whole "
                "history as data.path, or another state folder"
            )
        # What a run that never committed said about model and shards counts for nothing.
        if not manifest["files"] or manifest["model"] != model:
            manifest = {**manifest, "model": model, "shards": shards, "files": {}}
        yield StateFolder(path, manifest)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """What the folder says; None when it is empty."""
    if not (path / MANIFEST).exists():
        if any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise UserError(f"{path}: holds other files; choose a new folder for the states")
        return None
    manifest = read_json(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: holds no states of format {FORMAT}; choose a new folder for the states")
    kinds = {"id": str, "model": str, "shards": int, "generation": int, "files": dict, "runs": list}
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
