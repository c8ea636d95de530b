"""Training a forecaster: from settings and series to a model folder.

With a prepared store this runs where there is no more than PyTorch, Lightning, numpy, scipy, safetensors and PyYAML::

    python -m domains.timeseries.train --config train.yaml --run-dir runs/one
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from domains.batches import BatchesDataModule
from domains.config import FREE_TRAINER_KEYS
from domains.session import TrainResult, command_line, open_session, seeded
from domains.timeseries.config import TrainConfig
from domains.timeseries.data import TrainBatches, ValidationBatches, check_data
from domains.timeseries.model import build_model
from domains.timeseries.module import ForecastTask
from domains.timeseries.scaler import Scaler
from domains.timeseries.splits import make_splits, splits_from_dict
from domains.timeseries.store import open_store
from domains.timeseries.trained import describe_data, save_model

DOMAIN = "timeseries"
FREE_ON_RESUME = FREE_TRAINER_KEYS | {"data.path", "data.store", "data.stores", "data.workers"}


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
    session = open_session(
        DOMAIN, config, run_dir, resume=resume, overwrite=overwrite, free=FREE_ON_RESUME, one_device=True
    )
    store = open_store(config.data, progress)
    if resume:
        recorded: Mapping[str, object] = session.recorded_data(store.fingerprint, store.source_name, "table of series")
        splits = splits_from_dict(store, dict(recorded["splits"]), str(session.run.splits_path))  # type: ignore[call-overload]
    else:
        splits = make_splits(store, config.data)
    scaler = Scaler.fit(store, splits)
    model = seeded(lambda: build_model(scaler.shape, config), config.seed)
    total = config.trainer.max_steps * config.trainer.accumulate
    batches = TrainBatches(store, splits, scaler.clock, config.data, total, config.seed)
    validation = ValidationBatches(store, splits, scaler.clock, config.data)
    found = ", found prepared" if store.reused else ""
    return session.train(
        ForecastTask(model, config.trainer),
        BatchesDataModule(batches, validation, config.trainer.accumulate, config.data.workers),
        describe_data(store, splits),
        partial(save_model, scaler=scaler, store=store, splits=splits),
        announce=(f"{store.source_name}: {store.summary()}{found}", splits.note),
        loggers=loggers,
        callbacks=callbacks,
        progress=progress,
        command=command,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m domains.timeseries.train``; returns the exit code."""
    return command_line(DOMAIN, TrainConfig, train, (__doc__ or "").split("\n")[0], arguments)


if __name__ == "__main__":
    sys.exit(main())
