"""Entry point of ``python -m pipelines.audio``."""

import sys

from pipelines.audio import AUDIO
from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(AUDIO))
