"""Training a model of sound: from settings and clips to a model folder.

With a prepared store this runs where there is no more than PyTorch, torchaudio (for spectrograms and changes of speed),
Lightning, numpy, safetensors and PyYAML::

    python -m domains.audio.train --config train.yaml --run-dir runs/one
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from domains.audio.config import TrainConfig
from domains.audio.data import AudioDataModule, check_data
from domains.audio.models.generator import Generator
from domains.audio.module import make_task
from domains.audio.pretrained import adopt, load_pretrained, notes
from domains.audio.splits import Splits, make_splits
from domains.audio.store import open_store
from domains.audio.trained import GENERATE, Sound, build_model, check_task, describe_data, save_model
from domains.config import FREE_TRAINER_KEYS
from domains.pretrained import check_same
from domains.session import TrainResult, command_line, open_session, seeded

DOMAIN = "audio"
FREE_ON_RESUME = FREE_TRAINER_KEYS | {
    "data.root",
    "data.manifest",
    "data.store",
    "data.stores",
    "data.workers",
    "task.pretrained",
}


def train(
    config: TrainConfig,
    run_dir: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    command: str | None = None,
) -> TrainResult:
    """Train a model, or go on with a run that was stopped or killed; arguments as in domains.genomics.train.

    Raises:
        UserError: a mistake in settings, data or folder, or a loss that is not finite.
        Terminated: SIGTERM came; a checkpoint holds all the work.
        KeyboardInterrupt: Ctrl-C; a checkpoint holds all the work once training has begun.
    """
    check_data(config.data)
    check_task(config)
    config = adopt(config, run_dir if resume else None)
    session = open_session(
        DOMAIN, config, run_dir, resume=resume, overwrite=overwrite, free=FREE_ON_RESUME, one_device=True
    )
    store = open_store(config.data, progress)
    generate = config.task.kind == GENERATE
    recorded = session.recorded_data(store.fingerprint, store.source_name, "set of clips") if resume else None
    if recorded is not None:
        splits = Splits.from_dict(recorded.get("splits", {}))
    else:
        splits = make_splits(store, config.data, labelled=not generate)
    sound = Sound.of(store, config)
    model = seeded(partial(build_model, config, sound), config.seed)
    described, started = describe_data(store, splits), []
    if config.task.pretrained and not session.begun:
        described["pretrained"] = load_pretrained(model, config, store, splits)
        check_same(described["pretrained"], recorded)
        started = notes(described["pretrained"])
    steps, accumulate = config.trainer.max_steps, config.trainer.accumulate
    multiple = 1 if isinstance(model, Generator) else model.stride
    found = ", found prepared" if store.reused else ""
    return session.train(
        make_task(model, config),
        AudioDataModule(store, splits, config.data, generate, steps, accumulate, config.seed, multiple),
        recorded or described,
        partial(save_model, sound=sound),
        announce=(f"{store.source_name}: {store.summary()}{found}", splits.note, *splits.warnings, *started),
        loggers=loggers,
        callbacks=callbacks,
        progress=progress,
        command=command,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m domains.audio.train``; returns the exit code (see domains.session.command_line)."""
    return command_line(DOMAIN, TrainConfig, train, (__doc__ or "").split("\n")[0], arguments)


if __name__ == "__main__":
    sys.exit(main())
