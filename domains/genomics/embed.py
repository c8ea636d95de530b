"""Embeddings of a genome: hidden states of a model for each window, base or region, as Parquet with coordinates.

The folder is as that of domains.genomics.predict: a manifest, a file for each part, and ``.progress`` for what is not
finished.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from domains.config import MANY, check_range
from domains.engines import Progress
from domains.errors import UserError
from domains.files import atomic_file
from domains.genomics.annotation.table import FeatureTable
from domains.genomics.config import EmbedConfig
from domains.genomics.embeddings import Embedder, mean, pool_masked, pool_strand, width
from domains.genomics.model import LoadedModel, load_model
from domains.genomics.part_runner import Run, Work, check_division, run_parts
from domains.genomics.parts import Part, Piece, Reader, pieces, plan_parts, reader
from domains.genomics.spool import Spool
from domains.genomics.store import GenomeStore
from domains.hardware import choose_device
from domains.manifest import Manifest, Plan, make_entry
from domains.shards import Shard
from domains.words import counted
from mamba_core import CausalLM, MaskedLM

KINDS = ("window", "base", "region")
DTYPES = ("float32", "float16")
_FORMAT = 1
_LONGEST = 65536  # bases of a window: one is read in one call
_LONGEST_REGION = 1 << 18  # likewise
_ROWS = 1 << 22  # numbers of a Parquet row group, about
_REGIONS = 1024  # regions of a part


@dataclass(frozen=True)
class Embedding:
    """What a call of :func:`embed` did.

    Attributes:
        out: the folder. width: numbers in an embedding. rows: embeddings of all parts that are done.
        written, skipped: parts done now, and parts of this process that were found done.
        missing: parts left to other shards. shard: of this process; None when it had all parts.
    """

    out: Path
    width: int
    rows: int
    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: int = 0
    shard: Shard | None = None

    def summary(self) -> str:
        """One line, for people."""
        whose = f"shard {self.shard.index} of {self.shard.count}: " if self.shard else ""
        before = f", {counted(len(self.skipped), 'part')} done before" if self.skipped else ""
        left = f"; {counted(self.missing, 'part')} left to other shards" if self.missing else ""
        return f"{whose}{counted(self.rows, 'row')} of {self.width} numbers{before}{left}"


class Stretch(NamedTuple):
    """What is embedded in one go, and what its rows are called."""

    piece: Piece
    line: int  # of the file of regions; 0 without one
    strand: int  # 1, -1, or 0 where the file says none


def embed(
    model_dir: Path | str,
    store: GenomeStore,
    out: Path | str,
    config: EmbedConfig,
    regions: FeatureTable | None = None,
    *,
    device: str = "auto",
    progress: bool = True,
) -> Embedding:
    """Write embeddings: Parquet with ``contig``, ``start``, ``end`` (0-based, half-open) and ``embedding``.

    An embedding is the mean over the known bases of a window, base or region, null where there are none; a base's is
    what the model makes of it once it has read it, with all before it on its contig, and with ``both_strands`` the
    mean of that and what it makes of it coming from the other end. Regions are read with ``context`` bases before
    them on either strand, and have ``line`` of their file and ``strand`` (+, -, or .) too; a masked model reads on
    both sides.

    Args:
        model_dir: a model folder, of a causal or a masked model.
        store: the prepared genome.
        out: folder of the embeddings; parts done there are skipped.
        config: settings.
        regions: for ``per=region``.

    Raises:
        UserError: a setting makes no sense; the folder holds other embeddings or other files; the disk is full.
    """
    check_request(config, regions is not None)
    chosen = str(choose_device(device))
    loaded = load_model(model_dir, chosen)
    _check_layer(loaded, config)
    if regions is not None:
        regions.check_genome(store)
    parts = _plan_regions(store, regions) if regions is not None else plan_parts(store, config.block)
    places = loaded.path.resolve(), store.path.resolve(), Path(out).resolve()
    work = PartEmbedding(loaded, store, Path(out), config, regions)
    run = Run(
        out=Path(out),
        plan=_plan(loaded, store, config, regions),
        parts=parts,
        work=work,
        open_work=partial(open_embedding, places, config, regions, chosen),
        finish=_nothing,
        device=chosen,
        kinds=("parquet",),
        passes=len(work.strands),
    )
    ran = run_parts(run, config, progress=progress)
    rows = sum(entry["rows"] for entry in ran.entries.values())
    return Embedding(Path(out), width(loaded.model), rows, ran.written, ran.skipped, ran.missing, ran.shard)


def check_request(config: EmbedConfig, regions: bool) -> None:
    """Make sure that the settings make sense; a UserError names the first that does not."""
    if config.per not in KINDS:
        raise UserError(f"per={config.per}: must be one of {', '.join(KINDS)}")
    if regions != (config.per == "region"):
        missing = "give data.regions=<BED, GFF3 or GTF file>" if not regions else "give per=region, or leave it out"
        raise UserError(f"per={config.per} and data.regions: {missing}")
    if config.dtype not in DTYPES:
        raise UserError(f"dtype={config.dtype}: must be one of {', '.join(DTYPES)}")
    check_division(config)
    check_range("window", config.window, 1, _LONGEST)
    check_range("chunk", config.chunk, 1, MANY)
    check_range("context", config.context, 0, MANY)
    check_range("warmup", config.warmup, 0, MANY)
    if config.layer is not None:
        check_range("layer", config.layer, 0, MANY)
    if config.block is not None:
        check_range("block", config.block, 1)
        if config.per == "window" and config.block % config.window:
            raise UserError(f"block={config.block}: must be a multiple of window={config.window}")


class PartEmbedding:
    """Embeds a part and writes its file: the work of a :class:`domains.genomics.part_runner.Run`."""

    def __init__(
        self,
        loaded: LoadedModel,
        store: GenomeStore,
        out: Path,
        config: EmbedConfig,
        regions: FeatureTable | None,
    ) -> None:
        self._loaded = loaded
        self._store = store
        self._out = out
        self._config = config
        self._regions = regions
        self._window = 1 if config.per == "base" else config.window
        self.strands = (False, True) if config.both_strands and isinstance(loaded.model, CausalLM) else (False,)

    def __call__(self, part: Part, unfinished: Path, progress: Progress) -> dict[str, Any]:
        """Do a part; returns its entry in the manifest."""
        stretches = self._stretches(part)
        with ExitStack() as held:
            spools = [held.enter_context(self._spool(part, unfinished, reverse)) for reverse in self.strands]
            for spool, reverse in zip(spools, self.strands, strict=True):
                self._fill(stretches, spool, reverse, progress)
            name = f"{part.stem}.parquet"
            with atomic_file(self._out / name) as file:
                rows = self._write(file, stretches, spools, progress)
            for spool in spools:
                spool.remove()
        return make_entry(self._out, {"parquet": name}, {"bases": part.length, "rows": rows})

    def _stretches(self, part: Part) -> list[Stretch]:
        if self._regions is None:
            return [Stretch(piece, 0, 0) for piece in pieces(self._store, part, self._config.warmup)]
        return [_region(self._store, self._regions, number, self._config.context) for number in part.contigs]

    def _spool(self, part: Part, unfinished: Path, reverse: bool) -> Spool:
        config, model = self._config, self._loaded.model
        plain = [config.per, config.window, config.layer, config.both_strands, config.chunk, config.warmup]
        made_from = [_FORMAT, self._loaded.hash, self._store.fingerprint, part.name, *plain, config.context]
        made_from += [config.windows.halo, next(model.parameters()).device.type, torch.__version__]
        path = unfinished / f"{part.stem}.{'reverse' if reverse else 'forward'}"
        return Spool(path, made_from, width(model))

    def _fill(self, stretches: Sequence[Stretch], spool: Spool, reverse: bool, progress: Progress) -> None:
        """Bring a spool to its end: for each stretch its rows, in the order of reading."""
        before = 0
        for number, (piece, *_) in enumerate(stretches):
            window = self._window_of(piece)
            rows = -(-piece.length // window)
            done = min(max(spool.rows - before, 0), rows)
            progress(min(done * window, piece.length))
            before += rows
            if done == rows:
                continue
            for found, state in self._pool(piece, window, reverse, done, spool):
                progress(min(len(found) * window, piece.length))
                # A state goes on within its stretch alone; at a stretch's end there is nothing to carry.
                spool.append(found, state if spool.rows + len(found) < before else None)
            assert spool.rows == before, (number, spool.rows, before)

    def _pool(
        self, piece: Piece, window: int, reverse: bool, done: int, spool: Spool
    ) -> Iterator[tuple[np.ndarray, Any]]:
        model, config = self._loaded.model, self._config
        chunk = max(window, config.chunk - config.chunk % window)
        read = _within(self._store, piece)
        if isinstance(model, MaskedLM):
            halo = config.context if self._regions is not None else config.windows.halo
            return pool_masked(
                model,
                read,
                piece.length,
                window=window,
                chunk=chunk,
                halo=halo,
                both_strands=config.both_strands,
                done=done,
            )
        return pool_strand(
            Embedder(model, config.layer).eval(),
            read,
            piece.length,
            window=window,
            chunk=chunk,
            reverse=reverse,
            lead=piece.trail if reverse else piece.lead,
            done=done,
            state=spool.state if done else None,
        )

    def _window_of(self, piece: Piece) -> int:
        return piece.length if self._regions is not None else self._window

    def _write(self, file: BinaryIO, stretches: Sequence[Stretch], spools: Sequence[Spool], progress: Progress) -> int:
        """The table of a part; how many rows it has."""
        import pyarrow as pa  # late: machines that only train lack it
        import pyarrow.parquet as pq

        schema = _schema(self._loaded, self._store, self._config, self._regions)
        at_once = max(1, _ROWS // width(self._loaded.model))
        held: list[Any] = []
        first = 0
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:

            def write() -> None:
                whole = pa.concat_tables(held).unify_dictionaries().combine_chunks()
                writer.write_table(whole, row_group_size=len(whole))
                held.clear()

            for stretch in stretches:
                rows = -(-stretch.piece.length // self._window_of(stretch.piece))
                for start in range(0, rows, at_once):
                    progress(0)
                    stop = min(start + at_once, rows)
                    held.append(self._table(schema, stretch, self._read(spools, first, start, stop, rows), start))
                    if sum(map(len, held)) >= at_once:
                        write()
                first += rows
            if held:
                write()
        return first

    def _read(self, spools: Sequence[Spool], first: int, start: int, stop: int, rows: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of a stretch with ``rows`` from ``first`` on: by position, the mean of strands."""
        forward = spools[0].read(first + start, first + stop)
        if len(spools) == 1:
            return forward
        return mean(forward, spools[1].read(first + rows - stop, first + rows - start)[::-1])

    def _table(self, schema: Any, stretch: Stretch, found: np.ndarray, first: int) -> Any:
        import pyarrow as pa

        piece, window = stretch.piece, self._window_of(stretch.piece)
        starts = piece.start + (first + np.arange(len(found))) * window
        numbers = np.ascontiguousarray(found, dtype=self._config.dtype)
        embedding = pa.FixedSizeListArray.from_arrays(
            pa.array(numbers.reshape(-1)), numbers.shape[1], mask=pa.array(np.isnan(found[:, 0]))
        )
        columns = [_same(piece.contig.name, len(found)), pa.array(starts)]
        columns.append(pa.array(np.minimum(starts + window, piece.stop)))
        if self._regions is not None:
            columns.append(pa.array([stretch.line] * len(found), pa.int64()))
            columns.append(_same({1: "+", -1: "-"}.get(stretch.strand, "."), len(found)))
        return pa.table([*columns, embedding], schema=schema)


