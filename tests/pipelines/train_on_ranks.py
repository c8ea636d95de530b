"""What every process does that test_multi_gpu.py lets torchrun start: several command lines, one after the other."""

import json
import os
import signal
import sys
from pathlib import Path
from unittest.mock import patch

from domains.launch import rank
from domains.task import Task
from pipelines.cli import main
from pipelines.genomics import GENOMICS


def run(words: list[str], stopped: bool) -> int:
    """The exit code; if ``stopped``, one process, not the first, is told to stop while it validates."""
    if not stopped or rank() != 2:
        return main(GENOMICS, words)
    with patch.object(Task, "on_validation_start", lambda task: os.kill(os.getpid(), signal.SIGTERM)):
        return main(GENOMICS, words)


if __name__ == "__main__":
    codes = [run(words, stopped) for words, stopped in json.loads(sys.argv[1])]
    Path(f"codes-{rank()}.json").write_text(json.dumps(codes))
