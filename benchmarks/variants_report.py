"""AUCs of changes within strata, with intervals by resampling genes, and the table of them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from domains.genomics.variants.coding import STOP_GAINED

PAIRS = ("by chance", "same change", "same change and place")
RESAMPLINGS = 1000


class Ranked(NamedTuple):
    """Scores in the order of their strata and sizes, for AUCs under many weights."""

    order: np.ndarray
    positive: np.ndarray  # in that order
    ties: np.ndarray  # where equal scores of a stratum begin
    strata: np.ndarray  # where strata begin


def rank(scores: np.ndarray, positive: np.ndarray, strata: np.ndarray) -> Ranked:
    """Prepare :func:`auc`.

    Args:
        scores: (n,); positives should have the larger ones.
        positive: bool (n,).
        strata: integer (n,): only pairs of one stratum are compared.
    """
    order = np.lexsort((scores, strata))
    new_stratum = np.diff(strata[order], prepend=strata[order][:1] - 1) != 0
    new_score = new_stratum | (np.diff(scores[order], prepend=scores[order][:1] - 1) != 0)
    return Ranked(order, positive[order], np.flatnonzero(new_score), np.flatnonzero(new_stratum))


def auc(ranked: Ranked, weights: np.ndarray) -> float:
    """The chance that a positive has a larger score than a negative of its stratum; ties count half."""
    weights = weights[ranked.order]
    positives = np.add.reduceat(weights * ranked.positive, ranked.ties)
    negatives = np.add.reduceat(weights * ~ranked.positive, ranked.ties)
    first = np.searchsorted(ranked.ties, ranked.strata)
    lengths = np.diff(np.append(first, len(ranked.ties)))
    before = np.cumsum(negatives) - negatives
    below = before - np.repeat(before[first], lengths)
    pairs = np.add.reduceat(positives, first) @ np.add.reduceat(negatives, first)
    return float(positives @ (below + negatives / 2) / pairs)


def strata_of(changes: np.ndarray, pairs: str) -> np.ndarray:
    """Which changes may be compared."""
    if pairs == "by chance":
        return np.zeros(len(changes), dtype=np.int64)
    context = changes["context"].astype(np.int64)
    return context if pairs == "same change" else context * 3 + changes["place"]


def compare(
    changes: np.ndarray, by_chance: np.ndarray, scores: dict[str, np.ndarray], baseline: str
) -> list[dict[str, Any]]:
    """A row for each score and kind of pairs: AUC, its interval, and what it is more than the baseline's.

    Args:
        changes: of dtype CHANGE.
        by_chance: which of them were drawn by chance.
        scores: name to log-likelihood ratios (changes,): the lower, the likelier stop-gained.
        baseline: one of the names.
    """
    rows = []
    for pairs in PAIRS:
        used = comparable(changes, by_chance, pairs)
        if not len(used):
            continue
        own, strata = changes[used], strata_of(changes[used], pairs)
        positive = own["effect"] == STOP_GAINED
        ranked = {name: rank(-values[used], positive, strata) for name, values in scores.items()}
        drawn = [[auc(entry, weights) for entry in ranked.values()] for weights in resamplings(own["gene"])]
        resampled = dict(zip(ranked, np.array(drawn).T, strict=True))
        counts = {
            "stop_gained": int(positive.sum()),
            "synonymous": int((~positive).sum()),
            "strata": len(np.unique(strata)),
        }
        for name, entry in ranked.items():
            found = auc(entry, np.ones(len(own)))
            row = {"pairs": pairs, "score": name, "auc": found, **counts, "interval": interval(resampled[name])}
            if name != baseline:
                row["more_than_baseline"] = found - auc(ranked[baseline], np.ones(len(own)))
                row["more_interval"] = interval(resampled[name] - resampled[baseline])
            rows.append(row)
    return rows


def comparable(changes: np.ndarray, by_chance: np.ndarray, pairs: str) -> np.ndarray:
    """Numbers of the changes that have something of the other effect to be compared with."""
    used = np.flatnonzero(by_chance) if pairs == "by chance" else np.arange(len(changes))
    strata, positive = strata_of(changes[used], pairs), changes["effect"][used] == STOP_GAINED
    return used[np.isin(strata, np.intersect1d(strata[positive], strata[~positive]))]


def resamplings(genes: np.ndarray) -> Iterator[np.ndarray]:
    """Weights of changes under each resampling of the genes: how often the gene was drawn."""
    random = np.random.default_rng(0)
    known, index = np.unique(genes, return_inverse=True)
    for _ in range(RESAMPLINGS):
        yield np.bincount(random.integers(len(known), size=len(known)), minlength=len(known))[index].astype(np.float64)


def interval(values: np.ndarray) -> list[float]:
    """The middle 95 %."""
    return [float(edge) for edge in np.nanpercentile(values, [2.5, 97.5])]


def window_rows(
    changes: np.ndarray, by_chance: np.ndarray, ratios: dict[str, np.ndarray], windows: dict[str, list[int]]
) -> list[dict[str, Any]]:
    """AUC of models by how many bases from the change on are compared: ``ratios`` (changes, windows) of each model."""
    rows = []
    for name, lengths in windows.items():
        for values, length in zip(ratios[name].T, lengths, strict=True):
            for pairs in PAIRS[:2]:
                used = comparable(changes, by_chance, pairs)
                positive, strata = changes["effect"][used] == STOP_GAINED, strata_of(changes[used], pairs)
                found = auc(rank(-values[used], positive, strata), np.ones(len(used)))
                rows.append({"score": name, "window": length, "pairs": pairs, "auc": found})
    return rows


def tabulate(rows: Sequence[dict[str, Any]], shown: Sequence[str]) -> list[str]:
    """The models and the baseline, then the best Markov order in hindsight."""
    lines = [
        "| pairs | score | stop-gained | synonymous | AUC | 95 % | more than the baseline |",
        "|---|---|---|---|---|---|---|",
    ]
    for pairs in PAIRS:
        own = [row for row in rows if row["pairs"] == pairs]
        best = max((row for row in own if row["score"].startswith("Markov")), key=lambda row: row["auc"], default=None)
        names = [*shown, *([best["score"]] if best and best["score"] not in shown else []), "loss of G or C"]
        for row in (row for name in names for row in own if row["score"] == name):
            more = "-"
            if "more_interval" in row:
                least, most = row["more_interval"]
                more = f"{row['more_than_baseline']:+.4f} ({least:+.4f} to {most:+.4f})"
            low, high = row["interval"]
            counts = f"{row['stop_gained']:,} | {row['synonymous']:,}"
            lines.append(
                f"| {pairs} | {row['score']} | {counts} | {row['auc']:.4f} | {low:.4f} to {high:.4f} | {more} |"
            )
    return lines
