"""The GPU kernels run on a CPU, through Triton's interpreter, each operation in a process of its own; and, in another,
Triton compiles them for GPUs that need not be there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

CASES = {
    "ssd": 24,
    "selective_scan": 10,
    "causal_conv1d": 16,
    "gated_rms_norm": 20,
    "mamba2_inner": 6,
    "mamba1_inner": 5,
    "context_parallel": 2,
    "decode": 24,
    "tape": 9,
}


@pytest.mark.parametrize("operation", CASES)
def test_kernels_in_the_interpreter(operation: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"tests.core.interpret_{operation}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count(": same") == CASES[operation]


def has_compiler() -> bool:
    """Whether there is all that makes code for NVIDIA's GPUs."""
    try:
        return sys.platform == "linux" and bool(triton.knobs.nvidia.ptxas.path)
    except RuntimeError:
        return False


@pytest.mark.skipif(not has_compiler(), reason="Triton cannot compile for NVIDIA's GPUs here")
def test_kernels_compile(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.core.compile_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
