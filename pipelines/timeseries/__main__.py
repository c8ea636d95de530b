"""Entry point of ``python -m pipelines.timeseries``."""

import sys

from pipelines.cli import main
from pipelines.timeseries import TIMESERIES

if __name__ == "__main__":
    sys.exit(main(TIMESERIES))
