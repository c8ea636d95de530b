"""How fast a panel of series is prepared on one core, and in how much memory.

    python benchmarks/panel.py --json benchmarks/results/panel.json

A Parquet file of random prices, ``--series`` times ``--rows`` rows (unique_id, ds, y), in row groups of a million rows.
Its rows lie series by series, or stamp by stamp, which is the order in which markets are recorded and the harder one.
Each case runs in a process of its own, bound to one core; speed counts its wall time from opening the file to the
finished store, memory is the peak of the whole process.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from domains.hardware import describe_hardware, describe_versions, git_commit
from domains.timeseries.config import SourceConfig
from domains.timeseries.store import prepare_store

ORDERS = ("series", "time")
GROUP = 1_000_000  # rows
HOUR = 3_600_000_000  # microseconds


def write_panel(path: Path, series: int, rows: int, order: str) -> None:
    """Random prices; a row's place in the file says which series and which hour it is of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    names = pa.array([f"series{i:06d}" for i in range(series)])
    schema = pa.schema([("unique_id", pa.string()), ("ds", pa.timestamp("us")), ("y", pa.float64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, series * rows, GROUP):
            place = np.arange(start, min(start + GROUP, series * rows))
            which, hour = np.divmod(place, rows) if order == "series" else np.divmod(place, series)[::-1]
            prices = 100 * np.exp(0.1 * rng.standard_normal(len(place)))
            columns = [names.take(pa.array(which)), pa.array(hour * HOUR, pa.timestamp("us")), pa.array(prices)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def one_case(source: Path, root: Path) -> None:
    """Prepare in this process, on one core, and print seconds and peak memory as JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    start = time.perf_counter()
    store = prepare_store(SourceConfig(path=str(source), stores=str(root)), progress=False)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "series": len(store), "rows": len(store.time)}))


def measure(order: str, series: int, rows: int, folder: Path) -> dict[str, object]:
    """One row."""
    source = folder / "panel.parquet"
    write_panel(source, series, rows, order)
    size = source.stat().st_size
    command = [sys.executable, __file__, "--one", str(source), str(folder / "stores")]
    out = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    shutil.rmtree(folder / "stores")
    source.unlink()
    speed = out["rows"] / out["seconds"]
    print(
        f"{out['series']:,} series x {rows:,} rows, by {order:<6} {out['seconds']:6.1f} s, "
        f"{speed / 1e6:5.2f} M rows/s, peak {out['peak_mib']:6.0f} MiB",
        flush=True,
    )
    return {
        "order": order,
        "series": out["series"],
        "rows": out["rows"],
        "parquet_mib": round(size / 2**20),
        "seconds": round(out["seconds"], 1),
        "rows_per_second": round(speed),
        "peak_mib": round(out["peak_mib"]),
    }


def main() -> None:
    """Run the cases and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=10_000, help="of each series")
    parser.add_argument("--order", choices=ORDERS, help="of the rows in the file; both when left out")
    parser.add_argument("--folder", type=Path, help="for the panel and its store, 7 bytes a row and 48; else temporary")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--one", nargs=2, type=Path, metavar=("SOURCE", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one_case(*arguments.one)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        orders = [arguments.order] if arguments.order else ORDERS
        rows = [measure(order, arguments.series, arguments.rows, Path(folder)) for order in orders]
    if arguments.json:
        place = {"hardware": describe_hardware(torch.device("cpu")), "versions": describe_versions()}
        arguments.json.write_text(json.dumps({"commit": git_commit(), **place, "rows": rows}, indent=2) + "\n")
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
