"""How well a model of annotation does on the contigs held out from it, beside what a sceptic would try first.

Where there is neither Hydra nor MLflow::

    python -m domains.genomics.annotation.evaluate --model runs/one/model --store stores/genome \\
        --annotation stores/genes --out evaluation.json
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from domains.errors import UserError
from domains.genomics.annotation.evaluate_bases import BaseEvaluation, evaluate_bases
from domains.genomics.annotation.evaluate_windows import WindowEvaluation, evaluate_windows
from domains.genomics.annotation.models import WindowClassifier
from domains.genomics.annotation.settings import refuse_ignored
from domains.genomics.annotation.table import FeatureTable
from domains.genomics.annotation.trained import load_annotator
from domains.genomics.config import EvaluateConfig
from domains.genomics.model import check_genome
from domains.genomics.store import GenomeStore
from domains.hardware import choose_device, describe_hardware


def evaluate(
    model_dir: Path | str,
    store: GenomeStore,
    table: FeatureTable,
    config: EvaluateConfig,
    *,
    device: str = "auto",
    progress: bool = True,
) -> WindowEvaluation | BaseEvaluation:
    """Score the test regions with a model and with baselines fitted on the labels that it learned from.

    Raises:
        UserError: a setting makes no sense; the model folder is not complete; or genome or annotation are not those of
            the training.
    """
    refuse_ignored(config)
    if config.max_bases is not None and config.max_bases < 1:
        raise UserError(f"max_bases={config.max_bases}: must be at least 1, or left out")
    target = choose_device(device)
    loaded = load_annotator(model_dir, str(target))
    check_genome(loaded, store)
    loaded.check_annotation(table)
    score = evaluate_windows if isinstance(loaded.model, WindowClassifier) else evaluate_bases
    return score(loaded, store, table, config, describe_hardware(target), progress)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--store", type=Path, required=True, help="prepared genome")
    parser.add_argument("--annotation", type=Path, required=True, help="prepared annotation")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="auto", help="auto, cpu or gpu")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        store, table = GenomeStore.open(options.store), FeatureTable.open(options.annotation)
        found = evaluate(options.model, store, table, EvaluateConfig(), device=options.device, progress=False)
        found.save(options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(found.table())
    print(f"evaluation: {options.out} ({time.perf_counter() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
