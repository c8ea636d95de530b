"""The GPU kernels run on a CPU, through Triton's interpreter, each operation in a process of its own."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CASES = {
    "ssd": 24,
    "selective_scan": 10,
    "causal_conv1d": 16,
    "gated_rms_norm": 20,
    "mamba2_inner": 6,
    "mamba1_inner": 4,
    "context_parallel": 2,
    "decode": 24,
    "tape": 6,
}


@pytest.mark.parametrize("operation", CASES)
def test_kernels_in_the_interpreter(operation: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"tests.core.interpret_{operation}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count(": same") == CASES[operation]
