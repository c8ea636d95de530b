"""Results of recall.py for people: the table of accuracy by distance, and its picture."""

from pathlib import Path
from typing import Any

Row = dict[str, Any]

LABELS = {"mamba1": "Mamba-1", "mamba2": "Mamba-2", "transformer": "Transformer", "hybrid": "hybrid (1 in 6)"}


def table(result: Row) -> str:
    """Markdown: accuracy by distance, a block for each task."""
    lines = []
    for name in dict.fromkeys(row["task"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["task"] == name]
        distances = sorted({row["distance"] for row in rows})
        lines += [
            f"| {name} | parameters | " + " | ".join(f"{distance:,}" for distance in distances) + " | state, at most |",
            "|---" * (len(distances) + 3) + "|",
        ]
        for backbone in dict.fromkeys(row["backbone"] for row in rows):
            own = {row["distance"]: row for row in rows if row["backbone"] == backbone}
            cells = [_cell(own[distance]) for distance in distances]
            size = max((row["state_bytes"] or 0 for row in own.values()), default=0)
            parameters = f"{next(iter(own.values()))['parameters']:,}"
            lines.append(f"| {' | '.join([LABELS[backbone], parameters, *cells, f'{size / 1e6:,.2f} MB'])} |")
        for label, level in _baselines(result, name):
            lines.append(f"| {label} | | {' | '.join([f'{level:.3f}'] * len(distances))} | |")
        lines.append("")
    return "\n".join(lines)


def _baselines(result: Row, name: str) -> list[tuple[str, float]]:
    """What comes without memory, and with half of it."""
    levels = (("chance", result["chance"][name]), ("values without their keys", result["values_without_keys"][name]))
    return [(label, level) for label, level in levels if level is not None]


def _cell(row: Row) -> str:
    return row["note"] if row["accuracy"] is None else f"{row['accuracy']:.3f}"


def draw(result: Row, target: Path) -> None:
    """Accuracy over distance, a panel for each task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["task"] for row in result["rows"]))
    figure, axes = plt.subplots(1, len(names), figsize=(6 * len(names), 4), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for backbone, label in LABELS.items():
            rows = [row for row in result["rows"] if row["task"] == name and row["backbone"] == backbone]
            found = [(row["distance"], row["accuracy"]) for row in rows if row["accuracy"] is not None]
            if found:
                axis.plot(*zip(*found, strict=True), marker="o", label=label)
        for label, level in _baselines(result, name):
            axis.axhline(level, color="grey", linestyle="--", linewidth=0.8)
            axis.annotate(label, (result["plan"]["distances"][0], level), va="bottom", fontsize=7)
        axis.axvline(result["plan"]["longest"], color="grey", linestyle=":", linewidth=0.8, label="longest in training")
        axis.set(xscale="log", ylim=(-0.02, 1.02), xlabel="distance, tokens", ylabel="accuracy", title=name)
        axis.legend(loc="lower left", fontsize=8)
    figure.savefig(target, dpi=110)
