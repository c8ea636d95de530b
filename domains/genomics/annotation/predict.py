"""Annotation of whole genomes: probabilities of windows or of bases, as Parquet, bedGraph and bigWig.

The folder is as that of domains.genomics.predict: ``manifest.json``, for each part of the genome
(domains.genomics.parts) ``<part>.parquet`` and a ``<part>.<track>.bedgraph.gz`` for each track, ``<track>.bw`` for all
parts, and ``.progress`` for what is not finished. Memory is that of a batch of windows, however long a contig is.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.engines import Progress
from domains.errors import UserError
from domains.files import atomic_file
from domains.genomics.annotation.labels import SITES
from domains.genomics.annotation.models import WindowClassifier
from domains.genomics.annotation.rows import Rows, open_rows
from domains.genomics.annotation.settings import refuse_ignored
from domains.genomics.annotation.tables import AnnotationTables
from domains.genomics.annotation.trained import LoadedAnnotator, load_annotator
from domains.genomics.config import PredictConfig
from domains.genomics.part_runner import Run, Work, run_parts
from domains.genomics.parts import Part, plan_parts, unit_of
from domains.genomics.predict import check_request, circular_note
from domains.genomics.score_tables import ROWS
from domains.genomics.spool import Spool
from domains.genomics.store import GenomeStore
from domains.genomics.tracks import add_bigwig, check_bigwig
from domains.hardware import choose_device
from domains.manifest import Manifest, Plan, make_entry
from domains.shards import Shard

_FORMAT = 3
_PARQUET, _BEDGRAPH, _BIGWIG = ".parquet", ".bedgraph.gz", ".bw"


@dataclass(frozen=True)
class Annotated:
    """What a call of :func:`annotate` did.

    Attributes:
        out: the folder. manifest: the manifest that this process wrote last.
        tracks: names of the probabilities.
        written, skipped: parts annotated now, and parts of this process that were found done.
        missing: parts that are left to other shards; the last of them finishes the folder.
        shard: of this process; None when it had all parts.
        did: what this process did, in words.
        notes: what the user should know, a line each.
    """

    out: Path
    manifest: Path
    tracks: tuple[str, ...]
    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: int = 0
    shard: Shard | None = None
    did: str = ""
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line, for people."""
        return f"{self.did}; {', '.join(self.tracks)}"


def annotate(
    model_dir: Path | str,
    store: GenomeStore,
    out: Path | str,
    config: PredictConfig,
    *,
    device: str = "auto",
    progress: bool = True,
) -> Annotated:
    """Write what a model of annotation says of every contig of a genome.

    Of a classifier: columns ``contig``, ``start``, ``end`` (0-based, half-open) and ``probability``, for windows half a
    window apart and one that ends with the contig; null where more than a tenth of the window is unknown: N, or beyond
    a contig that is shorter than a window. In tracks each window counts for the middle of its stretch, up to where its
    neighbour's begins.

    Of a segmenter: ``contig``, ``position`` (0-based) and a column for each class and kind of site, for every base;
    windows as long as in training overlap by an eighth or more at either edge, the same from either end of a contig.
    Null where the base is unknown. There are tracks of all but the first class, which is none of the others.

    bedGraph values are rounded to 3 decimals, those of bigWig are not.

    Args:
        model_dir: a model folder of task=classify or task=segment.
        store: the prepared genome.
        out: folder of the results; parts done there by the same model, of the same genome, are skipped when their
            files are what the manifest says.
        config: ``tracks``, ``block`` and who does the work; none of them changes a number. The rest is refused unless
            it is left out: blocks know what is around them, and both strands are read anyway.

    Raises:
        UserError: a setting makes no sense; the folder holds results of another model, genome or setting, or other
            files; another process is writing into it; or the disk is full.
    """
    refuse_ignored(config)
    check_request(config)
    if "bigwig" in config.tracks:
        check_bigwig(store)
    chosen = str(choose_device(device))
    loaded = load_annotator(model_dir, chosen)
    window = loaded.config.data.window
    if config.block is not None and config.block < window:
        raise UserError(f"block={config.block}: must be at least {window}, the window of this model")
    parts = plan_parts(store, config.block, window)
    places = loaded.path.resolve(), store.path.resolve(), Path(out).resolve()
    work = PartAnnotation(loaded, store, Path(out), config)
    run = Run(
        out=Path(out),
        plan=_plan(loaded, store, config),
        parts=parts,
        work=work,
        open_work=partial(open_annotation, places, config, chosen),
        finish=partial(_finish, loaded, store, parts, config),
        device=chosen,
        kinds=work.kinds,
        wholes=tuple(f"{track}{_BIGWIG}" for track in _drawn(loaded)) if "bigwig" in config.tracks else (),
    )
    ran = run_parts(run, config, progress=progress)
    return Annotated(
        out=Path(out),
        manifest=ran.manifest,
        tracks=_tracks(loaded),
        written=ran.written,
        skipped=ran.skipped,
        missing=ran.missing,
        shard=ran.shard,
        did=ran.in_words(unit_of(parts, store)),
        notes=circular_note(store),
    )


