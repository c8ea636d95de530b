"""Annotation of whole genomes: probabilities of windows or of bases, a Parquet and bedGraph files for each contig.

The folder holds ``manifest.json`` (which model, which genome, which contigs are done; see domains.manifest), and for
each contig ``<contig>.parquet`` and a ``<contig>.<track>.bedgraph.gz`` for each track. Memory is that of a batch of
windows, however long a contig is.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from domains.files import atomic_file, file_stem
from domains.genomics.annotation.data import tile
from domains.genomics.annotation.labels import SITES
from domains.genomics.annotation.models import WindowClassifier
from domains.genomics.annotation.trained import (
    LoadedAnnotator,
    base_probabilities,
    halo_of,
    load_annotator,
    window_probabilities,
)
from domains.genomics.annotation.windows import MAX_UNKNOWN
from domains.genomics.splits import Region
from domains.genomics.store import Contig, GenomeStore
from domains.genomics.tokens import N
from domains.hardware import choose_device
from domains.manifest import Manifest, Plan, disk_errors, open_manifest

_FORMAT = 1
_PARQUET, _BEDGRAPH = ".parquet", ".bedgraph.gz"
_DECIMALS = 3  # of bedGraph values: equal neighbours then share a row
_WINDOWS = 1 << 14  # of a classifier, that are worked on at a time


@dataclass(frozen=True)
class Annotated:
    """What a call of :func:`annotate` did.

    Attributes:
        out: the folder. manifest: its manifest.json.
        tracks: names of the probabilities.
        written, skipped: contigs annotated now, and contigs found done.
    """

    out: Path
    manifest: Path
    tracks: tuple[str, ...]
    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class _Rows(NamedTuple):
    """Some rows of a contig's table, in order: stretches and the probabilities of each."""

    start: np.ndarray  # int64 (n,), of the window or base
    end: np.ndarray
    low: np.ndarray  # int64 (n,), where the row's stretch of the bedGraph begins, and ends; these do not overlap
    high: np.ndarray
    values: np.ndarray  # float32 (n, tracks), NaN where nothing is said


def annotate(
    model_dir: Path | str, store: GenomeStore, out: Path | str, *, device: str = "auto", progress: bool = True
) -> Annotated:
    """Write what a model of annotation says of every contig of a genome.

    Of a classifier: columns ``contig``, ``start``, ``end`` (0-based, half-open) and ``probability``, for windows half a
    window apart and one that ends with the contig; null where more than a tenth of the window is unknown. In the
    bedGraph each window counts for the middle of its stretch, up to where its neighbour's begins.

    Of a segmenter: ``contig``, ``position`` (0-based) and a column for each class and kind of site, for every base;
    windows as long as in training overlap by an eighth at either edge. Null where the base is unknown.

    Args:
        model_dir: a model folder of task=classify or task=segment.
        store: the prepared genome.
        out: folder of the results; contigs done there by the same model, of the same genome, are skipped.

    Raises:
        UserError: the folder holds results of another model or genome, or other files; another process is writing into
            it; or the disk is full.
    """
    loaded = load_annotator(model_dir, str(choose_device(device)))
    tracks = _tracks(loaded)
    done = Annotated(Path(out), Path(out) / "manifest.json", tracks)
    shown = tqdm(total=store.total, unit="b", unit_scale=True, disable=not progress)
    with open_manifest(done.out, _plan(loaded, store, tracks)) as manifest, shown as bar:
        for contig in store.contigs:
            bar.set_description(contig.name)
            if manifest.is_done(contig.name):
                done.skipped.append(contig.name)
            else:
                with disk_errors(done.out):
                    _annotate_contig(loaded, store, contig, tracks, manifest)
                done.written.append(contig.name)
            bar.update(contig.length)
    return done


def _tracks(loaded: LoadedAnnotator) -> tuple[str, ...]:
    """What there is a probability of. The first class of bases, which is none of the others, has no bedGraph."""
    if isinstance(loaded.model, WindowClassifier):
        return ("probability",)
    return (*loaded.classes, *SITES)


def _plan(loaded: LoadedAnnotator, store: GenomeStore, tracks: tuple[str, ...]) -> Plan:
    return Plan(
        holds="annotation",
        parts="contigs",
        identity={"format": _FORMAT, "model": loaded.hash, "genome": store.fingerprint},
        settings={"tracks": list(tracks)},
        notes={"source": store.source_name, "model_folder": str(loaded.path)},
        endings=(_PARQUET, _BEDGRAPH),
    )


def _annotate_contig(
    loaded: LoadedAnnotator, store: GenomeStore, contig: Contig, tracks: tuple[str, ...], manifest: Manifest
) -> None:
    """Write the files of a contig, and note that they are done."""
    stem = file_stem(contig.name)
    of_windows = isinstance(loaded.model, WindowClassifier)
    drawn = tracks if of_windows else tracks[1:]
    names = {"parquet": f"{stem}{_PARQUET}"} | {track: f"{stem}.{track}{_BEDGRAPH}" for track in drawn}
    rows = _window_rows(loaded, store, contig) if of_windows else _base_rows(loaded, store, contig)
    with ExitStack() as files:
        opened = {kind: files.enter_context(atomic_file(manifest.out / name)) for kind, name in names.items()}
        table = files.enter_context(_Table(opened.pop("parquet"), loaded, store, contig.name, tracks, of_windows))
        graphs = {track: files.enter_context(_BedGraph(file, contig.name)) for track, file in opened.items()}
        count = 0
        for some in rows:
            table.write(some)
            for track, graph in graphs.items():
                graph.write(some.low, some.high, some.values[:, tracks.index(track)])
            count += len(some.start)
    manifest.record(contig.name, names, {"bases": contig.length, "rows": count})


