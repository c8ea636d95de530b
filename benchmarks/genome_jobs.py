"""What cutting a contig into blocks does to its scores, and what a batch job over very many small contigs costs.

    python benchmarks/genome_jobs.py --model <model folder> --json benchmarks/results/genome_jobs.json

Blocks: the first bases of a test chromosome of the bundled genome, scored in one stream and in blocks with warm-ups of
several lengths; the difference of log-likelihoods, in nats, over the bases of all blocks but the first. Small contigs:
prepare and predict of n random contigs of 10 to 30 bases with a model of two layers of width 16, in CPU seconds of one
process, for most of it is what a contig costs whatever the model.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.genomics.config import PredictConfig, TrainConfig
from domains.genomics.model import build_model, describe_data, load_model, save_model
from domains.genomics.part_scores import CausalScores
from domains.genomics.parts import Piece
from domains.genomics.predict import predict
from domains.genomics.sample import sample_genome
from domains.genomics.splits import Splits
from domains.genomics.spool import Spool
from domains.genomics.store import GenomeStore, prepare_store
from domains.hardware import describe_hardware, describe_versions, git_commit
from domains.settings import from_dict

TINY = {"backbone": {"d_model": 16, "n_layers": 2, "mamba2": {"d_state": 8, "headdim": 8}}}


def scores(job: CausalScores, piece: Piece, folder: Path) -> np.ndarray:
    """Of one stretch, on the forward strand."""
    with Spool(folder / f"{piece.start}-{piece.lead}", None) as spool:
        job.fill([piece], spool, False, lambda _: None)  # type: ignore[arg-type]
        return spool.read(0, piece.length)


def blocks(model: Path, contig: str, bases: int, block: int, warmups: list[int], folder: Path) -> list[dict[str, Any]]:
    """A row for each warm-up."""
    store = prepare_store(sample_genome(), folder / "stores", progress=False)
    loaded = load_model(model)
    job = CausalScores(loaded.causal, store, 16384, both_strands=False)
    found = store.contig(contig)
    whole = scores(job, Piece(found, 0, bases, 0, 0), folder)
    rows = []
    for warmup in warmups:
        cut = [
            scores(job, Piece(found, start, min(start + block, bases), min(warmup, start), 0), folder)
            for start in range(block, bases, block)
        ]
        off = np.concatenate(cut) - whole[block:]
        off = np.abs(off[~np.isnan(off)])
        bits = [-float(np.nanmean(part, dtype=np.float64)) / np.log(2) for part in (np.concatenate(cut), whole[block:])]
        rows.append(
            {
                "warmup": warmup,
                "mean": float(off.mean(dtype=np.float64)),
                "max": float(off.max()),
                "above_0.01": float((off > 0.01).mean()),
                "bits_per_base": bits[0],
                "bits_per_base_whole": bits[1],
            }
        )
        print(rows[-1], flush=True)
    return rows


def small_contigs(count: int, folder: Path) -> dict[str, Any]:
    """What ``count`` contigs cost."""
    letters = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, 30 * count)].tobytes()
    with (folder / "many.fa").open("wb") as file:
        for i in range(count):
            file.write(b">contig%d\n%s\n" % (i, letters[30 * i : 30 * i + 10 + i % 21]))
    start = time.process_time()
    store = prepare_store(folder / "many.fa", folder / "stores", progress=False)
    prepared = time.process_time()
    config = from_dict(TrainConfig, TINY)
    save_model(
        folder / "model", build_model(config).state_dict(), config, describe_data(store, Splits([], [], [], "")), {}
    )
    begun = time.process_time()
    store = GenomeStore.open(store.path)
    opened = time.process_time()
    predict(folder / "model", store, folder / "out", PredictConfig(), device="cpu", progress=False)
    row = {
        "contigs": count,
        "bases": store.total,
        "prepare_cpu_seconds": round(prepared - start, 1),
        "open_cpu_seconds": round(opened - begun, 1),
        "predict_cpu_seconds": round(time.process_time() - opened, 1),
        "files": len(list((folder / "out").iterdir())),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(row, flush=True)
    return row


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="model folder of a causal model")
    parser.add_argument("--contig", default="chr23")
    parser.add_argument("--bases", type=int, default=65536)
    parser.add_argument("--block", type=int, default=16384)
    parser.add_argument("--warmups", type=int, nargs="+", default=[0, 256, 1024, 4096, 16384])
    parser.add_argument("--contigs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "commit": git_commit(),
        "hardware": describe_hardware(torch.device("cpu")),
        "versions": describe_versions(),
        "contig": options.contig,
        "bases": options.bases,
        "block": options.block,
        "small_contigs": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        result["model"] = load_model(options.model).hash
        arguments = options.model, options.contig, options.bases, options.block, options.warmups, Path(folder)
        result["blocks"] = blocks(*arguments)
    for count in options.contigs:
        with tempfile.TemporaryDirectory() as folder:
            result["small_contigs"].append(small_contigs(count, Path(folder)))
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
