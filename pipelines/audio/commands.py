"""The audio commands: each takes its configuration and does its work through domains.audio.

What is slow to import is imported where it is used, so that a mistake in the configuration is told at once.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from domains.audio.config import EvaluateConfig, GenerateConfig, PredictConfig, SourceConfig, TrainConfig
from domains.errors import UserError
from domains.words import counted
from pipelines.audio.roots import EvaluateRoot, GenerateRoot, PredictRoot, PrepareRoot, TrainRoot, WhereConfig
from pipelines.cli import Invocation, Outcome
from pipelines.commands import Training, evaluate_command, import_command, kind_of_run, train_command
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
    measure="nats a clip",
)
_GENERATING = replace(TRAINING, metric="validation/bits_per_sample", measure="bits per sample")


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
    kind = root.task.kind if root.resume is None else kind_of_run(invocation, TrainConfig, root.resume, root.tracking)
    return train_command(_GENERATING if kind == "generate" else TRAINING, root, invocation)


def evaluate(root: EvaluateRoot, invocation: Invocation) -> Outcome:
    """A model beside its baselines, on what was held out from it."""
    from domains.audio import evaluate as evaluation
    from domains.audio.bits import BitsEvaluation
    from pipelines.audio.report import draw_evaluation

    onward: list[str] = []  # what the model is good for is known once it has been read

    def measure(place: "ModelPlace") -> "Evaluation":
        store = _training_clips(place, root.data)
        found = evaluation.evaluate(place.folder, store, narrow(EvaluateConfig, root), device=root.device)
        draws = isinstance(found, BitsEvaluation)
        onward.append(
            f"generate model={root.model} seconds=2 out=samples/"
            if draws
            else f"predict model={root.model} data.root=<recordings> out=labels/"
        )
        return found

    return evaluate_command(root, invocation, measure, draw_evaluation, onward)


def predict(root: PredictRoot, invocation: Invocation) -> Outcome:
    """Labels of recordings, with their times."""
    from domains.audio import predict as prediction
    from pipelines.places import find_model, output_folder

    if not root.data.root and not root.data.manifest:
        raise UserError("data.root is missing; give data.root=<folder of recordings, or a file>, or data.manifest")
    place = find_model(root.model, root.tracking)
    out = output_folder(root.out)
    source = SourceConfig(root=root.data.root, manifest=root.data.manifest)
    done = prediction.predict(place.folder, source, out, narrow(PredictConfig, root), device=root.device)
    before = f", {len(done.skipped):,} done before" if done.skipped else ""
    lines = [
        f"labels: {done.out} ({counted(len(done.written), 'recording')}{before}; "
        f"in all {counted(done.sounds, 'sound')} in {done.seconds:,.1f} s of recordings)"
    ]
    for reason, count in sorted(done.rejects.items()):
        lines.append(f"  {counted(count, 'file')} kept aside: {reason} (see {out / prediction.REJECTS})")
    return Outcome("\n".join(lines), (f"read {out}/labels-*.{root.table}",))


def generate(root: GenerateRoot, invocation: Invocation) -> Outcome:
    """Sounds drawn from a generator."""
    from domains.audio import generate as generation
    from pipelines.audio.players import PAGE, write_players
    from pipelines.audio.report import SAMPLES
    from pipelines.jobs import track_files
    from pipelines.places import find_model, output_folder

    place = find_model(root.model, root.tracking)
    out = output_folder(root.out)
    sounds = generation.generate(place.folder, out, narrow(GenerateConfig, root), device=root.device)
    listener = track_files(invocation, root.tracking, place, write_players(out, sounds), SAMPLES)
    told = f"sounds: {sounds[0]}" + (f" to {sounds[-1].name}" if len(sounds) > 1 else "")
    return Outcome("\n".join([told, *listener.where]), (f"open {out / PAGE} in a browser", *listener.look))


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
