"""A run folder and its evaluation as one JSON: settings, commit, hardware, curve, and the table.

    python benchmarks/collect.py runs/umaydis --evaluation runs/umaydis/evaluation/evaluation.json \
        --json benchmarks/results/umaydis_h100.json

The commit is the one that the run recorded; give --commit for a run on a machine that had no checkout.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from domains.folder import RunFolder
from domains.runlog import read_metrics

MEASURES = {"bits_per_base": "bases", "bits_per_sample": "samples", "loss": "samples"}  # what is learned, per what
POINTS = 100  # of the training curve; every validation is kept


def collect(run_dir: Path, evaluation: Path | None, commit: str | None) -> dict[str, Any]:
    """Everything that a reader needs to judge a number of the README, as plain values."""
    run = RunFolder.open(run_dir)
    info = run.info()
    rows = read_metrics(run.metrics_path)
    measure = next(name for name in MEASURES if any(f"train/{name}" in row for row in rows))
    unit = MEASURES[measure]
    shown = (f"train/{measure}", f"validation/{measure}", f"train/{unit}_per_second", f"train/{unit}")
    training = [row for row in rows if shown[0] in row]
    training = training[max(1, len(training) // POINTS) - 1 :: max(1, len(training) // POINTS)]
    validation = [row for row in rows if shown[1] in row]
    curve = sorted(training + validation, key=lambda row: row["step"])
    sessions = info["sessions"]
    return {
        "commit": commit or sessions[-1]["git_commit"],
        "hardware": sessions[-1]["hardware"],
        "versions": sessions[-1]["versions"],
        "started": info["started"],
        "ended": info["ended"],
        "config": yaml.safe_load(run.config_path.read_text()),
        "curve": [
            {"step": row["step"]} | {name: round(row[name], 5) for name in shown if name in row} for row in curve
        ],
        "metrics": json.loads((run.model / "metrics.json").read_text()),
        "evaluation": None if evaluation is None else json.loads(evaluation.read_text()),
    }


def main() -> None:
    """Read the arguments, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--evaluation", type=Path, help="evaluation.json of the run")
    parser.add_argument("--commit", help="commit that the run was made from, where it could not know")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    result = collect(arguments.run, arguments.evaluation, arguments.commit)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
