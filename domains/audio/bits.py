"""How surprised a generator is by clips that were held out from it, beside a linear predictor and a context model."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from domains.audio.baselines import ContextModels, LinearPredictor
from domains.audio.config import EvaluateConfig
from domains.audio.metrics import BitsPerSample, Difference, compare_bits
from domains.audio.models.generator import Generator
from domains.audio.store import AudioStore
from domains.audio.tokens import SILENCE
from domains.audio.trained import LoadedModel
from domains.folder import write_json
from domains.tables import aligned

MODEL = "model"
STEPS = (1024, 8192, 65_536, 524_288)  # samples heard before: borders of the table by place in a clip
_BASELINES = ("linear", "context")


class BitsRow(NamedTuple):
    """Bits per sample of a clip."""

    name: str  # "all" of all together
    samples: int
    model: float
    linear: float
    context: float


class ContextRow(NamedTuple):
    """Bits per sample of those that had from ``before`` to ``most`` samples of their clip before them."""

    before: int
    most: int | None  # None: however many
    samples: int
    model: float
    linear: float
    context: float

    @property
    def span(self) -> str:
        """How many came before, for people."""
        return f"{self.before:,} and more" if self.most is None else f"{self.before:,} to {self.most:,}"


@dataclass(frozen=True)
class BitsEvaluation:
    """Bits per sample of a generator and of its baselines, on the same samples. Eight bits are those of a fair guess.

    Attributes:
        rows: all samples, and each clip.
        by_context: samples by how many came before them in their clip.
        forgetting: samples after which the model forgets everything -> its bits per sample then.
        linear_name, context_name: the baselines in full.
        differences: ``linear``, ``context`` -> bits per sample of the model less theirs, clips (or groups) drawn anew.
        note: one line about the clips.
        seconds: that the model took.
        about: source, fingerprint and hash of weights, hardware, and what they started from.
    """

    rows: list[BitsRow]
    by_context: list[ContextRow]
    forgetting: Mapping[int, float]
    linear_name: str
    context_name: str
    differences: Mapping[str, Difference]
    note: str
    seconds: float
    about: dict[str, Any]

    def table(self) -> str:
        """All samples, by how much was heard before and by clip, the baselines beside the model."""
        names = (MODEL, self.linear_name, self.context_name)
        lines = [f"bits per sample, {self.note}", "", *_lines(("", *names), self.rows[:1]), ""]
        for name, key in zip(names[1:], _BASELINES, strict=True):
            lines.append(f"model - {name}: {self.differences[key]}")
        if self.forgetting:
            head = ["forgetting all after samples", *(f"{context:,}" for context in self.forgetting), "never"]
            bits = [*self.forgetting.values(), self.rows[0].model]
            lines += ["", *aligned([head, ["model", *(f"{value:.4f}" for value in bits)]])]
        lines += ["", *_lines(("samples heard before", *names), self.by_context)]
        return "\n".join([*lines, "", *_lines(("clip", *names), self.rows[1:])])

    def metrics(self) -> dict[str, float]:
        """The numbers over all samples by name, for a tracker."""
        total = self.rows[0]
        found = {
            "test/bits_per_sample": total.model,
            "test/linear_bits_per_sample": total.linear,
            "test/context_bits_per_sample": total.context,
            "test/samples": float(total.samples),
            "test/samples_per_second": total.samples / max(self.seconds, 1e-9),
        }
        return found | {f"test/bits_per_sample_context_{n}": bits for n, bits in self.forgetting.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "kind": "generate",
            "note": self.note,
            "rows": [row._asdict() for row in self.rows],
            "by_context": [row._asdict() for row in self.by_context],
            "forgetting": {str(context): bits for context, bits in self.forgetting.items()},
            "baselines": {"linear": self.linear_name, "context": self.context_name},
            "differences": {name: found.to_dict() for name, found in self.differences.items()},
            "seconds": self.seconds,
            **self.about,
        }

    def save(self, path: Path | str) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        write_json(path, self.to_dict())


def predict_clips(
    loaded: LoadedModel, store: AudioStore, config: EvaluateConfig, about: dict[str, Any], progress: bool
) -> BitsEvaluation:
    """Score every sample of the test clips by the model and by the baselines, each clip from its beginning."""
    splits, level = loaded.splits, loaded.sound.level_db
    train, validation = splits.clips(store, "train"), splits.clips(store, "validation")
    linear = LinearPredictor.fit(store, train, validation, follow=True, level_db=level)
    context = ContextModels.fit(store, train, validation, level_db=level)
    test = first_samples(store, splits.clips(store, "test"), config.max_samples)
    totals = {name: BitsPerSample() for name in (MODEL, *_BASELINES)}
    places = _Places()
    seconds = 0.0
    for clip, length in tqdm(test.items(), desc="scoring", unit="clip", delay=1, disable=not progress):
        levels = store.tokens(clip, 0, length, level)
        started = time.perf_counter()
        bits = {MODEL: sample_bits(generator_of(loaded), levels, chunk=config.chunk)}
        seconds += time.perf_counter() - started
        bits |= {"linear": linear.bits(levels), "context": context.bits(levels)}
        for name, own in bits.items():
            totals[name].add(clip, own)
        places.add(bits)
    shorter = {n: context_bits(loaded, store, test, n, config.chunk, progress) for n in config.contexts}
    groups = [store.clips[clip].group or store.clips[clip].name for clip in sorted(test)]
    compared = {
        name: compare_bits(totals[MODEL], totals[name], groups, resamples=config.resamples) for name in _BASELINES
    }
    part = "" if test == {clip: store.clips[clip].length for clip in splits.clips(store, "test")} else "the first of "
    note = f"{len(test):,} test clips ({part}{store.source_name}; {splits.note})"
    if heard := loaded.pretrained.get("trained_on_test"):
        note += f"; the model that it started from was trained on {heard:,} of the test clips"
    return BitsEvaluation(
        rows=_rows(store, test, totals),
        by_context=places.rows(),
        forgetting=shorter,
        linear_name=linear.name,
        context_name=f"{context.name} levels",
        differences=compared,
        note=note,
        seconds=seconds,
        about=about | {"pretrained": loaded.pretrained},
    )


def generator_of(loaded: LoadedModel) -> Generator:
    """The model of a folder that holds a generator."""
    assert isinstance(loaded.model, Generator)
    return loaded.model


def first_samples(store: AudioStore, clips: Sequence[int], most: int | None) -> dict[int, int]:
    """Clips in their order, and how many samples of each make ``most`` together; None: all."""
    found, left = {}, sum(store.clips[clip].length for clip in clips) if most is None else most
    for clip in clips:
        if left > 0:
            found[clip] = min(left, store.clips[clip].length)
            left -= found[clip]
    return found


@torch.inference_mode()
def sample_bits(model: Generator, levels: np.ndarray, *, chunk: int, context: int | None = None) -> np.ndarray:
    """Bits of each sample of a clip, given all before it: uint8 (l,) -> float64 (l,).

    Args:
        model: in evaluation mode, on any device.
        levels: of the clip, from its beginning.
        chunk: samples of a call, at most.
        context: samples after which everything but the last sample is forgotten; None: never.
    """
    device = next(model.parameters()).device
    before = np.concatenate([np.full(1, SILENCE, np.uint8), levels[:-1]])
    found = np.zeros(len(levels))
    for at, rows, length in _blocks(len(levels), chunk, context):
        place, state = slice(at, at + rows * length), None
        inputs, targets = (
            torch.from_numpy(x[place].astype(np.int64)).view(rows, length).to(device) for x in (before, levels)
        )
        parts = []
        for given, wanted in zip(inputs.split(chunk, 1), targets.split(chunk, 1), strict=True):
            logits, state = model(given, state)
            nats = -logits.float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
            parts.append(nats.double().cpu().numpy())
        found[place] = np.concatenate(parts, axis=1).reshape(-1) / np.log(2)
    return found


def _blocks(length: int, chunk: int, context: int | None) -> Iterator[tuple[int, int, int]]:
    """Where each call begins, and the rows and samples of a row that it reads: whole contexts, several at once."""
    context = length if context is None else min(context, length)
    whole, together = length // max(context, 1), max(1, chunk // max(context, 1))
    for first in range(0, whole, together):
        yield first * context, min(together, whole - first), context
    if rest := length - whole * context:
        yield whole * context, 1, rest


def context_bits(
    loaded: LoadedModel, store: AudioStore, clips: Mapping[int, int], context: int, chunk: int, progress: bool = False
) -> float:
    """Bits per sample of the beginnings of clips when all is forgotten every ``context`` samples."""
    total = BitsPerSample()
    for clip, length in tqdm(clips.items(), desc=f"context {context:,}", unit="clip", delay=1, disable=not progress):
        levels = store.tokens(clip, 0, length, loaded.sound.level_db)
        total.add(clip, sample_bits(generator_of(loaded), levels, chunk=chunk, context=context))
    return total.mean


class _Places:
    """Bits by how many samples came before."""

    def __init__(self) -> None:
        self._edges = np.array([0, *STEPS])
        self._samples = np.zeros(len(self._edges), dtype=np.int64)
        self._bits = {name: np.zeros(len(self._edges)) for name in (MODEL, *_BASELINES)}

    def add(self, bits: Mapping[str, np.ndarray]) -> None:
        """Count a clip from its beginning: method -> float (l,)."""
        length = len(bits[MODEL])
        starts = self._edges[self._edges < length]
        self._samples[: len(starts)] += np.diff([*starts, length])
        for name, own in bits.items():
            self._bits[name][: len(starts)] += np.add.reduceat(own, starts)

    def rows(self) -> list[ContextRow]:
        """Of the places that occur."""
        means = [bits / np.maximum(self._samples, 1) for bits in self._bits.values()]
        most = [*(edge - 1 for edge in STEPS), None]
        every = zip(self._edges.tolist(), most, self._samples.tolist(), *(mean.tolist() for mean in means), strict=True)
        return [row for row in (ContextRow(*values) for values in every) if row.samples]


def _rows(store: AudioStore, test: Mapping[int, int], totals: Mapping[str, BitsPerSample]) -> list[BitsRow]:
    rows = [BitsRow("all", sum(test.values()), *(totals[name].mean for name in (MODEL, *_BASELINES)))]
    for clip, length in test.items():
        means = (totals[name].bits[clip] / length for name in (MODEL, *_BASELINES))
        rows.append(BitsRow(store.clips[clip].name, length, *means))
    return rows


def _lines(names: Sequence[str], rows: Sequence[BitsRow | ContextRow]) -> list[str]:
    first, *methods = names
    cells = [[first, "samples", *methods]]
    for row in rows:
        bits = (f"{value:.4f}" for value in (row.model, row.linear, row.context))
        cells.append([row.span if isinstance(row, ContextRow) else row.name, f"{row.samples:,}", *bits])
    return aligned(cells)
