"""Training in several processes from the command line: the numbers of one process, written once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from domains.runlog import read_metrics
from pipelines.tracking import linked_run_id
from tests.pipelines.conftest import TINY, Cli
from tests.pipelines.records import measured, recorded, runs

PROCESSES = 4
SETTINGS = (
    *(word for word in TINY if not word.startswith("data.validation_tokens")),
    "data.validation_tokens=192",  # 3 windows: the second group of processes has no row of the last batch
    "data.window_warmup=[32]",
    "backbone.n_layers=2",
    "backbone.pattern=[mamba2,mamba1]",
    "trainer.threads=1",
)
SPLIT = (
    "trainer=multi_gpu",
    *SETTINGS,
    f"trainer.devices={PROCESSES}",
    "trainer.context_parallel=2",
    "trainer.segment_length=8",
)


def torchrun(*commands: tuple[list[str], bool]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    script = Path(__file__).with_name("train_on_ranks.py")
    line = [sys.executable, *words, str(script), json.dumps(commands)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)


def rows(folder: str) -> list[dict[str, float]]:
    """What was measured, but for times and what only the first process sees of its part."""
    found = read_metrics(Path(folder) / "metrics.jsonl")
    mine = ("time", "train/bases_per_second")
    return [{k: v for k, v in row.items() if k not in mine and not k.startswith("health/")} for row in found]


def test_four_processes_give_the_numbers_of_one(cli: Cli, workspace: Path) -> None:
    assert cli("train", *SETTINGS, "run.dir=one", "tracking=off").code == 0
    done = torchrun(
        (["train", *SPLIT, "run.dir=split"], False),
        (["train", *SPLIT, "run.dir=stopped", "tracking=off"], True),
        (["train", "resume=stopped", "tracking=off"], False),
    )
    assert done.returncode == 0, done.stderr
    codes = [json.loads(Path(f"codes-{rank}.json").read_text()) for rank in range(PROCESSES)]
    assert codes == [[0, 143, 0]] * PROCESSES
    one, split = rows("one"), rows("split")
    assert len(one) == len(split) > 8
    for want, got in zip(one, split, strict=True):
        assert got == pytest.approx(want, rel=1e-5)
    assert rows("stopped") == split
    assert done.stdout.count("model: split/model (") == 1
    assert len(runs(workspace)) == 1
    assert recorded(workspace, linked_run_id(Path("split")) or "") == measured(Path("split"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer.devices=2"], "trainer.devices=2: wants torchrun --nproc-per-node=2 -m pipelines.<domain> ..."),
        (
            ["trainer.devices=3", "trainer.context_parallel=2"],
            "trainer.context_parallel=2: must divide trainer.devices=3",
        ),
        (["trainer.devices=0"], "trainer.devices=0: must be at least 1"),
    ],
)
def test_settings_that_cannot_be(words: list[str], told: str, cli: Cli, workspace: Path) -> None:
    done = cli("train", *TINY, *words)
    assert done.code == 2
    assert done.errors == [f"error: {told}"]
    assert not (workspace / "runs").exists()
