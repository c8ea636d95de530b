"""A small real genome and its genes, which ship with the package; SOURCE.md says where they come from."""

from importlib.resources import files
from pathlib import Path


def sample_genome() -> Path:
    """The bundled genome of *Ustilago maydis* 521: gzipped FASTA, 36 contigs, 19.7 million bases."""
    return Path(str(files(__name__) / "ustilago_maydis.fa.gz"))


def sample_annotation() -> Path:
    """The genes of the bundled genome: gzipped GFF3, 6,787 genes as CDS and mRNA rows."""
    return Path(str(files(__name__) / "ustilago_maydis.gff3.gz"))
