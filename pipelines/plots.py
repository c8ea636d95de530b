"""Plots of runs and evaluations, drawn without a display."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from domains.files import atomic_file

# Told apart by the colour-blind (Okabe and Ito), and by their marks in print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_MARKS = ("o", "s", "^", "D")


def training_curve(
    rows: Sequence[Mapping[str, Any]], *, training: str, validation: str, label: str, x: str | None = None
) -> Figure:
    """A measure over training, for the training data (thin: each row is the mean since the last) and for validation.

    Args:
        rows: of metrics.jsonl.
        training, validation: names of the metric.
        label: of the vertical axis, with the unit.
        x: metric of the horizontal axis; None: the step.
    """
    figure, axes = _figure(6.4, 4.0)
    for metric, name, colour, style in (
        (training, "training", COLOURS[0], {"linewidth": 0.8}),
        (validation, "validation", COLOURS[1], {"linewidth": 1.6, "marker": "o", "markersize": 3}),
    ):
        points = [(row[x or "step"], row[metric]) for row in rows if _has(row, metric) and (x is None or _has(row, x))]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, color=colour, **style)
    axes.set(xlabel=x or "step", ylabel=label)
    if axes.lines:
        axes.legend(frameon=False)
    return figure


def by_part(names: Sequence[str], values: Mapping[str, Sequence[float]], *, label: str, limit: int = 40) -> Figure:
    """Several measures side by side for each part of the test data, lower being better.

    Points, not bars: the differences that matter are small beside the values. Of more than ``limit`` parts the first
    are shown.

    Args:
        names: of the parts.
        values: name of a measure to its value for each part.
        label: of the horizontal axis, with the unit.
        limit: most parts shown.
    """
    shown = list(names)[:limit]
    figure, axes = _figure(6.4, 1.2 + 0.28 * max(len(shown), 2))
    for (measure, numbers), colour, mark in zip(values.items(), COLOURS, _MARKS, strict=False):
        axes.plot(list(numbers)[:limit], range(len(shown)), mark, label=measure, color=colour, markersize=6)
    axes.set(xlabel=label, yticks=range(len(shown)), yticklabels=shown)
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.4)
    if len(names) > limit:
        axes.set_title(f"the first {limit} of {len(names):,}", fontsize="small")
    figure.legend(loc="outside upper center", ncols=len(values), frameon=False)
    return figure


def fan_chart(
    times: Sequence[Any],
    observed: Sequence[float],
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    centre: Sequence[float],
    *,
    label: str,
    title: str = "",
) -> Figure:
    """What was observed on what was forecast for it: bands from the widest to the narrowest, and the middle.

    Args:
        times: of the outcomes, increasing.
        observed: the outcomes.
        bands: name to lower and upper bounds, widest first.
        centre: middle of the forecasts.
        label: of the vertical axis, with the unit.
        title: above the plot.
    """
    figure, axes = _figure(8.0, 4.0)
    for i, (name, (low, high)) in enumerate(bands.items()):
        alpha = 0.15 + 0.15 * i
        axes.fill_between(times, low, high, color=COLOURS[0], alpha=alpha, linewidth=0, step="mid", label=name)
    axes.plot(times, centre, color=COLOURS[0], linewidth=0.8, label="median")
    axes.plot(times, observed, ".", color="black", markersize=2.5, label="observed")
    axes.set(ylabel=label, title=title)
    axes.legend(frameon=False, ncols=4, fontsize="small")
    figure.autofmt_xdate()
    return figure


def coverage_plot(nominal: Sequence[float], measured: Mapping[str, Sequence[float]]) -> Figure:
    """How often central intervals held the outcome, against how often they should have.

    Args:
        nominal: what the intervals promise.
        measured: name of a method to what each interval kept.
    """
    figure, axes = _figure(4.4, 4.4)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for (name, values), colour, mark in zip(measured.items(), COLOURS, _MARKS, strict=False):
        axes.plot(nominal, values, mark, label=name, color=colour, markersize=5, linestyle="-", linewidth=0.8)
    axes.set(xlabel="promised", ylabel="kept", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, fontsize="small")
    return figure


def curves_plot(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    labels: tuple[str, str],
    chance: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Figure:
    """Curves of several methods in the unit square.

    Args:
        curves: name of a method to its points, horizontal and vertical.
        labels: of the two axes.
        chance: ends of the line of what chance reaches, horizontal and vertical; None where there is none.
    """
    figure, axes = _figure(4.6, 4.4)
    if chance is not None:
        axes.plot(*chance, color="grey", linewidth=0.8)
    styles = ("-", "--", ":", "-.")
    for i, (name, (x, y)) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(list(x), list(y), styles[i % len(styles)], label=name, color=colour, linewidth=1.2)
    axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(frameon=False, fontsize="small")
    return figure


def calibration_plot(tables: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """How often what was said to have a probability came true; on the diagonal what is said is what happens.

    Args:
        tables: name of a method to the mean probability of each bin and how often it came true; NaN in empty bins.
    """
    figure, axes = _figure(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for i, (name, (said, true)) in enumerate(tables.items()):
        points = [(a, b) for a, b in zip(said, true, strict=True) if a == a]
        colour, mark = COLOURS[i % len(COLOURS)], _MARKS[i % len(_MARKS)]
        axes.plot(*zip(*points, strict=True), mark, label=name, color=colour, linestyle="-", linewidth=0.8)
    axes.set(xlabel="probability said", ylabel="share that is true", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, fontsize="small")
    return figure


def pit_histogram(counts: Mapping[str, Sequence[float]]) -> Figure:
    """Where outcomes fell within their forecasts, as shares of all in bins of equal promise; flat is right.

    Args:
        counts: name of a method to the number of outcomes in each bin.
    """
    figure, axes = _figure(6.4, 3.6)
    for (name, values), colour in zip(counts.items(), COLOURS, strict=False):
        total = max(sum(values), 1)
        edges = [i / len(values) for i in range(len(values) + 1)]
        axes.stairs([value * len(values) / total for value in values], edges, label=name, color=colour, linewidth=1.4)
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set(xlabel="probability integral transform", ylabel="relative frequency", xlim=(0, 1))
    axes.legend(frameon=False, fontsize="small")
    return figure


def by_step(steps: Sequence[int], values: Mapping[str, Sequence[float]], *, label: str) -> Figure:
    """A measure of several methods by how far they look ahead, lower being better."""
    figure, axes = _figure(6.4, 4.0)
    for (name, numbers), colour, mark in zip(values.items(), COLOURS, _MARKS, strict=False):
        axes.plot(steps, numbers, marker=mark, label=name, color=colour, markersize=5, linewidth=1.0)
    axes.set(xlabel="steps ahead", ylabel=label)
    if len(steps) <= 20:
        axes.set_xticks(list(steps))
    axes.legend(frameon=False)
    return figure


def by_context(contexts: Sequence[float], values: Mapping[str, Sequence[float]], *, label: str, x: str) -> Figure:
    """A measure of several methods by how much they know of what came before, on a logarithmic axis named ``x``."""
    figure, axes = _figure(6.4, 4.0)
    for (name, numbers), colour, mark in zip(values.items(), COLOURS, _MARKS, strict=False):
        axes.plot(contexts, numbers, marker=mark, label=name, color=colour, markersize=5, linewidth=1.0)
    axes.set(xlabel=x, ylabel=label, xscale="log")
    axes.set_xticks(list(contexts), [f"{context:,.0f}" for context in contexts], fontsize="small")
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False)
    return figure


def confusion_plot(labels: Sequence[str], counts: Sequence[Sequence[int]], *, title: str = "") -> Figure:
    """What was called what: counts by true label (rows) and told label (columns), coloured by share of the row."""
    size = 1.8 + 0.42 * max(len(labels), 3)
    figure, axes = _figure(size, size)
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count:
                shade = "white" if shares[i][j] > 0.6 else "black"
                axes.text(j, i, f"{count:,}", ha="center", va="center", color=shade, fontsize="small")
    places = range(len(labels))
    axes.set(xlabel="told", ylabel="true", yticks=places, yticklabels=labels, title=title)
    axes.set_xticks(places, labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.spines[:].set_visible(False)
    return figure


def spectrogram_plot(samples: Any, rate: int, *, title: str = "") -> Figure:
    """The spectrogram of a sound in dB, over its waveform.

    Args:
        samples: float (l,), from -1 to 1.
        rate: samples per second.
        title: above the plot.
    """
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    wave, spectrum = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    wave.plot([i / rate for i in range(len(samples))], samples, color=COLOURS[0], linewidth=0.4)
    wave.set(ylim=(-1, 1), title=title)
    window = min(512, max(16, len(samples) // 2))
    heard = [sample + 1e-6 * (i % 2) for i, sample in enumerate(samples)]  # silence has no logarithm
    spectrum.specgram(heard, NFFT=window, Fs=rate, noverlap=window * 3 // 4, cmap="magma", vmin=-140, vmax=-30)
    spectrum.set(xlabel="seconds", ylabel="Hz", xlim=(0, len(samples) / rate))
    return figure


def histogram(values: Mapping[str, Sequence[float]], *, label: str, bins: int = 60) -> Figure:
    """How values of several kinds lie, each as shares of its own number.

    Args:
        values: name of a kind to its values.
        label: of the horizontal axis, with the unit.
        bins: of equal width from the smallest value of all to the largest.
    """
    figure, axes = _figure(6.4, 4.0)
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(numbers) for numbers in values.values()]), bins)
    for (name, numbers), colour in zip(values.items(), cycle(COLOURS), strict=False):
        shares = np.histogram(numbers, edges)[0] / max(len(numbers), 1)
        axes.stairs(shares, edges, label=f"{name} ({len(numbers):,})", color=colour, linewidth=1.4)
    axes.set(xlabel=label, ylabel="share")
    axes.legend(frameon=False, fontsize="small")
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically; the folder is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return path


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _has(row: Mapping[str, Any], key: str) -> bool:
    return row.get(key) is not None
