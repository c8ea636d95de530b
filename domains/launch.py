"""Which of the processes that torchrun started this one is; known before anything heavy is imported."""

import os


def rank() -> int:
    """The number of this process; 0 without torchrun."""
    return int(os.environ["RANK"]) if _launched() else 0


def started() -> int:
    """How many processes torchrun started, on all machines; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def signed(line: str) -> str:
    """A line for people, with the number of the process if it is not the first."""
    return f"rank {rank()}: {line}" if rank() else line


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ  # RANK alone is set by others, too
