"""How well a masked model tells hidden bases of DNA that it has not seen, beside two-sided k-mer models."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from domains.errors import UserError
from domains.folder import write_json
from domains.genomics.config import EvaluateConfig
from domains.genomics.evaluate import name_regions, prefix
from domains.genomics.masked import hidden_log_probs
from domains.genomics.masked_windows import Source, check_windows
from domains.genomics.masking import check_fraction
from domains.genomics.model import check_genome, load_model
from domains.genomics.splits import Region
from domains.genomics.store import GenomeStore
from domains.genomics.tokens import BASES, A
from domains.genomics.two_sided import TwoSidedModels
from domains.hardware import choose_device, describe_hardware
from domains.tables import aligned
from mamba_core import MaskedLM

MODEL, ONE_STRAND, TWO_SIDED, UNIGRAM = "model", "one strand", "two-sided", "unigram"
_SEED = 15  # of the masks: the same for every model
_BLOCK = 1 << 16  # bases whose masks are drawn together


class MaskedRow(NamedTuple):
    """One line of both tables: a group of hidden bases, and how each model tells them."""

    group: str  # all | contig | mask
    name: str  # "all", the contig, or "repeat-masked" and "unmasked"
    bases: int  # hidden bases
    bits: dict[str, float]  # of each model: bits per hidden base
    accuracy: dict[str, float]  # of each model: share of the bases that it holds likeliest


@dataclass(frozen=True)
class MaskedEvaluation:
    """What hidden bases cost a masked model and its baselines, at the same positions with the same bases hidden.

    Models are "model", as asked for (of one that is not symmetric, with ``both_strands``, the mean of what it says of
    either strand, and "one strand" beside it), "two-sided" and "unigram".

    Attributes:
        rows: all bases, each contig, and masked and unmasked bases where the genome tells them apart.
        by_flank: bits per base over all positions of the two-sided model of each flank.
        chosen_flank: the flank that did best on the validation regions.
        mask_fraction: of the known bases, how many were hidden, at random from a fixed seed, all behind [MASK].
        halo: bases on either side of windows of ``length`` that were read as well.
        regions, whole, source, fingerprint, model_hash, seconds, hardware: as of domains.genomics.evaluate.Evaluation.
    """

    rows: list[MaskedRow]
    by_flank: list[float]
    chosen_flank: int
    mask_fraction: float
    length: int
    halo: int
    regions: list[Region]
    whole: bool
    source: str
    fingerprint: str
    model_hash: str
    seconds: float
    hardware: dict[str, object]

    @property
    def by_contig(self) -> list[MaskedRow]:
        """The rows of the contigs."""
        return [row for row in self.rows if row.group == "contig"]

    def table(self) -> str:
        """Bits, shares told right, and all flanks, as aligned text."""
        names = list(self.rows[0].bits)
        titles = [f"{name} {self.chosen_flank}" if name == TWO_SIDED else name for name in names]
        bits: list[tuple[str, ...]] = [("", "bases", *titles, "model - two-sided")]
        shares: list[tuple[str, ...]] = [("", *titles)]
        for row in self.rows:
            difference = f"{row.bits[MODEL] - row.bits[TWO_SIDED]:+.4f}"
            bits.append((row.name, f"{row.bases:,}", *(f"{row.bits[name]:.4f}" for name in names), difference))
            shares.append((row.name, *(f"{row.accuracy[name]:.4f}" for name in names)))
        flanks: list[tuple[str, ...]] = [("", *(str(flank) for flank in range(len(self.by_flank))))]
        flanks.append(("bases a side", *(f"{found:.4f}" for found in self.by_flank)))
        return "\n".join(
            [
                f"bits per hidden base, {self.where()}",
                *aligned(bits),
                "",
                "share of hidden bases told right:",
                *aligned(shares),
                "",
                f"{self.chosen_flank} bases a side were chosen on the validation regions; all:",
                *aligned(flanks),
            ]
        )

    def where(self) -> str:
        """The positions scored, in words (0-based, half-open)."""
        hidden = f", {self.mask_fraction:.4g} of the known ones hidden"
        return name_regions(self.source, self.regions, self.whole, hidden)

    def metrics(self) -> dict[str, float]:
        """The numbers over all positions by name, for a tracker."""
        total = self.rows[0]
        flat = {"test/bases": float(total.bases), "test/flank": float(self.chosen_flank)}
        for name in total.bits:
            key = "" if name == MODEL else f"{name.replace('-', '_').replace(' ', '_')}_"
            flat |= {f"test/{key}bits_per_base": total.bits[name], f"test/{key}accuracy": total.accuracy[name]}
        flat["test/bases_per_second"] = sum(region.length for region in self.regions) / max(self.seconds, 1e-9)
        return flat | {f"test/two_sided_{flank}_bits_per_base": bits for flank, bits in enumerate(self.by_flank)}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "where": self.where(),
            "rows": [row._asdict() for row in self.rows],
            "two_sided": {"chosen_flank": self.chosen_flank, "bits_per_base_by_flank": self.by_flank},
            "mask_fraction": self.mask_fraction,
            "windows": {"length": self.length, "halo": self.halo},
            "regions": [region._asdict() for region in self.regions],
            "whole": self.whole,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "model_hash": self.model_hash,
            "seconds": self.seconds,
            "hardware": self.hardware,
        }

    def save(self, path: Path | str) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        write_json(path, self.to_dict())


def evaluate_masked(
    model_dir: Path | str, store: GenomeStore, config: EvaluateConfig, *, device: str = "auto", progress: bool = True
) -> MaskedEvaluation:
    """Tell hidden bases of the test regions, and let two-sided models of the same training regions tell them too.

    Raises:
        UserError: the model folder is not complete or of a causal model, the genome is another one, or a setting makes
            no sense.
    """
    if config.max_bases is not None and config.max_bases < 1:
        raise UserError(f"max_bases={config.max_bases}: must be at least 1, or left out")
    if config.context is not None:
        raise UserError(f"context={config.context}: is for models that predict the next base (task=causal)")
    check_windows(config.windows)
    target = choose_device(device)
    loaded = load_model(model_dir, str(target))
    model = loaded.masked
    check_genome(loaded, store)
    fraction = loaded.config.task.mask_fraction if config.mask_fraction is None else config.mask_fraction
    check_fraction("mask_fraction", fraction)
    regions = prefix(loaded.splits.test, config.max_bases)
    baseline = TwoSidedModels.fit(
        store,
        loaded.splits.train,
        config.max_order // 2,
        loaded.splits.validation,
        lambda number, length: _hidden(fraction, -1 - number, 0, length),
        progress,
    )
    told = _tell(model, store, regions, fraction, config, baseline, progress)
    if not told.totals.bases:
        raise UserError(f"{store.source_name}: no known base of the test regions was hidden; score more of them")
    return MaskedEvaluation(
        rows=told.totals.rows(),
        by_flank=list(told.by_flank.rows()[0].bits.values()),
        chosen_flank=baseline.chosen_flank,
        mask_fraction=fraction,
        length=config.windows.length,
        halo=config.windows.halo,
        regions=regions,
        whole=regions == loaded.splits.test,
        source=store.source_name,
        fingerprint=store.fingerprint,
        model_hash=loaded.hash,
        seconds=told.seconds,
        hardware=describe_hardware(target),
    )


class _Piece(NamedTuple):
    """A window with its halo."""

    contig: str
    tokens: np.ndarray  # uint8 (l,)
    hidden: np.ndarray  # bool (l,), of known bases
    scored: slice  # the window
    soft_mask: np.ndarray | None  # bool, of the window


def _pieces(
    store: GenomeStore, region: Region, number: int, fraction: float, config: EvaluateConfig
) -> Iterator[_Piece]:
    """The windows of a region; nothing outside the region is read."""
    size, halo = config.windows.length, config.windows.halo
    source = Source(lambda a, b: store.tokens(region.contig, region.start + a, region.start + b), region.length)
    for first in range(0, region.length, size):
        window = (first, min(first + size, region.length))
        start, stop = source.around(window, halo)
        tokens = source.read(start, stop)
        known = (tokens >= BASES.start) & (tokens < BASES.stop)
        soft_mask = None
        if store.has_soft_mask:
            soft_mask = store.soft_mask(region.contig, region.start + window[0], region.start + window[1])
        scored = slice(window[0] - start, window[1] - start)
        yield _Piece(region.contig, tokens, _hidden(fraction, number, start, stop) & known, scored, soft_mask)


def _hidden(fraction: float, number: int, start: int, stop: int) -> np.ndarray:
    """Which positions of a region are hidden: a pure function of its number and the position, bool (stop - start,)."""
    first = start // _BLOCK
    drawn = [
        np.random.default_rng([_SEED, number % 2**64, block]).random(_BLOCK) < fraction
        for block in range(first, -(-stop // _BLOCK))
    ]
    return np.concatenate(drawn)[start - first * _BLOCK : stop - first * _BLOCK]


def _ask(model: MaskedLM, piece: _Piece, averaged: bool) -> dict[str, np.ndarray]:
    """Log2 probabilities (hidden bases, 4) by the model on one strand, and if ``averaged`` on both."""
    device = next(model.parameters()).device
    tokens, hidden = (torch.from_numpy(array)[None].to(device) for array in (piece.tokens, piece.hidden))

    def ask(both: bool) -> np.ndarray:
        found = hidden_log_probs(model, tokens, hidden, both)[hidden]
        return found.cpu().numpy() / np.float32(math.log(2))

    return {MODEL: ask(True), ONE_STRAND: ask(False)} if averaged else {MODEL: ask(False)}


class _Told(NamedTuple):
    """What all models said."""

    totals: "_Totals"
    by_flank: "_Totals"  # of the two-sided models
    seconds: float  # that the model took


def _tell(
    model: MaskedLM,
    store: GenomeStore,
    regions: Sequence[Region],
    fraction: float,
    config: EvaluateConfig,
    baseline: TwoSidedModels,
    progress: bool,
) -> _Told:
    """Let the model and the baselines tell the hidden bases of all regions."""
    averaged = config.both_strands and not model.symmetric
    totals = _Totals([MODEL, *([ONE_STRAND] if averaged else []), TWO_SIDED, UNIGRAM])
    by_flank = _Totals([str(flank) for flank in range(baseline.max_flank + 1)])
    bases, seconds = sum(region.length for region in regions), 0.0
    with tqdm(total=bases, desc="hidden bases", unit="b", unit_scale=True, disable=not progress) as bar:
        for number, region in enumerate(regions):
            for piece in _pieces(store, region, number, fraction, config):
                started = time.perf_counter()
                said = _ask(model, piece, averaged)
                seconds += time.perf_counter() - started
                flanks = {name: baseline.log2_probs(piece.tokens, piece.hidden, int(name)) for name in by_flank.names}
                by_flank.add(piece, flanks)
                two_sided = {TWO_SIDED: flanks[str(baseline.chosen_flank)], UNIGRAM: flanks["0"]}
                totals.add(piece, said | two_sided)
                bar.update(piece.scored.stop - piece.scored.start)
    return _Told(totals, by_flank, seconds)


class _Totals:
    """Bits and bases told right of several models, by group."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._sums: dict[tuple[str, str], np.ndarray] = {}  # float64 (1 + 2 models,): bases, bits, told right

    @property
    def bases(self) -> int:
        return int(self._sums["all", "all"][0]) if self._sums else 0

    def add(self, piece: _Piece, said: dict[str, np.ndarray]) -> None:
        """Count the hidden bases of a window; ``said`` holds (hidden bases of the piece, 4) of each model."""
        at = np.flatnonzero(piece.hidden)
        scored = (at >= piece.scored.start) & (at < piece.scored.stop)
        true = piece.tokens[at[scored]].astype(np.int64) - A
        own = [said[name][scored].astype(np.float64) for name in self.names]
        bits = np.stack([-log2[np.arange(len(true)), true] for log2 in own])
        right = np.stack([log2.argmax(1) == true for log2 in own])
        groups = {("all", "all"): slice(None), ("contig", piece.contig): slice(None)}
        if piece.soft_mask is not None:
            soft = piece.soft_mask[at[scored] - piece.scored.start]
            groups |= {("mask", "repeat-masked"): soft, ("mask", "unmasked"): ~soft}
        for key, members in groups.items():
            sums = [bits[:, members].shape[1], *bits[:, members].sum(1), *right[:, members].sum(1)]
            self._sums[key] = self._sums.get(key, np.zeros(len(sums))) + np.array(sums, dtype=np.float64)

    def rows(self) -> list[MaskedRow]:
        """All, then contigs in their order, then masks; those without a hidden base have no row."""
        rows = []
        for wanted in ("all", "contig", "mask"):
            for (group, name), (count, *sums) in self._sums.items():
                if group == wanted and count:
                    bits, right = np.split(np.array(sums) / count, 2)
                    if not np.isfinite(bits).all():
                        raise UserError("the model gives no finite probability at some bases; train it at a lower rate")
                    both = [dict(zip(self.names, found.tolist(), strict=True)) for found in (bits, right)]
                    rows.append(MaskedRow(group, name, int(count), *both))
        return rows
