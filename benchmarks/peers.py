"""mamba_ssm without its CUDA extension: the pure-Python half of its source distribution, for comparison.

Its Triton kernels, and modules that use them, import once a stub stands where the compiled extension would. The
package's own ``__init__`` is not run: it pulls in kernels of other compilers that nothing here uses. Needs einops and
huggingface_hub. What calls the extension (the selective scan, every fused path of Mamba-1) cannot run this way, and
without the CUDA package causal_conv1d its layers convolve by torch.nn.Conv1d.
"""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

NO_CONV = "conv by torch.nn.Conv1d, as mamba_ssm does without its CUDA packages"


def check(folder: str | None) -> Path:
    """The package inside an unpacked source distribution.

    Raises:
        FileNotFoundError: no folder, or no mamba_ssm in it.
    """
    if folder is None:
        raise FileNotFoundError("mamba_ssm is not here: give --mamba-ssm its unpacked source distribution")
    package = Path(folder) / "mamba_ssm"
    if not (package / "ops" / "triton" / "ssd_combined.py").is_file():
        raise FileNotFoundError(f"{folder} holds no mamba_ssm/ops/triton/ssd_combined.py")
    return package


def install(folder: str | None) -> None:
    """Make ``import mamba_ssm.<module>`` work from a folder that passes :func:`check`."""
    package = check(folder)
    stub = ModuleType("mamba_ssm")
    stub.__path__ = [str(package.resolve())]
    sys.modules.setdefault("mamba_ssm", stub)
    sys.modules.setdefault("selective_scan_cuda", ModuleType("selective_scan_cuda"))


def load(folder: str | None, module: str) -> ModuleType:
    """A module of mamba_ssm, by its name inside the package."""
    install(folder)
    return importlib.import_module(f"mamba_ssm.{module}")


def version(folder: str) -> str:
    """Its version, read without running it; "unknown" when the file is not there."""
    init = Path(folder) / "mamba_ssm" / "__init__.py"
    found = re.search(r'__version__ = "([^"]+)"', init.read_text()) if init.is_file() else None
    return found[1] if found else "unknown"
