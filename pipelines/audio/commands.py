"""The audio commands: each takes its configuration and does its work through domains.audio.

What is slow to import is imported where it is used, so that a mistake in the configuration is told at once.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from domains.audio.config import EvaluateConfig, TrainConfig
from pipelines.audio.roots import EvaluateRoot, PrepareRoot, TrainRoot, WhereConfig
from pipelines.cli import Invocation, Outcome
from pipelines.commands import Training, evaluate_command, import_command, train_command
from pipelines.config import ImportRunRoot, narrow

if TYPE_CHECKING:
    from domains.audio.evaluate import Evaluation
    from domains.audio.store import AudioStore
    from pipelines.places import ModelPlace

TRAINING = Training(
    config=TrainConfig,
    module="domains.audio.train",
    report="pipelines.audio.report:REPORT",
    metric="validation/loss",
    measure="nats",
)


def prepare(root: PrepareRoot, invocation: Invocation) -> Outcome:
    """Clips into a store."""
    from domains.audio.store import open_store

    store = open_store(root.data)
    how = "found prepared already" if store.reused else "prepared"
    return Outcome(
        f"store: {store.path} ({how}; {store.summary()})", (invocation.next(f"train data.store={store.path}"),)
    )


def train(root: TrainRoot, invocation: Invocation) -> Outcome:
    """A new run, or an interrupted one to its end."""
    return train_command(TRAINING, root, invocation)


def evaluate(root: EvaluateRoot, invocation: Invocation) -> Outcome:
    """A model beside its baselines, on what was held out from it."""
    from domains.audio import evaluate as evaluation
    from pipelines.audio.report import draw_evaluation

    def measure(place: "ModelPlace") -> "Evaluation":
        store = _training_clips(place, root.data)
        return evaluation.evaluate(place.folder, store, narrow(EvaluateConfig, root), device=root.device)

    return evaluate_command(root, invocation, measure, draw_evaluation, ())


def import_run(root: ImportRunRoot, invocation: Invocation) -> Outcome:
    """A run folder into MLflow."""
    return import_command(TRAINING, root, invocation)


def _training_clips(place: "ModelPlace", where: WhereConfig) -> "AudioStore":
    """The clips that a model was trained on: where the user says, where they were, or among the prepared ones here."""
    from domains.audio.store import AudioStore, open_store
    from domains.audio.trained import read_record
    from pipelines.places import find_training_data

    trained = read_record(place.folder)
    if where.root or where.manifest or where.store:
        data = trained.config.data
        return open_store(
            replace(data, root=where.root, manifest=where.manifest, store=where.store, stores=where.stores)
        )
    return find_training_data(place, trained, where.stores, open_store, AudioStore.open, key="data.root")
