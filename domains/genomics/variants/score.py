"""Scores of the variants of a VCF: the same records in the same order with values in INFO, and a table beside them.

Beside ``scored.vcf.gz`` stand its index, ``scored.parquet`` (see domains.genomics.variants.table), and the folder
``scored.vcf.gz.parts`` with the manifest of the job (see domains.manifest) and, until all is done, the scores of each
SHARD records. So a job that was killed goes on with the first shard that is missing, and a finished one is found so.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from domains.config import MANY, check_range
from domains.errors import UserError
from domains.files import atomic_file, file_sha256
from domains.genomics.config import ScoreConfig
from domains.genomics.contig_names import suggest_contig
from domains.genomics.io import check_readable
from domains.genomics.model import LoadedModel, load_model
from domains.genomics.store import GenomeStore
from domains.genomics.variants.alleles import Reason
from domains.genomics.variants.haplotypes import Place
from domains.genomics.variants.likelihood import log_likelihood_ratios
from domains.genomics.variants.rows import Alleles
from domains.genomics.variants.table import Row, join_shards, read_rows, write_shard
from domains.genomics.variants.vcf import (
    Field,
    Malformed,
    VcfOrder,
    VcfReader,
    VcfRecord,
    extended_header,
    index_vcf,
    open_vcf,
    with_values,
    write_vcf,
)
from domains.hardware import choose_device
from domains.manifest import Manifest, Plan, disk_errors, open_manifest
from domains.words import counted
from mamba_core import MaskedLM

SHARD = 2048  # records between two savings, in a file below 128 MiB
_BLOCK = 2048  # alleles whose windows are in memory at a time
_LARGE = 1 << 27  # bytes of a VCF
_FORMAT = 1
_INDICES = (".tbi", ".csi")
_RESULT = "result"  # the part of the manifest that is there once all is done
LLR = Field("SERP_LLR", "Float", "Log-likelihood of the alternative less that of the reference, nats, mean of strands")
FORWARD = Field("SERP_LLR_FWD", "Float", "SERP_LLR of the forward strand")
REVERSE = Field("SERP_LLR_REV", "Float", "SERP_LLR of the reverse strand")
WHY = Field("SERP_WHY", "String", "Why the allele has no SERP_LLR")
FIELDS = (LLR, FORWARD, REVERSE, WHY)

OF_ANOTHER_GENOME = {Reason.UNKNOWN_CONTIG, Reason.BEYOND_CONTIG, Reason.REF_MISMATCH}  # what unites these reasons


@dataclass(frozen=True)
class Scores:
    """What a call of :func:`score` came to.

    Attributes:
        vcf, table: the files. index: of the VCF; None where there is none. folder: of the manifest.
        records: lines behind the header. duplicates: alleles that stood at their position before.
        scored: kind of allele to how many have a score. unscored: reason to how many have none.
        notes: what the user should know, each a line.
        reused: whether all was done before.
    """

    vcf: Path
    table: Path
    index: Path | None
    folder: Path
    records: int
    duplicates: int
    scored: dict[str, int]
    unscored: dict[str, int]
    notes: list[str] = field(default_factory=list)
    reused: bool = False

    def summary(self) -> str:
        """One line."""
        total = sum(self.scored.values())
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.scored.items()))
        text = f"{counted(total, 'allele')} of {counted(self.records, 'record')}{f': {kinds}' if kinds else ''}"
        if self.unscored:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.unscored.items()))
            text += f"; without a score: {reasons}"
        return text


class _Job(NamedTuple):
    """What every shard is scored with."""

    loaded: LoadedModel
    store: GenomeStore
    config: ScoreConfig
    vcf: Path
    out: Path
    origin: dict[str, Any]


def score(
    model_dir: Path | str,
    store: GenomeStore,
    vcf: Path | str,
    out: Path | str,
    config: ScoreConfig,
    *,
    device: str = "auto",
    progress: bool = True,
) -> Scores:
    """Score each alternative allele of a VCF.

    The score is log p(window with the alternative) - log p(window with the reference), in nats, given the bases before
    both: negative where the model holds the alternative unlikelier. It is the mean of both strands; windows are equally
    long (see domains.genomics.variants.haplotypes). A masked model tells the bases of either allele from both flanks
    (see domains.genomics.variants.masked). Alleles that cannot be scored are passed on with a
    :class:`~domains.genomics.variants.alleles.Reason`; lines that are no records are left out of the VCF, and stand in
    the table.

    Args:
        model_dir: a model folder.
        store: the genome that the VCF was called on.
        vcf: the variants: VCF (plain, gzip, bgzip) or BCF.
        out: the VCF to write, bgzipped and indexed if it ends in .vcf.gz.
        config: settings; ``chunk`` changes no score by more than 1e-5.

    Raises:
        UserError: a file cannot be read or written, ``out``, its table or its index is a file of something else or was
            changed since, no contig of the VCF is one of the genome's, or most of its REF bases are not those of the
            genome.
    """
    vcf, out = Path(vcf), Path(out)
    check_request(config, vcf, out)
    loaded = load_model(model_dir, str(choose_device(device)))
    origin = {
        "model": loaded.hash,
        "genome": store.fingerprint,
        "source": store.source_name,
        "method": "masked" if isinstance(loaded.model, MaskedLM) else "causal",
        "context": config.context,
        "window": config.window,
        "strands": "both",
    }
    job = _Job(loaded, store, config, vcf, out, origin)
    work = out.with_name(f"{out.name}.parts")
    beside = [out, _table_path(out), *(out.with_name(out.name + ending) for ending in _INDICES)]
    if not work.exists() and (there := [path for path in beside if path.exists()]):
        raise UserError(f"{there[0]}: is there already, and is not of this out; choose another name, or delete it")
    with open_manifest(work, _plan(job)) as manifest:
        if manifest.is_done(_RESULT):
            return _describe(job, manifest, reused=True)
        if changed := manifest.changed(_RESULT):
            raise UserError(
                f"{out.with_name(changed[0].name)}: was changed since it was scored; choose another out, or delete it "
                "to have it made again"
            )
        with disk_errors(work), _nothing_left_of_a_refusal(manifest):
            order = _score_missing(job, manifest, progress)
            _write_result(job, manifest, order)
        return _describe(job, manifest, reused=False)


@contextmanager
def _nothing_left_of_a_refusal(manifest: Manifest) -> Iterator[None]:
    """Remove the folder of a job that could not even begin."""
    try:
        yield
    except UserError:
        if not manifest.parts:
            manifest.path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: what is there is not ours
                manifest.out.rmdir()
        raise


def check_request(config: ScoreConfig, vcf: Path, out: Path) -> None:
    """A UserError when settings or files make no sense."""
    check_range("context", config.context, 0, MANY)
    check_range("window", config.window, 1, MANY)
    check_range("chunk", config.chunk, 1, MANY)
    if not out.name.endswith((".vcf", ".vcf.gz")) or out.name.startswith("."):
        raise UserError(f"{out}: scores are written as VCF; give a name that ends in .vcf.gz or .vcf")
    check_readable(vcf, "VCF or BCF")
    if out.exists() and out.samefile(vcf):
        raise UserError(f"{out}: is the file that is scored; give another name as out")


def _plan(job: _Job) -> Plan:
    """What scores of this job have in common, so that others are told from them."""
    return Plan(
        holds="scores",
        parts="shards",
        identity={
            "format": _FORMAT,
            "model": job.loaded.hash,
            "genome": job.store.fingerprint,
            "vcf": file_sha256(job.vcf),
        },
        settings={"context": job.config.context, "window": job.config.window},
        notes={"source": job.vcf.name, "model_folder": str(job.loaded.path)},
        endings=(".parquet",),
    )


def _shard_name(number: int) -> str:
    return f"{number:06d}.parquet"


def _score_missing(job: _Job, manifest: Manifest, progress: bool) -> VcfOrder:
    """Score the shards that are not done; how the records lie."""
    alleles, order = Alleles(job.store, job.vcf), VcfOrder()
    with (
        open_vcf(job.vcf) as reader,
        tqdm(desc="scoring", unit=" alleles", unit_scale=True, disable=not progress) as bar,
    ):
        for number, records in enumerate(_shards(reader.records(), _shard_size(job.vcf))):
            rows = []
            for record in records:
                rows += alleles.rows(record)
                if isinstance(record, VcfRecord):
                    order.add(record)
            if number == 0:
                alleles.refuse_other_names(reader, rows)
            if not manifest.is_done(_shard_name(number)):
                _score_shard(job, manifest, alleles, rows, _shard_name(number))
            bar.update(len(rows))
    return order


def _shards(records: Iterable[VcfRecord | Malformed], size: int) -> Iterator[list[VcfRecord | Malformed]]:
    left = iter(records)
    while shard := list(islice(left, size)):
        yield shard


def _shard_size(vcf: Path) -> int:
    """Records of a shard: more in large files, or the manifest, which is written after each, would grow too long."""
    return SHARD * (1 + vcf.stat().st_size // _LARGE)


def _score_shard(job: _Job, manifest: Manifest, alleles: Alleles, rows: list[Row], name: str) -> None:
    placed = [(row, place) for row in rows if (place := alleles.place(row)) is not None]
    alleles.refuse_other_assembly(rows)
    for (row, _), strands in zip(placed, _ratios(job, [place for _, place in placed]), strict=True):
        if np.isnan(strands).any():
            row.reason = Reason.NO_FLANK
            continue
        row.llr_forward, row.llr_reverse = map(float, strands)
        row.llr = float(strands.mean())
    with atomic_file(manifest.out / name) as file:
        write_shard(file, rows, job.origin)
    manifest.record(name, {"parquet": name}, _facts(rows))


def _ratios(job: _Job, places: Sequence[Place]) -> np.ndarray:
    """Log-likelihood ratios of alleles, float64 (alleles, 2), nats; NaN where there is nothing to compare."""
    ratios = np.empty((len(places), 2))
    for start in range(0, len(places), _BLOCK):
        block = slice(start, start + _BLOCK)
        ratios[block] = log_likelihood_ratios(job.loaded.model, places[block], job.config)
    return ratios


def _facts(rows: Sequence[Row]) -> dict[str, Any]:
    """What the manifest says of a shard."""
    first = {row.reason: _where(row) for row in reversed(rows) if row.reason is not None}
    return {
        "records": len({row.record for row in rows}),
        "scored": dict(Counter(str(row.kind) for row in rows if row.reason is None)),
        "unscored": dict(Counter(row.reason for row in rows if row.reason is not None)),
        "duplicates": sum(row.duplicate for row in rows),
        "first": first,
    }


def _where(row: Row) -> str:
    if row.contig is None:
        return f"line {row.line}"
    return f"line {row.line}, {row.contig}:{row.position} {_short(row.ref)}>{_short(row.alt)}"


def _short(allele: str | None) -> str:
    return str(allele) if len(str(allele)) <= 20 else f"{str(allele)[:17]}..."


def _write_result(job: _Job, manifest: Manifest, order: VcfOrder) -> None:
    """Put the shards together, into the folder of the job first; then the files take their places."""
    shards = [manifest.out / name for name in sorted(manifest.parts) if name != _RESULT]
    table = _table_path(job.out)
    with open_vcf(job.vcf) as reader:
        lengths = {contig.name: contig.length for contig in job.store.contigs}
        contigs = {name: lengths.get(name) for name in order.contigs}
        header = extended_header(reader, FIELDS, _header_origin(job), contigs)
        write_vcf(manifest.out / job.out.name, header, _scored_lines(job, reader, shards))
    with atomic_file(manifest.out / table.name) as file:
        join_shards(file, shards, job.origin)
    files = {"vcf": job.out, "table": table}
    for path in files.values():
        os.replace(manifest.out / path.name, path)
    for old in _INDICES:  # of what stood there before
        job.out.with_name(job.out.name + old).unlink(missing_ok=True)
    if job.out.suffix == ".gz" and order.broken_at is None and order.contigs:
        files["index"] = index_vcf(job.out, order.last)
    facts = {"unsorted_at_line": order.broken_at, "unknown_contigs": [c for c in order.contigs if c not in lengths]}
    manifest.record(_RESULT, {kind: f"../{path.name}" for kind, path in files.items()}, facts)
    for path in shards:
        path.unlink()


def _table_path(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".gz").removesuffix(".vcf") + ".parquet")


def _header_origin(job: _Job) -> dict[str, object]:
    return {"ID": "score", **{key.capitalize(): value for key, value in job.origin.items()}}


def _scored_lines(job: _Job, reader: VcfReader, shards: Sequence[Path]) -> Iterator[str]:
    """The lines of the VCF with the values of their rows."""
    records = reader.records()
    for path in shards:
        for _, group in groupby(read_rows(path), key=lambda row: row.record):
            rows = list(group)
            record = next(records, None)
            if record is None or record.line != rows[0].line:
                raise UserError(f"{job.vcf}: was changed while it was being scored; run again with another out")
            if isinstance(record, VcfRecord):
                yield with_values(record, FIELDS, _values(rows))


def _values(rows: Sequence[Row]) -> dict[str, list[str | float | None]]:
    """What is added to a record; nothing to one without an alternative allele, for there is nothing to number."""
    if rows[0].reason == Reason.NO_ALT:
        return {}
    return {
        LLR.key: [row.llr for row in rows],
        FORWARD.key: [row.llr_forward for row in rows],
        REVERSE.key: [row.llr_reverse for row in rows],
        WHY.key: [row.reason for row in rows],
    }


def _describe(job: _Job, manifest: Manifest, *, reused: bool) -> Scores:
    result = manifest.parts[_RESULT]
    shards = [entry for name, entry in sorted(manifest.parts.items()) if name != _RESULT]
    scored: Counter[str] = Counter()
    unscored: Counter[str] = Counter()
    first: dict[str, str] = {}
    for entry in shards:
        scored.update(entry["scored"])
        unscored.update(entry["unscored"])
        first = entry["first"] | first
    notes = [f"{count:,} {reason}, the first at {first[reason]}" for reason, count in sorted(unscored.items())]
    if result["unknown_contigs"]:
        name = result["unknown_contigs"][0]
        hint = suggest_contig(name, [contig.name for contig in job.store.contigs])
        notes.append(f"{job.store.source_name} has no contig {name!r}; {hint}")
    if result["unsorted_at_line"] is not None:
        notes.append(
            f"{job.vcf} is not sorted (line {result['unsorted_at_line']}), so there is no index; "
            f"bcftools sort {job.out} sorts it"
        )
    if duplicates := sum(entry["duplicates"] for entry in shards):
        notes.append(f"{duplicates:,} repeat an allele of the record before at the same position; each was scored")
    return Scores(
        vcf=job.out,
        table=_table_path(job.out),
        index=job.out.with_name(Path(result["index"]).name) if "index" in result else None,
        folder=manifest.out,
        records=sum(entry["records"] for entry in shards),
        duplicates=duplicates,
        scored=dict(scored),
        unscored=dict(unscored),
        notes=notes,
        reused=reused,
    )
