"""The published forecasting numbers: each recipe trained and evaluated by the commands that users have.

    python benchmarks/forecasting.py --experiment sp500 --json benchmarks/results/forecast_sp500.json
    python benchmarks/forecasting.py --experiment usdchf --data usdchf_30min_1996_2000.parquet --unit 10000 --json ...

The bundled series need no --data. Where neuralforecast is installed, its NHITS is scored at the same cut-offs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.kernels import measured_commit
from benchmarks.nhits import nhits_beside
from domains.folder import write_json
from domains.hardware import describe_hardware, describe_versions
from domains.store_folder import META
from domains.timeseries.report import plain
from domains.timeseries.store import SeriesStore
from domains.timeseries.table import lines_of

PATTERNS = {"mamba1": ["mamba1"], "transformer": ["attention", "mlp"], "hybrid": ["mamba2", "attention"]}
SERIES = {"sp500": ["SP500"]}  # those that are scored; of other experiments all


def run(words: list[str], threads: int) -> float:
    """One command of the time series pipeline; its seconds."""
    command = [sys.executable, "-m", "pipelines.timeseries", *words, "tracking.enabled=false"]
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and evaluate one experiment in ``folder``."""
    data = [f"data.path={arguments.data.resolve()}"] if arguments.data else []
    where = [f"run.dir={folder / 'run'}", f"data.stores={folder / 'stores'}"]
    chosen = []
    if arguments.backbone:
        chosen = [f"backbone.pattern=[{','.join(PATTERNS[arguments.backbone])}]", "backbone.attention.headdim=16"]
    seconds = {"train": run(["train", f"experiment={arguments.experiment}", *chosen, *data, *where], arguments.threads)}
    words = ["evaluate", f"model={folder / 'run' / 'model'}", f"data.stores={folder / 'stores'}"]
    if arguments.unit:
        words.append(f"unit={arguments.unit:g}")
    names = SERIES.get(arguments.experiment)
    if names:
        words.append(f"series=[{','.join(names)}]")
    seconds["evaluate"] = run(words, arguments.threads)
    found = json.loads((folder / "run" / "evaluation" / "evaluation.json").read_text())
    table = (folder / "run" / "evaluation" / "table.txt").read_text().splitlines()
    if find_spec("neuralforecast"):
        start = time.perf_counter()
        store = SeriesStore.open(next((folder / "stores").rglob(META)).parent)
        scores = nhits_beside(folder / "run" / "model", store, names or [], found["factor"])
        seconds["nhits"] = time.perf_counter() - start
        found["methods"] |= plain(scores)
        table += ["", *lines_of(scores, found["unit"])]
        print("\n".join(lines_of(scores, found["unit"])))
    return {"seconds": seconds, "evaluation": found, "table": table}


def main() -> None:
    """Run, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True, choices=("sp500", "usdchf", "dowjones"))
    parser.add_argument("--data", type=Path, help="the table, where the experiment does not use the bundled one")
    parser.add_argument("--backbone", choices=tuple(PATTERNS), help="instead of the recipe's")
    parser.add_argument("--unit", type=float, help="as of evaluate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="keep the plots of the evaluation in this folder")
    arguments = parser.parse_args()
    commit = measured_commit(None, arguments.json is not None)
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(arguments, Path(temporary))
        if arguments.plots:
            arguments.plots.mkdir(parents=True, exist_ok=True)
            for path in (Path(temporary) / "run" / "evaluation").glob("*.png"):
                name = f"forecast_{arguments.experiment}_{path.stem}.png"
                (arguments.plots / name).write_bytes(path.read_bytes())
    if arguments.json:
        import torch

        hardware = describe_hardware(torch.device("cpu"), arguments.threads)
        about = {"experiment": arguments.experiment, "backbone": arguments.backbone, "hardware": hardware}
        peers = {name: version(name) for name in ("statsforecast", "arch", "neuralforecast") if find_spec(name)}
        write_json(arguments.json, {**about, "commit": commit, "versions": {**describe_versions(), **peers}, **found})
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
