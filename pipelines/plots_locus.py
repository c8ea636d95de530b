"""A stretch of a contig as genome browsers show it: tracks of probabilities over boxes of genes."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipelines.plots import COLOURS

_TALL, _LOW = 0.32, 0.08  # of a coding part's box, and of the line that joins them


class Gene(Protocol):
    """Parts of a gene on a strand, 0-based and half-open."""

    @property
    def strand(self) -> int: ...

    @property
    def parts(self) -> Sequence[tuple[int, int]]: ...


class Locus(Protocol):
    """What is drawn."""

    @property
    def contig(self) -> str: ...

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def positions(self) -> Sequence[int]: ...

    @property
    def tracks(self) -> Mapping[str, Sequence[float]]: ...

    @property
    def genes(self) -> Sequence[Gene]: ...


def locus_plot(locus: Locus) -> Figure:
    """One track under the other from 0 to 1, and the genes below: forward strand above, reverse strand below."""
    count = len(locus.tracks)
    figure = Figure(figsize=(10.0, 1.0 + 0.75 * count + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    rows: Any = figure.subplots(count + 1, 1, sharex=True, squeeze=False)[:, 0]
    places = [position / 1000 for position in locus.positions]
    for i, (axes, (name, values)) in enumerate(zip(rows, locus.tracks.items(), strict=False)):
        axes.fill_between(places, list(values), color=COLOURS[i % len(COLOURS)], linewidth=0, step="mid")
        axes.set(ylim=(0, 1), yticks=(0, 1))
        axes.set_ylabel(name, rotation=0, horizontalalignment="right", verticalalignment="center", fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    genes = rows[-1]
    for gene in locus.genes:
        height = 1.0 if gene.strand >= 0 else 0.0
        first, last = gene.parts[0][0] / 1000, gene.parts[-1][1] / 1000
        genes.broken_barh([(first, last - first)], (height - _LOW / 2, _LOW), color="grey", linewidth=0)
        boxes = [(start / 1000, (end - start) / 1000) for start, end in gene.parts]
        genes.broken_barh(boxes, (height - _TALL, 2 * _TALL), color="black", linewidth=0)
    genes.set(ylim=(-0.6, 1.6), yticks=(0, 1), yticklabels=("genes -", "genes +"))
    genes.set(xlim=(locus.start / 1000, locus.end / 1000), xlabel=f"{locus.contig}, kb")
    genes.spines[["top", "right", "left"]].set_visible(False)
    genes.tick_params(left=False)
    return figure
