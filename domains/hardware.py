"""What a run ran on: the device it asked for, and a description of hardware, versions and commit for its record."""

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from domains.errors import UserError

PACKAGES = ("serpentine", "torch", "triton", "lightning", "numpy", "safetensors")

# Dense bf16 with fp32 accumulation, FLOP/s, from the makers' data sheets (SXM parts; the PCIe ones are slower).
PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


def choose_device(accelerator: str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``gpu``. ``auto`` takes a CUDA device where there is one.

    Raises:
        UserError: another word, or ``gpu`` on a machine without a CUDA device.
    """
    if accelerator not in ("auto", "cpu", "gpu"):
        raise UserError(f"accelerator must be auto, cpu or gpu, not {accelerator!r}")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator is gpu, but PyTorch finds no CUDA device; use auto or cpu")
    return torch.device("cpu" if accelerator == "cpu" or not torch.cuda.is_available() else "cuda")


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32: with it, ten bits of mantissa would make results depend on the size of the matrices, so on the chunk."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of a device, None where we do not know it (every CPU, and GPUs not in PEAK_BF16)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16.items() if part in name and "PCIe" not in name), None)


def describe_hardware(device: torch.device, threads: int = 0) -> dict[str, object]:
    """Device, processor, CPU threads (PyTorch's choice when 0) and platform, as plain values."""
    found: dict[str, object] = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["gpu_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return found


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the checkout that this code runs from, ``+changes`` appended when it was edited; None elsewhere."""
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:  # installed inside somebody else's checkout
        return None
    commit = _git(here.parent, "rev-parse", "HEAD")
    return f"{commit}+changes" if commit and _git(here.parent, "status", "--porcelain", "-uno") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
