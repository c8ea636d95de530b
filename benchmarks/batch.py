"""How fast the batch job is: a cold run over whole histories, then a run on a few new rows, beside other libraries.

    python benchmarks/batch.py --json benchmarks/results/batch.json

A panel of ``--series`` times ``--rows`` hourly prices, random walks with stochastic volatility: good for speed, not for
scores. The model has the sizes of backbone=mamba2_tiny and is trained for a few steps, which does not change its speed.
Each run is a process of its own; its seconds count from opening the Parquet file to forecasts on disk, preparing and
forecasting apart, not the imports; ``cpu_s`` are those of all its threads, and ``load_before`` says whether the machine
was busy with something else. The second run gets ``--new`` rows of each series.

Beside it, forecasting the same horizon with quantiles from the whole histories, which is all that they can do: AutoETS
of statsforecast on a sample of the series, extrapolated to all of them; and, where neuralforecast is installed, NHITS,
trained for a few steps on a sample and predicting for all series from their last 256 rows, training not counted.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.hardware import describe_hardware, describe_versions, git_commit

HORIZON = 5
HOUR = 3_600_000_000  # microseconds
GROUP = 500  # series in a row group
TRAINED_ON = 20  # series
LEVELS = (80, 98)  # per cent, of the intervals of other libraries
PROCESSES = 2  # of AutoETS
INPUT = 256  # rows that NHITS reads


def write_panel(folder: Path, series: int, rows: int, new: int) -> None:
    """old.parquet with ``rows`` of each series, new.parquet with ``new`` more, and train.parquet with some series."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    schema = pa.schema([("unique_id", pa.string()), ("ds", pa.timestamp("us")), ("y", pa.float64())])
    parts = {"old": slice(0, rows), "new": slice(rows, rows + new)}
    writers = {name: pq.ParquetWriter(folder / f"{name}.parquet", schema) for name in parts}
    for start in range(0, series, GROUP):
        names = [f"series{i:06d}" for i in range(start, min(start + GROUP, series))]
        shape = (len(names), rows + new)
        volatility = 0.01 * np.exp(0.02 * np.cumsum(rng.standard_normal(shape), axis=1).clip(-50, 50))
        prices = 100 * np.exp(np.cumsum(volatility * rng.standard_normal(shape), axis=1))
        for name, part in parts.items():
            stamps = np.arange(rows + new)[part] * HOUR
            columns = [
                pa.array(np.repeat(names, len(stamps))),
                pa.array(np.tile(stamps, len(names)), pa.timestamp("us")),
                pa.array(prices[:, part].ravel()),
            ]
            table = pa.Table.from_arrays(columns, schema=schema)
            writers[name].write_table(table)
            if name == "old" and not start:
                pq.write_table(table.slice(0, TRAINED_ON * rows), folder / "train.parquet")
    for writer in writers.values():
        writer.close()


def train_model(folder: Path) -> None:
    """folder/run/model, of a few steps."""
    from domains.config import TrainerConfig
    from domains.timeseries.config import DataConfig, TrainConfig
    from domains.timeseries.train import train
    from mamba_core import BackboneConfig, Mamba2Config

    data = DataConfig(path=str(folder / "train.parquet"), stores=str(folder / "stores"), horizon=HORIZON, window=128)
    backbone = BackboneConfig(d_model=32, n_layers=2, mamba2=Mamba2Config(d_state=32, headdim=16))
    trainer = TrainerConfig(max_steps=10, validate_every=10, checkpoint_every=10, accelerator="cpu")
    train(TrainConfig(data=data, backbone=backbone, trainer=trainer), folder / "run", progress=False)


def run_job(folder: Path, table: str) -> dict[str, Any]:
    """The batch job on one table, in this process."""
    import polars as pl  # noqa: F401 (these two are imported where they are used, which would count)
    import scipy.signal  # noqa: F401

    from domains.timeseries.config import ForecastConfig, SourceConfig
    from domains.timeseries.forecast import forecast
    from domains.timeseries.store import prepare_store

    start, busy = time.perf_counter(), time.process_time()
    source = SourceConfig(path=str(folder / f"{table}.parquet"), stores=str(folder / "stores"), min_rows=0)
    store = prepare_store(source, progress=False)
    prepared = time.perf_counter()
    done = forecast(folder / "run" / "model", store, folder / "out", folder / "states", ForecastConfig(), device="cpu")
    end = time.perf_counter()
    assert done.series == len(store)
    seconds = {"prepare_s": prepared - start, "forecast_s": end - prepared, "cpu_s": time.process_time() - busy}
    return {"series": done.series, "rows": done.rows, **seconds}


def run_auto_ets(folder: Path, sample: int) -> dict[str, Any]:
    """AutoETS of statsforecast with intervals, on some of the series."""
    import pandas as pd
    from statsforecast import StatsForecast
    from statsforecast.models import AutoETS

    names = [f"series{i:06d}" for i in range(sample)]
    frame = pd.read_parquet(folder / "old.parquet", filters=[("unique_id", "in", names)])
    start = time.perf_counter()
    models = StatsForecast(models=[AutoETS(season_length=1)], freq="h", n_jobs=PROCESSES)
    found = models.forecast(df=frame, h=HORIZON, level=list(LEVELS))
    end = time.perf_counter()
    assert len(found) == HORIZON * sample
    return {"series": sample, "rows": len(frame), "prepare_s": 0.0, "forecast_s": end - start}


