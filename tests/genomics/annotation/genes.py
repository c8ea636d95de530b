"""A genome with genes to find: coding sequence of its own composition, some of it spliced, on both strands."""

from pathlib import Path

import numpy as np

from domains.genomics.annotation.table import FeatureTable, prepare_annotation
from domains.genomics.config import TrainConfig
from domains.genomics.store import GenomeStore
from domains.settings import from_dict
from tests.genomics.genomes import make_store

_CODON = [[0.1, 0.1, 0.7, 0.1], [0.6, 0.2, 0.1, 0.1], [0.05, 0.75, 0.1, 0.1]]  # of A, C, G, T at each codon position


def _complement(bases: str) -> str:
    return bases[::-1].translate(str.maketrans("ACGT", "TGCA"))


def _gene(rng: np.random.Generator, codons: int, spliced: bool) -> tuple[str, list[tuple[int, int]]]:
    """A gene in the direction of transcription, and its coding parts, half-open."""
    coding = "ATG" + "".join("".join(rng.choice(list("ACGT"), p=p) for p in _CODON) for _ in range(codons)) + "TAA"
    if not spliced:
        return coding, [(0, len(coding))]
    cut = int(rng.integers(6, len(coding) - 6))
    intron = "GT" + "".join(rng.choice(list("ACGT"), size=26, p=[0.3, 0.1, 0.1, 0.5])) + "AG"
    return coding[:cut] + intron + coding[cut:], [(0, cut), (cut + 30, len(coding) + 30)]


def _contig(name: str, genes: int, seed: int) -> tuple[str, list[str]]:
    """A contig's bases, and the GFF3 rows of its genes."""
    rng = np.random.default_rng(seed)
    bases, rows = "", []
    for number in range(genes):
        bases += "".join(rng.choice(list("ACGT"), size=int(rng.integers(90, 150))))
        gene, parts = _gene(rng, int(rng.integers(25, 45)), number % 3 == 0)
        strand = "-" if number % 2 else "+"
        if strand == "-":
            gene, parts = _complement(gene), [(len(gene) - b, len(gene) - a) for a, b in parts]
        read = 0
        for start, end in parts:
            at = len(bases)
            phase = (-read) % 3
            rows.append(
                f"{name}\tmade\tCDS\t{at + start + 1}\t{at + end}\t.\t{strand}\t{phase}\tParent={name}.{number}"
            )
            read += end - start
        bases += gene
    return bases + "".join(rng.choice(list("ACGT"), size=100)), rows


def genes_genome(folder: Path) -> tuple[GenomeStore, FeatureTable]:
    """Five contigs of about 3,500 bases, 15 genes each, and their annotation, prepared."""
    contigs = {f"c{i}": _contig(f"c{i}", 15, i) for i in range(5)}
    store = make_store(folder, {name: bases for name, (bases, _) in contigs.items()})
    text = "##gff-version 3\n" + "".join(f"{row}\n" for _, rows in contigs.values() for row in rows)
    (folder / "genes.gff3").write_text(text)
    return store, prepare_annotation(folder / "genes.gff3", folder / "stores", progress=False)


def genes_config(store: GenomeStore, table: FeatureTable, kind: str, **changed: dict[str, object]) -> TrainConfig:
    """Settings that learn something of those genes in seconds."""
    window = {"classify": 60, "segment": 512}[kind]
    settings: dict[str, dict[str, object]] = {
        "data": {
            "store": str(store.path),
            "annotation": str(table.path),
            "test": ["c4"],
            "validation": ["c1"],
            "window": window,
            "tokens_per_step": 1024,
            "validation_tokens": 2048,
        }
        | ({"negatives": "balanced"} if kind == "classify" else {}),
        "task": {"kind": kind},
        "backbone": {"d_model": 16, "n_layers": 2, "mamba2": {"d_state": 8, "headdim": 8}},
        "trainer": {
            "accelerator": "cpu",
            "threads": 1,
            "max_steps": 8,
            "log_every": 4,
            "health_every": 4,
            "validate_every": 4,
            "checkpoint_every": 4,
            "optimizer": {"learning_rate": 1e-2},
        },
    }
    for group, values in changed.items():
        settings[group] |= values
    return from_dict(TrainConfig, settings)
