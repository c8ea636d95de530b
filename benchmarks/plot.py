"""The picture of a training result: the curve, and bits per base by contig, against Markov models.

python benchmarks/plot.py benchmarks/results/umaydis_h100.json
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ORDERS = (3, 8)  # Markov orders drawn as lines, beside the one chosen on validation


def draw(result: Path) -> Path:
    """Write a PNG beside the JSON that collect.py made, and return its path."""
    data = json.loads(result.read_text())
    curve, evaluation = data["curve"], data["evaluation"]
    markov = evaluation["markov"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, label in (("train/bits_per_base", "training"), ("validation/bits_per_base", "validation")):
        rows = [row for row in curve if name in row]
        left.plot([row["step"] for row in rows], [row[name] for row in rows], label=label)
    for order in sorted({*ORDERS, markov["chosen_order"]}):
        bits = markov["bits_per_base_by_order"][order]
        left.axhline(bits, color="grey", linewidth=0.8, linestyle="--")
        left.annotate(f"Markov {order} (test)", (curve[-1]["step"], bits), ha="right", va="bottom", fontsize=8)
    left.set(xlabel="step", ylabel="bits per base", title="training")
    left.legend(loc="center right")
    contigs = [row for row in evaluation["rows"] if row["group"] in ("all", "contig")]
    for offset, key, label in (
        (-0.2, "model", f"model ({data['config']['backbone']['n_layers']} layers)"),
        (0.2, "markov", f"Markov order {markov['chosen_order']}"),
    ):
        bars = right.bar([i + offset for i in range(len(contigs))], [row[key] for row in contigs], 0.4, label=label)
        right.bar_label(bars, fmt="%.3f", fontsize=7)
    low = min(row["model"] for row in contigs)
    right.set(ylim=(low - 0.05, 2.0), ylabel="bits per base", title="test, both strands (lower is better)")
    right.set_xticks(range(len(contigs)), [row["name"] for row in contigs])
    right.legend(loc="upper right")
    target = result.with_suffix(".png")
    figure.savefig(target, dpi=110)
    return target


def main() -> None:
    """Read the argument, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="JSON made by collect.py")
    print(f"written to {draw(parser.parse_args().result)}")


if __name__ == "__main__":
    main()