def run_nhits(folder: Path) -> dict[str, Any]:
    """NHITS of neuralforecast with quantiles, predicting for all series."""
    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import NHITS

    plain = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    model = NHITS(h=HORIZON, input_size=INPUT, loss=MQLoss(level=list(LEVELS)), max_steps=10, **plain)
    models = NeuralForecast(models=[model], freq="h")
    models.fit(df=pd.read_parquet(folder / "train.parquet"))
    start = time.perf_counter()
    frame = pd.read_parquet(folder / "old.parquet")
    read = time.perf_counter()
    found = models.predict(df=frame)
    end = time.perf_counter()
    series = len(found) // HORIZON
    return {"series": series, "rows": len(frame), "prepare_s": read - start, "forecast_s": end - read}


def one_stage(stage: str, folder: Path, sample: int) -> None:
    """Do one stage in this process, and print what it found and the peak memory as JSON."""
    found = {
        "cold": lambda: run_job(folder, "old"),
        "new rows": lambda: run_job(folder, "new"),
        "AutoETS": lambda: run_auto_ets(folder, sample),
        "NHITS": lambda: run_nhits(folder),
    }[stage]()
    print(json.dumps(found | {"peak_mib": round(peak_memory() / 2**20)}))


def peak_memory() -> int:
    """Bytes of this process; of Linux the figure that an exec resets, as ru_maxrss starts from the parent's."""
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(stage: str, folder: Path, series: int, sample: int) -> dict[str, Any] | None:
    """One row; None where the library is not installed."""
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, "--stage", stage, str(folder), "--sample", str(sample)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "No module named" in done.stderr.splitlines()[-1]:
        return None
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = found["prepare_s"] + found["forecast_s"]
    row = {
        "run": stage,
        "series": found["series"],
        "rows_a_series": found["rows"] // found["series"],
        **{name: round(found[name], 2) for name in ("prepare_s", "forecast_s", "cpu_s") if name in found},
        "series_per_second": round(found["series"] / seconds, 1),
        "seconds_for_all": round(seconds * series / found["series"], 1),
        "extrapolated": found["series"] < series,
        "peak_mib": found["peak_mib"],
        "load_before": round(load, 1),
    }
    print(
        f"{stage:<9} {row['series']:>6,} series x {row['rows_a_series']:>6,} rows: prepare {row['prepare_s']:7.2f} s, "
        f"forecast {row['forecast_s']:7.2f} s, {row['series_per_second']:8,.1f} series/s, "
        f"{row['seconds_for_all']:9,.1f} s for all{' (extrapolated)' if row['extrapolated'] else ''}, "
        f"peak {row['peak_mib']:,} MiB",
        flush=True,
    )
    return row


def measure_panel(series: int, rows: int, new: int, sample: int, folder: Path) -> dict[str, Any]:
    """All runs on one panel."""
    write_panel(folder, series, rows, new)
    train_model(folder)
    stages = ["cold", "new rows", *(["AutoETS", "NHITS"] if sample else [])]
    found = [row for stage in stages if (row := measure(stage, folder, series, min(sample, series)))]
    cold, warm = found[:2]
    ratio = cold["seconds_for_all"] / warm["seconds_for_all"]
    print(f"new rows: {ratio:.0f} times as fast as cold", flush=True)
    return {"series": series, "rows": rows, "new": new, "times_as_fast": round(ratio, 1), "runs": found}


def main() -> None:
    """Run the cases and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, help="of one panel; left out: 10,000 x 2,000 and 200 x 10,000")
    parser.add_argument("--rows", type=int, default=2000, help="of each series")
    parser.add_argument("--new", type=int, default=5, help="rows of each series in the second run")
    parser.add_argument("--sample", type=int, default=200, help="series for AutoETS; 0: no other libraries")
    parser.add_argument("--folder", type=Path, help="for the panel, its store and the states; else temporary")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--stage", nargs=2, metavar=("STAGE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        one_stage(arguments.stage[0], Path(arguments.stage[1]), arguments.sample)
        return
    sizes = [(arguments.series, arguments.rows)] if arguments.series else [(10_000, 2000), (200, 10_000)]
    panels = []
    for series, rows in sizes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            panels.append(measure_panel(series, rows, arguments.new, arguments.sample, Path(folder)))
    if arguments.json:
        place: dict[str, dict[str, Any]] = {
            "hardware": describe_hardware(torch.device("cpu")),
            "versions": {**describe_versions()},
        }
        place["versions"] |= {name: version(name) for name in ("statsforecast", "neuralforecast") if find_spec(name)}
        table = {"commit": git_commit(), **place, "model": "mamba2_tiny", "horizon": HORIZON, "panels": panels}
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
