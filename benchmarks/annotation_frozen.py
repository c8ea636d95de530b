"""What pre-trained backbones know of genes without being trained on them: heads on frozen states, on a CPU.

    python benchmarks/annotation_frozen.py --store stores/<genome> --annotation stores/<genes> \\
        --pretrained causal=runs/umaydis/model --json benchmarks/results/umaydis_frozen_cpu.json --minutes 20
    python benchmarks/annotation_frozen.py --table benchmarks/results/umaydis_frozen_cpu.json

The tasks are those of annotation.py: windows of 200 bases, and the class of every base; chosen on chr19, tested on
chr20 to chr23. Every backbone, and one of the first one's sizes with random weights, reads the windows once; then a
symmetric head with one hidden layer learns from its states, with a hundredth and a tenth of the labels. The states are
what takes time, so validation and test have every fourth window, and the segmentation stretches of 8,192 bases: 20 of
training (1 %), 2 of validation, 6 of the test. Baselines learn from the same labels and are tested on the same windows
and stretches. --only and --merge let several processes share the work.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kernels import measured_commit
from domains.folder import write_json
from domains.genomics.annotation.baselines import fit_baselines
from domains.genomics.annotation.codon import CodonModel
from domains.genomics.annotation.data import Tile, base_windows, share_of_windows
from domains.genomics.annotation.labels import CLASS_OF_STATE, NO_LABEL, BaseLabels, label_bases
from domains.genomics.annotation.metrics import score_binary
from domains.genomics.annotation.models import BothStrands, SymmetricHead
from domains.genomics.annotation.table import FeatureTable
from domains.genomics.annotation.windows import LabelledWindows, fraction_of, label_windows, read_spans
from domains.genomics.config import DataConfig
from domains.genomics.model import read_record
from domains.genomics.splits import Splits, make_splits
from domains.genomics.store import TOKEN_BITS, GenomeStore
from domains.hardware import describe_hardware, describe_versions
from mamba_core import BackboneConfig

DATA = DataConfig(
    annotation="given",
    window=200,
    min_overlap=1.0,
    negatives="balanced",
    test=["chr20", "chr21", "chr22", "chr23"],
    validation=["chr19"],
)
FRACTIONS = (0.01, 0.1)
EVERY = 4  # n-th window of validation and test
STRETCH = 8192
STRETCHES = {"train": 20, "validation": 2, "test": 6}
RANDOM, BASELINES = "random weights", "baselines"
ROWS = 32  # windows read at a time
Result = dict[str, Any]
States = tuple[Tensor, Tensor]  # of the strand that is given, and of the other


def encoder_of(folder: Path | None, backbone: BackboneConfig) -> BothStrands:
    """A backbone in evaluation mode, pre-trained or as it is drawn with seed 0."""
    torch.manual_seed(0)
    encoder = BothStrands(backbone, freeze=True)
    if folder is not None:
        encoder.load_pretrained(folder)
    return encoder.eval()


def window_states(encoder: BothStrands, store: GenomeStore, starts: np.ndarray) -> States:
    """What a WindowClassifier's head sees of each window: mean and last state of either strand, (n, 2 width) each."""
    found: list[States] = []
    for first in range(0, len(starts), ROWS):
        tokens = read_spans(store, starts[first : first + ROWS], DATA.window)
        own, other = encoder(torch.from_numpy(tokens.astype(np.int64)))
        found.append((torch.cat([own.mean(1), own[:, -1]], -1), torch.cat([other.mean(1), other[:, 0]], -1)))
    own, other = zip(*found, strict=True)
    return torch.cat(own), torch.cat(other)


def base_states(encoder: BothStrands, store: GenomeStore, starts: np.ndarray) -> States:
    """States of every base of stretches, (n, width) each."""
    found = []
    for start in starts.tolist():
        tokens = store.raw[start : start + STRETCH] & np.uint8(TOKEN_BITS)
        own, other = encoder(torch.from_numpy(tokens.astype(np.int64))[None])
        found.append((own[0], other[0]))
    own, other = zip(*found, strict=True)
    return torch.cat(own), torch.cat(other)


def fit_head(train: States, labels: Tensor, held: States, held_labels: Tensor, classes: int, epochs: int) -> nn.Module:
    """A head on standardised states, the weights of the epoch with the lowest loss on validation."""
    torch.manual_seed(0)
    both = torch.cat(train)
    mean, scale = both.mean(0), both.std(0) + 1e-4
    head = SymmetricHead(train[0].shape[1], classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.1)

    def loss_of(states: States, rows: Tensor | slice, of: Tensor) -> Tensor:
        own, other = ((part[rows] - mean) / scale for part in states)
        return nn.functional.cross_entropy(head(own, other), of[rows])

    best, kept = float("inf"), {name: value.clone() for name, value in head.state_dict().items()}
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(256):
            optimizer.zero_grad()
            loss_of(train, rows, labels).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(loss_of(held, slice(None), held_labels))
        if loss < best:
            best, kept = loss, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(kept)
    return _Standardised(head, mean, scale)


