"""How fast the audio generator trains and draws, on a CPU or a GPU.

    python benchmarks/audio.py --json benchmarks/results/audio_h100.json      # all sizes, on a GPU if there is one
    python benchmarks/audio.py --size small --seconds 5 --device cpu          # a quick look

Training: steps of AdamW on windows of 8,192 mu-law levels (on a GPU in bf16 autocast, the forward and backward pass of
each step awaited), whole windows and, ``packed``, windows of several documents with padding behind. Drawing: samples
of one sound and of 64, at the start and after a million samples, weights in float32. Figures are samples a second,
medians over the turns; drawn samples count those of all sounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels import measured_commit, write_result
from domains.audio.models.costs import flops_per_sample
from domains.audio.models.generator import Generator, GeneratorConfig
from domains.audio.models.sampling import Sampler, read_prompt
from domains.audio.tokens import LEVELS
from mamba_core import BackboneConfig, Mamba2Config

SIZES = {
    "tiny": (
        GeneratorConfig(widths=[32, 64], layers=2),
        BackboneConfig(d_model=128, n_layers=2, mamba2=Mamba2Config(d_state=32, headdim=32)),
    ),
    "small": (GeneratorConfig(), BackboneConfig(d_model=256, n_layers=6, mamba2=Mamba2Config(d_state=64))),
    "base": (GeneratorConfig(widths=[128, 256]), BackboneConfig(d_model=512, n_layers=8)),
}
WINDOW = 8192
WINDOWS = {"cpu": 1, "cuda": 16}  # in a batch
LATE = 1_000_000  # samples
WARM_UP = 2


def measure(turn: Callable[[], int], device: torch.device, seconds: float) -> float:
    """Samples a second, the median over turns that take about so long together."""
    found: list[float] = []
    started = time.perf_counter()
    for i in range(10_000):
        before = time.perf_counter()
        samples = turn()
        if device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if i >= WARM_UP:
            found.append(samples / (now - before))
        if now - started > seconds and len(found) >= 3:
            break
    return statistics.median(found)


def training(model: Generator, device: torch.device, packed: bool) -> Callable[[], int]:
    """One step of AdamW a turn."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=device.type == "cuda" or None)
    shape = WINDOWS[device.type], WINDOW
    sound = torch.randint(0, LEVELS, shape, device=device)
    seq_idx = None
    if packed:
        seq_idx = (torch.arange(WINDOW, device=device) * 3 // WINDOW).repeat(shape[0], 1)
        seq_idx[:, -WINDOW // 10 :] = -1

    def turn() -> int:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits, _ = model(sound, seq_idx=seq_idx)
            loss = F.cross_entropy(logits.flatten(0, 1), sound.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return sound.numel()

    return turn


def drawing(model: Generator, device: torch.device, sounds: int, read: int) -> Callable[[], int]:
    """A few blocks of samples of so many sounds a turn, behind ``read`` samples."""
    prompt: Tensor = torch.randint(0, LEVELS, (1, read), device=device)
    logits, state = read_prompt(model, prompt)
    sampler = Sampler(model, state.rows([0] * sounds), logits.expand(sounds, -1))
    blocks = 2 if device.type == "cpu" else 64

    def turn() -> int:
        return sampler.read(blocks * model.block).numel()

    return turn


def run(size: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """All figures of one size."""
    torch.manual_seed(0)
    config, backbone = SIZES[size]
    model = config.build(backbone).to(device)
    flops = flops_per_sample(model)
    figures = {
        name: measure(training(model, device, packed), device, seconds)
        for name, packed in (("train", False), ("train packed", True))
    }
    model.eval()
    late = LATE if device.type == "cuda" else LATE // 10
    for name, sounds, read in (("draw 1", 1, 0), ("draw 64", 64, 0), (f"draw 1 after {late:,}", 1, late)):
        figures[name] = measure(drawing(model, device, sounds, read), device, seconds)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "size": size,
        "parameters": parameters,
        "flops per sample": flops,
        "TFLOP/s in training": flops * figures["train"] / 1e12,
        "samples per second": figures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append", help="all where none is named")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each figure")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="of the code, where there is no checkout")
    arguments = parser.parse_args()
    commit, device = measured_commit(arguments.commit, arguments.json is not None), torch.device(arguments.device)
    rows = []
    for size in arguments.size or SIZES:
        rows.append(run(size, device, arguments.seconds))
        print(json.dumps(rows[-1], indent=1), flush=True)
    write_result(arguments.json, device, commit, {"rows": rows})


if __name__ == "__main__":
    main()
