"""Per-base log-likelihood of whole genomes: a Parquet and a bedGraph file for each contig, written as scores come.

The folder holds ``manifest.json`` (which model, which genome, which contigs are done), and for each contig
``<contig>.parquet`` and ``<contig>.bedgraph.gz``. Both appear whole or not at all, so a run that was killed goes on
with the first contig that is missing; the manifest holds their sizes and hashes, so one that was damaged since is made
again. One process at a time writes into a folder. Memory is that of one chunk, however long a contig is.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from domains.errors import UserError
from domains.files import atomic_file, find_temporaries, locked_folder
from domains.folder import read_json, write_json
from domains.genomics.config import PredictConfig
from domains.genomics.evaluate import check_chunk
from domains.genomics.metrics import BitsPerBase
from domains.genomics.model import LoadedModel, load_model
from domains.genomics.score_tables import ROWS, ScoreTables, file_stem
from domains.genomics.store import Contig, GenomeStore
from domains.genomics.stream import Scored, stream_log_probs
from domains.hardware import choose_device

_FORMAT = 2
_MANIFEST, _PARQUET, _BEDGRAPH = "manifest.json", ".parquet", ".bedgraph.gz"


@dataclass(frozen=True)
class Prediction:
    """What a call of :func:`predict` did.

    Attributes:
        out: the folder. manifest: its manifest.json.
        written, skipped: contigs scored now, and contigs found done.
        bits_per_base: over all known bases of the genome; with both strands the mean of the two.
    """

    out: Path
    manifest: Path
    bits_per_base: float
    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class _Job(NamedTuple):
    """What every contig is scored with."""

    loaded: LoadedModel
    store: GenomeStore
    chunk: int
    both_strands: bool
    out: Path


def predict(
    model_dir: Path | str,
    store: GenomeStore,
    out: Path | str,
    config: PredictConfig,
    *,
    device: str = "auto",
    progress: bool = True,
) -> Prediction:
    """Score every base of a genome given all the bases before it on its contig.

    Columns of the Parquet files: ``contig``, ``position`` (0-based), ``base``, ``log_likelihood`` (nats, null where
    the base is unknown), ``soft_mask`` where the genome has a repeat mask. With ``both_strands`` the log-likelihood is
    the mean of ``log_likelihood_forward`` and ``log_likelihood_reverse``, which stand beside it. bedGraph rows hold the
    log-likelihood, rounded to 4 decimals, of each known base.

    Args:
        model_dir: a model folder.
        store: the prepared genome.
        out: folder of the scores; contigs done there by the same model, of the same genome, are skipped when their
            files are what the manifest says.
        config: settings; ``chunk`` changes no score by more than 1e-5.

    Raises:
        UserError: the folder holds scores of another model, genome or setting, or other files; another process is
            writing into it; or the disk is full.
    """
    check_chunk(config.chunk)
    loaded = load_model(model_dir, str(choose_device(device)))
    job = _Job(loaded, store, config.chunk, config.both_strands, Path(out))
    with _claimed(job.out) as alone:
        manifest = _open_manifest(job, alone)
        written, skipped = _score_missing(job, manifest, progress)
    entries = [manifest["contigs"][contig.name] for contig in store.contigs]
    scored = sum(entry["scored"] for entry in entries)
    bits = sum(entry["scored"] * entry["bits_per_base"] for entry in entries if entry["scored"])
    mean = bits / scored if scored else float("nan")
    return Prediction(job.out, job.out / _MANIFEST, mean, written, skipped)


@contextmanager
def _claimed(out: Path) -> Iterator[bool]:
    """The output folder, made when missing, under its lock; gives whether there is one (see locked_folder)."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: holds other files; choose a new out folder")
    with _disk(out):
        out.mkdir(parents=True, exist_ok=True)
    busy = "another process is writing scores there; wait for it, or choose another out folder"
    with locked_folder(out, busy) as alone:
        yield alone


def _open_manifest(job: _Job, alone: bool) -> dict[str, Any]:
    """The manifest of the output folder, a fresh one when it is empty; leftovers of killed processes are removed."""
    path = job.out / _MANIFEST
    identity = {
        "format": _FORMAT,
        "model": job.loaded.hash,
        "genome": job.store.fingerprint,
        "lower_case_bases": sum(contig.lower for contig in job.store.contigs) if job.store.has_soft_mask else 0,
        "both_strands": job.both_strands,
    }
    manifest = {**identity, "source": job.store.source_name, "model_folder": str(job.loaded.path), "contigs": {}}
    leftovers = find_temporaries(job.out, (_MANIFEST, _PARQUET, _BEDGRAPH))
    if path.exists():
        manifest = read_json(path)
        for key, value in identity.items():
            if manifest.get(key) != value:
                what = f"both_strands={manifest.get(key)}" if key == "both_strands" else f"another {key}"
                raise UserError(f"{job.out}: holds scores with {what}; choose another out folder")
    elif set(job.out.iterdir()) - set(leftovers):
        raise UserError(f"{job.out}: holds other files; choose a new out folder")
    with _disk(job.out):
        for leftover in leftovers if alone else ():
            leftover.unlink(missing_ok=True)
        if not path.exists():
            write_json(path, manifest)
    return manifest


