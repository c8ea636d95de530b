"""Small made genomes for the tests."""

from pathlib import Path

import numpy as np

from domains.genomics.store import GenomeStore, prepare_store


def random_bases(length: int, seed: int = 0, letters: str = "ACGT") -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), size=length))


def make_store(folder: Path, contigs: dict[str, str]) -> GenomeStore:
    """A real store of these sequences."""
    folder.mkdir(parents=True, exist_ok=True)
    fasta = folder / "made.fa"
    fasta.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in contigs.items()))
    return prepare_store(fasta, folder / "stores", progress=False)


def bare_store(lengths: dict[str, int]) -> GenomeStore:
    """A store in memory, of these contig lengths, for what looks at the table alone."""
    table, offset = [], 0
    for name, length in lengths.items():
        table.append({"name": name, "offset": offset, "length": length, "n": 0, "lower": 0, "gc": 0})
        offset += length
    meta = {"contigs": table, "fingerprint": "f" * 64, "source": {"name": "made.fa", "sha256": "0" * 64}}
    return GenomeStore(Path("made"), meta, np.zeros(0, np.uint8), np.zeros((0, 2), np.int64))
