"""How well a model predicts DNA that it has not seen, beside Markov models on the same positions."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from domains.errors import UserError
from domains.folder import write_json
from domains.genomics.baselines import MarkovModels
from domains.genomics.config import EvaluateConfig
from domains.genomics.metrics import BitsPerBase
from domains.genomics.model import LoadedModel, check_genome, load_model
from domains.genomics.splits import Region
from domains.genomics.store import GenomeStore
from domains.genomics.stream import stream_log_probs
from domains.genomics.tokens import reverse_complement
from domains.hardware import choose_device, describe_hardware
from domains.tables import aligned
from domains.words import counted


class Row(NamedTuple):
    """One line of the table: a group of bases, and the bits per base that each model spends on it."""

    group: str  # all | contig | mask
    name: str  # "all", the contig, or "repeat-masked" and "unmasked"
    bases: int  # known bases; with both strands each base counts twice
    model: float
    markov: float  # of the order chosen on validation


@dataclass(frozen=True)
class Evaluation:
    """Bits per base of a model and of Markov models, on the same positions. Two bits are those of a fair guess.

    Attributes:
        rows: all bases, each contig, and masked and unmasked bases where the genome tells them apart.
        by_order: bits per base over all positions of the Markov model of each order.
        chosen_order: the order that did best on the validation regions.
        regions: what was scored.
        whole: whether that is all of the test regions.
        strands: ``both`` or ``forward``.
        context: bases after which all models forgot what they had read, from the start of each strand; None: never.
        source: name of the genome's file. fingerprint: of the genome.
        model_hash: sha256 of the weights.
        seconds: that scoring took, the model alone. hardware: that it ran on.
    """

    rows: list[Row]
    by_order: list[float]
    chosen_order: int
    regions: list[Region]
    whole: bool
    strands: str
    context: int | None
    source: str
    fingerprint: str
    model_hash: str
    seconds: float
    hardware: dict[str, object]

    @property
    def by_contig(self) -> list[Row]:
        """The rows of the contigs."""
        return [row for row in self.rows if row.group == "contig"]

    def table(self) -> str:
        """The rows and the Markov orders as aligned text."""
        markov = f"Markov {self.chosen_order}"
        lines: list[tuple[str, ...]] = [("", "bases", "model", markov, "model - Markov")]
        for row in self.rows:
            difference = f"{row.model - row.markov:+.4f}"
            lines.append((row.name, f"{row.bases:,}", f"{row.model:.4f}", f"{row.markov:.4f}", difference))
        orders: list[tuple[str, ...]] = [("", *(str(order) for order in range(len(self.by_order))))]
        orders.append(("Markov order", *(f"{bits:.4f}" for bits in self.by_order)))
        chosen = f"order {self.chosen_order} was chosen on the validation regions"
        title = f"bits per base, {self.where()}"
        return "\n".join([title, *aligned(lines), "", f"{chosen}; all orders:", *aligned(orders)])

    def where(self) -> str:
        """The positions scored, in words (0-based, half-open)."""
        strands = "both strands" if self.strands == "both" else "forward strand"
        forgetting = "" if self.context is None else f", context of {self.context:,} bases at most"
        return f"{strands} of {name_regions(self.source, self.regions, self.whole, forgetting)}"

    def metrics(self) -> dict[str, float]:
        """The numbers over all positions by name, for a tracker."""
        total = self.rows[0]
        flat = {
            "test/bits_per_base": total.model,
            "test/markov_bits_per_base": total.markov,
            "test/markov_order": float(self.chosen_order),
            "test/bases": float(total.bases),
            "test/bases_per_second": total.bases / max(self.seconds, 1e-9),
        }
        return flat | {f"test/markov_{order}_bits_per_base": bits for order, bits in enumerate(self.by_order)}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "where": self.where(),
            "rows": [row._asdict() for row in self.rows],
            "markov": {"chosen_order": self.chosen_order, "bits_per_base_by_order": self.by_order},
            "regions": [region._asdict() for region in self.regions],
            "whole": self.whole,
            "strands": self.strands,
            "context": self.context,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "model_hash": self.model_hash,
            "seconds": self.seconds,
            "hardware": self.hardware,
        }

    def save(self, path: Path | str) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        write_json(path, self.to_dict())


def evaluate(
    model_dir: Path | str,
    store: GenomeStore,
    config: EvaluateConfig,
    *,
    device: str = "auto",
    progress: bool = True,
) -> Evaluation:
    """Score the test regions of a model with it and with Markov models fitted on the same training regions.

    Each region is read once a strand, with the state carried from its first base to its last, or afresh every
    ``context`` bases. Markov contexts start and end where the model's do.

    Raises:
        UserError: the model folder is not complete, the genome is another one, or a setting makes no sense.
    """
    if config.max_bases is not None and config.max_bases < 1:
        raise UserError(f"max_bases={config.max_bases}: must be at least 1, or left out")
    if config.context is not None and config.context < 1:
        raise UserError(f"context={config.context}: must be at least 1 base, or left out")
    check_chunk(config.chunk)
    target = choose_device(device)
    loaded = load_model(model_dir, str(target))
    check_genome(loaded, store)
    regions = prefix(loaded.splits.test, config.max_bases)
    markov = MarkovModels.fit(store, loaded.splits.train, config.max_order, loaded.splits.validation, progress=progress)
    totals = _Totals(markov)
    strands = (False, True) if config.both_strands else (False,)
    bases = sum(region.length for region in regions)
    with tqdm(total=bases * len(strands), desc="scoring", unit="b", unit_scale=True, disable=not progress) as bar:
        for region in regions:
            for reverse in strands:
                _score_region(loaded, store, region, config, reverse, totals, bar)
    return Evaluation(
        rows=totals.rows(),
        by_order=[order.bits_per_base for order in totals.by_order],
        chosen_order=markov.chosen_order,
        regions=regions,
        whole=bases == sum(region.length for region in loaded.splits.test),
        strands="both" if config.both_strands else "forward",
        context=config.context,
        source=store.source_name,
        fingerprint=store.fingerprint,
        model_hash=loaded.hash,
        seconds=totals.seconds,
        hardware=describe_hardware(target),
    )


def prefix(regions: Iterable[Region], max_bases: int | None) -> list[Region]:
    """The first ``max_bases`` bases of the regions, the last region cut where they end; all when None."""
    kept: list[Region] = []
    left = max_bases
    for region in regions:
        if left is not None and left <= 0:
            break
        stop = region.stop if left is None else min(region.stop, region.start + left)
        kept.append(Region(region.contig, region.start, stop))
        left = None if left is None else left - (stop - region.start)
    return kept


def name_regions(source: str, regions: Sequence[Region], whole: bool, note: str = "") -> str:
    """Regions in words (0-based, half-open): ``genome.fa chr1:0-100 (test regions, 100 bases)``."""
    bases = sum(region.length for region in regions)
    if len(regions) <= 4:
        names = ", ".join(f"{region.contig}:{region.start}-{region.stop}" for region in regions)
    else:
        names = counted(len(regions), "contig")
    part = "test regions" if whole else "start of the test regions"
    return f"{source} {names} ({part}, {bases:,} bases{note})"


def check_chunk(chunk: int) -> None:
    """A UserError when a chunk of this many bases makes no sense."""
    if chunk < 1:
        raise UserError(f"chunk={chunk}: must be at least 1 base")


class _Totals:
    """Bits of the model, and of the Markov model of each order."""

    def __init__(self, markov: MarkovModels) -> None:
        self.markov = markov
        self.model = BitsPerBase()
        self.by_order = [BitsPerBase() for _ in range(markov.max_order + 1)]
        self.seconds = 0.0

    def rows(self) -> list[Row]:
        chosen = self.by_order[self.markov.chosen_order]
        if self.model.bases != chosen.bases:
            raise UserError("the model gives no finite probability at some bases; train it again at a lower rate")
        pairs = zip(self.model.to_rows(), chosen.to_rows(), strict=True)
        return [Row(*mine, markov=other.bits_per_base) for mine, other in pairs]


def _score_region(
    loaded: LoadedModel,
    store: GenomeStore,
    region: Region,
    config: EvaluateConfig,
    reverse: bool,
    totals: _Totals,
    bar: tqdm,
) -> None:
    """Add one strand of a region to the totals."""

    def read(start: int, stop: int) -> np.ndarray:
        return store.tokens(region.contig, region.start + start, region.start + stop)

    reader = _MarkovReader(totals.markov, config.context)
    scored = stream_log_probs(
        loaded.causal, read, region.length, chunk=config.chunk, reverse=reverse, context=config.context
    )
    for start, nats in _timed(scored, totals):
        stop = start + len(nats)
        mask = store.soft_mask(region.contig, region.start + start, region.start + stop)
        soft_mask = mask if store.has_soft_mask else None
        totals.model.add_nats(region.contig, nats, soft_mask)
        tokens = read(start, stop)
        strand = reverse_complement(tokens) if reverse else tokens
        for bits, log2 in zip(totals.by_order, reader.read(strand), strict=True):
            bits.add(region.contig, log2[::-1] if reverse else log2, soft_mask)
        bar.update(len(nats))


class _MarkovReader:
    """The Markov models of every order over one strand that comes in chunks; they forget where the model does."""

    def __init__(self, markov: MarkovModels, context: int | None) -> None:
        self._markov = markov
        self._context = context
        self._read = 0
        self._before = np.empty(0, np.uint8)  # what was read just before, of the same window

    def read(self, strand: np.ndarray) -> list[np.ndarray]:
        """Log2 probabilities of the next tokens, uint8 (l,), by each order from 0 up: float32 (l,)."""
        borders = [] if self._context is None else range(-self._read % self._context, len(strand), self._context)
        found = []
        for index, piece in enumerate(np.split(strand, borders)):
            if index:
                self._before = self._before[:0]
            orders = range(self._markov.max_order + 1)
            found.append([self._markov.log2_probs(piece, order, self._before) for order in orders])
            self._before = np.concatenate([self._before, piece])[-max(self._markov.max_order, 1) :]
        self._read += len(strand)
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _timed(scored: Iterator[Any], totals: _Totals) -> Iterator[Any]:
    """The same items; the time that they take to come is added to ``totals.seconds``."""
    while True:
        started = time.perf_counter()
        item = next(scored, None)
        totals.seconds += time.perf_counter() - started
        if item is None:
            return
        yield item
