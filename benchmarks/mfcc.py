"""What the baseline of names reaches under the folds of benchmarks/naming.py, and with which penalty; a core is enough.

    python -m pipelines.audio train experiment=drums data.store=<store> run.export=drums.yaml
    python benchmarks/mfcc.py --recipe drums=drums.yaml --groups drums --recipe dialogue=dialogue.yaml --json mfcc.json

A recipe is split as it says itself, or, named with ``--groups``, into a fold for each group. The baseline is fitted on
the training and validation clips, and chooses its penalty among them.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels import measured_commit, write_result
from benchmarks.naming import folds_of
from domains.audio.baselines import MfccLogistic
from domains.audio.baselines.mfcc import class_numbers, mfcc_features
from domains.audio.config import TrainConfig
from domains.audio.metrics import Naming
from domains.audio.splits import make_splits
from domains.audio.store import open_store
from domains.hardware import choose_device
from domains.settings import from_dict, read_yaml


def measure(config: TrainConfig, folds: str) -> dict[str, Any]:
    """All folds together: scores, and what each clip was called."""
    store = open_store(config.data, progress=False)
    features = mfcc_features(store, range(len(store)))
    tested: list[int] = []
    called: list[np.ndarray] = []
    strengths = {}
    for name, data in folds_of(config, folds):
        splits = make_splits(store, data, labelled=True)
        known = [*splits.clips(store, "train"), *splits.clips(store, "validation")]
        test = splits.clips(store, "test")
        fitted = MfccLogistic.fit(store, known, features)
        strengths[name] = fitted.strength
        tested += test
        called.append(fitted.predict(store, test, features))
    truth, names = class_numbers(store, tested), np.concatenate(called)
    found = Naming(store.labels, truth, names)
    return {
        "clips": len(tested),
        "balanced_accuracy": round(found.balanced_accuracy, 5),
        "accuracy": round(found.accuracy, 5),
        "strengths": strengths,
        "wrong": {
            store.clips[clip].name: store.labels[name]
            for clip, name, right in zip(tested, names, truth, strict=True)
            if name != right
        },
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", required=True, metavar="NAME=YAML", help="with data.store")
    parser.add_argument("--groups", action="append", default=[], metavar="NAME", help="a fold for each of its groups")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="commit that is measured, where there is no checkout (40 hexadecimal digits)")
    arguments = parser.parse_args()
    commit = measured_commit(arguments.commit, arguments.json is not None)
    rows = []
    for given in arguments.recipe:
        name, _, path = given.partition("=")
        config = from_dict(TrainConfig, read_yaml(path), path)
        rows.append({"recipe": name} | measure(config, "groups" if name in arguments.groups else "1"))
        shown = {key: rows[-1][key] for key in ("recipe", "clips", "balanced_accuracy", "accuracy", "strengths")}
        print(shown, flush=True)
    write_result(arguments.json, choose_device("cpu"), commit, {"rows": rows})


if __name__ == "__main__":
    main()
