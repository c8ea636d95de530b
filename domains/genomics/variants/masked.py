"""Ratios by masked probability: what a masked model holds of the bases of either allele that it is not shown.

Of an SNV or MNV the bases that differ are hidden; the model sees both flanks and is asked for both alleles in one
reading. An indel is two sequences. On either strand, from the first base in which they differ, as many bases are hidden
in one as in the other, namely those of the longer allele, so that neither is at a disadvantage for its length; the
flanks that the model sees are equally long too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from domains.errors import UserError
from domains.genomics.masked import hidden_log_probs
from domains.genomics.tokens import BASES, MASK, PAD, N, reverse_complement
from domains.genomics.variants.haplotypes import Place
from mamba_core import MaskedLM

_NO_TOKEN = -1  # seq_idx of padding


@dataclass
class _Readings:
    """Sequences with hidden bases, each there once, and what is asked about them."""

    rows: list[bytes] = field(default_factory=list)
    numbers: dict[bytes, int] = field(default_factory=dict)

    def add(self, shown: np.ndarray) -> int:
        """The number of a sequence, uint8 (l,) with MASK where bases are hidden."""
        key = shown.tobytes()
        if key not in self.numbers:
            self.numbers[key] = len(self.rows)
            self.rows.append(key)
        return self.numbers[key]


@dataclass(frozen=True)
class _Question:
    """Bases that a model is asked about: those hidden in one reading, from the first to the last."""

    reading: int
    bases: np.ndarray  # uint8 tokens


def masked_ratios(
    model: MaskedLM, places: Sequence[Place], context: int, window: int, *, chunk: int = 65536
) -> np.ndarray:
    """Log-probability of the hidden bases of the alternative less that of the reference's.

    Args:
        model: in evaluation mode.
        places: the alleles.
        context: most bases that the model sees on each side of what is hidden.
        window: most bases that are hidden.
        chunk: most bases a call, of all readings together, if one fits; it changes the result by rounding alone.

    Returns:
        float64 (alleles, 2), nats, of each strand read in its direction (the same twice where the model is symmetric
        and the alleles are of one length); NaN where nothing is left to hide.

    Raises:
        UserError: the model gives no finite probability.
    """
    readings = _Readings()
    asked: dict[tuple[int, int], tuple[_Question, _Question]] = {}
    for i, place in enumerate(places):
        substitution = place.edit.deleted == len(place.edit.inserted)
        for strand in (0, 1):
            if strand and substitution and model.symmetric:
                continue
            pair = _ask(place, strand == 1, context, window, readings)
            if pair is not None:
                asked[i, strand] = pair
                if substitution and model.symmetric:
                    asked[i, 1] = pair
    answers = _answers(model, readings.rows, chunk)
    ratios = np.full((len(places), 2), np.nan)
    for at, (reference, alternative) in asked.items():
        told = [_told(answers[question.reading], question.bases) for question in (reference, alternative)]
        ratios[at] = told[1] - told[0]
    return ratios


def _ask(
    place: Place, reverse: bool, context: int, window: int, readings: _Readings
) -> tuple[_Question, _Question] | None:
    """What to ask about the reference and the alternative on a strand; None when nothing can be hidden."""
    before, reference, alternative = _haplotypes(place, reverse, context, window)
    deleted, inserted = place.edit.deleted, len(place.edit.inserted)
    length = min(len(reference), len(alternative), max(deleted, inserted), window)
    both = np.stack([reference[:length], alternative[:length]])
    hidden = np.ones(length, dtype=bool)
    if deleted == inserted:
        hidden = both[0] != both[1]
    elif (both == N).any():
        length = int(np.argmax((both == N).any(0)))
        both, hidden = both[:, :length], hidden[:length]
    if not hidden.any():
        return None
    after = min(len(reference), len(alternative)) - length
    questions = []
    for bases, whole in zip(both, (reference, alternative), strict=True):
        shown = np.concatenate([before, np.where(hidden, MASK, bases), whole[length : length + min(after, context)]])
        questions.append(_Question(readings.add(shown.astype(np.uint8)), bases[hidden]))
    return questions[0], questions[1]


def _haplotypes(place: Place, reverse: bool, context: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bases before the first that differs on a strand, and from it on those of reference and alternative."""
    _, read, length, edit = place
    edit = edit if reverse else edit.rightmost
    reach = context + max(edit.deleted, len(edit.inserted))
    start, stop = edit.start, edit.start + edit.deleted
    inserted = np.frombuffer(edit.inserted, np.uint8)
    if reverse:
        before = reverse_complement(read(stop, min(stop + context, length)))
        reference = read(max(0, stop - reach), stop)
        alternative = np.concatenate([read(max(0, start - reach), start), inserted])
        return before, reverse_complement(reference), reverse_complement(alternative)
    before = read(max(0, start - context), start)
    reference = read(start, min(start + reach, length))
    return before, reference, np.concatenate([inserted, read(stop, min(stop + reach, length))])


def _answers(model: MaskedLM, rows: Sequence[bytes], chunk: int) -> list[np.ndarray]:
    """Of each reading the log-probabilities of A, C, G, T at the bases hidden in it: float32 (hidden, 4)."""
    device = next(model.parameters()).device
    found: list[np.ndarray] = [np.empty((0, 4), np.float32)] * len(rows)
    for own in _groups([len(row) for row in rows], chunk):
        longest = max(len(rows[i]) for i in own)
        tokens = np.full((len(own), longest), PAD, dtype=np.uint8)
        for line, i in zip(tokens, own, strict=True):
            line[: len(rows[i])] = np.frombuffer(rows[i], np.uint8)
        hidden = tokens == MASK
        document = None
        if any(len(rows[i]) != longest for i in own):
            lengths = torch.tensor([len(rows[i]) for i in own])
            document = torch.where(torch.arange(longest) < lengths[:, None], 0, _NO_TOKEN).to(device)
        shown, asked = torch.from_numpy(tokens).to(device), torch.from_numpy(hidden).to(device)
        answers = hidden_log_probs(model, shown, asked, seq_idx=document)[asked].cpu().numpy()
        for i, part in zip(own, np.split(answers, np.cumsum(hidden.sum(1))[:-1]), strict=True):
            check_finite(part)
            found[i] = part
    return found


def check_finite(log_probs: np.ndarray) -> None:
    """A UserError when a model does not say how likely some base is."""
    if not np.isfinite(log_probs).all():
        raise UserError("the model gives no finite probability at some bases; train it again at a lower rate")


def _groups(lengths: Sequence[int], chunk: int) -> Iterator[list[int]]:
    """Readings of like length, so many together as a call takes."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and (len(group) + 1) * lengths[group[0]] > chunk:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _told(answers: np.ndarray, bases: np.ndarray) -> float:
    return float(answers[np.arange(len(bases)), bases - BASES.start].sum(dtype=np.float64))
