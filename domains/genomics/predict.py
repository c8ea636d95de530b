"""Per-base log-likelihood of whole genomes: a Parquet and a bedGraph file for each contig, written as scores come.

The folder holds ``manifest.json`` (which model, which genome, which contigs are done; see domains.manifest), and for
each contig ``<contig>.parquet`` and ``<contig>.bedgraph.gz``. Memory is that of one chunk, however long a contig is.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from tqdm import tqdm

from domains.files import atomic_file, file_stem
from domains.genomics.config import PredictConfig
from domains.genomics.evaluate import check_chunk
from domains.genomics.metrics import BitsPerBase
from domains.genomics.model import LoadedModel, load_model
from domains.genomics.score_tables import ROWS, ScoreTables
from domains.genomics.store import Contig, GenomeStore
from domains.genomics.stream import Scored, stream_log_probs
from domains.hardware import choose_device
from domains.manifest import Manifest, Plan, disk_errors, open_manifest

_FORMAT = 2
_PARQUET, _BEDGRAPH = ".parquet", ".bedgraph.gz"


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
    with open_manifest(job.out, _plan(job)) as manifest:
        written, skipped = _score_missing(job, manifest, progress)
    entries = [manifest.parts[contig.name] for contig in store.contigs]
    scored = sum(entry["scored"] for entry in entries)
    bits = sum(entry["scored"] * entry["bits_per_base"] for entry in entries if entry["scored"])
    mean = bits / scored if scored else float("nan")
    return Prediction(job.out, manifest.path, mean, written, skipped)


def _plan(job: _Job) -> Plan:
    """What scores of this job have in common, so that others are told from them."""
    store = job.store
    return Plan(
        holds="scores",
        parts="contigs",
        identity={
            "format": _FORMAT,
            "model": job.loaded.hash,
            "genome": store.fingerprint,
            "lower_case_bases": sum(contig.lower for contig in store.contigs) if store.has_soft_mask else 0,
        },
        settings={"both_strands": job.both_strands},
        notes={"source": store.source_name, "model_folder": str(job.loaded.path)},
        endings=(_PARQUET, _BEDGRAPH),
    )


def _score_missing(job: _Job, manifest: Manifest, progress: bool) -> tuple[list[str], list[str]]:
    """Score what is not done, contig by contig; names of the contigs that were written, and of those that were not."""
    written, skipped = [], []
    strands = 2 if job.both_strands else 1
    with tqdm(total=job.store.total * strands, unit="b", unit_scale=True, disable=not progress) as bar:
        for contig in job.store.contigs:
            bar.set_description(contig.name)
            if manifest.is_done(contig.name):
                skipped.append(contig.name)
                bar.update(contig.length * strands)
                continue
            with disk_errors(job.out):
                _score_contig(job, contig, manifest, bar)
            written.append(contig.name)
    return written, skipped


def _score_contig(job: _Job, contig: Contig, manifest: Manifest, bar: tqdm) -> None:
    """Write both files of a contig, and note that they are done."""
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
    facts = {"bases": contig.length, "scored": total.bases, "bits_per_base": total.bits_per_base}
    manifest.record(contig.name, names, facts)


def _stream(job: _Job, contig: Contig, *, reverse: bool) -> Iterator[Scored]:
    def read(start: int, stop: int) -> np.ndarray:
        return job.store.tokens(contig.name, start, stop)

    return stream_log_probs(job.loaded.causal, read, contig.length, chunk=job.chunk, reverse=reverse)


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
