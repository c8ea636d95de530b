"""How fast a genome is prepared on one core, and in how much memory.

    python benchmarks/prepare.py --json benchmarks/results/prepare.json

Random FASTA in lines of 60, 40% of it lower case: ten contigs of 24 Mb (plain and gzip), and one contig of 250 Mb. Each
case runs in a process of its own, bound to one core; speed counts its wall time from opening the file to the finished
store, memory is the peak of the whole process.
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

from domains.genomics.store import prepare_store
from domains.hardware import describe_hardware, describe_versions, git_commit

CASES = {
    "10 x 24 Mb, plain": (10, 24, "plain"),
    "10 x 24 Mb, gzip": (10, 24, "gzip"),
    "1 x 250 Mb, plain": (1, 250, "plain"),
}
WIDTH = 60


def write_fasta(path: Path, contigs: int, megabases: int) -> None:
    """Random bases; the letters of a line are drawn once a contig and turned, which costs a reader the same."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for contig in range(contigs):
            file.write(f">contig{contig}\n".encode())
            block = rng.choice(np.frombuffer(b"ACGTACGTACGTacgtacgt", np.uint8), WIDTH * 10_000).reshape(-1, WIDTH)
            lines = np.concatenate([block, np.full((len(block), 1), ord("\n"), np.uint8)], axis=1).tobytes()
            whole, rest = divmod(megabases * 1_000_000, block.size)
            for _ in range(whole):
                file.write(lines)
            file.write(lines[: rest + rest // WIDTH] + b"\n")


def one_case(source: Path, root: Path) -> None:
    """Prepare in this process, on one core, and print seconds and peak memory as JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    start = time.perf_counter()
    store = prepare_store(source, root, progress=False)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "bases": store.total}))


def measure(name: str, folder: Path) -> dict[str, object]:
    """One row."""
    contigs, megabases, kind = CASES[name]
    source = folder / "made.fa"
    write_fasta(source, contigs, megabases)
    if kind == "gzip":
        subprocess.run(["gzip", "-1", source], check=True)
        source = source.with_suffix(".fa.gz")
    command = [sys.executable, __file__, "--one", str(source), str(folder / "stores")]
    out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    shutil.rmtree(folder / "stores")
    source.unlink()
    speed = out["bases"] / out["seconds"] / 1e6
    print(f"{name:<18} {speed:6.0f} Mb/s, peak {out['peak_mib']:6.0f} MiB", flush=True)
    return {"case": name, "megabases_per_second": round(speed, 1), "peak_mib": round(out["peak_mib"])}


def main() -> None:
    """Run every case and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--one", nargs=2, type=Path, metavar=("SOURCE", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one_case(*arguments.one)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, Path(folder)) for name in CASES]
    if arguments.json:
        place = {"hardware": describe_hardware(torch.device("cpu")), "versions": describe_versions()}
        arguments.json.write_text(json.dumps({"commit": git_commit(), **place, "rows": rows}, indent=2) + "\n")
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
