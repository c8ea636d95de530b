"""Lightning's side of recording: a training run reports while it runs."""

import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from pipelines.recorder import Recorder


class Relay(Logger):
    """A Lightning logger that hands each row of metrics to a recorder."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Hand on one row; returns at once."""
        self._recorder.metrics(metrics, step or 0, time.time())

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the recorder has the settings from its beginning."""


class Opening(Callback):
    """Begins the record when training begins: not before everything that can be a user's mistake has been checked.

    Args:
        recorder: the recorder.
        settings: of the run, as nested plain values.
        tags: called when the run folder stands, which says what the run runs on.
    """

    def __init__(self, recorder: Recorder, settings: Mapping[str, Any], tags: Callable[[], Mapping[str, str]]) -> None:
        self._recorder = recorder
        self._settings = settings
        self._tags = tags

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._recorder.begin(self._settings, self._tags())