def _score_missing(job: _Job, manifest: dict[str, Any], progress: bool) -> tuple[list[str], list[str]]:
    """Score what is not done, contig by contig; names of the contigs that were written, and of those that were not."""
    written, skipped = [], []
    strands = 2 if job.both_strands else 1
    with tqdm(total=job.store.total * strands, unit="b", unit_scale=True, disable=not progress) as bar:
        for contig in job.store.contigs:
            bar.set_description(contig.name)
            if _is_done(manifest, contig, job.out):
                skipped.append(contig.name)
                bar.update(contig.length * strands)
                continue
            with _disk(job.out):
                manifest["contigs"][contig.name] = _score_contig(job, contig, bar)
                write_json(job.out / _MANIFEST, manifest)
            written.append(contig.name)
    return written, skipped


def _is_done(manifest: dict[str, Any], contig: Contig, out: Path) -> bool:
    """Whether both files of a contig are what the manifest says; when they cannot be read, they are not."""
    entry = manifest["contigs"].get(contig.name)
    try:
        return entry is not None and all(_stamp(out / name) == stamp for name, stamp in entry["files"].items())
    except OSError:
        return False


def _stamp(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _score_contig(job: _Job, contig: Contig, bar: tqdm) -> dict[str, Any]:
    """Write both files of a contig and return its entry in the manifest."""
    stem = file_stem(contig.name)
    names = {"parquet": f"{stem}{_PARQUET}", "bedgraph": f"{stem}{_BEDGRAPH}"}
    total = BitsPerBase()
    with (
        _reverse_scores(job, contig, bar) as reverse,
        atomic_file(job.out / names["parquet"]) as parquet,
        atomic_file(job.out / names["bedgraph"]) as bedgraph,
        ScoreTables(parquet, bedgraph, job.store, contig, job.both_strands, job.loaded.hash) as tables,
    ):
        for start, forward in _regroup(_stream(job, contig, reverse=False)):
            backward = None
            if reverse is not None:
                reverse.seek(4 * start)
                backward = np.frombuffer(reverse.read(4 * len(forward)), dtype=np.float32)
            total.add_nats(contig.name, tables.write(start, forward, backward))
            bar.update(len(forward))
    files = {name: _stamp(job.out / name) for name in names.values()}
    found = {"bases": contig.length, "scored": total.bases, "bits_per_base": total.bits_per_base}
    return {**names, "files": files, **found}


def _stream(job: _Job, contig: Contig, *, reverse: bool) -> Iterator[Scored]:
    def read(start: int, stop: int) -> np.ndarray:
        return job.store.tokens(contig.name, start, stop)

    return stream_log_probs(job.loaded.model, read, contig.length, chunk=job.chunk, reverse=reverse)


def _regroup(pieces: Iterator[Scored]) -> Iterator[Scored]:
    """The same scores in pieces of ROWS, the last one shorter."""
    held: list[np.ndarray] = []
    start = count = 0
    for piece in pieces:
        held.append(piece.log_probs)
        count += len(piece.log_probs)
        if count >= ROWS:
            joined = np.concatenate(held)
            while len(joined) >= ROWS:
                yield Scored(start, joined[:ROWS])
                start, joined = start + ROWS, joined[ROWS:]
            held, count = [joined], len(joined)
    if count:
        yield Scored(start, np.concatenate(held))


@contextmanager
def _reverse_scores(job: _Job, contig: Contig, bar: tqdm) -> Iterator[IO[bytes] | None]:
    """A file with the scores of the reverse strand, float32 by position; None when they are not wanted.

    On disk, for they come from the contig's end and are wanted from its start; without a name, so that it goes with
    the process.
    """
    if not job.both_strands:
        yield None
        return
    with tempfile.TemporaryFile(dir=job.out) as file:
        for start, log_probs in _stream(job, contig, reverse=True):
            file.seek(4 * start)
            file.write(np.ascontiguousarray(log_probs).tobytes())
            bar.update(len(log_probs))
        yield file


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{out}: cannot be written ({reason}); put that right and run again: what is done stays"
        ) from error
