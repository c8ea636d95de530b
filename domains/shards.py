"""A batch job split over processes that know nothing of each other, such as the tasks of a SLURM array."""

import heapq
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from domains.config import check_range
from domains.errors import UserError

TASK_ID = "SLURM_ARRAY_TASK_ID"
_MOST = 100_000


@dataclass(frozen=True)
class Shard:
    """Process ``index`` (from 0) of ``count``."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


def choose_shard(shards: int | None, shard: int | None, environment: Mapping[str, str] = os.environ) -> Shard | None:
    """The share of this process: ``shard`` of ``shards``, or what SLURM's array says; None for all of the job.

    Raises:
        UserError: one is given without the other, or they do not fit together.
    """
    if shards is None:
        if shard is not None:
            raise UserError(f"shard={shard}: of how many? give shards=<number> too")
        return None
    check_range("shards", shards, 1, _MOST)
    if shard is None:
        task = environment.get(TASK_ID, "")
        if not task.isdecimal():
            raise UserError(
                f"shards={shards}: which of them is this process? give shard=<0 to {shards - 1}>, or run it as a SLURM "
                f"array (sbatch --array=0-{shards - 1}), which sets {TASK_ID}"
            )
        if int(task) >= shards:
            raise UserError(f"{TASK_ID}={task}: there are shards 0 to {shards - 1}; give sbatch --array=0-{shards - 1}")
        shard = int(task)
    check_range("shard", shard, 0, shards - 1, f"for shards={shards}")
    return Shard(shard, shards)


def share_out(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Which parts each of ``count`` processes gets, so that all have about the same work.

    The parts are dealt by size, the largest first, each to the process with the least work so far (LPT; Graham 1969:
    the longest is at most 4/3 of the shortest possible). The same sizes are always shared in the same way.

    Returns:
        ``count`` lists of indices into ``sizes``, ascending; empty where there are fewer parts than processes.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    work = [(0, process) for process in range(count)]
    for part in sorted(range(len(sizes)), key=lambda part: (-sizes[part], part)):
        done, process = heapq.heappop(work)
        shares[process].append(part)
        heapq.heappush(work, (done + sizes[part], process))
    return [sorted(share) for share in shares]
