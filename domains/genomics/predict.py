"""Per-base log-likelihood of whole genomes: a Parquet table and a bedGraph track for each contig, bigWig for them all.

The folder holds ``manifest.json`` (which model, which genome, which parts are done; see domains.manifest), for each
part of the genome (domains.genomics.parts) ``<part>.parquet`` and ``<part>.bedgraph.gz``, and ``scores.bw``. Memory is
that of one chunk, however long a contig is. What is not finished is kept in ``.progress`` with the state behind it, so
that a job which was killed goes on in the middle of a contig.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.config import MANY, check_range
from domains.engines import Progress
from domains.errors import UserError
from domains.files import atomic_file
from domains.genomics.config import PredictConfig
from domains.genomics.evaluate import check_chunk
from domains.genomics.masked_parts import MaskedScores
from domains.genomics.masked_windows import check_masked
from domains.genomics.metrics import BitsPerBase
from domains.genomics.model import LoadedModel, load_model
from domains.genomics.part_runner import Run, Work, check_division, run_parts
from domains.genomics.part_scores import CausalScores
from domains.genomics.parts import Part, pieces, plan_parts, unit_of
from domains.genomics.score_tables import ROWS, ScoreTables
from domains.genomics.spool import Spool
from domains.genomics.store import GenomeStore
from domains.genomics.tracks import add_bigwig, check_bigwig, column_of
from domains.hardware import choose_device
from domains.manifest import Manifest, Plan, make_entry
from domains.shards import Shard
from mamba_core import MaskedLM

TRACKS = ("bedgraph", "bigwig")
BIGWIG = "scores.bw"
_FORMAT = 3
_ENDINGS = {"parquet": ".parquet", "bedgraph": ".bedgraph.gz"}


@dataclass(frozen=True)
class Prediction:
    """What a call of :func:`predict` did.

    Attributes:
        out: the folder. manifest: the manifest that this process wrote last.
        written, skipped: parts scored now, and parts of this process that were found done.
        missing: parts that are left to other shards; the last of them finishes the folder.
        shard: of this process; None when it had all parts.
        bits_per_base: over all known bases of the parts that are done, of a shard's own parts where there is one; with
            both strands the mean of the two.
        did: what this process did, in words.
        notes: what the user should know, a line each.
    """

    out: Path
    manifest: Path
    bits_per_base: float
    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: int = 0
    shard: Shard | None = None
    did: str = ""
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line, for people."""
        return f"{self.did}; {self.bits_per_base:.4f} bits per base"


def predict(
    model_dir: Path | str,
    store: GenomeStore,
    out: Path | str,
    config: PredictConfig,
    *,
    device: str = "auto",
    progress: bool = True,
) -> Prediction:
    """Score every base of a genome given all the bases before it on its contig; by a masked model, those around it.

    Columns of the Parquet files: ``contig``, ``position`` (0-based), ``base``, ``log_likelihood`` (nats, null where
    the base is unknown), ``soft_mask`` where the genome has a repeat mask. With ``both_strands`` the log-likelihood is
    the mean of ``log_likelihood_forward`` and ``log_likelihood_reverse``, which stand beside it (of a masked model, the
    logarithm of the mean of both probabilities, which stands alone). bedGraph rows hold the
    log-likelihood, rounded to 4 decimals, of each known base; bigWig holds it unrounded.

    Args:
        model_dir: a model folder.
        store: the prepared genome.
        out: folder of the scores; parts done there by the same model, of the same genome, are skipped when their
            files are what the manifest says.
        config: settings; ``chunk`` changes no score by more than 1e-5, and who does the work changes no byte.

    Raises:
        UserError: a setting makes no sense; the folder holds scores of another model, genome or setting, or other
            files; another process is writing into it; or the disk is full.
    """
    check_request(config)
    if "bigwig" in config.tracks:
        check_bigwig(store)
    chosen = str(choose_device(device))
    loaded = load_model(model_dir, chosen)
    scoring = PartScoring(loaded, store, Path(out), config)
    parts = plan_parts(store, config.block)
    places = loaded.path.resolve(), store.path.resolve(), Path(out).resolve()
    run = Run(
        out=Path(out),
        plan=_plan(loaded, store, config, scoring.settings),
        parts=parts,
        work=scoring,
        open_work=partial(open_scoring, places, config, chosen),
        finish=partial(_finish, store, parts, config),
        device=chosen,
        passes=len(scoring.strands),
        kinds=scoring.kinds,
        wholes=(BIGWIG,) if "bigwig" in config.tracks else (),
    )
    ran = run_parts(run, config, progress=progress)
    own = {*ran.written, *ran.skipped} if ran.shard else ran.entries.keys()
    entries = [entry for name, entry in ran.entries.items() if name in own and entry["scored"]]
    scored = sum(entry["scored"] for entry in entries)
    bits = sum(entry["scored"] * entry["bits_per_base"] for entry in entries)
    return Prediction(
        out=Path(out),
        manifest=ran.manifest,
        bits_per_base=bits / scored if scored else float("nan"),
        written=ran.written,
        skipped=ran.skipped,
        missing=ran.missing,
        shard=ran.shard,
        did=ran.in_words(unit_of(parts, store)),
        notes=_notes(loaded, store, config),
    )


def check_request(config: PredictConfig) -> None:
    """Make sure that the settings make sense; a UserError names the first that does not."""
    check_chunk(config.chunk)
    check_division(config)
    for track in config.tracks:
        if track not in TRACKS:
            raise UserError(f"tracks={config.tracks}: there is no {track!r}; there are {', '.join(TRACKS)}")
    if config.block is not None:
        check_range("block", config.block, 1)
    check_range("warmup", config.warmup, 0, MANY)
    check_masked(config)