def _window_rows(loaded: LoadedAnnotator, store: GenomeStore, contig: Contig) -> Iterator[_Rows]:
    window = loaded.config.data.window
    starts = np.arange(0, max(contig.length - window, 0), max(1, window // 2))
    starts = np.append(starts, max(contig.length - window, 0))  # the last ends with the contig
    middles = starts + window // 2
    borders = np.concatenate([[0], (middles[1:] + middles[:-1]) // 2, [contig.length]])
    unknown = np.cumsum(np.concatenate([[0], store.tokens(contig.name) == N]))
    for first in range(0, len(starts), _WINDOWS):
        part = slice(first, first + _WINDOWS)
        start, end = starts[part], np.minimum(starts[part] + window, contig.length)
        values = window_probabilities(loaded, store, start + contig.offset)
        values[unknown[end] - unknown[start] > MAX_UNKNOWN * window] = np.nan
        yield _Rows(start, end, borders[:-1][part], borders[1:][part], values[:, None])


def _base_rows(loaded: LoadedAnnotator, store: GenomeStore, contig: Contig) -> Iterator[_Rows]:
    window = loaded.config.data.window
    tiles = tile([Region(contig.name, 0, contig.length)], store, window, halo_of(window))
    for one, classes, sites in base_probabilities(loaded, store, tiles):
        position = np.arange(one.first, one.last) - contig.offset
        values = np.concatenate([classes, sites], axis=1)
        values[store.tokens(contig.name, int(position[0]), int(position[-1]) + 1) == N] = np.nan
        yield _Rows(position, position + 1, position, position + 1, values)


class _Table:
    """The Parquet file of a contig, open for appending rows."""

    def __init__(
        self,
        file: BinaryIO,
        loaded: LoadedAnnotator,
        store: GenomeStore,
        contig: str,
        tracks: tuple[str, ...],
        of_windows: bool,
    ) -> None:
        import pyarrow as pa  # late: machines that only train lack it
        import pyarrow.parquet

        self._pa, self._contig = pa, contig
        self._places = ("start", "end") if of_windows else ("position",)
        fields: list[tuple[str, Any]] = [("contig", pa.dictionary(pa.int32(), pa.string()))]
        fields += [(name, pa.int64()) for name in self._places] + [(name, pa.float32()) for name in tracks]
        origin = {"model": loaded.hash, "genome": store.fingerprint, "source": store.source_name}
        self._schema = pa.schema(fields, metadata={"serpentine": json.dumps(origin)})
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write(self, rows: _Rows) -> None:
        pa = self._pa
        places: Mapping[str, np.ndarray] = {"start": rows.start, "end": rows.end, "position": rows.start}
        columns = [pa.DictionaryArray.from_arrays(np.zeros(len(rows.start), np.int32), [self._contig])]
        columns += [pa.array(places[name]) for name in self._places]
        columns += [pa.array(column, mask=np.isnan(column)) for column in rows.values.T]
        self._writer.write_table(pa.table(columns, schema=self._schema))


class _BedGraph:
    """A gzipped bedGraph file of one contig: stretches of equal values, rounded, that do not overlap."""

    def __init__(self, file: BinaryIO, contig: str) -> None:
        # No time stamp and no name in the gzip header: the same values give the same bytes.
        self._gzip = gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=4, mtime=0)
        self._contig = contig
        self._open: tuple[int, int, float] | None = None  # the last stretch, which may go on

    def __enter__(self) -> "_BedGraph":
        return self

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            self._gzip.write(self._line(*self._open))
        self._gzip.close()

    def write(self, low: np.ndarray, high: np.ndarray, values: np.ndarray) -> None:
        """Append stretches in order, (n,) each; those without a value are left out."""
        known = ~np.isnan(values)
        low, high, values = low[known], high[known], np.round(values[known].astype(np.float64), _DECIMALS)
        if not len(values):
            return
        begins = np.flatnonzero(np.concatenate([[True], (values[1:] != values[:-1]) | (low[1:] != high[:-1])]))
        ends = np.append(begins[1:], len(values)) - 1
        lines = []
        for start, end, value in zip(low[begins].tolist(), high[ends].tolist(), values[begins].tolist(), strict=True):
            if self._open is not None and self._open[1:] == (start, value):
                self._open = (self._open[0], end, value)
                continue
            if self._open is not None:
                lines.append(self._line(*self._open))
            self._open = (start, end, value)
        self._gzip.write(b"".join(lines))

    def _line(self, start: int, end: int, value: float) -> bytes:
        return f"{self._contig}\t{start}\t{end}\t{value:g}\n".encode()