class PartAnnotation:
    """Annotates a part and writes its files: the work of a :class:`domains.genomics.part_runner.Run`."""

    def __init__(self, loaded: LoadedAnnotator, store: GenomeStore, out: Path, config: PredictConfig) -> None:
        self._loaded, self._store, self._out = loaded, store, out
        self._tracks = _tracks(loaded)
        self.kinds = ("parquet", *(_drawn(loaded) if "bedgraph" in config.tracks else ()))

    def __call__(self, part: Part, unfinished: Path, progress: Progress) -> dict[str, Any]:
        """Do a part; returns its entry in the manifest."""
        rows = open_rows(self._loaded, self._store, part)
        with self._spool(part, unfinished) as spool:
            told = 0
            for values in rows.said(spool.rows):
                spool.append(values, None)
                now = part.length * spool.rows // rows.count
                progress(now - told)
                told = now
            progress(part.length - told)
            entry = self._write(part, rows, spool, progress)
            spool.remove()
        return entry

    def _spool(self, part: Part, unfinished: Path) -> Spool:
        """Where probabilities wait; those that were computed in another way are not gone on with."""
        device = next(self._loaded.model.parameters()).device.type
        made_from = [_FORMAT, self._loaded.hash, self._store.fingerprint, part.name, device, torch.__version__]
        return Spool(unfinished / part.stem, made_from, len(self._tracks))

    def _write(self, part: Part, rows: Rows, spool: Spool, progress: Progress) -> dict[str, Any]:
        """The files of a part."""
        names = {"parquet": f"{part.stem}{_PARQUET}"}
        names |= {track: f"{part.stem}.{track}{_BEDGRAPH}" for track in self.kinds[1:]}
        with ExitStack() as files:
            opened = {kind: files.enter_context(atomic_file(self._out / name)) for kind, name in names.items()}
            columns = ("start", "end") if isinstance(self._loaded.model, WindowClassifier) else ("position",)
            parquet = opened.pop("parquet")
            tables = files.enter_context(
                AnnotationTables(parquet, opened, self._store, columns, self._tracks, self._loaded.hash)
            )
            for start in range(0, rows.count, ROWS):
                progress(0)
                stop = min(start + ROWS, rows.count)
                tables.write(rows.places(start, stop), spool.read(start, stop).reshape(stop - start, -1))
        return make_entry(self._out, names, {"bases": part.length, "rows": rows.count})


def open_annotation(places: tuple[Path, Path, Path], config: PredictConfig, device: str) -> Work:
    """The work of another process, which reads model and genome for itself; ``places``: model, store, out."""
    model, store, out = places
    return PartAnnotation(load_annotator(model, device), GenomeStore.open(store), out, config)


def _tracks(loaded: LoadedAnnotator) -> tuple[str, ...]:
    """What there is a probability of."""
    return ("probability",) if isinstance(loaded.model, WindowClassifier) else (*loaded.classes, *SITES)


def _drawn(loaded: LoadedAnnotator) -> tuple[str, ...]:
    """Of these, what tracks are of: not the first class of bases, which is none of the others."""
    tracks = _tracks(loaded)
    return tracks if isinstance(loaded.model, WindowClassifier) else tracks[1:]


def _plan(loaded: LoadedAnnotator, store: GenomeStore, config: PredictConfig) -> Plan:
    return Plan(
        holds="annotation",
        parts="parts",
        identity={"format": _FORMAT, "model": loaded.hash, "genome": store.fingerprint},
        settings={"block": config.block},
        notes={"source": store.source_name, "model_folder": str(loaded.path), "tracks": list(_tracks(loaded))},
        endings=(_PARQUET, _BEDGRAPH),
    )


def _finish(
    loaded: LoadedAnnotator, store: GenomeStore, parts: list[Part], config: PredictConfig, manifest: Manifest
) -> None:
    """The tracks of the whole genome."""
    for track in _drawn(loaded) if "bigwig" in config.tracks else ():
        add_bigwig(manifest, f"{track}{_BIGWIG}", store, _by_base(loaded, store, parts, manifest, track))


def _by_base(
    loaded: LoadedAnnotator, store: GenomeStore, parts: list[Part], manifest: Manifest, track: str
) -> Iterator[np.ndarray]:
    """The probabilities of a track from the tables of all parts, for every base of the genome in order."""
    import pyarrow.parquet as pq

    few = max(1, ROWS // loaded.config.data.window)
    for part in parts:
        rows, at = open_rows(loaded, store, part), 0
        table = pq.ParquetFile(manifest.out / manifest.parts[part.name]["parquet"])
        for batch in table.iter_batches(batch_size=few, columns=[track]):
            found = batch.column(0).to_numpy(zero_copy_only=False)
            places = rows.places(at, at + len(found))
            yield np.repeat(found, places.high - places.low)
            at += len(found)
