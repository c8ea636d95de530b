"""Sampling DNA from a model: constant time and memory for each base."""

import hashlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from domains.config import MANY, check_range, check_seed
from domains.errors import UserError
from domains.genomics.config import GenerateConfig
from domains.genomics.io import write_fasta
from domains.genomics.model import load_model
from domains.genomics.tokens import BASES, BOS, N, decode, describe_foreign, encode, find_foreign
from domains.hardware import choose_device, describe_versions
from domains.precision import check_precision, to_precision
from mamba_core import CausalLM, GraphedStep, State

_PREFILL = 65536  # bases of the prompt read in one call
_MOST = 10_000  # sequences, sampled side by side: each has a state of its own in memory
_SHOWN = 100  # bases of a prompt that a header spells out
_TAKEN = "is there already, and holds something else; choose another name, or delete it"
_ACGT = "give A, C, G and T alone"


def generate(
    model_dir: Path | str,
    out: Path | str,
    config: GenerateConfig,
    *,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Sample sequences and write them as FASTA, each with its prompt in front and its provenance in the header.

    Raises:
        UserError: a prompt that is not A, C, G, T alone, a setting out of range, no model in ``model_dir``, or ``out``
            is there and holds anything but the sequences that this call gives.
    """
    prompt = check_request(config)
    chosen = choose_device(device)
    check_precision(config.precision, chosen)
    loaded = load_model(model_dir, str(chosen))
    about = provenance(loaded.hash, prompt, config, chosen.type)
    _check_free(Path(out), f">sample1 {about}")
    model = to_precision(loaded.causal, config.precision)
    start = time.perf_counter()
    sampled = sample(model, prompt, config, progress=progress)
    seconds = time.perf_counter() - start
    if progress:
        rate = f"{sampled.size / seconds:,.0f} a second"
        print(f"{sampled.size:,} bases in {seconds:.1f} s, {rate}, on {chosen.type}", file=sys.stderr)
    records = [(f"sample{i + 1} {about}", decode(np.concatenate([prompt, row]))) for i, row in enumerate(sampled)]
    _write(Path(out), records)
    return Path(out)


def _check_free(out: Path, header: str) -> None:
    """A UserError unless the file is not there, or begins with this header: before anything is drawn."""
    if not out.exists():
        return
    if out.is_file():
        with out.open("rb") as file:
            if file.readline(len(header) + 2).strip() == header.encode():
                return
    raise UserError(f"{out}: {_TAKEN}")


def _write(out: Path, records: list[tuple[str, str]]) -> None:
    """Write the sequences, unless they are there; a UserError where the file holds anything else."""
    if not out.exists():
        write_fasta(out, records)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_fasta(Path(folder) / "same.fa", records)
        if (Path(folder) / "same.fa").read_bytes() != out.read_bytes():
            raise UserError(f"{out}: {_TAKEN}")


def provenance(model_hash: str, prompt: np.ndarray, config: GenerateConfig, device: str) -> str:
    """What it takes to get the same sequences again, as ``key=value`` words for a FASTA header.

    Sequences are drawn side by side, so their ``count`` belongs to it, and versions and kind of device decide the last
    digits of the probabilities. A long prompt goes by its sha256: it stands at the start of the sequence.
    """
    letters = decode(prompt)
    versions = describe_versions()
    facts = {
        "model": model_hash,
        "seed": config.seed,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "count": config.count,
        "sampled": config.length,
        "prompt": letters if len(letters) <= _SHOWN else f"sha256:{hashlib.sha256(letters.encode()).hexdigest()}",
        "prompt_bases": len(letters),
        "serpentine": versions.get("serpentine", "source"),
        "torch": versions["torch"],
        "device": device,
    }
    if config.precision != "float32":
        facts["precision"] = config.precision
    return " ".join(f"{key}={value}" for key, value in facts.items())


def check_request(config: GenerateConfig) -> np.ndarray:
    """Tokens of the prompt, uint8, once all settings make sense; a UserError otherwise."""
    check_seed(config.seed)
    check_precision(config.precision)
    check_range("count", config.count, 1, _MOST, "for memory's sake; more come from another call with another seed")
    check_range("length", config.length, 1, MANY // config.count, "a billion bases in all")
    if not 1e-3 <= config.temperature <= 1e3:
        raise UserError(
            f"temperature={config.temperature}: must lie between 0.001 and 1000; top_k=1 takes the likeliest base"
        )
    if not 1 <= config.top_k <= 4:
        raise UserError(f"top_k={config.top_k}: must be 1 to 4, for there are four bases")
    if foreign := find_foreign(config.prompt.encode("latin-1", "replace")):
        raise UserError(f"prompt: {describe_foreign(*foreign, remedy=_ACGT)}")
    prompt = encode(config.prompt)
    if (prompt == N).any():
        at = int(np.argmax(prompt == N))
        raise UserError(f"prompt: {config.prompt[at]!r} at base {at + 1:,} is no known base; {_ACGT}")
    return prompt


@torch.inference_mode()
def sample(model: CausalLM, prompt: np.ndarray, config: GenerateConfig, *, progress: bool = False) -> np.ndarray:
    """Sample ``config.count`` continuations of a prompt.

    Args:
        model: in evaluation mode.
        prompt: uint8 tokens (n,), possibly none.
        config: settings; the same seed gives the same bases on the same hardware.

    Returns:
        uint8 tokens (count, length), without the prompt.
    """
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(config.seed)
    logits, state = _prefill(model, prompt, device)
    logits, state = logits.expand(config.count, -1), state.rows([0] * config.count)
    sampled = np.empty((config.count, config.length), dtype=np.uint8)
    graphed = GraphedStep(model, state) if config.length > 1 else None
    for i in tqdm(range(config.length), desc="sampling", unit="b", delay=1, disable=not progress):
        tokens = draw(logits, config.temperature, config.top_k, random)
        sampled[:, i] = tokens.numpy()
        if graphed is not None and i + 1 < config.length:
            logits = graphed.step(tokens)
    return sampled


def draw(logits: Tensor, temperature: float, top_k: int, random: torch.Generator) -> Tensor:
    """Draw one base for each row: (b, vocab_size) -> tokens int64 (b,), on the CPU.

    On the CPU in float64, so that a seed means the same draw on every device that gives the same logits.
    """
    scores = logits[:, BASES].double().cpu() / temperature
    smallest = scores.topk(top_k, dim=-1).values[:, -1:]
    scores = scores.masked_fill(scores < smallest, float("-inf"))
    return torch.multinomial(scores.softmax(-1), 1, generator=random).squeeze(-1) + BASES.start


def _prefill(model: CausalLM, prompt: np.ndarray, device: torch.device) -> tuple[Tensor, State]:
    """Read BOS and the prompt: logits (1, vocab_size) of the base after it, and the state."""
    tokens = torch.from_numpy(np.concatenate([[BOS], prompt]).astype(np.int64))[None].to(device)
    state = model.init_state(1, device)
    for piece in tokens.split(_PREFILL, dim=1):
        logits, state = model(piece, state)
    return logits[:, -1], state
