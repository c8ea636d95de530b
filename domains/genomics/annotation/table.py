"""An annotation as a table of features, kept as a store that is found again by the content of its file.

A store is a folder of two files: ``features.npy``, a structured array with a row for each feature, and ``meta.json``
with the names of contigs, types and parents that its numbers stand for. Reading one needs numpy alone.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domains.errors import UserError
from domains.files import sweep_partials
from domains.genomics.annotation.formats import KINDS, Contents, Feature, parse_annotation
from domains.genomics.contig_names import check_contigs
from domains.genomics.io import check_readable, open_watched
from domains.genomics.store import GenomeStore
from domains.store_folder import META, build_store, find_by_key, store_key
from domains.words import counted

FORMAT = 2  # raise it when the same file would give another table
_FEATURES = "features.npy"
_SHOWN = 12  # types in a message
_ROW = np.dtype(
    [
        ("contig", "<i4"),
        ("start", "<i8"),
        ("end", "<i8"),
        ("strand", "i1"),
        ("type", "<i4"),
        ("phase", "i1"),
        ("parent", "<i4"),
        ("record", "<i8"),
    ]
)


class FeatureTable:
    """The features of an annotation. Positions are 0-based and half-open.

    Attributes:
        rows: structured array (n,), in the order of the file: ``contig``, ``type`` and ``parent`` are positions in the
            lists of names below, ``start`` and ``end`` int64, ``strand`` 1, -1 or 0, ``phase`` 0 to 2 or -1, ``record``
            the line of the file.
        contigs: that the file speaks of, with features or without.
        types: of features.
        parents: what features are part of: the transcript of a CDS.
        source: name of the file. format: GFF3, GTF, BED or GenBank.
        fingerprint: sha256 over features and names.
        path: folder of the store; None for a table that is in memory alone.
        reused: whether prepare_annotation found it rather than made it.
    """

    def __init__(self, rows: np.ndarray, names: dict[str, list[str]], source: str, kind: str) -> None:
        self.rows = rows
        self.contigs, self.types, self.parents = names["contigs"], names["types"], names["parents"]
        self.source = source
        self.format = kind
        digest = hashlib.sha256(json.dumps([self.contigs, self.types, self.parents]).encode())
        digest.update(np.ascontiguousarray(rows).tobytes())
        self.fingerprint = digest.hexdigest()
        self.path: Path | None = None
        self.reused = False

    @classmethod
    def of(cls, contents: Contents, source: str) -> "FeatureTable":
        """The table of what a file holds."""
        contigs = {name: i for i, name in enumerate(contents.contigs)}
        types: dict[str, int] = {}
        parents: dict[str, int] = {}
        rows = np.zeros(len(contents.features), dtype=_ROW)
        for row, feature in zip(rows, contents.features, strict=True):
            row["contig"] = contigs.setdefault(feature.contig, len(contigs))
            row["type"] = types.setdefault(feature.type, len(types))
            row["parent"] = parents.setdefault(feature.parent, len(parents))
            for name in ("start", "end", "strand", "phase", "record"):
                row[name] = getattr(feature, name)
        names = {"contigs": list(contigs), "types": list(types), "parents": list(parents)}
        return cls(rows, names, source, contents.format)

    @classmethod
    def open(cls, path: Path | str) -> "FeatureTable":
        """Read the store in folder ``path``; a UserError when it is none, of another format version, or damaged."""
        path = Path(path)
        try:
            meta = json.loads((path / META).read_text(encoding="utf-8"))
            if meta["annotation_format"] != FORMAT:
                raise UserError(f"{path}: is an annotation of another version; prepare its {KINDS} file again")
            rows = np.load(path / _FEATURES, allow_pickle=False)
            table = cls(rows, meta["names"], meta["source"], meta["format"])
            damaged = table.fingerprint != meta["fingerprint"]
        except UserError:
            raise
        except FileNotFoundError as error:
            missing = Path(str(error.filename)).name
            raise UserError(
                f"{path}: is no prepared annotation ({missing} is missing); give the {KINDS} file"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete the folder and give the {KINDS} file") from None
        if damaged:
            raise UserError(f"{path}: is damaged; delete the folder and give the {KINDS} file again")
        table.path = path
        return table

    def save(self, folder: Path) -> None:
        """Write the files of a store into ``folder``."""
        np.save(folder / _FEATURES, self.rows, allow_pickle=False)
        names = {"contigs": self.contigs, "types": self.types, "parents": self.parents}
        meta: dict[str, Any] = {"annotation_format": FORMAT, "source": self.source, "format": self.format}
        meta |= {"fingerprint": self.fingerprint, "names": names}
        (folder / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self.rows)

    def features(self) -> Iterator[Feature]:
        """The rows with their names."""
        for contig, start, end, strand, kind, phase, parent, record in self.rows.tolist():
            names = self.contigs[contig], self.types[kind], self.parents[parent]
            yield Feature(names[0], start, end, strand, names[1], phase, names[2], record)

    def counts(self) -> Counter[str]:
        """How many features there are of each type."""
        found = np.bincount(self.rows["type"], minlength=len(self.types))
        return Counter({name: int(count) for name, count in zip(self.types, found, strict=True)})

    def select(self, *types: str) -> np.ndarray:
        """The rows of any of these types; none when the annotation has none."""
        wanted = [i for i, name in enumerate(self.types) if name in types]
        return self.rows[np.isin(self.rows["type"], wanted)]

    def check_type(self, kind: str, key: str) -> None:
        """A UserError, which lists the types that there are, when no feature is of type ``kind``."""
        if kind in self.types:
            return
        shown = [f"{name} ({count:,})" for name, count in self.counts().most_common(_SHOWN)]
        more = len(self.types) - len(shown)
        raise UserError(
            f"{self.source}: has no feature of type {kind!r} ({key}); it has {', '.join(shown)}"
            f"{f' and {more:,} more types' if more > 0 else ''}"
        )

    def check_genome(self, store: GenomeStore) -> list[str]:
        """Make sure that the features lie on the genome's contigs.

        Returns:
            names of the contigs that the genome lacks; an annotation may speak of more than the sequence holds.

        Raises:
            UserError: no contig is the same, or names differ by spelling; or a feature ends behind its contig.
        """
        lengths = {contig.name: contig.length for contig in store.contigs}
        missing = check_contigs(self.contigs, lengths, source=self.source, genome=store.source_name, partial=True)
        limit = np.array([lengths.get(name, np.iinfo(np.int64).max) for name in self.contigs], dtype=np.int64)
        beyond = np.flatnonzero(self.rows["end"] > limit[self.rows["contig"]])
        if len(beyond):
            row = self.rows[beyond[0]]
            name = self.contigs[row["contig"]]
            more = f" (and {len(beyond) - 1:,} more features)" if len(beyond) > 1 else ""
            raise UserError(
                f"{self.source}: line {row['record']}: a feature ends at {row['end']:,}, but {name} has "
                f"{lengths[name]:,} bases in {store.source_name}{more}; give the annotation of this assembly"
            )
        return missing

    def summary(self) -> str:
        """One line for people."""
        shown = ", ".join(f"{count:,} {name}" for name, count in self.counts().most_common(5))
        return f"{self.format}, {counted(len(self), 'feature')} on {counted(len(self.contigs), 'contig')}: {shown}"


def read_annotation(path: Path | str, progress: bool = False) -> FeatureTable:
    """The table of an annotation file (see :func:`domains.genomics.annotation.formats.parse_annotation`)."""
    return FeatureTable.of(parse_annotation(path, progress), Path(path).name)


def prepare_annotation(source: Path | str, root: Path | str, progress: bool = True) -> FeatureTable:
    """Turn an annotation file into a store in folder ``root``, or find the one made from the same bytes before.

    A folder is taken for such a store and opened.

    Raises:
        UserError: the file cannot be read, or ``root`` cannot be written.
    """
    source, root = Path(source), Path(root)
    if source.is_dir():
        return FeatureTable.open(source)
    check_readable(source, KINDS)
    sweep_partials(root)
    with open_watched(source, progress) as file:
        key = store_key("annotation", FORMAT, hashlib.file_digest(file, "sha256").hexdigest())
    if found := find_by_key(root, key):
        table = FeatureTable.open(found)
        table.reused = True
        return table
    table = read_annotation(source, progress)
    stem = source.name.split(".")[0] or "annotation"
    return FeatureTable.open(build_store(root, stem, key, table.save, f"the annotation {source.name}"))


def covered(rows: np.ndarray, length: int) -> np.ndarray:
    """Which bases of a contig lie in any of the rows, all of which are on it: bool (length,)."""
    edges = np.zeros(length + 1, dtype=np.int32)
    np.add.at(edges, rows["start"], 1)
    np.add.at(edges, rows["end"], -1)
    return np.cumsum(edges[:-1]) > 0


def by_contig(table: FeatureTable, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The rows of each of these contigs."""
    number = {name: i for i, name in enumerate(table.contigs)}
    return {name: rows[rows["contig"] == number[name]] if name in number else rows[:0] for name in names}
