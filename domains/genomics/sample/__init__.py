"""A small real genome that ships with the package; SOURCE.md says where it comes from."""

from importlib.resources import files
from pathlib import Path


def sample_genome() -> Path:
    """The bundled genome of *Ustilago maydis* 521: gzipped FASTA, 36 contigs, 19.7 million bases."""
    return Path(str(files(__name__) / "ustilago_maydis.fa.gz"))