class _Standardised(nn.Module):
    def __init__(self, head: nn.Module, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.head, self.mean, self.scale = head, mean, scale

    @torch.no_grad()
    def forward(self, states: States) -> np.ndarray:
        """Probabilities of the classes, (n, classes)."""
        own, other = ((part - self.mean) / self.scale for part in states)
        return torch.softmax(self.head(own, other), -1).numpy()


def windows_of(
    encoder: BothStrands, store: GenomeStore, parts: dict[str, LabelledWindows]
) -> Iterator[tuple[str, Result]]:
    """AUC and the like, share of the labels by share."""
    train, validation, test = parts["train"], parts["validation"], parts["test"]
    held, asked = (window_states(encoder, store, part.starts) for part in (validation, test))
    for share in FRACTIONS:
        chosen = fraction_of(train, share, 0)
        states = window_states(encoder, store, chosen.starts)
        given, of = (torch.from_numpy(part.labels.astype(np.int64)) for part in (chosen, validation))
        said = fit_head(states, given, held, of, classes=2, epochs=60)(asked)
        yield str(share), score_binary(test.labels, said[:, 1]).to_dict()


def bases_of(encoder: BothStrands, store: GenomeStore, labels: BaseLabels, starts: dict[str, np.ndarray]) -> Result:
    """F1 of each class by a head on the states of stretches."""
    states = {part: base_states(encoder, store, found) for part, found in starts.items()}
    truth = {part: _classes(labels, found) for part, found in starts.items()}
    known = {part: torch.from_numpy(found != NO_LABEL) for part, found in truth.items()}
    kept: dict[str, States] = {part: (own[known[part]], other[known[part]]) for part, (own, other) in states.items()}
    given = {part: torch.from_numpy(found[found != NO_LABEL].astype(np.int64)) for part, found in truth.items()}
    head = fit_head(kept["train"], given["train"], kept["validation"], given["validation"], classes=3, epochs=4)
    return class_scores(given["test"].numpy(), head(kept["test"]))


def class_scores(truth: np.ndarray, said: np.ndarray) -> Result:
    """F1 of each class, the likeliest one being the answer, and AUC of CDS against the rest."""
    called = said.argmax(-1)
    f1 = [2 * ((called == i) & (truth == i)).sum() / max((called == i).sum() + (truth == i).sum(), 1) for i in range(3)]
    names = ("intergenic", "CDS", "intron")
    return {name: float(value) for name, value in zip(names, f1, strict=True)} | {
        "auc_cds": score_binary(truth == 1, said[:, 1]).auc
    }


def _classes(labels: BaseLabels, starts: np.ndarray) -> np.ndarray:
    return np.concatenate([CLASS_OF_STATE[labels.states[start : start + STRETCH]] for start in starts.tolist()])


def baselines(
    store: GenomeStore, parts: dict[str, LabelledWindows], labels: BaseLabels, starts: dict[str, np.ndarray]
) -> Result:
    """What the same labels are worth to k-mer regression, Markov log-odds and codon models."""
    found: Result = {"windows": {}, "bases": {}}
    test = parts["test"]
    for share in (*FRACTIONS, 1.0):
        fitted = fit_baselines(store, fraction_of(parts["train"], share, 0), parts["validation"], None)
        found["windows"][str(share)] = {
            one.name: score_binary(test.labels, one.predict(test)).to_dict() for one in fitted
        }
    stretches = {part: [(at, at + STRETCH) for at in found_.tolist()] for part, found_ in starts.items()}
    tiles = [Tile(start, stop, start, stop) for start, stop in stretches["test"]]
    truth = _classes(labels, starts["test"])
    for order in (3, 5):
        model = CodonModel(store, labels, stretches["train"], stretches["validation"], order)
        by_start = {one.start: said for one, said in model.class_probabilities(tiles)}
        said = np.concatenate([by_start[one.start] for one in tiles])
        found["bases"][model.name] = class_scores(truth[truth != NO_LABEL], said[truth != NO_LABEL])
    found["bases"]["CDS everywhere"] = class_scores(
        truth[truth != NO_LABEL], np.eye(3)[np.ones(int((truth != NO_LABEL).sum()), int)]
    )
    return found


def stretches_of(store: GenomeStore, labels: BaseLabels, splits: Splits) -> dict[str, np.ndarray]:
    """Starts of the stretches, drawn evenly by seed 0; those of the training are a hundredth of all."""
    found = {}
    for part, count in STRETCHES.items():
        starts = base_windows(store, labels, getattr(splits, part), STRETCH)
        found[part] = share_of_windows(starts, count / len(starts), 0)
    return found


def thinned(windows: LabelledWindows) -> LabelledWindows:
    """Every fourth of the windows."""
    return windows.take(np.arange(0, len(windows), EVERY))


def table(result: Result) -> list[str]:
    """For the README."""
    lines = ["| windows of 200 bases, AUC | 1 % of the labels | 10 % | all |", "|---|---|---|---|"]
    names = list(result["baselines"]["windows"][str(FRACTIONS[0])])
    fixed = [name for name in names if not name.startswith(("Markov", "majority"))]
    for name, one in result["models"].items():
        cells = [f"{one['windows'][str(s)]['auc']:.4f}" if str(s) in one["windows"] else "-" for s in FRACTIONS]
        lines.append(f"| head on {name} | {' | '.join(cells)} | - |")
    for prefix in (*fixed, "Markov"):
        cells = []
        for share in (*FRACTIONS, 1.0):
            rows = result["baselines"]["windows"][str(share)]
            cells.append(next(f"{row['auc']:.4f}" for name, row in rows.items() if name.startswith(prefix)))
        lines.append(f"| {prefix}{' log-odds' if prefix == 'Markov' else ''} | {' | '.join(cells)} |")
    lines += ["", "| bases, 1 % of the labels, F1 | CDS | intron | intergenic | AUC of CDS |", "|---|---|---|---|---|"]
    rows = {f"head on {name}": one["bases"] for name, one in result["models"].items() if "bases" in one}
    for name, row in (rows | result["baselines"]["bases"]).items():
        lines.append(
            f"| {name} | {row['CDS']:.4f} | {row['intron']:.4f} | {row['intergenic']:.4f} | {row['auc_cds']:.4f} |"
        )
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="prepared genome")
    parser.add_argument("--annotation", type=Path, help="prepared annotation")
    parser.add_argument("--pretrained", nargs="+", metavar="NAME=FOLDER", help="model folders")
    parser.add_argument("--json", type=Path, help="the result")
    parser.add_argument("--minutes", type=float, default=20.0, help="after which nothing more is begun")
    parser.add_argument(
        "--only", metavar="NAME", help=f"of the backbones, of which {RANDOM!r} is one, or {BASELINES!r}"
    )
    parser.add_argument("--merge", nargs="+", type=Path, metavar="JSON", help="put results with --only into --json")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the tables of a result, and stop")
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    asked = parser.parse_args()
    if asked.table:
        print(*table(json.loads(asked.table.read_text())), sep="\n")
        return
    if asked.merge:
        results = [json.loads(path.read_text()) for path in asked.merge]
        models = {name: one for found in results for name, one in found["models"].items()}
        write_json(asked.json, {key: value for found in results for key, value in found.items()} | {"models": models})
        return
    deadline = time.monotonic() + 60 * asked.minutes
    commit = measured_commit(asked.commit, True)
    store, features = GenomeStore.open(asked.store), FeatureTable.open(asked.annotation)
    splits = make_splits(store, DATA)
    whole = label_windows(store, features, splits, DATA)
    parts = {"train": whole.train, "validation": thinned(whole.validation), "test": thinned(whole.test)}
    labels = label_bases(store, features)
    starts = stretches_of(store, labels, splits)
    folders: dict[str, Path | None] = {n: Path(f) for n, f in (pair.split("=", 1) for pair in asked.pretrained)}
    backbones = {name: read_record(folder).config.backbone for name, folder in folders.items() if folder is not None}
    backbones[RANDOM], folders[RANDOM] = next(iter(backbones.values())), None
    if asked.only:
        folders = {name: folder for name, folder in folders.items() if name == asked.only}
    result: Result = {
        "commit": commit,
        "genome": store.fingerprint,
        "annotation": features.fingerprint,
        "windows": {part: [len(found), found.positives] for part, found in parts.items()},
        "stretches": {part: found.tolist() for part, found in starts.items()},
        "hardware": describe_hardware(torch.device("cpu")),
        "versions": describe_versions(),
        "models": {},
    }
    if not asked.only or asked.only == BASELINES:
        result["baselines"] = baselines(store, parts, labels, starts)
        write_json(asked.json, result)
    for name, folder in folders.items():
        started = time.monotonic()
        encoder = encoder_of(folder, backbones[name])
        one: Result = {"windows": {}}
        result["models"][name] = one
        pieces: Iterator[tuple[str, Result]] = windows_of(encoder, store, parts)
        for number, (share, found) in enumerate(pieces):
            one["windows"][share] = found
            one["seconds"] = round(time.monotonic() - started)
            write_json(asked.json, result)
            if number == 0:
                one["bases"] = bases_of(encoder, store, labels, starts)
                write_json(asked.json, result)
            if time.monotonic() > deadline:
                break


if __name__ == "__main__":
    main()
