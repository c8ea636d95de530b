"""Zero-shot: does a model hold changes that break a gene unlikelier than changes that do not?

Stop-gained against synonymous SNVs, simulated in the genes of test chromosomes, which the model has not seen.

    python benchmarks/variants.py prepare --fasta genome.fa.gz --annotation genes.gff3.gz \\
        --contigs chr20,chr21,chr22,chr23 --out variants.npz
    python benchmarks/variants.py score --variants variants.npz --store <store> --model run/model --out one.npz
    python benchmarks/variants.py report --variants variants.npz --store <store> --scores name=one.npz \\
        --json benchmarks/results/variants.json

``score`` needs no more than PyTorch, numpy and the prepared genome, whose folder ``prepare`` tells. A score is what
``python -m pipelines.genomics score`` writes, both strands averaged; the AUC is the chance that a stop-gained change
scores lower than a synonymous one, among pairs of three kinds:

- by chance: any stop-gained with any synonymous change, as many of either of each gene;
- same change: pairs of one trinucleotide change alone (base before, base, base after, substitute), as the gene reads.
  Neither the composition of DNA nor the rates of mutations tell these apart; what does is what surrounds them, the
  reading frame above all;
- same change and place: at one place of the codon, too.

Beside the model stand the Markov models of every order up to 10, counted on the model's training regions, with the same
windows: the order chosen on validation is the baseline, the best in hindsight is shown. So is whether the change takes
away a G or C. Intervals are the middle 95 % of 1,000 resamplings of the genes, differences paired.
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels import measured_commit
from benchmarks.variants_report import compare, tabulate, window_rows
from domains.genomics.baselines import MarkovModels
from domains.genomics.model import LoadedModel, load_model
from domains.genomics.splits import Splits
from domains.genomics.store import GenomeStore, prepare_store
from domains.genomics.tokens import C, G, N
from domains.genomics.variants.alleles import Edit
from domains.genomics.variants.coding import STOP_GAINED, coding_changes, draw_changes
from domains.genomics.variants.haplotypes import Place, make_windows
from domains.genomics.variants.likelihood import causal_log_probs
from domains.genomics.variants.masked import masked_ratios
from domains.hardware import choose_device, describe_hardware, describe_versions
from mamba_core import CausalLM, MaskedLM

MAX_ORDER = 10
BLOCK = 1024  # variants whose windows are in memory at a time


def prepare(arguments: argparse.Namespace) -> None:
    """Simulate the changes, draw those to score, and write them with what was left out."""
    from domains.genomics.annotation.labels import transcripts
    from domains.genomics.annotation.table import read_annotation

    store = prepare_store(arguments.fasta, arguments.stores, progress=False)
    table = read_annotation(arguments.annotation)
    table.check_genome(store)
    contigs = set(arguments.contigs.split(","))
    whole = coding_changes(store, [gene for gene in transcripts(table) if gene.contig in contigs])
    numbers, by_chance = draw_changes(whole.changes, arguments.per_gene, np.random.default_rng(arguments.seed))
    changes = whole.changes[numbers]
    about = {
        "genome": store.fingerprint,
        "source": store.source_name,
        "annotation": table.source,
        "contigs": sorted(contigs),
        "genes": whole.genes,
        "genes_left_out": whole.dropped,
        "possible": {
            "changes": len(whole.changes),
            "stop_gained": int((whole.changes["effect"] == STOP_GAINED).sum()),
        },
        "per_gene": arguments.per_gene,
        "seed": arguments.seed,
        "stop_gained": int((changes["effect"] == STOP_GAINED).sum()),
        "synonymous": int((changes["effect"] != STOP_GAINED).sum()),
    }
    save(arguments.out, about, changes=changes, by_chance=by_chance)
    print(json.dumps(about, indent=1))
    print(f"store: {store.path}\nwritten to {arguments.out}")


def save(path: Path, about: dict[str, Any], **arrays: Any) -> None:
    """Arrays in one file, with what they are as JSON."""
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What :func:`save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file["about"])), {name: file[name] for name in file.files if name != "about"}


def open_variants(arguments: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray, np.ndarray, GenomeStore]:
    """What was prepared, the changes, which were drawn by chance, and the genome that they are changes of."""
    about, arrays = load(arguments.variants)
    store = GenomeStore.open(arguments.store)
    if store.fingerprint != about["genome"]:
        raise SystemExit(f"{arguments.store}: is not the genome of {arguments.variants}")
    return about, arrays["changes"], arrays["by_chance"], store


def places_of(store: GenomeStore, changes: np.ndarray) -> list[Place]:
    """The changes as the scoring functions take them."""
    contigs = store.contigs
    found = []
    for change in changes:
        contig = contigs[int(change["contig"])]
        edit = Edit(int(change["position"]), 1, bytes([int(change["alt"])]), 0)
        found.append(Place(contig.name, partial(store.tokens, contig.name), contig.length, edit))
    return found


def score(arguments: argparse.Namespace) -> None:
    """The ratios of one model, and of a causal one also over shorter windows."""
    _, changes, _, store = open_variants(arguments)
    device = choose_device(arguments.device)
    loaded = load_model(arguments.model, str(device))
    shorter = [length for length in (1, 8, 64, 256) if length < arguments.window]
    lengths = [*shorter, arguments.window] if isinstance(loaded.model, CausalLM) else [arguments.window]
    chosen = np.flatnonzero(changes["gene"] % arguments.stride == 0)
    ratios = np.full((len(changes), len(lengths)), np.nan)
    started = time.perf_counter()
    for start in range(0, len(chosen), BLOCK):
        block = chosen[start : start + BLOCK]
        ratios[block] = ratios_of(loaded, places_of(store, changes[block]), lengths, arguments)
        rate = (start + len(block)) / (time.perf_counter() - started)
        print(f"{start + len(block):,} of {len(chosen):,} variants, {rate:,.0f} a second", flush=True)
    about = {
        "model": loaded.hash,
        "kind": loaded.config.task.kind,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "splits": loaded.splits.to_dict(),
        "metrics": loaded.metrics,
        "context": arguments.context,
        "windows": lengths,
        "scored": len(chosen),
        "seconds": round(time.perf_counter() - started, 1),
        "hardware": describe_hardware(device),
        "versions": describe_versions(),
        "commit": measured_commit(arguments.commit, needed=True),
    }
    save(arguments.out, about, ratios=ratios)
    print(f"written to {arguments.out}")


def ratios_of(
    loaded: LoadedModel, places: Sequence[Place], lengths: Sequence[int], arguments: argparse.Namespace
) -> np.ndarray:
    """Log-likelihood ratios, float64 (variants, lengths), both strands averaged."""
    model, context, chunk = loaded.model, arguments.context, arguments.chunk
    if isinstance(model, MaskedLM):
        return masked_ratios(model, places, context, lengths[-1], chunk=chunk).mean(1, keepdims=True)
    windows = make_windows(places, context, lengths[-1])
    log_probs = causal_log_probs(model, windows, chunk=chunk)
    return np.stack([windows.ratios(log_probs, most).mean(1) for most in lengths], axis=1)


def markov_ratios(models: MarkovModels, places: Sequence[Place], order: int) -> np.ndarray:
    """Log-likelihood ratios by a Markov model, float64 (variants,): what follows the change by more is untouched."""
    found = []
    for start in range(0, len(places), BLOCK):
        windows = make_windows(places[start : start + BLOCK], order, order + 1)
        rows, width = windows.branches.shape
        contexts, lengths = windows.before[windows.context_of], windows.before_length[windows.context_of]
        column = np.arange(contexts.shape[1]) - (contexts.shape[1] - lengths[:, None])  # to the right, N before it
        contexts = np.where(column < 0, N, np.take_along_axis(contexts, np.maximum(column, 0), axis=1))
        flat = np.concatenate([np.full((rows, 1), N), contexts, windows.branches], axis=1).astype(np.uint8)
        log2 = models.log2_probs(flat.ravel(), order).reshape(flat.shape)[:, -width:]
        found.append(windows.ratios(log2 * np.float32(np.log(2))).mean(1))
    return np.concatenate(found)


def report(arguments: argparse.Namespace) -> None:
    """AUCs of all models beside the baselines, as a table and as JSON."""
    about, changes, by_chance, store = open_variants(arguments)
    given = dict(entry.split("=", 1) for entry in arguments.scores)
    models = {name: load(Path(path)) for name, path in given.items()}
    ratios = {name: arrays["ratios"] for name, (_, arrays) in models.items()}
    known = np.all([np.isfinite(values[:, -1]) for values in ratios.values()], axis=0)  # what all models have scored
    changes, by_chance = changes[known], by_chance[known]
    ratios = {name: values[known] for name, values in ratios.items()}
    places = places_of(store, changes)
    first = next(iter(models.values()))[0]
    splits = Splits.from_dict(first["splits"])
    if any(other["splits"] != splits.to_dict() for other, _ in models.values()):
        raise SystemExit("the models were trained on different regions; report them one by one")
    seen = {region.contig for region in (*splits.train, *splits.validation)}
    if seen & set(about["contigs"]):
        raise SystemExit(
            f"the models have seen {sorted(seen & set(about['contigs']))[0]}; prepare with --contigs of the test"
        )
    markov = MarkovModels.fit(store, splits.train, arguments.max_order, splits.validation)
    orders = [markov_ratios(markov, places, order) for order in range(1, arguments.max_order + 1)]
    baseline = f"Markov {markov.chosen_order}"
    scores = {name: values[:, -1] for name, values in ratios.items()}
    scores |= {f"Markov {order}": values for order, values in enumerate(orders, 1)}
    scores["loss of G or C"] = -(np.isin(changes["ref"], [C, G]).astype(float) - np.isin(changes["alt"], [C, G]))
    rows = compare(changes, by_chance, scores, baseline)
    windows = {name: found["windows"] for name, (found, _) in models.items()}
    result = {
        "commit": first["commit"],
        "hardware": first["hardware"],
        "variants": about,
        "models": {name: {k: v for k, v in found.items() if k != "splits"} for name, (found, _) in models.items()},
        "baseline": baseline,
        "rows": rows,
        "windows": window_rows(changes, by_chance, ratios, windows),
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(tabulate(rows, [*models, baseline])))
    print(f"written to {arguments.json}")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    first = steps.add_parser("prepare", help="simulate the changes")
    first.add_argument("--fasta", type=Path, required=True)
    first.add_argument("--annotation", type=Path, required=True, help="GFF3, GTF or GenBank")
    first.add_argument("--contigs", required=True, help="those held out from the model")
    first.add_argument("--stores", type=Path, default=Path("stores"))
    first.add_argument("--per-gene", type=int, default=25, help="stop-gained changes, and as many synonymous ones")
    first.add_argument("--seed", type=int, default=0)
    first.add_argument("--out", type=Path, required=True)
    second = steps.add_parser("score", help="score them with a model")
    second.add_argument("--model", type=Path, required=True, help="model folder")
    second.add_argument("--context", type=int, default=2048)
    second.add_argument("--window", type=int, default=512)
    second.add_argument("--chunk", type=int, default=1 << 18, help="bases a call")
    second.add_argument("--stride", type=int, default=1, help="score the changes of every so manieth gene alone")
    second.add_argument("--device", default="auto")
    second.add_argument("--commit", help="commit that is measured, where there is no checkout")
    second.add_argument("--out", type=Path, required=True)
    third = steps.add_parser("report", help="compare the scores")
    third.add_argument(
        "--scores",
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME=FILE",
        help="commit and hardware told are the first's",
    )
    third.add_argument("--max-order", type=int, default=MAX_ORDER)
    third.add_argument("--json", type=Path, required=True)
    for step in (second, third):
        step.add_argument("--variants", type=Path, required=True)
        step.add_argument("--store", type=Path, required=True, help="folder of the prepared genome")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """One step."""
    arguments = parse(words)
    {"prepare": prepare, "score": score, "report": report}[arguments.step](arguments)


if __name__ == "__main__":
    main()