class PartScoring:
    """Scores a part and writes its files: the work of a :class:`domains.genomics.part_runner.Run`.

    Args:
        loaded: the model.
        store: the genome.
        out: folder of the files.
        config: settings.
    """

    def __init__(self, loaded: LoadedModel, store: GenomeStore, out: Path, config: PredictConfig) -> None:
        self._loaded = loaded
        self._store = store
        self._out = out
        self._config = config
        self._scores = open_scores(loaded, store, config)
        self.strands, self.settings = self._scores.strands, self._scores.settings
        self.kinds = ("parquet", "bedgraph") if "bedgraph" in config.tracks else ("parquet",)

    def __call__(self, part: Part, unfinished: Path, progress: Progress) -> dict[str, Any]:
        """Do a part; returns its entry in the manifest."""
        found = list(pieces(self._store, part, self._config.warmup))
        with ExitStack() as held:
            spools = [held.enter_context(self._spool(part, unfinished, reverse)) for reverse in self.strands]
            for spool, reverse in zip(spools, self.strands, strict=True):
                self._scores.fill(found, spool, reverse, progress)
            reads = [
                partial(self._scores.read, found, spool, reverse)
                for spool, reverse in zip(spools, self.strands, strict=True)
            ]
            entry = self._write(part, reads, progress) | self._scores.facts(found)
            for spool in spools:
                spool.remove()
        return entry

    def _spool(self, part: Part, unfinished: Path, reverse: bool) -> Spool:
        """Where scores of a strand wait; those that were computed in another way are not gone on with."""
        device = next(self._loaded.model.parameters()).device.type
        made_from = [
            _FORMAT,
            self._loaded.hash,
            self._store.fingerprint,
            part.name,
            self._config.chunk,
            self._config.warmup,
            self._config.both_strands,
            self._scores.settings,
            device,
            torch.__version__,
        ]
        return Spool(unfinished / f"{part.stem}.{'reverse' if reverse else 'forward'}", made_from)

    def _write(
        self, part: Part, reads: Sequence[Callable[[int, int], np.ndarray]], progress: Progress
    ) -> dict[str, Any]:
        """Both files of a part, from the scores of its strands."""
        names = {kind: f"{part.stem}{_ENDINGS[kind]}" for kind in self.kinds}
        total = BitsPerBase()
        with ExitStack() as files:
            parquet, *bedgraph = [files.enter_context(atomic_file(self._out / name)) for name in names.values()]
            tables = files.enter_context(
                ScoreTables(
                    parquet,
                    bedgraph[0] if bedgraph else None,
                    self._store,
                    part,
                    len(reads) > 1,
                    self._loaded.hash,
                )
            )
            for start in range(0, part.length, ROWS):
                progress(0)
                strands = tuple(read(start, min(start + ROWS, part.length)) for read in reads)
                score = strands[0] if len(strands) == 1 else (strands[0] + strands[1]) / np.float32(2)
                tables.write(start, score, strands if len(strands) > 1 else ())
                total.add_nats(part.name, score)
        facts = {"bases": part.length, "scored": total.bases, "bits_per_base": total.bits_per_base}
        return make_entry(self._out, names, facts if total.bases else facts | {"bits_per_base": None})


def open_scores(loaded: LoadedModel, store: GenomeStore, config: PredictConfig) -> CausalScores | MaskedScores:
    """What makes scores, by the kind of the model."""
    if isinstance(loaded.model, MaskedLM):
        return MaskedScores(loaded.model, store, config)
    return CausalScores(loaded.causal, store, config.chunk, config.both_strands)


def open_scoring(places: tuple[Path, Path, Path], config: PredictConfig, device: str) -> Work:
    """The work of another process, which reads model and genome for itself; ``places``: model, store, out."""
    model, store, out = places
    return PartScoring(load_model(model, device), GenomeStore.open(store), out, config)


def _plan(loaded: LoadedModel, store: GenomeStore, config: PredictConfig, settings: dict[str, Any]) -> Plan:
    """What scores of this job have in common, so that others are told from them."""
    return Plan(
        holds="scores",
        parts="parts",
        identity={
            "format": _FORMAT,
            "model": loaded.hash,
            "genome": store.fingerprint,
            "lower_case_bases": sum(contig.lower for contig in store.contigs) if store.has_soft_mask else 0,
            "circular_contigs": sum(contig.circular for contig in store.contigs),
        },
        settings={"both_strands": config.both_strands, "block": config.block, "warmup": config.warmup} | settings,
        notes={"source": store.source_name, "model_folder": str(loaded.path)},
        endings=tuple(_ENDINGS.values()),
    )


def _finish(store: GenomeStore, parts: list[Part], config: PredictConfig, manifest: Manifest) -> None:
    """The track of the whole genome."""
    if "bigwig" in config.tracks:
        tables = [manifest.out / manifest.parts[part.name]["parquet"] for part in parts]
        add_bigwig(manifest, BIGWIG, store, column_of(tables, "log_likelihood"))


def _notes(loaded: LoadedModel, store: GenomeStore, config: PredictConfig) -> list[str]:
    if config.warmup or isinstance(loaded.model, MaskedLM):
        return []
    return circular_note(store, "; with warmup=65536 the bases before their start are those of their end")


def circular_note(store: GenomeStore, remedy: str = "") -> list[str]:
    """A line for people where circular contigs are read as linear ones; none where there are none."""
    rings = [contig.name for contig in store.contigs if contig.circular]
    shown = f"{rings[0]}{', ...' if len(rings) > 1 else ''}" if rings else ""
    return [f"{store.source_name}: circular contigs ({shown}) are read as linear ones{remedy}"] if rings else []
