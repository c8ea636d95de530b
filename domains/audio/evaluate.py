"""A model of sound on what was held out from it, its baselines beside it.

With a prepared store this runs where training does (and with scikit-learn, scipy and torchaudio, for the baselines)::

    python -m domains.audio.evaluate --model runs/one/model --store stores/clips-0123456789ab --json evaluation.json
    python -m domains.audio.evaluate --pool fold1.json fold2.json fold3.json        # of models trained on folds
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from domains.audio.bits import BitsEvaluation, predict_clips
from domains.audio.config import EvaluateConfig
from domains.audio.naming import NamingEvaluation, name_clips
from domains.audio.pooled import Pooled, pool
from domains.audio.store import AudioStore
from domains.audio.trained import GENERATE, check_clips, load_model
from domains.config import MANY, check_range
from domains.errors import UserError
from domains.folder import read_json, write_json
from domains.hardware import choose_device, describe_hardware

Evaluation = NamingEvaluation | BitsEvaluation


def evaluate(
    model_dir: Path | str, store: AudioStore, config: EvaluateConfig, *, device: str = "auto", progress: bool = True
) -> Evaluation:
    """Score a model and its baselines on the test clips.

    Raises:
        UserError: the model folder is not complete, the clips are others, or a setting makes no sense.
    """
    check_config(config)
    target = choose_device(device)
    loaded = load_model(model_dir, str(target))
    check_clips(loaded, store)
    about = {
        "source": store.source_name,
        "fingerprint": store.fingerprint,
        "model_sha256": loaded.hash,
        "seed": loaded.config.seed,
        "hardware": describe_hardware(target),
    }
    run = predict_clips if loaded.sound.kind == GENERATE else name_clips
    return run(loaded, store, config, about, progress)


def check_config(config: EvaluateConfig) -> None:
    """Make sure that the values make sense; a UserError names the first that does not."""
    check_range("max_seconds", config.max_seconds, 0.01, 86_400)
    check_range("chunk", config.chunk, 1, MANY)
    check_range("resamples", config.resamples, 1, 1_000_000)
    for context in config.contexts:
        check_range("contexts", context, 1, MANY)
    if config.max_samples is not None:
        check_range("max_samples", config.max_samples, 1, MANY)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m domains.audio.evaluate``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m domains.audio.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", type=Path, help="model folder")
    parser.add_argument("--store", type=Path, help="the prepared clips that it was trained on")
    parser.add_argument("--pool", type=Path, nargs="+", help="evaluations of folds and seeds, to take together")
    parser.add_argument("--json", type=Path, help="where to write all of it")
    parser.add_argument("--contexts", type=int, nargs="*", default=[], help="of a generator: forget every so often")
    parser.add_argument("--max-samples", type=int, help="of a generator: predict at most this many")
    parser.add_argument("--device", default="auto", help="auto, cpu or gpu")
    options = parser.parse_args(arguments)
    if not options.pool and not (options.model and options.store):
        parser.error("--model and --store are needed, or --pool")
    try:
        found: Evaluation | Pooled
        if options.pool:
            found = pool([read_json(path) for path in options.pool])
        else:
            config = EvaluateConfig(contexts=options.contexts, max_samples=options.max_samples)
            found = evaluate(options.model, AudioStore.open(options.store), config, device=options.device)
        if options.json:
            write_json(options.json, found.to_dict())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(found.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