def _same(text: str, count: int) -> Any:
    """A column that holds the same text everywhere."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [text])


def open_embedding(
    places: tuple[Path, Path, Path], config: EmbedConfig, regions: FeatureTable | None, device: str
) -> Work:
    """The work of another process, which reads model and genome for itself; ``places``: model, store, out."""
    model, store, out = places
    return PartEmbedding(load_model(model, device), GenomeStore.open(store), out, config, regions)


def _schema(loaded: LoadedModel, store: GenomeStore, config: EmbedConfig, regions: FeatureTable | None) -> Any:
    import pyarrow as pa

    number = pa.float16() if config.dtype == "float16" else pa.float32()
    fields = [("contig", pa.dictionary(pa.int32(), pa.string())), ("start", pa.int64()), ("end", pa.int64())]
    if regions is not None:
        fields += [("line", pa.int64()), ("strand", pa.dictionary(pa.int32(), pa.string()))]
    fields.append(("embedding", pa.list_(number, width(loaded.model))))
    origin = {"model": loaded.hash, "genome": store.fingerprint, "source": store.source_name, **_settings(config)}
    return pa.schema(fields, metadata={"serpentine": json.dumps(origin)})


def _settings(config: EmbedConfig) -> dict[str, Any]:
    """Those that decide the numbers; ``chunk`` decides none but by rounding."""
    names = ("per", "window", "layer", "both_strands", "dtype", "context", "block", "warmup")
    return {name: getattr(config, name) for name in names} | {"halo": config.windows.halo}


def _plan(loaded: LoadedModel, store: GenomeStore, config: EmbedConfig, regions: FeatureTable | None) -> Plan:
    return Plan(
        holds="embeddings",
        parts="parts",
        identity={
            "format": _FORMAT,
            "model": loaded.hash,
            "genome": store.fingerprint,
            "circular_contigs": sum(contig.circular for contig in store.contigs),
            "regions": None if regions is None else regions.fingerprint,
        },
        settings=_settings(config),
        notes={"source": store.source_name, "model_folder": str(loaded.path), "width": width(loaded.model)},
        endings=(".parquet",),
    )


def _plan_regions(store: GenomeStore, regions: FeatureTable) -> list[Part]:
    """Runs of regions, in the order of their file; ``contigs`` of such a part are the rows of the table."""
    known = {contig.name for contig in store.contigs}
    numbers = [i for i, row in enumerate(regions.rows) if regions.contigs[row["contig"]] in known]
    if len(numbers) < len(regions.rows):
        name = next(name for name in regions.contigs if name not in known)
        raise UserError(f"{regions.source}: {store.source_name} has no contig {name!r}; leave its regions out")
    lengths = regions.rows["end"] - regions.rows["start"]
    if not len(lengths) or lengths.min() < 1:
        raise UserError(f"{regions.source}: has no region, or an empty one; give regions of at least one base")
    if lengths.max() > _LONGEST_REGION:
        line = int(regions.rows["record"][lengths.argmax()])
        raise UserError(
            f"{regions.source}: line {line}: a region of {lengths.max():,} bases; give at most {_LONGEST_REGION:,}, or "
            "embed windows and average those that you want"
        )
    parts, at = [], 0
    for first in range(0, len(lengths), _REGIONS):
        rows = range(first, min(first + _REGIONS, len(lengths)))
        bases = int(lengths[rows.start : rows.stop].sum())
        stem = f"regions-{rows.start + 1:07d}-{rows.stop:07d}"
        parts.append(Part(f"regions {rows.start + 1}-{rows.stop}", stem, rows, at, at + bases))
        at += bases
    return parts


def _region(store: GenomeStore, regions: FeatureTable, number: int, context: int) -> Stretch:
    row = regions.rows[number]
    contig = store.contig(regions.contigs[row["contig"]])
    start, stop = int(row["start"]), int(row["end"])
    around = contig.length if contig.circular else 0
    piece = Piece(contig, start, stop, min(context, around or start), min(context, around or contig.length - stop))
    return Stretch(piece, int(row["record"]), int(row["strand"]))


def _within(store: GenomeStore, piece: Piece) -> Reader:
    """A reader that stops at the ends of a linear contig, and goes round a circular one."""
    read, contig = reader(store, piece), piece.contig
    if contig.circular:
        return read
    return lambda a, b: read(max(a, -piece.start), max(min(b, contig.length - piece.start), max(a, -piece.start)))


def _check_layer(loaded: LoadedModel, config: EmbedConfig) -> None:
    if config.layer is None:
        return
    if isinstance(loaded.model, MaskedLM):
        raise UserError(f"layer={config.layer}: of a masked model only what the head sees can be had; leave it out")
    layers = loaded.config.backbone.n_layers
    if config.layer > layers:
        raise UserError(f"layer={config.layer}: the model has {layers} layers; give 0 to {layers}, or leave it out")


def _nothing(manifest: Manifest) -> None:
    """Embeddings have nothing that is made of all parts."""
