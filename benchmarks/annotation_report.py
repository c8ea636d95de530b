"""Adds to a result of annotation.py what it must beat, and prints its tables; on a CPU, in some minutes.

    python benchmarks/annotation_report.py --json benchmarks/results/umaydis_annotation_h200.json \\
        --npz umaydis_annotation_h200.npz --store stores/<genome> --annotation stores/<genes>
    python benchmarks/annotation_report.py --table benchmarks/results/umaydis_annotation_h200.json

Baselines learn from the very labels that each training had, and are tested on the same windows and bases. Differences
of AUC are paired: 95 % intervals from 1,000 resamplings of stretches of 20,000 bases, of a model less the 5-mer
regression that sees as much, and of a pre-trained model less the one from scratch.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from domains.folder import write_json
from domains.genomics.annotation.baselines import KmerLogistic, fit_baselines
from domains.genomics.annotation.codon import CodonModel
from domains.genomics.annotation.data import base_windows, share_of_windows, span, tile
from domains.genomics.annotation.evaluate_bases import ORDERS, score_classes
from domains.genomics.annotation.labels import CLASS_OF_STATE, NO_LABEL, BaseLabels, label_bases
from domains.genomics.annotation.metrics import roc_auc, score_binary
from domains.genomics.annotation.table import FeatureTable
from domains.genomics.annotation.windows import label_windows
from domains.genomics.config import DataConfig
from domains.genomics.splits import Region, make_splits
from domains.genomics.store import GenomeStore
from domains.settings import from_dict

BLOCK = 20_000  # bases that are resampled together
RESAMPLINGS = 1_000
LONGEST = 8_192  # bases that a codon model decodes at once
Result = dict[str, Any]


def interval(labels: np.ndarray, first: np.ndarray, second: np.ndarray, blocks: np.ndarray) -> list[float]:
    """AUC of ``first`` less that of ``second``, and the interval of 95 %."""
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    drawn = []
    for _ in range(RESAMPLINGS):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        drawn.append(roc_auc(labels[rows], first[rows]) - roc_auc(labels[rows], second[rows]))
    value = roc_auc(labels, first) - roc_auc(labels, second)
    return [round(float(number), 5) for number in (value, *np.quantile(drawn, [0.025, 0.975]))]


def windows_baselines(
    store: GenomeStore, features: FeatureTable, data: DataConfig, seed: int
) -> tuple[Result, np.ndarray, np.ndarray]:
    """Scores of the baselines; what the 5-mer regression that sees most says of the test windows, and their starts."""
    windows = label_windows(store, features, make_splits(store, data), data, seed)
    length = span(data)
    around = ((length - data.window) // 2, length) if length > data.window else None
    scores, strongest = {}, np.zeros(0)
    for one in fit_baselines(store, windows.train, windows.validation, around):
        said = one.predict(windows.test)
        scores[one.name] = score_binary(windows.test.labels, said).to_dict()
        strongest = said if isinstance(one, KmerLogistic) else strongest
    return scores, strongest, windows.test.starts


def bases_baselines(store: GenomeStore, labels: BaseLabels, data: DataConfig, seed: int) -> Result:
    """F1 of each class by codon models of the labels that a training had."""
    splits = make_splits(store, data)

    def whole(regions: list[Region]) -> list[tuple[int, int]]:
        offsets = [store.contig(region.contig).offset for region in regions]
        return [(o + r.start, o + r.stop) for o, r in zip(offsets, regions, strict=True)]

    train = whole(splits.train)
    if data.label_fraction < 1:
        starts = base_windows(store, labels, splits.train, data.window)
        train = [(at, at + data.window) for at in share_of_windows(starts, data.label_fraction, seed).tolist()]
    tiles = tile(splits.test, store, LONGEST, LONGEST // 8)
    found = {}
    for order in ORDERS:
        model = CodonModel(store, labels, train, whole(splits.validation), order)
        called, truth = [], []
        for one, said in model.class_probabilities(tiles):
            called.append(said.argmax(-1))
            truth.append(CLASS_OF_STATE[labels.states[one.first : one.last]])
        of, told = np.concatenate(truth), np.concatenate(called)
        classes, _ = score_classes(list(labels.classes), of[of != NO_LABEL], told[of != NO_LABEL])
        found[model.name] = {"classes": [score._asdict() for score in classes]}
    return found


def complete(result: Result, npz: Path, store: GenomeStore, features: FeatureTable) -> Result:
    """The result with baselines for each task and share of the labels, and intervals in its rows."""
    arrays = np.load(npz)
    labels = label_bases(store, features)
    result["baselines"] = {}
    strongest = starts = np.zeros(0)
    for row in result["rows"]:
        task, share = row["task"], row["labels"]
        key = f"{task}-{share}"
        data = from_dict(DataConfig, row["settings"])
        if task == "bases":
            if key not in result["baselines"]:
                result["baselines"][key] = bases_baselines(store, labels, data, result["seed"])
            continue
        if key not in result["baselines"]:
            scores, strongest, starts = windows_baselines(store, features, data, result["seed"])
            result["baselines"][key] = scores
        if not np.array_equal(starts, arrays[f"{task}/starts"]):
            raise SystemExit(f"{npz}: is of other windows than those of {task}")
        truth, blocks = arrays[f"{task}/labels"], starts // BLOCK
        said = arrays[f"said/{task}-{row['start']}-{share}"]
        row["less_5_mers"] = interval(truth, said, strongest, blocks)
        scratch = f"said/{task}-scratch-{share}"
        if row["start"] != "scratch" and scratch in arrays:
            row["less_scratch"] = interval(truth, said, arrays[scratch], blocks)
    return result


def table(result: Result) -> list[str]:
    """For the README: a row for each start and baseline, a column for each share of the labels."""
    shares = sorted({row["labels"] for row in result["rows"]})
    lines = []
    titles = {"windows": "windows of 200 bases, AUC", "context": "amid 2,000 bases, AUC", "bases": "F1 of CDS"}
    for task, title in titles.items():
        rows = [row for row in result["rows"] if row["task"] == task]
        if not rows:
            continue
        lines += [f"| {title} | " + " | ".join(f"{share:.0%} of the labels" for share in shares) + " |"]
        lines += ["|---" * (len(shares) + 1) + "|"]
        for start in dict.fromkeys(row["start"] for row in rows):
            cells = {row["labels"]: _cell(row) for row in rows if row["start"] == start}
            lines.append(f"| {start} | " + " | ".join(cells.get(share, "-") for share in shares) + " |")
        known = {share: result.get("baselines", {}).get(f"{task}-{share}", {}) for share in shares}
        kinds = dict.fromkeys(_kind(name) for found in known.values() for name in found)
        for kind in kinds:
            cells = {
                share: next((_number(score) for name, score in found.items() if _kind(name) == kind), "-")
                for share, found in known.items()
            }
            lines.append(f"| {kind} | " + " | ".join(cells[share] for share in shares) + " |")
        lines.append("")
    return lines


def _kind(name: str) -> str:
    """A baseline's name without the order that it chose."""
    return "Markov log-odds" if name.endswith("log-odds") else name


def _number(score: Result) -> str:
    return f"{score['auc']:.4f}" if "auc" in score else f"{score['classes'][1]['f1']:.4f}"


def _cell(row: Result) -> str:
    cell = _number(row["test"].get("all", row["test"]))
    if "less_scratch" in row:
        value, low, high = row["less_scratch"]
        cell += f" ({value:+.4f} [{low:+.4f}, {high:+.4f}])"
    return cell


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="the result, which is completed")
    parser.add_argument("--npz", type=Path, help="what was said of each test window")
    parser.add_argument("--store", type=Path, help="prepared genome")
    parser.add_argument("--annotation", type=Path, help="prepared annotation")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the tables of a result, and stop")
    asked = parser.parse_args()
    if asked.table:
        print(*table(json.loads(asked.table.read_text())), sep="\n")
        return
    store, features = GenomeStore.open(asked.store), FeatureTable.open(asked.annotation)
    result = complete(json.loads(asked.json.read_text()), asked.npz, store, features)
    write_json(asked.json, result)
    print(*table(result), sep="\n")


if __name__ == "__main__":
    main()
