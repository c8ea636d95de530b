"""What a batch job keeps of each series between two runs: a folder that changes by one rename.

``manifest.json`` names the generation that counts: one safetensors file for each shard of series, with its size and
hash, the model that they belong to, and the forecasts that were written with them. Whatever a killed run wrote beside
it is not in the manifest, so it never happened; the next run does it again, under the same names.
"""

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from domains.errors import UserError
from domains.files import atomic_file, file_sha256, find_temporaries, locked_folder
from domains.folder import read_json, write_json
from domains.timeseries.absorbed import TAIL, Absorbed
from domains.timeseries.stream import Carried
from domains.timeseries.transforms import Running
from mamba_core.state import State

FORMAT = 1
MANIFEST = "manifest.json"
_MODEL = "model."  # prefix of the backbone's tensors


@dataclass
class Shard:
    """Series that are kept together.

    Attributes:
        names: of the series.
        carried: running means and backbone state of each.
        absorbed: what each has absorbed.
    """

    names: list[str] = field(default_factory=list)
    carried: Carried | None = None
    absorbed: list[Absorbed] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write to a safetensors file, atomically."""
        assert self.carried is not None
        tensors = {f"{_MODEL}{name}": t.detach().cpu().contiguous() for name, t in self.carried.state.items()}
        tensors["running"] = torch.from_numpy(np.stack([running.to_array() for running in self.carried.running]))
        times, hashes = (np.zeros((len(self.names), TAIL), np.int64) for _ in range(2))
        facts = np.zeros((len(self.names), 3), np.int64)  # count, rows of the tail, folded
        for i, absorbed in enumerate(self.absorbed):
            kept = len(absorbed.times)
            times[i, :kept], hashes[i, :kept] = absorbed.times, absorbed.hashes.view(np.int64)
            facts[i] = absorbed.count, kept, np.array(absorbed.folded, np.uint64).view(np.int64)
        tensors |= {
            "times": torch.from_numpy(times),
            "hashes": torch.from_numpy(hashes),
            "facts": torch.from_numpy(facts),
        }
        with atomic_file(path) as file:
            save_file(tensors, file.name, {"names": json.dumps(self.names), "format": str(FORMAT)})
            file.seek(0)
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "Shard":
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            with safe_open(path, framework="pt") as file:
                names = json.loads(file.metadata()["names"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dictionary)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); restore it, or read the whole history anew") from None
        times, hashes, facts = (tensors[name].numpy() for name in ("times", "hashes", "facts"))
        absorbed = [
            Absorbed(int(count), np.int64(folded).view(np.uint64), t[:kept].copy(), h[:kept].copy().view(np.uint64))
            for (count, kept, folded), t, h in zip(facts, times, hashes, strict=True)
        ]
        state = State({key.removeprefix(_MODEL): t for key, t in tensors.items() if key.startswith(_MODEL)})
        running = tuple(Running.from_array(row) for row in tensors["running"].numpy())
        return cls(names, Carried(running, state.to(device)), absorbed)


@dataclass
class StateFolder:
    """The folder, held by this process alone. Made by :func:`open_states`.

    Attributes:
        path: the folder.
        manifest: as it stands; :meth:`commit` replaces it.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def generation(self) -> int:
        """How many runs have changed the folder."""
        return int(self.manifest["generation"])

    @property
    def shards(self) -> int:
        """How many shards there are; 0 before the first run."""
        return int(self.manifest["shards"])

    def shard_of(self, name: str) -> int:
        """The shard that a series belongs to, for good."""
        return shard_of(name, self.shards)

    def present(self, shard: int) -> Path | None:
        """The file that holds a shard as it was committed; None when it never was.

        Raises:
            UserError: it is missing or damaged.
        """
        entry = self.manifest["files"].get(str(shard))
        if entry is None:
            return None
        path = self.path / entry["name"]
        if not path.exists() or file_sha256(path) != entry["sha256"]:
            raise UserError(
                f"{path}: is missing or damaged; restore it, or give an empty state folder and the whole history"
            )
        return path

    def file(self, shard: int) -> Path:
        """Where the next generation of a shard goes."""
        return self.path / f"shard-{shard:05d}.{self.generation + 1:08d}.safetensors"

    def commit(
        self, files: Mapping[int, Path], forecasts: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
    ) -> None:
        """Make these files the state, and these forecasts part of the record, in one rename."""
        entries = dict(self.manifest["files"])
        for shard, path in files.items():
            entries[str(shard)] = {"name": path.name, "sha256": file_sha256(path), "bytes": path.stat().st_size}
        run = {"generation": self.generation + 1, "forecasts": list(forecasts), **facts}
        manifest = {
            **self.manifest,
            "generation": self.generation + 1,
            "files": entries,
            "runs": [*self.manifest["runs"], run],
        }
        write_json(self.path / MANIFEST, manifest)
        self.manifest = manifest
        self.sweep()

    def sweep(self) -> None:
        """Remove files of other generations than the one that counts, and what killed processes left."""
        kept = {entry["name"] for entry in self.manifest["files"].values()}
        for path in self.path.glob("shard-*.safetensors"):
            if path.name not in kept:
                path.unlink(missing_ok=True)
        for path in find_temporaries(self.path, (".safetensors", MANIFEST)):
            path.unlink(missing_ok=True)


def shard_of(name: str, shards: int) -> int:
    """Which of ``shards`` a series belongs to; decided by its name alone."""
    return crc32(name.encode()) % shards


@contextmanager
def open_states(path: Path, model_hash: str, shards: int, *, reread: bool) -> Iterator[StateFolder]:
    """The state folder, made when missing, for this process alone.

    Args:
        path: the folder.
        model_hash: of the model that the states belong to.
        shards: how many a new folder gets.
        reread: forget states of another model, so that whole histories are read anew.

    Raises:
        UserError: another process works there; it holds other files; or states of another model while ``reread`` is
            False.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; choose a folder for the states")
    path.mkdir(parents=True, exist_ok=True)
    fresh = {"format": FORMAT, "id": secrets.token_hex(8), "model": model_hash, "shards": shards, "generation": 0}
    fresh |= {"files": {}, "runs": []}
    with locked_folder(path, "another forecast job is at work there; wait for it, or choose another state folder"):
        manifest = read_json(path / MANIFEST) if (path / MANIFEST).exists() else None
        if manifest is None:
            if [entry for entry in path.iterdir() if not entry.name.startswith((".", "shard-"))]:
                raise UserError(f"{path}: holds other files; choose a new folder for the states")
            manifest = fresh
        elif manifest.get("format") != FORMAT:
            raise UserError(
                f"{path}: holds states of format {manifest.get('format')}; choose a new folder for the states"
            )
        elif manifest["model"] != model_hash:
            if not reread:
                raise UserError(
                    f"{path}: holds states of another model ({str(manifest['model'])[:12]}); give reread=true with the "
                    "whole history as data.path, or another state folder"
                )
            manifest = fresh | {name: manifest[name] for name in ("id", "generation", "runs")}
        folder = StateFolder(path, manifest)
        folder.sweep()
        yield folder
