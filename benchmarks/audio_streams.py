"""How many microphones one processor core hears: a causal classifier over streams of speech, in blocks of any size.

    OMP_NUM_THREADS=1 python benchmarks/audio_streams.py --json benchmarks/results/audio_streams.json

Streams at 16 kHz hold the bundled words, each with as much quiet behind it, every stream from another place on.
``all`` hears every sample; ``sounds`` leaves out the quiet, as ``predict`` does. A turn gives each stream its next
block through :class:`domains.audio.stream.SoundStreams`, cutting and loudness included. The models have the sizes of
the recipes, in one direction; their weights are as they were drawn, which changes no speed.

    real-time factor   seconds of processor time (on a GPU: of the clock) for a second of sound of one stream, when so
                       many are heard together
    streams a core     how many keep up on one thread: its reciprocal
    latency            of a turn by the clock, the median: what comes on top of the block's own length; other work on
                       the machine counts here: ``busy`` says how much of the clock's time this process was at work
    difference         of probabilities from those that one block of the whole sound gives, the largest
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Hashable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kernels import measured_commit, write_result
from domains.audio.endpoints import EndpointConfig
from domains.audio.io import read_clip
from domains.audio.models.classifier import ClassifierConfig, WaveClassifier
from domains.audio.models.front import FrontConfig
from domains.audio.sample import sample_clips
from domains.audio.stream import SoundStreams
from mamba_core import BackboneConfig, Mamba2Config

RATE = 16000
LABELS = [f"class {i}" for i in range(5)]
FRONT = FrontConfig(strides=[8, 8], kernels=[64, 24])
MODELS = {
    "drums": BackboneConfig(d_model=96, n_layers=4, mamba2=Mamba2Config(d_state=32, headdim=32)),
    "dialogue": BackboneConfig(d_model=128, n_layers=4, mamba2=Mamba2Config(d_state=64, headdim=32)),
}
ENDS = {"all": EndpointConfig(quiet_db=None), "sounds": EndpointConfig()}
STREAMS = (1, 16, 64)
BLOCKS = (0.02, 0.1, 1.0, 10.0)  # s
MOST = 160.0  # s of sound in a turn
CHECKED = 20.0  # s of sound on which the difference is taken
WARM_UP = 2


def speech() -> np.ndarray:
    """The bundled words, each with as much quiet behind it, float32 (l,)."""
    words = [read_clip(path, RATE) for path in sorted((sample_clips("prompts").parent / "forwards").glob("*.flac"))]
    return np.concatenate([sound for word in words for sound in (word, np.zeros_like(word))])


def make_model(name: str, device: torch.device) -> WaveClassifier:
    """A model of a recipe's size, with a head that tells what it hears."""
    torch.manual_seed(0)
    model = ClassifierConfig(front=FRONT).build(MODELS[name], len(LABELS))
    torch.nn.init.normal_(model.head.linear.weight, std=0.1)
    return model.to(device).eval()


def difference(model: WaveClassifier, sound: np.ndarray, block: float) -> float:
    """The largest one between probabilities of the sound in blocks and as a whole."""

    def frames(size: int) -> np.ndarray:
        streams = SoundStreams(model, LABELS, RATE, slots=1, config=ENDS["all"], longest_seconds=math.inf)
        streams.open("x")
        told = [streams.feed({"x": sound[at : at + size]})["x"] for at in range(0, len(sound), size)]
        return np.concatenate([one.frames.probabilities for one in [*told, streams.close("x")]])

    return float(np.abs(frames(round(block * RATE)) - frames(len(sound))).max())


def measure(
    model: WaveClassifier, sound: np.ndarray, ends: EndpointConfig, count: int, block: float, seconds: float
) -> Mapping[str, Any]:
    """Figures of turns that take about so many seconds together."""
    streams = SoundStreams(model, LABELS, RATE, slots=count, config=ends)
    for i in range(count):
        streams.open(i)
    size, sounds = round(block * RATE), 0
    wall: list[float] = []
    spent: list[float] = []
    places = np.linspace(0, len(sound), count, endpoint=False).astype(int)
    started = time.perf_counter()
    for turn in range(100_000):
        blocks: dict[Hashable, np.ndarray] = {
            i: np.take(sound, np.arange(place, place + size), mode="wrap") for i, place in enumerate(places)
        }
        before, clock = time.perf_counter(), time.process_time()
        told = streams.feed(blocks)
        now, ticks = time.perf_counter(), time.process_time()
        places = (places + size) % len(sound)
        if turn >= WARM_UP:
            wall.append(now - before)
            spent.append(ticks - clock)
            sounds += sum(len(heard.segments) for heard in told.values())
        if now - started > seconds and len(wall) >= 3:
            break
    cost = sum(spent if next(model.parameters()).device.type == "cpu" else wall) / (len(wall) * count * block)
    return {
        "streams": count,
        "block_seconds": block,
        "turns": len(wall),
        "real_time_factor": round(cost, 6),
        "streams_a_core": round(1 / cost, 1),
        "latency_ms": round(1e3 * statistics.median(wall), 3),
        "busy": round(sum(spent) / sum(wall), 3),
        "sounds_ended": sounds,
    }


def run(names: list[str], device: torch.device, seconds: float) -> list[dict[str, Any]]:
    """Every model, number of streams and size of blocks."""
    sound, rows = speech(), []
    for name in names:
        model = make_model(name, device)
        apart = {block: difference(model, sound[: round(CHECKED * RATE)], block) for block in BLOCKS}
        for what, ends in ENDS.items():
            for count, block in product(STREAMS, BLOCKS):
                if count * block <= MOST:
                    figures = measure(model, sound, ends, count, block, seconds)
                    rows.append({"model": name, "hears": what, **figures, "difference": apart[block]})
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append", help="all where none is named")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="of the code, where there is no checkout")
    arguments = parser.parse_args()
    commit, device = measured_commit(arguments.commit, arguments.json is not None), torch.device(arguments.device)
    rows = run(arguments.model or list(MODELS), device, arguments.seconds)
    write_result(arguments.json, device, commit, {"rows": rows})


if __name__ == "__main__":
    main()
