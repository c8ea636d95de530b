"""Entry point of ``python -m pipelines.genomics``."""

import sys

from pipelines.cli import main
from pipelines.genomics import GENOMICS

if __name__ == "__main__":
    sys.exit(main(GENOMICS))
